"""Mean ranks under grafted and reverted components against those of plain models."""

import re
from functools import cache

import numpy as np
import pandas as pd
import pytest
from helpers.grafted import Masks, N, masks, of_plain, replaced, slices
from helpers.oracle import blocks, first_ids
from helpers.tiny import (
    FAMILIES,
    N_HEADS,
    N_LAYERS,
    OTHERS,
    PROMPTS,
    double_throughout,
    hooked_pair,
    plain_pair,
)
from transformers import PreTrainedModel

import ecstruct
from ecstruct import InputError, WeightDelta, finetune, mean_rank, score
from ecstruct.grafting import Grafts, grafts
from ecstruct.grafting.rankings import change_norms
from ecstruct.models.hooked import HookedView
from ecstruct.scores.components import component_names
from ecstruct.scores.result import ExtractiveScores

# --- Mean ranks ---

SURROGATE = {"upstream": "surrogate", "propagation": "gradient"}


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


REST = re.compile(r"(pos_)?embed\.|ln_final\.|unembed\.|.*\.attn\.o\.bias|.*_post\.")
"""The weights that belong to no component."""


@pytest.mark.parametrize("family", FAMILIES + OTHERS)
def test_the_norm_of_a_change_is_that_of_slices_of_the_plain_model(family):
    (before, after), plain = hooked_pair(family), plain_pair(family)
    found = change_norms(HookedView(before), WeightDelta.between(before, after))
    expected = [size_of(*numbered(np.array([i]), 1), *plain) for i in range(N)]
    np.testing.assert_allclose(found**2, expected, rtol=1e-10)


@pytest.mark.parametrize("family", FAMILIES + OTHERS)
def test_every_weight_counts_for_as_many_components_as_share_it(family):
    before, after = hooked_pair(family)
    view, grouped = HookedView(before), family not in ("olmo", "gpt2", "neox", "gptj")
    for name, t in WeightDelta.between(before, after).tensors.items():
        its = change_norms(view, WeightDelta({name: t}))
        times = 0 if REST.match(name) else 1
        if grouped and re.search(r"attn\.[kv]", name):
            times = N_HEADS // 2
        if ".ln1." in name or (family in ("qwen3", "gemma3") and re.search(r"attn\.[qk]_norm", name)):
            times = N_HEADS + (family in ("gptj", "cohere"))  # and the MLP
        assert (its**2).sum() == pytest.approx(times * float(t.square().sum()), rel=1e-10), name


@pytest.mark.parametrize("family", ["olmo-clip", "gpt2"])
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
    attributed = score(
        *hooked_pair(family), PROMPTS, baseline="mean", **SURROGATE, progress=False
    ).attribution.sel(state="after")
    attributions = [np.nansum(attributed[part].values, -1).mean(0).ravel() for part in ("mlp", "heads")]
    for by, values in {
        "informative": np.concatenate(informative),
        "attribution": np.concatenate(attributions),
        "weight change": np.array(sizes),
    }.items():
        order = np.argsort(-values)
        for how, (target, source) in {"graft": (before, after), "revert": (after, before)}.items():
            ranks = found.ranks(how, by)[0]
            assert ranks.index.tolist() == [0, 1, 4, 9, N]
            for k, rank in ranks.items():
                assert rank == rank_of(replaced(target, source, *numbered(order, k)))


def test_drawn_components_are_an_order_each_and_of_the_same_kinds_if_asked():
    pair, scores, ks, seeds = hooked_pair("gpt2"), ranking("gpt2"), [0, 5, N], [0, 1]
    found = grafts(*pair, PROMPTS, scores, ks=ks, random_seeds=len(seeds), progress=False)
    drawn = found.frame[found.frame["by"].isin(["random", "same kinds"])]
    assert drawn.groupby(["how", "by", "seed"])["k"].apply(list).tolist() == 4 * len(seeds) * [ks]
    assert found.frame[~found.frame.index.isin(drawn.index)]["seed"].isna().all()

    top = found.orders["informative", None]
    assert top == component_names(scores.components("informative").sort_values("value", ascending=False))
    assert all(sorted(order) == sorted(top) for order in found.orders.values())
    for by in ("random", "same kinds"):
        assert len({tuple(found.orders[by, seed]) for seed in seeds}) == len(seeds)
    of_kinds = [[name.startswith("MLP") for name in found.orders["same kinds", seed]] for seed in seeds]
    assert all(kinds == [name.startswith("MLP") for name in top] for kinds in of_kinds)


def test_rankings_may_be_several_and_by_name():
    pair, scores = hooked_pair("gpt2"), ranking("gpt2")
    mine = ["head 1.2", "MLP 0"]
    found = grafts(*pair, PROMPTS, {"scores": scores, "mine": mine}, ks=[2], random_seeds=1, progress=False)
    alone = grafts(*pair, PROMPTS, scores, ks=[2], random_seeds=1, progress=False)
    assert found.orders["mine", None][:3] == [*mine, "MLP 1"]
    assert found.ranks("graft", "scores").equals(alone.ranks("graft", "informative"))
    expected = rank_of(replaced(plain_pair("gpt2")[0], plain_pair("gpt2")[1], *masks("0", "1.2")))
    assert found.ranks("graft", "mine").loc[2, 0] == expected
    assert list(found.faithfulness().index) == [
        *("scores", "mine", "attribution", "weight change", "random", "same kinds")
    ]
    with pytest.raises(InputError, match="a ranking is called 'random'"):
        grafts(*pair, PROMPTS, {"random": mine}, progress=False)


def test_faithfulness_is_the_mean_share_of_the_reward():
    rewards = {"graft": [0.0, 1.0, 1.0, 1.0], "revert": [3.0, 3.0, 1.0, -1.0]}
    rows = [
        {"how": how, "by": "informative", "k": k, "seed": None, "rank": 0.0, "reward": reward}
        for how, values in rewards.items()
        for k, reward in zip((0, 1, 5, 10), values, strict=True)
    ]
    found = Grafts(pd.DataFrame(rows).astype({"seed": "Int64"}), {}).faithfulness().loc["informative"]
    # Linear up to 1 for a tenth of the components; 0 up to there, then linear up to a half for a half.
    assert found["graft"] == pytest.approx((0.1 * 0.5 + 0.4) / 0.5, abs=0.01)
    assert found["revert"] == pytest.approx(0.4 * 0.25 / 0.5, abs=0.01)


def test_what_is_finished_is_not_computed_again(tmp_path):
    pair, options = hooked_pair("gpt2"), {"ks": [2], "random_seeds": 1, "progress": False}
    folder = tmp_path / "unfinished"
    whole = grafts(*pair, PROMPTS, ranking("gpt2"), **options, folder=folder).frame
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(kept) == 10
    lost, broken, *left = sorted(kept)
    lost.unlink()
    broken.write_bytes(broken.read_bytes()[:-1])
    again = grafts(*pair, PROMPTS, ranking("gpt2"), **options, folder=folder).frame
    pd.testing.assert_frame_equal(again, whole)
    assert {path: path.stat().st_mtime_ns for path in left} == {path: kept[path] for path in left}
    assert all(path.stat().st_mtime_ns > kept[path] for path in (lost, broken))
    with pytest.raises(InputError, match="holds a part of another run \\(the prompts was"):
        grafts(*pair, PROMPTS[:1], ranking("gpt2"), **options, folder=folder)
    with pytest.raises(InputError, match="cannot be told from those with another function"):
        grafts(*pair, PROMPTS, ranking("gpt2"), **options, folder=folder, reward=lambda x, _: x[:, 0])


# --- What to make of them ---


def made_up(ranks: dict[str, dict[str, list[float]]]) -> Grafts:
    """Ranks by `how` and `by`, at 0, 1, 4 and all 6 components."""
    return Grafts(
        pd.DataFrame(
            [
                {"how": how, "by": by, "k": k, "seed": seed, "rank": rank + (seed or 0), "reward": -rank}
                for how, rows in ranks.items()
                for by, values in rows.items()
                for seed in ((None,) if by in ("informative", "weight change") else (-1, 1))
                for k, rank in zip((0, 1, 4, 6), values, strict=True)
            ]
        ).astype({"seed": "Int64"}),
        {},
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
