"""Scores of the tiny models, the same quantities from plain models, and how the two are compared.

The oracle runs every prompt on its own, without padding and without hooks of TransformerLens.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ecstruct.scores.engine import score
from ecstruct.scores.result import ExtractiveScores
from helpers.oracle import Seen, blocks, normed, watch, watching
from helpers.tiny import (
    D_HEAD,
    N_HEADS,
    N_LAYERS,
    PROMPTS,
    double_throughout,
    hooked_pair,
    plain_pair,
)

LAYERS, HEADS = range(N_LAYERS), range(N_HEADS)
CONVENTIONS = ("definition", "reference")
PAPER = {"upstream": "surrogate", "propagation": "gradient"}
EXACT = 1e-11
"""The largest error, relative to the largest score, when a family is computed in float64 throughout."""


def scored(family: str, **options) -> ExtractiveScores:
    return score(*hooked_pair(family), PROMPTS, progress=False, **options)


@cache
def exact_scores(family: str, convention: str = "definition", baseline: str = "counterfactual"):
    """Score with the paper's upstream scores, which take two backward passes."""
    with double_throughout():
        return scored(family, convention=convention, baseline=baseline, **PAPER)


@cache
def runs(family: str) -> list[tuple[dict[tuple[int, str], Seen], dict[tuple[int, str], Seen]]]:
    """Return the inputs and outputs of plain modules for every prompt, under W and W', with gradients."""
    with double_throughout():
        before, after = plain_pair(family)
        return [(watch(before, p)[1], watch(after, p)[1]) for p in PROMPTS]


def of(scores: ExtractiveScores, kind: str, part: str = "mlp", state: str | None = None) -> np.ndarray:
    """Return the values of one score [prompt, layer, (head,) token], zero past the end of a prompt."""
    data = scores.dataset[part]
    chosen = data.sel(score=kind) if state is None else data.sel(state=state)
    return np.nan_to_num(chosen.values)


def assert_same(found, expected, tolerance: float = EXACT, least: float = 1e-4) -> None:
    """Check equality up to `tolerance` times the largest expected value (at least `least`)."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    scale = np.abs(expected).max()
    assert scale > least
    assert np.abs(found - expected).max() <= tolerance * scale


def split(x: Tensor) -> Tensor:
    """Reshape [1, token, head * d_head] to [head, token, d_head]."""
    return x[0].unflatten(-1, (-1, D_HEAD)).transpose(0, 1)


def padded(rows: list[Tensor]) -> np.ndarray:
    """Stack tensors [..., token] of all prompts in one array, filled with zeros."""
    longest = max(row.shape[-1] for row in rows)
    return np.stack([nn.functional.pad(row.detach(), (0, longest - row.shape[-1])) for row in rows])


def at_new_inputs(
    before: PreTrainedModel, new: dict, layer: int, convention: str = "definition"
) -> tuple[Tensor, Tensor]:
    """Return z of the heads and the output of the MLP when the components run under W on their inputs under
    W': the residual stream, or, by the convention "reference", the output of the pre-norm."""
    block = blocks(before)[layer]
    entering = {part: new[layer, part].input.detach() for part in ("ln1", "ln2", "attn", "mlp")}
    if convention == "definition":
        entering["attn"] = normed(block.ln1, entering["ln1"])
        entering["mlp"] = normed(block.ln2, entering["ln2"])
    kwargs = {k: v for k, v in new[layer, "attn"].kwargs.items() if k != "hidden_states"}
    with torch.no_grad(), watching({"o": block.o}) as seen:
        block.attn(entering["attn"], **kwargs)
        return seen["o"].input, block.mlp(entering["mlp"])
