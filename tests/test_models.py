"""Every architecture that TransformerLens hooks as a causal language model of text, on a random instance:
the walk against the plain Hugging Face model, and the sum rule; or why it is refused.

`python tests/test_models.py` writes what is found to docs/models.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.architectures import ARCHITECTURES, MODEL_TYPES, N_LAYERS, Architecture
from helpers.comparisons import CONVENTIONS, of
from helpers.oracle import ids_of, reward_of, watching
from helpers.tiny import PROMPTS, double_throughout, hooked, perturb, tokenizer
from helpers.untied import along
from torch import Tensor
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from ecstruct.errors import InputError
from ecstruct.facts.tokens import collate, tokenize
from ecstruct.io.files import write_text
from ecstruct.models.delta import WeightDelta
from ecstruct.models.edits import editing
from ecstruct.models.hooked import HookedView
from ecstruct.models.support import check_runs
from ecstruct.scores.engine import score
from ecstruct.scores.pair import Pair
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.reward import logit_diff
from ecstruct.scores.walk import Descent, Walk

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
TOLERANCE = 1e-12
SOME = PROMPTS[1:3]
"""Of different lengths."""


@dataclass(frozen=True)
class Finding:
    """Why an architecture is refused, or by how much numbers of a batch are off those of plain models,
    relative to the largest of their kind."""

    refused: str | None
    logits: float = math.nan
    gradient: float = math.nan
    sums: float = math.nan


@cache
def finding(architecture: Architecture) -> Finding:
    plain = architecture.build()
    with double_throughout(), double_by_default():
        try:
            model = hooked(plain)
        except InputError as error:
            return Finding(_reason(str(error), architecture))
        after = perturb(plain)
        return Finding(None, *walk_errors(model, plain), sum_error(model, hooked(after), plain, after))


@contextmanager
def double_by_default() -> Iterator[None]:
    """Some models make tensors of no dtype in particular."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def off(found: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    return float(abs(found - expected).max() / abs(expected).max())


def walk_errors(model: TransformerBridge, plain: PreTrainedModel) -> tuple[float, float]:
    """The worst errors of logits at the last token, and of the reward's gradient at the embedding."""
    view = HookedView(model)
    batch = collate(tokenize(SOME, tokenizer()), "cpu", pad_id=0)
    walk = Walk(view, view.weights(), [batch], keep_graphs=True)
    walk.up()
    logits: list[Tensor] = []

    def reward(read: Tensor) -> Tensor:
        logits.append(read[:, 0].detach())
        return logit_diff(read[:, 0], batch)

    descent = Descent(walk)
    descent.read_out(0, batch.lengths[:, None] - 1, reward)
    for layer in reversed(range(N_LAYERS)):
        descent.down(layer, 0, [], [])
    gradients = descent.to_embedding(0).d_output["embed"]
    assert_order(view, walk)

    of_logits, of_gradient = [], []
    for row, prompt in enumerate(SOME):
        plain.zero_grad()
        with watching({"embed": plain.get_input_embeddings()}) as seen:
            reward_of(plain, prompt).backward()
        with torch.no_grad():
            expected = plain(input_ids=ids_of(prompt), use_cache=False).logits[0, -1]
        of_logits.append(off(logits[0][row], expected))
        expected = seen["embed"].output.grad[0]
        of_gradient.append(off(gradients[row, : len(expected)], expected))
    return max(of_logits), max(of_gradient)


def assert_order(view: HookedView, walk: Walk) -> None:
    """What is late for attention, or for an MLP, is what reads anything else if it writes anything else."""
    resid, call = walk.resid(1, 0), walk.call(1, 0)
    usual = view.block(1, walk.weights, call, resid).taps
    sites = view.block_sites[1]
    for part, writer in (("attn", "attn.o"), ("mlp", "mlp.out")):
        with editing(sites, {}, {writer: lambda written: written + 1}, len(resid)):
            moved = view.block(1, walk.weights, call, resid).taps
        late = {name for name in sites if not torch.equal(moved[name].input, usual[name].input)}
        assert {*view.late_in_block(1, part)} == {w for name in late for w in sites[name].weights.values()}


def sum_error(
    model: TransformerBridge, model_after: TransformerBridge, plain: PreTrainedModel, after: PreTrainedModel
) -> float:
    """Of all informative scores and the rest, in both conventions, against plain <dR/dW, dW>."""
    expected = []
    for prompt in SOME:
        plain.zero_grad()
        reward_of(plain, prompt).backward()
        expected.append(along(plain, after))
    errors, pair = [], Pair.of(model, model_after).sessions
    for convention in CONVENTIONS:
        components, rest = informative(score(*pair, SOME, convention=convention, progress=False))
        found = components.sum(1) + rest.sum(1)
        errors.append(abs(found - np.array(expected)).max() / abs(components).max())
    unchanged = score(model, WeightDelta({}), SOME, progress=False)
    assert not any(values.any() for values in informative(unchanged))
    assert not of(unchanged, "upstream").any() and not of(unchanged, "downstream", "heads").any()
    return max(errors)


def informative(scores: ExtractiveScores) -> tuple[np.ndarray, np.ndarray]:
    """Of all components and tokens, and of the weights outside, [prompt, ...]."""
    parts = [of(scores, "informative", part).reshape(len(SOME), -1) for part in ("mlp", "heads")]
    return np.concatenate(parts, 1), scores.rest.values


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_numbers_are_those_of_the_plain_model_or_it_is_refused(architecture):
    found = finding(architecture)
    assert found.refused or max(found.logits, found.gradient, found.sums) < TOLERANCE


def test_every_architecture_of_text_is_tried():
    text = {name for name in SUPPORTED_ARCHITECTURES if name in MODEL_TYPES and "Conditional" not in name}
    assert {architecture.name for architecture in ARCHITECTURES} == text


def test_weights_that_nothing_names_are_found_in_any_block_and_outside():
    (llama,) = (a for a in ARCHITECTURES if a.name == "LlamaForCausalLM")
    for owner in ("model.layers.0.mlp", "model.layers.1.mlp", "model.norm"):
        model = hooked(llama.build())
        module = model.original_model.get_submodule(owner)
        stray = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        module.register_parameter("stray", stray)
        module.register_forward_hook(lambda _module, _args, output, stray=stray: output * stray)
        with pytest.raises(InputError, match=rf"weights in {owner}\.stray, which belong to no component"):
            check_runs(HookedView(model))


# --- The page ---

INTRODUCTION = """\
# Models

For those who ask whether their architecture is read: the list, with errors and reasons.

Decoders with query, key, value and output projections, also where a checkpoint fuses them or makes them of
latents (multi-head latent attention), and one MLP in every block: with pre-norms, post-norms or both, in
sequence or in parallel, with norms of queries and keys. A mixture of experts is one MLP; which experts a
token goes to is part of what it computes. Sinks of attention belong to their heads, and weights of an
activation to its MLP.
Everything that [TransformerLens](https://github.com/TransformerLensOrg/TransformerLens) hooks as a causal
language model of text, and that transformers has the code for, is below. What cannot be scored is refused
when it is loaded, with the reason given here.

This page is written by `python tests/test_models.py`, and held against what the tests find. Random models
of two layers are computed in float64 throughout; errors are relative to the largest number of their kind,
rounded up to a power of ten:

* **logits** of the walk, for a batch with padding, against the plain model, each prompt alone;
* **gradients** of the reward where tokens are embedded, against plain autograd;
* **sum rule**: all informative scores and the rest, in both conventions, against <dR/dW, dW> by autograd.

OLMo, OLMo-2, Llama, Gemma 2 and 3, Qwen2, Qwen3, GPT-2, GPT-NeoX, GPT-J, Command R+ and Mixtral are also
compared score by score with interventions on plain models ([scores](scores.md), [trust](trust.md)).

[Classifiers](classifiers.md) of these decoders are read as well, and of encoders BERT's and RoBERTa's.

[SmolLM2](smollm2.md), a Llama, was run end to end. Of some architectures [GGUF
files](own-checkpoints.md#gguf-files) are read as well.

## HookedTransformers

With TransformerLens 3.9 installed (`pip install ecstruct "transformer-lens<4"`) a `HookedTransformer` may
be given to `score` and `causal_scores` as it is, and `ecstruct.load(hooked)` makes of it a model for
everything else. Configuration and tokenizer are those of the checkpoint that it was made from
(`cfg.tokenizer_name`). Weights that were folded or centred are refused: load it by
`HookedTransformer.from_pretrained_no_processing`. For OLMo, Llama, Qwen3, GPT-2 and GPT-NeoX the scores are
exactly those of the checkpoint, for Gemma 2 within 1e-6 of the largest, as a HookedTransformer keeps its
gains as 1 + w (`pytest tests/test_hooked_transformer.py`). That version of TransformerLens does not hook
OLMo-2 and Command R+, which are refused then.
"""


def page() -> str:
    supported, refused = [], []
    for architecture in ARCHITECTURES:
        found = finding(architecture)
        options = "".join(f"<br>`{name}={value}`" for name, value in architecture.options.items())
        start = f"| `{architecture.name}`{options} | {architecture.models} |"
        if found.refused:
            refused.append(f"{start} {found.refused} |")
        else:
            errors = (found.logits, found.gradient, found.sums)
            supported.append(f"{start} {' | '.join(map(_power, errors))} |")
    tables = {
        "## Supported": [
            "| class | models | logits | gradients | sum rule |",
            "|---|---|---|---|---|",
            *supported,
        ],
        "## Refused": ["| class | models | reason |", "|---|---|---|", *refused],
    }
    return "\n".join(
        [INTRODUCTION, *(f"{title}\n\n" + "\n".join(rows) + "\n" for title, rows in tables.items())]
    )


def _power(error: float) -> str:
    return f"1e{math.ceil(math.log10(error))}" if error else "0"


def _reason(message: str, architecture: Architecture) -> str:
    """Of a refusal, without what is the same everywhere."""
    reason = message.removesuffix(".").removesuffix(": use another architecture")
    name = re.escape(architecture.name)
    reason = re.sub(rf"^({name} is a {name}, in which|this {name} has)|( of this|, a) {name}", "", reason)
    return reason.strip()


def test_the_page_says_what_is_found():
    """Which architectures are supported, and why others are not; errors differ from machine to machine."""
    found, committed = (re.sub(r"(1e-\d+|0)(?= \|)", "", text) for text in (page(), PAGE.read_text()))
    assert found == committed, "run python tests/test_models.py"


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_text(PAGE, page())
