"""The three linear scores against plain Hugging Face models, autograd and finite differences.

The oracle runs every prompt on its own, without padding and without hooks of TransformerLens.
"""

import copy
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import (
    D_HEAD,
    FAMILIES,
    N_HEADS,
    N_LAYERS,
    PROMPTS,
    Seen,
    assert_unchanged,
    blocks,
    double_throughout,
    first_ids,
    head_columns,
    hooked,
    hooked_pair,
    ids_of,
    mix,
    outside,
    plain_pair,
    reward_of,
    single_pair,
    state_of,
    tokenizer,
    watch,
    watching,
)
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ecstruct.errors import InputError
from ecstruct.models.delta import WeightDelta
from ecstruct.models.export import save_model
from ecstruct.models.hooked import named_weights
from ecstruct.scores import engine
from ecstruct.scores.engine import ScoreEngine, score
from ecstruct.scores.result import ExtractiveScores

LAYERS, HEADS = range(N_LAYERS), range(N_HEADS)
CONVENTIONS = ("definition", "reference")
EXACT = 1e-11
"""Largest error relative to the largest score, when a family is computed in double throughout."""


# --- Scores and comparisons ---


def scored(family: str, **options) -> ExtractiveScores:
    return score(*hooked_pair(family), PROMPTS, progress=False, **options)


@cache
def exact_scores(family: str, convention: str = "definition", baseline: str = "counterfactual"):
    with double_throughout():
        return scored(family, convention=convention, baseline=baseline)


@cache
def runs(family: str) -> list[tuple[dict[tuple[int, str], Seen], dict[tuple[int, str], Seen]]]:
    """What plain modules took and gave for every prompt, under W and under W', with gradients."""
    with double_throughout():
        return [tuple(watch(plain, p)[1] for plain in plain_pair(family)) for p in PROMPTS]


def of(scores: ExtractiveScores, kind: str, part: str = "mlp", state: str | None = None) -> np.ndarray:
    """The values of one score [prompt, layer, (head,) token], zero past the end of a prompt."""
    data = scores.dataset[part]
    chosen = data.sel(score=kind) if state is None else data.sel(state=state)
    return np.nan_to_num(chosen.values)


def assert_same(found, expected, tolerance: float = EXACT, least: float = 1e-4) -> None:
    """Equal up to `tolerance` times the largest expected value, which is no less than `least`."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    scale = np.abs(expected).max()
    assert scale > least
    assert np.abs(found - expected).max() <= tolerance * scale


def split(x: Tensor) -> Tensor:
    """[1, token, head * d_head] to [head, token, d_head]."""
    return x[0].unflatten(-1, (-1, D_HEAD)).transpose(0, 1)


def padded(rows: list[Tensor]) -> np.ndarray:
    """Tensors [..., token] of all prompts as one array, filled with zeros."""
    longest = max(row.shape[-1] for row in rows)
    return np.stack([nn.functional.pad(row.detach(), (0, longest - row.shape[-1])) for row in rows])


# --- I ---


class HeadCopy(nn.Module):
    """The weights of one head as its own: copies of the pre-norm and of its slices of Q, K and V."""

    def __init__(self, norm: nn.Module, slices: dict[str, tuple[Tensor, Tensor | None]]) -> None:
        super().__init__()
        self.norm = copy.deepcopy(norm)
        for name, (weight, bias) in slices.items():
            linear = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, dtype=weight.dtype)
            linear.weight.data = weight.clone()
            if bias is not None:
                linear.bias.data = bias.clone()
            setattr(self, name, linear)


class Projection(nn.Module):
    """A projection put together from the heads' own: `order` are (head, name of the slice)."""

    def __init__(self, heads: nn.ModuleList, order: list[tuple[int, str]]) -> None:
        super().__init__()
        self.heads, self.order = heads, order

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([getattr(self.heads[h], n)(self.heads[h].norm(x)) for h, n in self.order], -1)


def slices_of(plain: PreTrainedModel, attn: nn.Module, head: int) -> dict:
    """Weight [d_head, d_model] and bias of a query head's query, key and value."""

    def cut(module: nn.Module, start: int) -> tuple[Tensor, Tensor | None]:
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        rows = slice(start * D_HEAD, (start + 1) * D_HEAD)
        bias = None if module.bias is None else module.bias[rows].detach()
        return weight[rows].detach(), bias

    if plain.config.model_type == "gpt2":
        return {n: cut(attn.c_attn, i * N_HEADS + head) for i, n in enumerate("qkv")}
    if plain.config.model_type == "gpt_neox":
        return {n: cut(attn.query_key_value, 3 * head + i) for i, n in enumerate("qkv")}
    shared = head // attn.num_key_value_groups
    return {"q": cut(attn.q_proj, head), "k": cut(attn.k_proj, shared), "v": cut(attn.v_proj, shared)}


@cache
def untied(family: str, which: int) -> tuple[PreTrainedModel, list[nn.ModuleList]]:
    """The same function as the plain model, in which no two heads share a weight: every head has its
    own key, value and pre-norm. Tied embeddings are two as well."""
    plain = plain_pair(family)[which]
    free = copy.deepcopy(plain)
    unembed = free.get_output_embeddings()
    unembed.weight = nn.Parameter(unembed.weight.detach().clone())
    all_heads = []
    for block in blocks(free):
        attn = block.attn
        heads = nn.ModuleList(HeadCopy(block.ln1, slices_of(free, attn, h)) for h in HEADS)
        all_heads.append(heads)
        if free.config.model_type == "gpt2":
            attn.c_attn = Projection(heads, [(h, n) for n in "qkv" for h in HEADS])
        elif free.config.model_type == "gpt_neox":
            attn.query_key_value = Projection(heads, [(h, n) for h in HEADS for n in "qkv"])
        else:
            for n in "qkv":
                setattr(attn, f"{n}_proj", Projection(heads, [(h, n) for h in HEADS]))
            attn.num_key_value_groups = 1
        block.ln1.forward = lambda x: x
    return free, all_heads


def along(module: nn.Module, other: nn.Module) -> float:
    """<dR/dW, dW> of all weights of a module, dW being the change to `other`."""
    pairs = zip(module.parameters(), other.parameters(), strict=True)
    return sum(float((p.grad * (q - p).detach()).sum()) for p, q in pairs if p.grad is not None)


@dataclass
class InformativeOracle:
    """<dR/dW, dW> per prompt: of MLPs and heads without their pre-norms, of these, and of the rest."""

    mlp: np.ndarray
    ln2: np.ndarray
    heads: np.ndarray
    ln1: np.ndarray
    rest: dict[str, np.ndarray]
    total: np.ndarray


@cache
def informative_oracle(family: str) -> InformativeOracle:
    (before, after), n = plain_pair(family), len(PROMPTS)
    (free, heads), (free_after, heads_after) = (untied(family, which) for which in (0, 1))
    shape = n, N_LAYERS
    oracle = InformativeOracle(
        *(np.zeros(s) for s in (shape, shape, (*shape, N_HEADS), (*shape, N_HEADS))),
        rest=defaultdict(lambda: np.zeros(n)),
        total=np.zeros(n),
    )
    for i, prompt in enumerate(PROMPTS):
        before.zero_grad()
        with double_throughout():
            reward = reward_of(before, prompt)
            reward.backward()
            oracle.total[i] = along(before, after)
            free.zero_grad()
            free_reward = reward_of(free, prompt)
            free_reward.backward()
        torch.testing.assert_close(free_reward, reward, rtol=0, atol=1e-12)  # untying changes nothing
        for layer, (block, other) in enumerate(zip(blocks(free), blocks(free_after), strict=True)):
            oracle.mlp[i, layer], oracle.ln2[i, layer] = (
                along(block.mlp, other.mlp),
                along(block.ln2, other.ln2),
            )
            oracle.rest["post_norm"][i] += sum(map(along, block.post, other.post))
            o, o_after = block.o, other.o
            if o.bias is not None:
                oracle.rest["attn_bias"][i] += float(o.bias.grad @ (o_after.bias - o.bias).detach())
            product = o.weight.grad * (o_after.weight - o.weight).detach()
            for h in HEADS:
                own, new = heads[layer][h], heads_after[layer][h]
                oracle.ln1[i, layer, h] = along(own.norm, new.norm)
                oracle.heads[i, layer, h] = sum(along(getattr(own, n), getattr(new, n)) for n in "qkv")
                oracle.heads[i, layer, h] += float(head_columns(o, product, h).sum())
        others = outside(free_after)
        for name, module in outside(free).items():
            oracle.rest[name][i] += along(module, others[name])
    return oracle


def rest_of(scores: ExtractiveScores) -> dict[str, np.ndarray]:
    return {str(g): scores.rest.sel(group=g).values for g in scores.rest.group.values}


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
@pytest.mark.parametrize("family", FAMILIES)
def test_informative_sums_to_the_gradient_along_the_change(family, convention):
    assert_sum_rules(exact_scores(family, convention), informative_oracle(family), EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sum_rule_survives_float32_islands(family):
    tolerance = {"gpt2": EXACT, "neox": 2e-7}.get(family, 3e-6)  # NeoX: the softmax alone
    assert_sum_rules(scored(family), informative_oracle(family), tolerance)


class Moved:
    """Moves some weights of a plain model along dW, and puts them back."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """`pairs` of a weight (or a slice of one) and its change."""
        self.pairs = [(p.data, d.detach()) for p, d in pairs]
        self.kept = [p.clone() for p, _ in self.pairs]

    def to(self, step: float) -> None:
        for (p, d), kept in zip(self.pairs, self.kept, strict=True):
            p.copy_(kept + step * d)


def changes(module: nn.Module, other: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(p, q - p) for p, q in zip(module.parameters(), other.parameters(), strict=True)]


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


@pytest.mark.parametrize("family", FAMILIES)
def test_informative_is_booked_where_the_component_writes(family):
    """g . dy with dy by central differences: what a component writes at each token when its weights and
    its pre-norm move. Moving those of all heads of a layer at once moves every z by its own alone."""
    before, after = plain_pair(family)
    moving = copy.deepcopy(before)
    step = 1e-4
    heads, mlps = [], []
    for prompt, (old, _) in zip(PROMPTS, runs(family), strict=True):
        of_heads, of_mlps = [], []
        for layer in LAYERS:
            block, other = blocks(moving)[layer], blocks(after)[layer]
            inner = [(block.ln1, other.ln1), *zip(block.qkv, other.qkv, strict=True)]
            for part, pairs in ("z", inner), ("mlp", [(block.ln2, other.ln2), (block.mlp, other.mlp)]):
                move = Moved([change for pair in pairs for change in changes(*pair)])
                sides = {}
                with double_throughout():
                    for sign in (1, -1, 0):
                        move.to(sign * step)
                        sides[sign] = written(moving, layer, prompt)[part]
                dy = (sides[1] - sides[-1]) / (2 * step)
                if part == "mlp":
                    of_mlps.append((dy * old[layer, "mlp"].output.grad)[0].sum(-1))
                else:
                    inside = (split(dy) * split(old[layer, "o"].input.grad)).sum(-1)
                    of_heads.append(inside + through_output(before, after, layer, old[layer, "o"]))
        heads.append(torch.stack(of_heads))
        mlps.append(torch.stack(of_mlps))
    scores = exact_scores(family)
    assert_same(of(scores, "informative"), padded(mlps), 1e-7)
    assert_same(of(scores, "informative", "heads"), padded(heads), 1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_informative_by_the_reference_is_booked_where_a_weight_multiplies(family):
    """dR/d(output) . (dW x + db) of every head's own slices, at their own tokens."""
    before, after = plain_pair(family)
    (free, heads), (_, heads_after) = untied(family, 0), untied(family, 1)
    found = []
    for prompt, (old, _) in zip(PROMPTS, runs(family), strict=True):
        modules = {
            (layer, h, n): getattr(heads[layer][h], n) for layer in LAYERS for h in HEADS for n in "qkv"
        }
        with double_throughout(), watching(modules) as seen:
            reward_of(free, prompt).backward()
        rows = []
        for layer in LAYERS:
            row = through_output(before, after, layer, old[layer, "o"])
            for h in HEADS:
                for n in "qkv":
                    now, new, at = (
                        modules[layer, h, n],
                        getattr(heads_after[layer][h], n),
                        seen[layer, h, n],
                    )
                    along_change = at.input.detach() @ (new.weight - now.weight).T
                    if now.bias is not None:
                        along_change = along_change + (new.bias - now.bias)
                    row[h] += (at.output.grad * along_change).sum(-1)[0].detach()
            rows.append(row)
        found.append(torch.stack(rows))
    assert_same(of(exact_scores(family, "reference"), "informative", "heads"), padded(found))


# --- D ---


def at_new_inputs(
    before: PreTrainedModel, new: dict, layer: int, convention: str = "definition"
) -> tuple[Tensor, Tensor]:
    """z of the heads and output of the MLP, when the components are called under W on the inputs that
    they had under W': the residual stream or, by the reference, what came out of the pre-norm."""
    block = blocks(before)[layer]
    entering = {part: new[layer, part].input.detach() for part in ("ln1", "ln2", "attn", "mlp")}
    if convention == "definition":
        entering["attn"], entering["mlp"] = block.ln1(entering["ln1"]), block.ln2(entering["ln2"])
    kwargs = {k: v for k, v in new[layer, "attn"].kwargs.items() if k != "hidden_states"}
    with torch.no_grad(), watching({"o": block.o}) as seen:
        block.attn(entering["attn"], **kwargs)
        return seen["o"].input, block.mlp(entering["mlp"])


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
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

PREFIX = len(["<bos>", "people", "that"])
ENDS = [len(f"<bos> {p.text}".split()) - len(["knows", "speak"]) for p in PROMPTS]
"""Where the entity, which begins at `PREFIX`, ends."""


def counterpart(i: int, j: int, token: int) -> int:
    """The position of prompt j that stands where `token` stands in prompt i."""
    if token < PREFIX:
        return token
    if token >= ENDS[i]:
        return token - ENDS[i] + ENDS[j]
    return max(PREFIX, ENDS[j] - (ENDS[i] - token))


def baseline_of(kind: str, i: int, values: list[Tensor]) -> Tensor:
    """y* of prompt i by a plain loop; `values` [token, d] of all prompts."""
    if kind == "zero":
        return torch.zeros_like(values[i])
    others = range(len(PROMPTS))
    if kind == "counterfactual":
        others = [j for j in others if PROMPTS[j].answer != PROMPTS[i].answer]
    tokens = range(len(values[i]))
    return torch.stack([sum(values[j][counterpart(i, j, t)] for j in others) / len(others) for t in tokens])


def by_head(o: nn.Module, gradient: Tensor) -> Tensor:
    """g_o W_O^hT, [head, token, d_head]."""
    return torch.stack([gradient @ head_columns(o, o.weight.detach(), h) for h in HEADS])


@pytest.mark.parametrize("baseline", ["counterfactual", "mean", "zero"])
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_upstream_and_attribution_are_of_two_backward_passes(family, convention, baseline):
    before, after = plain_pair(family)
    u_heads, u_mlps, r_heads, r_mlps = ([[] for _ in PROMPTS] for _ in range(4))
    for layer in LAYERS:
        o, o_after = blocks(before)[layer].o, blocks(after)[layer].o
        all_z = [old[layer, "o"].input.detach()[0] for old, _ in runs(family)]
        all_y = [old[layer, "mlp"].output.detach()[0] for old, _ in runs(family)]
        for i, (old, new) in enumerate(runs(family)):
            z_star = split(baseline_of(baseline, i, all_z)[None])
            y_star = baseline_of(baseline, i, all_y)
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
    least = 1e-8 if (family, baseline) == ("gemma2", "zero") else 1e-4
    r_mlp = padded([torch.stack(r) for r in r_mlps])
    assert_same(of(scores, "", "attribution_mlp", "after"), r_mlp, EXACT * 1e-4 / least, least)
    assert_same(of(scores, "", "attribution_heads", "after"), padded([torch.stack(r) for r in r_heads]))


# --- The causal scores that I and D are linear forms of, and the identity of the three ---


def rates(errors: list[np.ndarray]) -> np.ndarray:
    """By how much the error of each component (axis 1 on) falls when the step is halved."""
    sizes = [np.sqrt((e**2).sum(0)) for e in errors]
    return np.stack([a / b for a, b in pairwise(sizes)])


STEPS = (4e-4, 2e-4)
"""Of dW, so small that no value crosses a clip on the way."""


@pytest.mark.parametrize("family", ["olmo-clip", "gemma2", "neox"])
def test_informative_is_what_new_weights_of_a_component_do_to_first_order(family):
    """Eq. 1, R[W_C <- W_C + step dW_C] - R: relative to I, the error falls linearly with the step."""
    (free, heads), (free_after, heads_after) = untied(family, 0), untied(family, 1)
    moves = []
    for layer, (block, other) in enumerate(zip(blocks(free), blocks(free_after), strict=True)):
        d_o = other.o.weight.detach() - block.o.weight.detach()
        for h in HEADS:
            cut = head_columns(block.o, block.o.weight.data, h), head_columns(block.o, d_o, h)
            moves.append(Moved([*changes(heads[layer][h], heads_after[layer][h]), cut]))
        moves.append(Moved(changes(block.mlp, other.mlp) + changes(block.ln2, other.ln2)))
    at = np.zeros((len(STEPS) + 1, len(PROMPTS), len(moves)))
    with double_throughout(), torch.no_grad():
        for m, move in enumerate(moves):
            for s, step in enumerate((*STEPS, 0.0)):
                move.to(step)
                at[s, :, m] = [reward_of(free, p) for p in PROMPTS]
    scores = exact_scores(family)
    linear = np.concatenate(
        [of(scores, "informative", "heads").sum(-1), of(scores, "informative").sum(-1)[..., None]], -1
    ).reshape(len(PROMPTS), -1)
    errors = [(at[s] - at[-1]) / step - linear for s, step in enumerate(STEPS)]
    assert np.abs(errors[-1]).max() < 1e-3 * np.abs(linear).max()
    np.testing.assert_allclose(rates(errors), 2, rtol=0.01)


@pytest.mark.parametrize("family", ["olmo-clip", "gemma2", "neox"])
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


@pytest.mark.parametrize("family", FAMILIES)
def test_the_attribution_changes_by_the_sum_of_the_three_scores(family):
    """Appendix A: what is left over is of second order, a quarter when the step is halved."""
    model, model_after = hooked_pair(family)
    delta = WeightDelta.between(model, model_after)
    for part in ("mlp", "heads"):
        left = []
        for step in STEPS:
            with double_throughout():
                scores = score(model, step * delta, PROMPTS, progress=False)
            old, new = (of(scores, "", f"attribution_{part}", state) for state in ("before", "after"))
            three = sum(of(scores, kind, part) for kind in ("informative", "upstream", "downstream"))
            left.append(np.moveaxis(new - old - three, -1, 1).reshape(-1, *three.shape[2:-1]))
        np.testing.assert_allclose(rates(left), 4, rtol=0.01)


# --- What must not change the numbers ---

VARIABLES = ("mlp", "heads", "attribution_mlp", "attribution_heads", "rest", "reward")


def assert_scores_agree(found: ExtractiveScores, expected: ExtractiveScores, tolerance: float) -> None:
    for name in VARIABLES:
        a, b = found.dataset[name].values, expected.dataset[name].values
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        assert np.nanmax(np.abs(a - b)) <= tolerance * np.nanmax(np.abs(b))


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_order_and_kept_graphs_change_nothing(family, monkeypatch):
    pair = single_pair(family)
    expected = score(*pair, PROMPTS, batch_size=1, progress=False)
    for batch_size in (2, 3, None):
        found = score(*pair, PROMPTS, batch_size=batch_size, progress=False)
        assert_scores_agree(found, expected, 1e-5)
    order = [3, 0, 4, 2, 1]
    shuffled = score(*pair, [PROMPTS[i] for i in order], batch_size=2, progress=False)
    back = shuffled.dataset.isel(prompt=np.argsort(order))
    assert_scores_agree(ExtractiveScores(back), expected, 1e-5)
    monkeypatch.setattr(engine, "fits_in_memory", lambda *_: False)
    for batch_size in (2, None):
        found = score(*pair, PROMPTS, batch_size=batch_size, progress=False)
        assert_scores_agree(found, expected, 1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_longer_prompt_in_the_batch_changes_nothing(family):
    """Padding, and with it the other prompts' length, has no say in a prompt's scores."""
    pair, (short, *_) = single_pair(family), PROMPTS
    alone = score(*pair, [short], baseline="zero", progress=False)
    beside = score(*pair, PROMPTS, baseline="zero", progress=False).dataset.isel(prompt=[0])
    assert np.isnan(beside["mlp"].values[..., len(ids_of(short)[0]) :]).all()
    cut = beside.isel(token=slice(len(ids_of(short)[0])))
    assert_scores_agree(ExtractiveScores(cut), alone, 1e-5)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_change_every_score_is_exactly_zero(family, convention):
    (model, _), (plain, _) = single_pair(family), plain_pair(family)
    for same in (hooked(plain, torch.float32), WeightDelta({})):
        scores = score(model, same, PROMPTS, convention=convention, batch_size=2, progress=False)
        for part in ("mlp", "heads"):
            values = scores.dataset[part].values
            assert (values[~np.isnan(values)] == 0).all()
        assert scores.rest.size and (scores.rest.values == 0).all()
        assert (scores.reward.values[:, 0] == scores.reward.values[:, 1]).all()
        assert scores.reward.values.std() > 0.1


OUT_OF_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory."),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"),
}


@pytest.mark.parametrize("device", OUT_OF_MEMORY)
def test_out_of_memory_halves_the_batch(device, monkeypatch, caplog):
    pair = single_pair("llama")
    expected = score(*pair, PROMPTS, progress=False)
    tried = []
    plain_run = ScoreEngine._run

    def run(self, job):
        tried.append(max(map(len, job.rows)))
        if len(tried) < 3:
            raise OUT_OF_MEMORY[device]
        return plain_run(self, job)

    monkeypatch.setattr(ScoreEngine, "_run", run)
    assert_scores_agree(score(*pair, PROMPTS, progress=False), expected, 1e-5)
    assert tried == [5, 2, 1]
    assert "batch_size=2" in caplog.text and "batch_size=1" in caplog.text


@pytest.mark.parametrize("error", [*OUT_OF_MEMORY.values(), RuntimeError("shapes")], ids=str)
def test_an_error_that_smaller_batches_cannot_mend_is_raised(error, monkeypatch):
    def run(self, job):
        raise error

    monkeypatch.setattr(ScoreEngine, "_run", run)
    batch_size = 5 if str(error) == "shapes" else 1
    with pytest.raises(type(error)) as raised:
        score(*single_pair("llama"), PROMPTS, batch_size=batch_size, progress=False)
    assert raised.value is error


# --- The finetuned model in all its forms ---


def test_the_finetuned_model_may_be_a_model_a_delta_a_file_or_a_folder(tmp_path):
    model, model_after = single_pair("qwen2")
    expected = score(model, model_after, PROMPTS, progress=False)
    delta = WeightDelta.between(model, model_after)
    delta.save(tmp_path / "delta.safetensors")
    save_model(model_after, tmp_path / "after")
    by_delta = score(model, delta, PROMPTS, progress=False)
    assert_scores_agree(by_delta, expected, 1e-5)  # W + (W' - W) is rounded
    for path in (tmp_path / "delta.safetensors", str(tmp_path / "delta.safetensors")):
        assert_scores_agree(score(model, path, PROMPTS, progress=False), by_delta, 0)
    for folder in (tmp_path / "after", str(tmp_path / "after")):
        assert_scores_agree(score(model, folder, PROMPTS, progress=False), expected, 0)


# --- Rewards ---


def logprob_of(plain: PreTrainedModel, prompt, n_tokens: int) -> Tensor:
    """Log-probability of the first tokens of the answer, each after those before it."""
    ids = tokenizer()(f"{prompt.text} {prompt.answer}")["input_ids"]
    start = ids_of(prompt).shape[1]
    answer = ids[start : start + n_tokens]
    logits = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return sum(logits[start + i - 1].log_softmax(-1)[token] for i, token in enumerate(answer))


@pytest.mark.parametrize(("answer_tokens", "n_tokens"), [("first", 1), ("all", 9)])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_logprob_is_the_log_probability_of_the_answer(family, answer_tokens, n_tokens, double_everywhere):
    pair = plain_pair(family)
    scores = scored(family, reward="logprob", answer_tokens=answer_tokens)
    rewards, totals = np.zeros((len(PROMPTS), 2)), np.zeros(len(PROMPTS))
    for i, prompt in enumerate(PROMPTS):
        for state, plain in enumerate(pair):
            plain.zero_grad()
            reward = logprob_of(plain, prompt, n_tokens)
            reward.backward()
            rewards[i, state] = reward.detach()
        totals[i] = along(*pair)
    assert_same(scores.reward.values, rewards)
    everything = of(scores, "informative").sum((1, 2)) + of(scores, "informative", "heads").sum((1, 2, 3))
    assert_same(everything + sum(rest_of(scores).values()), totals)
    # The answer's tokens that are read have scores of their own.
    extra = [len(p.answer.split()) - 1 if answer_tokens == "all" else 0 for p in PROMPTS]
    lengths = scores.dataset["length"].values - scores.dataset["prompt_length"].values
    assert lengths.tolist() == extra


def test_prompts_may_differ_in_their_options(double_everywhere):
    """Each is compared with the mean of its own, in whatever batch it is."""
    few = [
        replace(p, options=tuple(dict.fromkeys((p.answer, *p.options)))[: 2 + i % 3])
        for i, p in enumerate(PROMPTS)
    ]
    scores = score(*hooked_pair("llama"), few, progress=False)
    expected = [[reward_of(plain, p).item() for plain in plain_pair("llama")] for p in few]
    assert_same(scores.reward.values, expected)


def test_a_function_as_reward_gives_what_the_named_one_gives(double_everywhere):
    first = {p.answer: first_ids(p)[p.options.index(p.answer)] for p in PROMPTS}
    options, by_length = first_ids(PROMPTS[0]), sorted(PROMPTS, key=lambda p: len(p.text.split()))

    def by_hand(logits, batch):
        answers = torch.tensor([first[p.answer] for p in by_length])
        return logits[torch.arange(len(logits)), answers] - logits[:, options].mean(1)

    found = score(*hooked_pair("llama"), by_length, reward=by_hand, progress=False)
    expected = score(*hooked_pair("llama"), by_length, progress=False)
    assert found.attrs["options"]["reward"] == "by_hand"
    for name in VARIABLES:
        np.testing.assert_allclose(
            found.dataset[name].values, expected.dataset[name].values, rtol=0, atol=1e-12
        )


# --- Bad input ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "accuracy"}, "unknown reward 'accuracy'"),
        ({"reward": lambda logits, batch: logits.sum()}, "one number per prompt"),
        ({"reward": lambda logits, batch: 0.0}, "one number per prompt"),
        ({"reward": lambda logits, batch: logits[:, 0] / 0}, "NaN or infinite before finetuning"),
        ({"answer_tokens": "last"}, "'first' or 'all', not 'last'"),
        ({"answer_tokens": "all"}, "goes with reward='logprob' only"),
        ({"baseline": "median"}, "unknown baseline 'median'"),
        ({"upstream": "approximate"}, "unknown upstream 'approximate'"),
        ({"convention": "own"}, "unknown convention 'own'"),
        ({"batch_size": 0}, "at least 1, not 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_unusable_option_is_named(options, message):
    with pytest.raises(InputError, match=message):
        score(*single_pair("llama"), PROMPTS, progress=False, **options)


def test_exact_upstream_scores_are_not_there_yet():
    with pytest.raises(NotImplementedError, match="upstream='surrogate'"):
        score(*single_pair("llama"), PROMPTS, upstream="exact", progress=False)


@pytest.mark.parametrize("state", ["before", "after"])
def test_nan_weights_are_found(state):
    plain, plain_after = plain_pair("llama")
    pair = {"before": hooked(plain, torch.float32), "after": hooked(plain_after, torch.float32)}
    with torch.no_grad():
        named_weights(pair[state])["blocks.1.mlp.out.weight"][0, 0] = torch.nan
    with pytest.raises(InputError, match=f"NaN or infinite {state} finetuning"):
        score(*pair.values(), PROMPTS, progress=False)


def test_models_of_another_shape_are_refused():
    with pytest.raises(InputError, match="the models differ in"):
        score(single_pair("llama")[0], single_pair("qwen2")[1], PROMPTS, progress=False)


# --- Models come back as they were ---


def at_call(n: int, error: BaseException):
    """A forward hook that raises in its n-th call."""
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == n:
            raise error

    return hook


@pytest.mark.parametrize("family", FAMILIES)
def test_models_are_bit_identical_after_scoring(family):
    pair = tuple(hooked(plain, torch.float32) for plain in plain_pair(family))
    score(*pair, PROMPTS, batch_size=2, progress=False)  # TransformerLens sets up hooks of its own
    states = [state_of(model) for model in pair]
    score(*pair, PROMPTS, batch_size=2, progress=False)
    for model, state in zip(pair, states, strict=True):
        assert_unchanged(model, state)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("broken")], ids=repr)
@pytest.mark.parametrize("call", [1, 5, 9])  # on the way up, under W', and of a component alone
@pytest.mark.parametrize("family", ["gpt2", "olmo-clip"])
def test_models_are_bit_identical_after_an_exception(family, call, error):
    pair = tuple(hooked(plain, torch.float32) for plain in plain_pair(family))
    expected = score(*pair, PROMPTS, batch_size=2, progress=False)
    states = [state_of(model) for model in pair]
    handle = pair[0].blocks[1].mlp.register_forward_pre_hook(at_call(call, error))
    with pytest.raises(type(error)):
        score(*pair, PROMPTS, batch_size=2, progress=False)
    handle.remove()
    for model, state in zip(pair, states, strict=True):
        assert_unchanged(model, state)
    assert_scores_agree(score(*pair, PROMPTS, batch_size=2, progress=False), expected, 0)


def test_models_are_bit_identical_after_a_reward_that_fails():
    pair = tuple(hooked(plain, torch.float32) for plain in plain_pair("neox"))
    score(*pair, PROMPTS, progress=False)
    states = [state_of(model) for model in pair]

    def failing(logits, batch):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        score(*pair, PROMPTS, reward=failing, progress=False)
    for model, state in zip(pair, states, strict=True):
        assert_unchanged(model, state)


def test_a_model_in_training_is_scored_without_dropout_and_stays_in_training():
    before, after = plain_pair("gpt2")
    pair = hooked(before, torch.float32), hooked(after, torch.float32)
    expected = score(*pair, PROMPTS, progress=False)
    pair[0].train()
    assert pair[0].original_model.transformer.drop.p > 0
    state = state_of(pair[0])
    assert_scores_agree(score(*pair, PROMPTS, progress=False), expected, 0)
    assert_unchanged(pair[0], state)
