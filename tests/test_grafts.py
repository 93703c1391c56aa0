"""Grafted and reverted components against plain Hugging Face models whose slices are replaced."""

import copy
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.oracle import Block, blocks, first_ids, ids_of
from helpers.tiny import (
    D_HEAD,
    FAMILIES,
    N_HEADS,
    N_LAYERS,
    OTHERS,
    PROMPTS,
    double_throughout,
    hooked_pair,
    plain_pair,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

import ecstruct
from ecstruct import InputError, WeightDelta, finetune, mean_rank, score
from ecstruct.checks.grafts import Grafts, grafts, of_components
from ecstruct.models.hooked import HookedView
from ecstruct.scores.result import ExtractiveScores

MODULE = import_module("ecstruct.checks.grafts")  # the function has the same name

N = N_LAYERS * (1 + N_HEADS)
Masks = tuple[np.ndarray, np.ndarray]


def masks(*names: str) -> Masks:
    """MLPs and heads by name: "0" is an MLP, "0.1" a head."""
    mlps, heads = np.zeros(N_LAYERS, bool), np.zeros((N_LAYERS, N_HEADS), bool)
    for name in names:
        place = tuple(map(int, name.split(".")))
        (mlps if len(place) == 1 else heads)[place] = True
    return mlps, heads


ALL = masks(*map(str, range(N_LAYERS)), *(f"{n}.{h}" for n in range(N_LAYERS) for h in range(N_HEADS)))
SOME = {
    "one head": masks("1.2"),
    "another head": masks("0.3"),
    "two of one key and value head": masks("1.2", "1.3"),
    "two of two": masks("1.0", "1.2"),
    "an MLP": masks("2"),
    "some": masks("0", "2", "0.1", "2.0", "2.3"),
    "none": masks(),
    "all": ALL,
}

# --- The plain model as oracle ---


def whole(module: nn.Module) -> list[tuple[Tensor, tuple]]:
    return [(p, (...,)) for p in module.parameters()]


def head_slices(block: Block, head: int) -> list[tuple[Tensor, tuple]]:
    """The parameters of a plain block that a head has a part of, and which part."""
    z = slice(head * D_HEAD, (head + 1) * D_HEAD)
    found: list[tuple[Tensor, tuple]] = [] if block.ln1 is None else whole(block.ln1)
    if hasattr(block.attn, "c_attn"):  # GPT-2: [d_model, query | key | value], each of them [head, d_head]
        columns = [part * N_HEADS * D_HEAD + i for part in range(3) for i in range(D_HEAD * N_HEADS)[z]]
        (qkv,) = block.qkv
        return [*found, (qkv.weight, (..., columns)), (qkv.bias, (columns,)), (block.o.weight, (z,))]
    found.append((block.o.weight, (..., z)))
    if len(block.qkv) == 1:  # GPT-NeoX: [head, query | key | value, d_head]
        rows = slice(3 * head * D_HEAD, 3 * (head + 1) * D_HEAD)
        return [*found, *((p, (rows,)) for p in block.qkv[0].parameters())]
    for module in (*block.qkv, *block.qk_norms):
        if module.weight.numel() == D_HEAD:  # a norm that all heads share
            found += whole(module)
            continue
        if module in block.qk_norms and module.weight.ndim == 2:  # a row for each head
            found.append((module.weight, (head * len(module.weight) // N_HEADS,)))
            continue
        n_shared = N_HEADS * D_HEAD // module.weight.shape[0]
        rows = slice(head // n_shared * D_HEAD, (head // n_shared + 1) * D_HEAD)
        found += [(p, (rows,)) for p in module.parameters()]
    return found


def slices(block: Block, mlp: bool, heads: np.ndarray) -> list[tuple[Tensor, tuple]]:
    found = [part for head in np.flatnonzero(heads) for part in head_slices(block, head)]
    if mlp:
        found += whole(block.mlp) + ([] if block.ln2 is None else whole(block.ln2))
    return found


def replaced(target: PreTrainedModel, source: PreTrainedModel, mlps, heads) -> PreTrainedModel:
    """A copy of a plain model with the weights of some components of another."""
    mixed = copy.deepcopy(target)
    with torch.no_grad():
        for layer, (to, come_from) in enumerate(zip(blocks(mixed), blocks(source), strict=True)):
            chosen = [slices(block, mlps[layer], heads[layer]) for block in (to, come_from)]
            for (parameter, part), (new, _) in zip(*chosen, strict=True):
                parameter[part] = new[part]
    return mixed


def logits(run: Callable[[Tensor], Tensor]) -> Tensor:
    """At the last token of every prompt."""
    with torch.no_grad(), double_throughout():
        return torch.stack([run(ids_of(p))[0, -1] for p in PROMPTS])


def of_plain(plain: PreTrainedModel) -> Tensor:
    return logits(lambda ids: plain(ids).logits)


@cache
def view_and_delta(family: str) -> tuple[HookedView, WeightDelta]:
    before, after = hooked_pair(family)
    return HookedView(before), WeightDelta.between(before, after)


GRAFTED = (*(f for f in FAMILIES if f not in ("olmo", "llama", "qwen2", "gemma3")), *OTHERS)
"""Alike ones left out."""


@pytest.mark.parametrize("which", SOME)
@pytest.mark.parametrize("family", GRAFTED)
def test_a_graft_and_a_reversion_replace_slices_of_the_plain_model(family, which):
    view, delta = view_and_delta(family)
    before, after = plain_pair(family)
    part = of_components(view, delta, *SOME[which])
    plain = {"W": of_plain(before), "W'": of_plain(after)}
    whole = float((plain["W'"] - plain["W"]).abs().max())
    for change, target, source, start in ((part, before, after, "W"), (delta - part, after, before, "W'")):
        changed = change.apply_to(view.model)
        found = logits(lambda ids, run=changed: run(ids, return_type="logits", use_cache=False))
        expected = of_plain(replaced(target, source, *SOME[which]))
        assert (found - expected).abs().max() < 1e-10 * whole
        assert which == "none" or (expected - plain[start]).abs().max() > 1e-3 * whole


# --- Parts of a change ---

REST = re.compile(r"(pos_)?embed\.|ln_final\.|unembed\.|.*\.attn\.o\.bias|.*_post\.")


@pytest.mark.parametrize("family", FAMILIES + OTHERS)
def test_all_components_together_are_everything_but_the_rest(family):
    view, delta = view_and_delta(family)
    every = of_components(view, delta, *ALL).tensors
    expected = {name: t for name, t in delta.tensors.items() if not REST.match(name)}
    assert every.keys() == expected.keys() and len(every) < len(delta.tensors)
    assert all(torch.equal(every[name], t) for name, t in expected.items())


@pytest.mark.parametrize("family", FAMILIES + OTHERS)
def test_a_part_and_what_is_left_are_the_whole(family):
    view, delta = view_and_delta(family)
    rng = np.random.default_rng(0)
    for _ in range(3):
        chosen = rng.random(N_LAYERS) < 0.5, rng.random((N_LAYERS, N_HEADS)) < 0.5
        part = of_components(view, delta, *chosen)
        left = delta - part
        for name, t in delta.tensors.items():
            its = part.tensors.get(name, torch.zeros_like(t))
            assert torch.equal(its + left.tensors[name], t)
            assert torch.equal(its, torch.where(its != 0, t, 0.0))
        assert of_components(view, left, *chosen).tensors == {}


@pytest.mark.parametrize("family", ["olmo-clip", "gpt2", "neox", "olmo2", "qwen3", "gptj"])
def test_every_weight_comes_along_with_as_many_components_as_share_it(family):
    view, delta = view_and_delta(family)
    total = WeightDelta({})
    for i in range(N):
        mask = np.arange(N) == i
        total += of_components(view, delta, mask[:N_LAYERS], mask[N_LAYERS:].reshape(N_LAYERS, N_HEADS))
    for name, t in delta.tensors.items():
        times = 0 if REST.match(name) else 1
        if family in ("olmo-clip", "olmo2", "qwen3") and re.search(r"attn\.[kv]", name):
            times = N_HEADS // 2
        if ".ln1." in name or (family == "qwen3" and re.search(r"attn\.[qk]_norm", name)):
            times = N_HEADS + (family == "gptj")  # and the MLP
        torch.testing.assert_close(
            total.tensors.get(name, torch.zeros_like(t)), times * t, rtol=1e-12, atol=0
        )


# --- Mean ranks ---


@cache
def ranking(family: str) -> ExtractiveScores:
    return score(*hooked_pair(family), PROMPTS, progress=False)


def numbered(order: np.ndarray, k: int) -> Masks:
    """The first k of an order in which MLPs come first, then the heads layer by layer."""
    mask = np.isin(np.arange(N), order[:k])
    return mask[:N_LAYERS], mask[N_LAYERS:].reshape(N_LAYERS, N_HEADS)


def rank_of(plain: PreTrainedModel) -> float:
    ranks = []
    for prompt, found in zip(PROMPTS, of_plain(plain), strict=True):
        options = found[first_ids(prompt)]
        ranks.append(int((options > options[prompt.options.index(prompt.answer)]).sum()))
    return float(np.mean(ranks))


def size_of(mlps: np.ndarray, heads: np.ndarray, before: PreTrainedModel, after: PreTrainedModel) -> float:
    """|dW_C|, squared."""
    total = 0.0
    for layer, (old, new) in enumerate(zip(blocks(before), blocks(after), strict=True)):
        chosen = [slices(block, mlps[layer], heads[layer]) for block in (old, new)]
        for (a, part), (b, _) in zip(*chosen, strict=True):
            total += float((a[part] - b[part]).detach().square().sum())
    return total


@pytest.mark.parametrize("family", ["olmo-clip", "gpt2", "olmo2", "cohere"])
def test_mean_ranks_are_those_of_plain_models(family):
    before, after = plain_pair(family)
    scores = ranking(family)
    informative = [
        np.nansum(part.sel(score="informative").values, -1).mean(0).ravel()
        for part in (scores.mlp, scores.heads)
    ]
    sizes = [size_of(*numbered(np.array([i]), 1), before, after) for i in range(N)]
    with double_throughout():
        found = grafts(*hooked_pair(family), PROMPTS, scores, ks=[4, 1, 9], random_seeds=1, progress=False)
    for by, values in (("informative", np.concatenate(informative)), ("weight change", np.array(sizes))):
        order = np.argsort(-values)
        for how, (target, source) in {"graft": (before, after), "revert": (after, before)}.items():
            ranks = found.ranks(how, by)[0]
            assert ranks.index.tolist() == [0, 1, 4, 9, N]
            for k, rank in ranks.items():
                assert rank == rank_of(replaced(target, source, *numbered(order, k)))


def test_drawn_components_are_an_order_each_and_of_the_same_kinds_if_asked(monkeypatch):
    asked: list[frozenset[int]] = []

    def seen(_view, _delta, mlps, heads):
        asked.append(frozenset(np.flatnonzero([*mlps, *heads.ravel()]).tolist()))
        return WeightDelta({})

    monkeypatch.setattr(MODULE, "of_components", seen)
    monkeypatch.setattr(MODULE, "mean_rank", lambda _model, _prompts: 0.0)
    pair, scores, ks, seeds = hooked_pair("gpt2"), ranking("gpt2"), [0, 2, 5, 8, N], [0, 1, 2, 3]
    found = grafts(*pair, PROMPTS, scores, ks=ks, random_seeds=len(seeds), progress=False).frame
    drawn = found[found["by"].isin(["random", "same kinds"])]
    assert drawn.groupby(["how", "by", "seed"])["k"].apply(list).tolist() == 4 * len(seeds) * [ks]
    assert found[~found.index.isin(drawn.index)]["seed"].isna().all()

    order = np.argsort(-scores.components("informative")["value"].to_numpy())
    chosen = {k: {of for of in asked[N:] if len(of) == k} for k in ks}  # the first N are measured
    for k in (2, 5, 8):
        # Beside the two rankings there are four draws of each kind, and few of them by chance the same.
        assert 7 < len(chosen[k]) <= 10
        n_mlps = (order[:k] < N_LAYERS).sum()
        alike = [sum(i < N_LAYERS for i in of) == n_mlps for of in chosen[k]]
        assert 4 <= sum(alike) < len(alike)
    assert all(any(few < more for few in chosen[2]) for more in chosen[5])


def test_what_is_finished_is_not_computed_again(tmp_path, monkeypatch):
    pair, options = hooked_pair("gpt2"), {"ks": [2, 5], "random_seeds": 2, "progress": False}
    whole = grafts(*pair, PROMPTS, ranking("gpt2"), **options).frame
    calls, left = [], [9]

    def stopped(model, prompts):
        if len(calls) == left[0]:
            raise KeyboardInterrupt
        calls.append(mean_rank(model, prompts))
        return calls[-1]

    monkeypatch.setattr(MODULE, "mean_rank", stopped)
    folder = tmp_path / "unfinished"
    with pytest.raises(KeyboardInterrupt):
        grafts(*pair, PROMPTS, ranking("gpt2"), **options, folder=folder)
    kept, left[0] = len([*folder.glob("*.nc")]), None
    assert kept >= 9
    calls.clear()
    pd.testing.assert_frame_equal(
        grafts(*pair, PROMPTS, ranking("gpt2"), **options, folder=folder).frame, whole
    )
    n_cells = len(whole)
    assert 0 < len(calls) <= n_cells - kept
    calls.clear()
    grafts(*pair, PROMPTS, ranking("gpt2"), **options, folder=folder)
    assert not calls
    with pytest.raises(InputError, match="holds a part of another run \\(the prompts was"):
        grafts(*pair, PROMPTS[:1], ranking("gpt2"), **options, folder=folder)


# --- What to make of them ---


def made_up(ranks: dict[str, dict[str, list[float]]]) -> Grafts:
    """Ranks by `how` and `by`, at 0, 1, 4 and all 6 components."""
    return Grafts(
        pd.DataFrame(
            [
                {"how": how, "by": by, "k": k, "seed": seed, "rank": rank + (seed or 0)}
                for how, rows in ranks.items()
                for by, values in rows.items()
                for seed in ((None,) if by in ("informative", "weight change") else (-1, 1))
                for k, rank in zip((0, 1, 4, 6), values, strict=True)
            ]
        ).astype({"seed": "Int64"})
    )


RANKS = {
    "graft": {
        "informative": [9.0, 4.9, 3.0, 1.0],
        "weight change": [9.0, 5.0, 5.0, 1.0],
        "random": [9.0, 8.0, 5.1, 1.0],
        "same kinds": [9.0, 5.2, 4.0, 1.0],
    },
    "revert": {by: [3.0, 3.0, 3.0, 3.0] for by in ("informative", "weight change", "random", "same kinds")},
}


def test_the_conclusion_says_how_many_components_go_half_of_the_way():
    assert made_up(RANKS).conclusion() == (
        "Grafting all 6 components takes the mean rank from 9.00 to 1.00. Half of the way is gone with 1 "
        "of highest informative score, 1 of largest weight change, 6 drawn at random or 4 drawn among the "
        "same kinds. Reverting all 6 components takes the mean rank from 3.00 to 3.00."
    )


def test_the_figure_draws_ranks_over_numbers_of_components():
    figure = made_up(RANKS).figure
    lines = [trace for trace in figure.data if trace.mode != "lines"]
    assert [line.name for line in lines] == 2 * list(RANKS["graft"])
    assert [list(line.y) for line in lines[:4]] == list(RANKS["graft"].values())
    assert all(list(line.x) == ["0", "1", "4", "6"] for line in lines)
    bands = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(bands) == 4 and bands[0].x[:8] == ("0", "1", "4", "6", "6", "4", "1", "0")
    assert bands[0].y[:4] == (10.0, 9.0, 6.1, 2.0)
    assert {axis.type for axis in (figure.layout.xaxis, figure.layout.xaxis2)} == {"category"}


# --- The organism ---


@pytest.fixture(scope="module")
def organism():
    before, data = ecstruct.load("organism", device="cpu"), ecstruct.facts.first_hop()
    tuned = finetune(before, data.facts, progress=False)
    scores = score(before, tuned.model, data.implications, progress=False)
    found = grafts(
        before, tuned.delta, data.implications, scores, ks=[1, 4], random_seeds=2, progress=False
    )
    return before, tuned.model, data.implications, found


def test_all_components_of_the_organism_are_the_finetuned_model(organism):
    before, after, asked, found = organism
    old, new = mean_rank(before, asked), mean_rank(after, asked)
    assert new < old - 6
    for by in ("informative", "weight change", "random", "same kinds"):
        for how, (none, every) in {"graft": (old, new), "revert": (new, old)}.items():
            ranks = found.ranks(how, by)
            assert ranks.loc[0].to_numpy() == pytest.approx(none, abs=0.05)
            assert ranks.loc[30].to_numpy() == pytest.approx(every, abs=0.05)


@pytest.mark.parametrize("other", ["weight change", "random", "same kinds"])
def test_the_organisms_top_components_do_more_than_others(organism, other):
    *_, found = organism
    for k in (1, 4):
        assert (
            found.ranks("graft", "informative").loc[k, 0] < found.ranks("graft", other).loc[k].mean() - 0.5
        )
    assert found.ranks("revert", "informative").loc[4, 0] > found.ranks("revert", other).loc[4].max()


# --- Bad input ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ks": []}, r"ks=\[\] asks for nothing"),
        ({"ks": [1, N + 1]}, f"ks= has {N + 1}, but this model has {N} components: use 0 to {N}"),
        ({"ks": [-1]}, "ks= has -1"),
        ({"random_seeds": 0}, "random_seeds=0 draws nothing"),
        ({"prompts": []}, "the list of prompts is empty"),
    ],
)
def test_bad_input(options, message):
    arguments = {"prompts": PROMPTS, "ranking": ranking("gpt2"), "progress": False, **options}
    with pytest.raises(InputError, match=message):
        grafts(*hooked_pair("gpt2"), **arguments)


def test_a_ranking_of_another_model_is_refused():
    scores = ranking("gpt2")
    smaller = ExtractiveScores(scores.dataset.isel(head=slice(3)))
    with pytest.raises(InputError, match="3 layers of 3 heads, but this model has 3 of 4"):
        grafts(*hooked_pair("gpt2"), PROMPTS, smaller, progress=False)
