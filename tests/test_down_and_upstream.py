"""Downstream and upstream scores against plain modules and two plain backward passes."""

import pytest
import torch
from helpers.comparisons import (
    CONVENTIONS,
    EXACT,
    HEADS,
    LAYERS,
    assert_same,
    at_new_inputs,
    exact_scores,
    of,
    padded,
    runs,
    split,
)
from helpers.interventions import baseline_value
from helpers.oracle import blocks, head_columns
from helpers.tiny import OTHERS, POST_NORMED, PROMPTS, SHAPES, double_throughout, plain_pair
from torch import Tensor, nn

pytestmark = pytest.mark.tl3

# --- D ---


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("family", SHAPES + OTHERS)
def test_downstream_is_the_component_called_on_its_new_input(family, convention):
    before, _ = plain_pair(family)
    heads, mlps = [], []
    for old, new in runs(family):
        of_heads, of_mlps = [], []
        for layer in LAYERS:
            with double_throughout():
                z, y = at_new_inputs(before, new, layer, convention)
            seen = old[layer, "o"]
            of_heads.append((split(z - seen.input) * split(seen.input.grad)).sum(-1).detach())
            mlp = old[layer, "mlp"]
            of_mlps.append(((y - mlp.output) * mlp.output.grad)[0].sum(-1).detach())
        heads.append(torch.stack(of_heads))
        mlps.append(torch.stack(of_mlps))
    scores = exact_scores(family, convention)
    assert_same(of(scores, "downstream"), padded(mlps))
    assert_same(of(scores, "downstream", "heads"), padded(heads))


# --- U ---


def by_head(o: nn.Module, gradient: Tensor) -> Tensor:
    """g_o W_O^hT, [head, token, d_head]."""
    return torch.stack([gradient @ head_columns(o, o.weight.detach(), h) for h in HEADS])


CASES = [(family, "definition", "counterfactual") for family in SHAPES + OTHERS]
CASES += [(family, "reference", "zero") for family in SHAPES]
CASES += [("gpt2", "definition", "mean"), ("gemma3", "definition", "zero")]


@pytest.mark.parametrize(("family", "convention", "baseline"), CASES)
def test_upstream_and_attribution_are_of_two_backward_passes(family, convention, baseline):
    before, after = plain_pair(family)
    u_heads, u_mlps, r_heads, r_mlps = ([[] for _ in PROMPTS] for _ in range(4))
    for layer in LAYERS:
        o, o_after = blocks(before)[layer].o, blocks(after)[layer].o
        all_z = [old[layer, "o"].input.detach()[0] for old, _ in runs(family)]
        all_y = [old[layer, "mlp"].output.detach()[0] for old, _ in runs(family)]
        for i, (old, new) in enumerate(runs(family)):
            z_star = split(baseline_value(baseline, i, all_z)[None])
            y_star = baseline_value(baseline, i, all_y)
            z, z_new = split(all_z[i][None]), split(new[layer, "o"].input.detach())
            y, y_new = all_y[i], new[layer, "mlp"].output.detach()[0]
            g, g_new = (run[layer, "mlp"].output.grad[0] for run in (old, new))
            g_o, g_o_new = (run[layer, "o"].output.grad[0] for run in (old, new))
            u_mlps[i].append(((g_new - g) * (y - y_star)).sum(-1))
            if convention == "definition":  # at what the head writes, with the original W_O
                d_z = by_head(o, g_o_new - g_o)
            else:  # at its z, each gradient through its own W_O
                d_z = split(new[layer, "o"].input.grad - old[layer, "o"].input.grad)
            u_heads[i].append((d_z * (z - z_star)).sum(-1))
            r_mlps[i].append((g_new * (y_new - y_star)).sum(-1))
            at_new = (by_head(o_after, g_o_new) * z_new).sum(-1)
            r_heads[i].append(at_new - (by_head(o, g_o_new) * z_star).sum(-1))
    scores = exact_scores(family, convention, baseline)
    assert_same(of(scores, "upstream"), padded([torch.stack(u) for u in u_mlps]))
    assert_same(of(scores, "upstream", "heads"), padded([torch.stack(u) for u in u_heads]))
    # Into a post-norm, a scale-free function, there is no gradient along what the MLP writes.
    least = 1e-8 if family in POST_NORMED and baseline == "zero" else 1e-4
    r_mlp = padded([torch.stack(r) for r in r_mlps])
    assert_same(of(scores, "", "attribution_mlp", "after"), r_mlp, EXACT * 1e-4 / least, least)
    assert_same(of(scores, "", "attribution_heads", "after"), padded([torch.stack(r) for r in r_heads]))
