"""Weights changed in memory to NaN, and runs that overflow: recall and subnetworks refuse both, as argmax
of NaN would be an answer like any other."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.recall_cases import SUBJECTS
from helpers.tiny import N_HEADS, N_LAYERS, hooked, plain_pair
from transformer_lens.model_bridge import TransformerBridge

from ecstruct import InputError, alignment, causal_scores, recall, score, subnetworks
from ecstruct.models.bridge import named_weights
from ecstruct.models.finite import check_weight

MASKS = np.ones((2, N_LAYERS, N_HEADS), bool), np.ones((2, N_LAYERS), bool)


def masks() -> subnetworks.Masks:
    heads, mlp = (part.copy() for part in MASKS)
    heads[:, :, 1:] = False
    values = subnetworks.Reference(
        torch.zeros(N_LAYERS, N_HEADS, 8, dtype=torch.float64), torch.zeros(N_LAYERS, 32)
    )
    return subnetworks.Masks.of(heads, mlp, reference=values)


def attributes(model: TransformerBridge) -> recall.Attributes:
    return recall.Attributes.from_facts(SUBJECTS, model)


RUNS: dict[str, Callable[[TransformerBridge], object]] = {
    "extraction": lambda model: recall.extraction(model, SUBJECTS, progress=False),
    "knockout": lambda model: recall.knockout(model, SUBJECTS, progress=False),
    "rate": lambda model: recall.attributes_rate(model, SUBJECTS, attributes(model), progress=False),
    "heads": lambda model: recall.extraction_heads(model, SUBJECTS, attributes(model), progress=False),
    "reference": lambda model: subnetworks.reference_values(model, SUBJECTS),
    "evaluate": lambda model: subnetworks.evaluate(model, masks(), SUBJECTS, progress=False),
    "dependence": lambda model: subnetworks.dependence(model, masks(), SUBJECTS, progress=False),
    "alignment": lambda model: alignment(model, SUBJECTS, SUBJECTS, progress=False),
    "score": lambda model: score(model, model, SUBJECTS, progress=False),
    "causal": lambda model: causal_scores(model, model, SUBJECTS, progress=False),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_weight_that_is_nan_is_refused_by_name(run):
    model = hooked(plain_pair("llama")[0])
    name = "blocks.1.mlp.out.weight"
    with torch.no_grad():
        named_weights(model)[name][0, 0] = torch.nan
    with pytest.raises(InputError, match=name):
        RUNS[run](model)


@pytest.mark.parametrize("run", ["extraction", "rate", "reference", "dependence", "alignment"])
def test_what_overflows_on_the_way_is_refused(run):
    """All weights are finite, but their products are not."""
    model = hooked(plain_pair("llama")[0], torch.float32)
    with torch.no_grad():
        named_weights(model)["blocks.0.attn.v.weight"].mul_(1e30)
        named_weights(model)["blocks.0.attn.o.weight"].mul_(1e30)
    with pytest.raises(InputError, match="NaN or infinite"):
        RUNS[run](model)


def test_a_sum_that_no_half_can_hold_is_finite() -> None:
    check_weight("a model", "w", torch.full((100_000,), 1.0, dtype=torch.float16))
    with pytest.raises(InputError, match="a model has NaN or infinite values in w"):
        check_weight("a model", "w", torch.tensor([1.0, torch.inf], dtype=torch.float16))
