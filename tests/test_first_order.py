"""I and D are the linear forms of their causal scores; the identity of all three."""

from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.comparisons import HEADS, LAYERS, PAPER, at_new_inputs, exact_scores, of, split
from helpers.oracle import blocks, head_columns, reward_of, watch
from helpers.tiny import (
    D_HEAD,
    N_HEADS,
    OTHERS,
    PROMPTS,
    SHAPES,
    double_throughout,
    hooked_pair,
    mix,
    plain_pair,
)
from helpers.untied import (
    Moved,
    changes,
    untied,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from ecstruct.models.delta import WeightDelta
from ecstruct.scores.engine import score


def rates(errors: list[np.ndarray]) -> np.ndarray:
    """By how much the error of each component (axis 1 on) falls when the step is halved."""
    sizes = [np.sqrt((e**2).sum(0)) for e in errors]
    return np.stack([a / b for a, b in pairwise(sizes)])


STEPS = (4e-4, 2e-4)
"""Of dW, so small that no value crosses a clip on the way."""


@pytest.mark.parametrize("family", ["gemma2", "gptj"])
def test_informative_is_what_new_weights_of_a_component_do_to_first_order(family):
    """Eq. 1, R[W_C <- W_C + step dW_C] - R: relative to I, the error falls linearly with the step."""
    old, new = untied(family, 0), untied(family, 1)
    free, moves = old.plain, []
    for layer, (block, other) in enumerate(zip(old.blocks, new.blocks, strict=True)):
        d_o = other.o.weight.detach() - block.o.weight.detach()
        for h in HEADS:
            cut = head_columns(block.o, block.o.weight.data, h), head_columns(block.o, d_o, h)
            moves.append(Moved([*changes(old.heads[layer][h], new.heads[layer][h]), cut]))
        norm = changes(block.ln2, other.ln2) if block.ln2 and other.ln2 else []
        moves.append(Moved(changes(block.mlp, other.mlp) + norm))
    at = np.zeros((len(STEPS), len(PROMPTS), len(moves)))
    with double_throughout(), torch.no_grad():
        there = np.array([reward_of(free, p) for p in PROMPTS])
        for m, move in enumerate(moves):
            for s, step in enumerate(STEPS):
                move.to(step)
                at[s, :, m] = [reward_of(free, p) for p in PROMPTS]
            move.to(0.0)
    scores = exact_scores(family)
    linear = np.concatenate(
        [of(scores, "informative", "heads").sum(-1), of(scores, "informative").sum(-1)[..., None]], -1
    ).reshape(len(PROMPTS), -1)
    errors = [(at[s] - there[:, None]) / step - linear for s, step in enumerate(STEPS)]
    assert np.abs(errors[-1]).max() < 1e-3 * np.abs(linear).max()
    np.testing.assert_allclose(rates(errors), 2, rtol=0.01)


@pytest.mark.parametrize("family", ["gemma2", "gptj"])
def test_downstream_is_what_the_new_input_of_a_component_does_to_first_order(family):
    """Eq. 2, R[y_C <- f_C(z'_C, W_C)] - R, with z' from W + step dW."""
    plain, plain_after = plain_pair(family)
    model, model_after = hooked_pair(family)
    delta = WeightDelta.between(model, model_after)
    errors = []
    for step in STEPS:
        with double_throughout():
            scores = score(model, step * delta, PROMPTS, progress=False)
        linear = np.concatenate(
            [of(scores, "downstream", "heads").sum(-1), of(scores, "downstream").sum(-1)[..., None]], -1
        )
        causal = np.zeros_like(linear)
        for i, prompt in enumerate(PROMPTS):
            with double_throughout():
                _, new = watch(mix(plain, plain_after, step), prompt)
                for layer in LAYERS:
                    z, y = at_new_inputs(plain, new, layer)
                    for component in range(N_HEADS + 1):
                        with patched(plain, layer, component, z, y):
                            causal[i, layer, component] = reward_of(plain, prompt).detach()
                causal[i] -= reward_of(plain, prompt).item()
        errors.append((causal - linear).reshape(len(PROMPTS), -1) / step)
        assert np.abs(errors[-1]).max() < 1e-3 * np.abs(linear / step).max()
    np.testing.assert_allclose(rates(errors), 2, rtol=0.01)


@contextmanager
def patched(plain: PreTrainedModel, layer: int, component: int, z: Tensor, y: Tensor):
    """One head's z, or (component N_HEADS) the MLP's output, replaced."""
    block = blocks(plain)[layer]

    def replace_head(_module: nn.Module, args: tuple[Tensor]) -> Tensor:
        mixed = args[0].clone()
        mixed[..., component * D_HEAD : (component + 1) * D_HEAD] = split(z)[component]
        return mixed

    if component < N_HEADS:
        handle = block.o.register_forward_pre_hook(replace_head)
    else:
        handle = block.mlp.register_forward_hook(lambda *_: y)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("family", SHAPES + OTHERS)
def test_the_attribution_changes_by_the_sum_of_the_three_scores(family):
    """Appendix A: what is left over is of second order, a quarter when the step is halved."""
    model, model_after = hooked_pair(family)
    delta = WeightDelta.between(model, model_after)
    with double_throughout():
        by_step = [score(model, step * delta, PROMPTS, progress=False, **PAPER) for step in STEPS]
    for part in ("mlp", "heads"):
        left = []
        for scores in by_step:
            old, new = (of(scores, "", f"attribution_{part}", state) for state in ("before", "after"))
            three = sum(of(scores, kind, part) for kind in ("informative", "upstream", "downstream"))
            left.append(np.moveaxis(new - old - three, -1, 1).reshape(-1, *three.shape[2:-1]))
        np.testing.assert_allclose(rates(left), 4, rtol=0.01)
