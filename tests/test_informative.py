"""Informative scores against plain autograd: sums, and the token to which they are assigned."""

import copy

import pytest
import torch
from helpers.comparisons import (
    CONVENTIONS,
    EXACT,
    HEADS,
    LAYERS,
    assert_same,
    exact_scores,
    of,
    padded,
    runs,
    scored,
    split,
)
from helpers.oracle import Seen, blocks, head_columns, ids_of, reward_of, watching
from helpers.tiny import FAMILIES, N_LENGTHS, OTHERS, PROMPTS, SHAPES, double_throughout, plain_pair
from helpers.untied import (
    InformativeOracle,
    Moved,
    changes,
    informative_oracle,
    rest_of,
    untied,
)
from torch import Tensor
from transformers import PreTrainedModel

from ecstruct.scores.result import ExtractiveScores

pytestmark = pytest.mark.tl3


def assert_sum_rules(scores: ExtractiveScores, oracle: InformativeOracle, tolerance: float) -> None:
    definition = scores.attrs["options"]["convention"] == "definition"
    mlp, heads = of(scores, "informative").sum(-1), of(scores, "informative", "heads").sum(-1)
    assert_same(mlp, oracle.mlp + (oracle.ln2 if definition else 0), tolerance)
    assert_same(heads, oracle.heads + (oracle.ln1 if definition else 0), tolerance)
    expected = {group: value for group, value in oracle.rest.items() if value.any()}
    if not definition and oracle.ln2.any():
        expected["pre_norm"] = oracle.ln2.sum(1) + oracle.ln1.sum((1, 2))
    rest = rest_of(scores)
    assert rest.keys() == expected.keys()
    for group, value in expected.items():
        assert_same(rest[group], value, tolerance)
    everything = mlp.sum(1) + heads.sum((1, 2)) + sum(rest.values())
    assert_same(everything, oracle.total, tolerance)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("family", FAMILIES + OTHERS)
def test_informative_sums_to_the_gradient_along_the_change(family, convention):
    assert_sum_rules(exact_scores(family, convention), informative_oracle(family), EXACT)


@pytest.mark.parametrize("family", SHAPES)
def test_the_sum_rule_survives_float32_islands(family):
    tolerance = {"gpt2": EXACT, "neox": 2e-7}.get(family, 3e-6)  # NeoX: the softmax alone
    assert_sum_rules(scored(family), informative_oracle(family), tolerance)


def written(plain: PreTrainedModel, layer: int, prompt) -> dict[str, Tensor]:
    """What the heads of a layer hand to its output projection (z), and what its MLP writes."""
    block = blocks(plain)[layer]
    with torch.no_grad(), watching({"o": block.o, "mlp": block.mlp}) as seen:
        plain(input_ids=ids_of(prompt), use_cache=False)
    return {"z": seen["o"].input, "mlp": seen["mlp"].output}


def through_output(before: PreTrainedModel, after: PreTrainedModel, layer: int, seen: Seen) -> Tensor:
    """g_o . z_h dW_O^h, [head, token]: the output projection's part of I."""
    o, other = blocks(before)[layer].o, blocks(after)[layer].o
    d_weight = (other.weight - o.weight).detach()
    z, g = split(seen.input.detach()), seen.output.grad[0]
    return torch.stack([(z[h] @ head_columns(o, d_weight, h).T * g).sum(-1) for h in HEADS])


@pytest.mark.parametrize("family", SHAPES + OTHERS)
def test_informative_is_booked_where_the_component_writes(family):
    """g . dy with dy by central differences: what a component writes at each token when its weights and
    its pre-norm move. Moving those of all heads of a layer at once moves every z by its own alone."""
    before, after = plain_pair(family)
    moving = copy.deepcopy(before)
    step = 1e-4
    heads, mlps = [], []
    for prompt, (old, _) in zip(PROMPTS[:N_LENGTHS], runs(family)[:N_LENGTHS], strict=True):
        of_heads, of_mlps = [], []
        for layer in LAYERS:
            block, other = blocks(moving)[layer], blocks(after)[layer]
            parts = {
                "z": [(b.ln1, *b.qkv, *b.qk_norms) for b in (block, other)],
                "mlp": [(b.ln2, b.mlp) for b in (block, other)],
            }
            for part, modules in parts.items():
                pairs = [pair for pair in zip(*modules, strict=True) if None not in pair]
                move = Moved([change for pair in pairs for change in changes(*pair)])
                sides = {}
                with double_throughout():
                    for sign in (1, -1):
                        move.to(sign * step)
                        sides[sign] = written(moving, layer, prompt)[part]
                move.to(0.0)
                dy = (sides[1] - sides[-1]) / (2 * step)
                if part == "mlp":
                    of_mlps.append((dy * old[layer, "mlp"].output.grad)[0].sum(-1))
                else:
                    inside = (split(dy) * split(old[layer, "o"].input.grad)).sum(-1)
                    of_heads.append(inside + through_output(before, after, layer, old[layer, "o"]))
        heads.append(torch.stack(of_heads))
        mlps.append(torch.stack(of_mlps))
    scores = exact_scores(family)
    assert_same(of(scores, "informative")[:N_LENGTHS], padded(mlps), 1e-7)
    assert_same(of(scores, "informative", "heads")[:N_LENGTHS], padded(heads), 1e-7)


@pytest.mark.parametrize("family", SHAPES + OTHERS)
def test_informative_by_the_reference_is_booked_where_a_weight_multiplies(family):
    """dR/d(output) . (output under the new weights - output) of every head's own copies, at their own
    tokens; outputs are affine in their weights."""
    before, after = plain_pair(family)
    free, heads, heads_after = untied(family, 0).plain, untied(family, 0).heads, untied(family, 1).heads
    found = []
    for prompt, (old, _) in zip(PROMPTS[:N_LENGTHS], runs(family)[:N_LENGTHS], strict=True):
        modules = {
            (layer, h, n): module
            for layer in LAYERS
            for h in HEADS
            for n, module in heads[layer][h].parts.items()
        }
        with double_throughout(), watching(modules) as seen:
            reward_of(free, prompt).backward()
        rows = []
        for layer in LAYERS:
            row = through_output(before, after, layer, old[layer, "o"])
            for h in HEADS:
                for n, new in heads_after[layer][h].parts.items():
                    at = seen[layer, h, n]
                    with double_throughout(), torch.no_grad():
                        along_change = new(at.input) - at.output
                    row[h] += (at.output.grad * along_change).sum(-1)[0]
            rows.append(row)
        found.append(torch.stack(rows))
    assert_same(of(exact_scores(family, "reference"), "informative", "heads")[:N_LENGTHS], padded(found))
