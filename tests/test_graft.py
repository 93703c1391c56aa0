"""Grafts of sets at positions, against plain models whose modules are replaced at positions by hooks."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers import classifiers
from helpers.grafted import SOME, masks, replaced
from helpers.oracle import blocks, first_ids, ids_of
from helpers.tiny import (
    N_HEADS,
    N_LAYERS,
    OTHERS,
    PROMPTS,
    SHAPES,
    double_throughout,
    hooked,
    hooked_pair,
    perturb,
    plain_pair,
)
from helpers.tiny import NAMES as TINY_NAMES
from torch import Tensor, nn
from transformers import PreTrainedModel

import ecstruct
from ecstruct import InputError
from ecstruct.grafting import Grafted, graft
from ecstruct.grafting.weight_sets import PROJECTIONS, WeightSet, named
from ecstruct.models.hooked import HookedView
from ecstruct.scores.components import component_frame, component_names

ASKED = [
    ecstruct.Prompt(p.text, p.answer, p.options, name, "people that {} knows speak")
    for p, name in zip(PROMPTS, TINY_NAMES, strict=True)
]

FRAME = component_frame(np.arange(N_LAYERS), np.arange(N_HEADS))
NAMES = component_names(FRAME)


def names_of(which: str) -> list[str]:
    """The names of the components that a key of `SOME` stands for."""
    mlps, heads = SOME[which]
    return [name for name, chosen in zip(NAMES, [*mlps, *heads.ravel()], strict=True) if chosen]


def leaves(plain: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules of the blocks that have weights; a mixture of experts is one."""
    found = {}
    for n, block in enumerate(blocks(plain)):
        whole = {id(block.mlp)} if plain.config.model_type == "mixtral" else set()
        for name, root in {
            "attn": block.attn,
            "mlp": block.mlp,
            "ln1": block.ln1,
            "ln2": block.ln2,
        }.items():
            if root is None:
                continue
            for path, module in root.named_modules():
                if id(module) in whole or (
                    not (name == "mlp" and whole) and not [*module.children()] and [*module.parameters()]
                ):
                    found[f"{n}.{name}.{path}"] = module
    return found


@contextmanager
def replaced_at(plain: PreTrainedModel, mixed: PreTrainedModel, at: Tensor) -> Iterator[None]:
    """Let every module of the blocks give what it gives in the other model at `at` [row, position]."""

    def hook(other: nn.Module, _module: Any, args: Any, output: Tensor) -> Tensor:
        # Gemma 3 norms queries and keys as [prompt, head, position, d_head].
        own = at[:, None] if output.ndim == 4 and plain.config.model_type == "gemma3_text" else at
        return torch.where(own.view(*own.shape, *[1] * (output.ndim - own.ndim)), other(*args), output)

    others = leaves(mixed)
    with ExitStack() as stack:
        for name, module in {id(m): (n, m) for n, m in leaves(plain).items()}.values():
            stack.callback(module.register_forward_hook(partial(hook, others[name])).remove)
        yield


def measured(plain: PreTrainedModel, mixed: PreTrainedModel, *places: Any) -> np.ndarray:
    """Reward, rank and probability of every prompt with the other model's modules at each of the places,
    [place, measure, prompt]: a place is a row of a batch of copies of the prompt."""
    found = []
    for prompt in ASKED:
        ids = ids_of(prompt)
        # The subject begins with the third word, after a BOS token.
        by_name = {"subject-first": [3], "last": [ids.shape[1] - 1], "all": [*range(ids.shape[1])]}
        at = torch.zeros(len(places), ids.shape[1], dtype=torch.bool)
        for row, place in enumerate(places):
            at[row, by_name[place] if isinstance(place, str) else place] = True
        with torch.no_grad(), double_throughout(), replaced_at(plain, mixed, at):
            logits = plain(ids.expand(len(places), -1)).logits[:, -1]
        options, answer = logits[:, first_ids(prompt)], prompt.options.index(prompt.answer)
        own = options[:, answer]
        probability = logits.softmax(-1)[:, first_ids(prompt)[answer]]
        rank = (options > own[:, None]).sum(-1)
        found.append(torch.stack([own - options.mean(-1), rank, probability], -1))
    return torch.stack(found, -1).double().numpy()


@pytest.mark.parametrize(
    ("family", "complement"),
    [*((family, False) for family in SHAPES + OTHERS), ("gpt2", True), ("gemma3", True)],
)
def test_sets_at_positions_are_those_of_plain_models_with_hooks(family, complement):
    old, new = plain_pair(family)[:: -1 if complement else 1]
    sets = {which: names_of(which) for which in ("one head", "two of one key and value head", "some")}
    positions = {"subject": "subject-first", "last": "last", "first two": [0, 1], "all": "all"}
    with double_throughout():
        found = graft(
            *hooked_pair(family), ASKED, sets, positions=positions, complement=complement, progress=False
        ).dataset["grafted"]
    new_one, old_one = (measured(plain, copy.deepcopy(plain), []) for plain in (new, old))
    whole = abs(new_one - old_one)[:, 0].max()
    for which in sets:
        mixed = replaced(old, new, *SOME[which])
        for label, expected in zip(positions, measured(old, mixed, *positions.values()), strict=True):
            seen = found.sel(set=which, position=label).values
            assert abs(seen - expected)[0].max() < 1e-9 * whole
            assert np.array_equal(seen[1], expected[1]) and abs(seen[2] - expected[2]).max() < 1e-10


@pytest.mark.parametrize("kind", [*classifiers.ENCODERS, "gpt2"])
def test_classifiers_are_read_where_they_predict_labels(kind):
    old, new = classifiers.plain_pair(kind)
    mixed = copy.deepcopy(old)
    parts = [classifiers.writers(plain)[1][1] for plain in (mixed, new)]  # the MLP's output in layer 1
    parts[0].load_state_dict(parts[1].state_dict())
    with double_throughout():
        found = graft(
            *classifiers.hooked_pair(kind),
            classifiers.PROMPTS,
            "mlp.out 1",
            positions=["all"],
            progress=False,
        )
        expected = [classifiers.reward(mixed, p, kind).item() for p in classifiers.PROMPTS]
    np.testing.assert_allclose(found.dataset["grafted"][0, 0, 0], expected, atol=1e-10)
    with pytest.raises(InputError, match="has no subject"):
        graft(*classifiers.hooked_pair(kind), classifiers.PROMPTS, positions="subject", progress=False)


def test_projections_are_modules_of_the_plain_model():
    old, new = plain_pair("llama")
    paths = {
        "q": "q_proj",
        "v": "v_proj",
        "o": "o_proj",
        "in": "up_proj",
        "gate": "gate_proj",
        "out": "down_proj",
    }
    with double_throughout():
        for projection, path in paths.items():
            mixed = replaced(old, new, *masks())
            for (name, to), come_from in zip(mixed.named_modules(), new.modules(), strict=True):
                if name.endswith(path):
                    to.load_state_dict(come_from.state_dict())
            by_argument = graft(
                *hooked_pair("llama"), ASKED, projections=[projection], positions="last", progress=False
            )
            kind = "mlp" if projection in ("in", "gate", "out") else "attn"
            by_name = graft(
                *hooked_pair("llama"), ASKED, f"{kind}.{projection}", positions="last", progress=False
            )
            for found in (by_argument, by_name):
                seen = found.dataset["grafted"][:, 0, 0].values
                assert abs(seen - measured(old, mixed, "last")[0]).max() < 1e-10


def test_everything_at_once_is_the_finetuned_model_but_for_the_rest():
    """In an OLMo, only embeddings and unembedding belong to no component."""
    before, after = hooked_pair("olmo")
    found = graft(before, after, ASKED, progress=False)
    kept = graft(before, after, ASKED, complement=True, progress=False)
    ends = found.dataset["ends"].sel(measure="reward")
    assert not np.allclose(found.mean(), ends.sel(state="before").mean())
    total = found.dataset["grafted"] + kept.dataset["grafted"]
    assert total.shape == (3, 1, 1, len(ASKED))
    assert found.dataset["mlps"] == N_LAYERS and found.dataset["heads"] == N_LAYERS * N_HEADS


# --- Results ---


@pytest.fixture(scope="module")
def found() -> Grafted:
    options = {"positions": ["subject", "last", "all"], "random_seeds": 3, "progress": False}
    return graft(*hooked_pair("gpt2"), ASKED, ["mlps", "head 1.2 + MLP 0"], **options)


def test_shares_are_of_the_change_from_before_to_after(found):
    ends = found.dataset["ends"].sel(measure="reward").mean("prompt")
    mean = found.dataset["grafted"].sel(measure="reward").mean("prompt")
    before, after = (float(ends.sel(state=state)) for state in ("before", "after"))
    np.testing.assert_allclose(found.share(), (mean - before) / (after - before), rtol=1e-10)
    table = found.table()
    assert table["set"].tolist() == 3 * ["mlps"] + 3 * ["head 1.2 + MLP 0"]
    assert table["MLPs"].tolist() == [3, 3, 3, 1, 1, 1] and table["heads"].tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(table["share"], found.share().values.ravel())
    assert ((table["low"] <= table["high"]) & (table["least"] <= table["most"])).all()
    drawn = found.random_share().mean("seed").values.ravel()
    np.testing.assert_allclose(table["random"], drawn)


def test_the_interval_is_of_draws_of_prompts(found):
    low, high = found.interval(ci=0.9, resamples=200, seed=1).sel(set="mlps", position="all").values
    rng = np.random.default_rng(1)
    draws = rng.multinomial(len(ASKED), np.full(len(ASKED), 1 / len(ASKED)), size=200)
    values = found.dataset["grafted"].sel(measure="reward", set="mlps", position="all").values
    before, after = found.dataset["ends"].sel(measure="reward").transpose("state", "prompt").values
    shares = (draws @ (values - before)) / (draws @ (after - before))
    np.testing.assert_allclose([low, high], np.quantile(shares, [0.05, 0.95]), rtol=1e-9)


def test_random_sets_have_as_many_components_and_are_seeded(found):
    view = HookedView(hooked_pair("gpt2")[0])
    chosen = named("head 1.2 + MLP 0 + attn.o 2", view)
    drawn = [chosen.drawn(np.random.default_rng(seed)) for seed in (0, 0, 1, 2)]
    assert all(each.components == chosen.components == (1, 5) for each in drawn)
    assert all((each.heads.sum((1, 2)) == chosen.heads.sum((1, 2))).all() for each in drawn)
    assert (drawn[0].heads == drawn[1].heads).all()
    assert len({each.heads.tobytes() for each in drawn}) > 1


def test_it_is_saved_loaded_and_shown(found, tmp_path):
    found.save(tmp_path / "graft.nc")
    again = Grafted.load(tmp_path / "graft.nc")
    assert again.dataset.identical(found.dataset) and again.attrs["options"]["positions"]["last"] == "last"
    grids = [trace for trace in found.figure.data if trace.type == "heatmap"]
    np.testing.assert_allclose(grids[0].z, found.share().values)
    np.testing.assert_allclose(grids[1].z, found.random_share().mean("seed").values)
    said = found.conclusion()
    assert f"mlps: {float(found.share()[0, 0]):.2f} at subject" in said


def test_the_control_is_another_finetuning_in_the_place_of_this_one(found, tmp_path):
    (before, after), other = hooked_pair("gpt2"), perturb(plain_pair("gpt2")[0], seed=7)
    control = ecstruct.WeightDelta.between(before, hooked(other))
    options = {"positions": ["subject", "last", "all"], "progress": False}
    sets = ["mlps", "head 1.2 + MLP 0"]
    its = graft(before, after, ASKED, sets, control=control, **options)
    alone = graft(before, control, ASKED, sets, **options)
    np.testing.assert_allclose(its.dataset["control"], alone.dataset["grafted"], rtol=1e-12)
    np.testing.assert_allclose(its.dataset["grafted"], found.dataset["grafted"], rtol=1e-12)
    ends = its.dataset["ends"].sel(measure="reward").mean("prompt")
    start, end = (float(ends.sel(state=state)) for state in ("before", "after"))
    shares = (alone.mean() - start) / (end - start)
    np.testing.assert_allclose(its.control_share(), shares, rtol=1e-10)
    np.testing.assert_allclose(its.table()["control"], shares.values.ravel(), rtol=1e-10)
    grids = [trace for trace in its.figure.data if trace.type == "heatmap"]
    np.testing.assert_allclose(grids[1].z, shares, rtol=1e-10)
    assert its.attrs["options"]["control"]["source"]
    its.save(tmp_path / "graft.nc")
    assert Grafted.load(tmp_path / "graft.nc").dataset.identical(its.dataset)
    with pytest.raises(InputError, match="nothing"):
        graft(before, after, ASKED, sets, control=str(tmp_path / "nothing.safetensors"), **options)


def test_nothing_depends_on_batches(found, monkeypatch):
    from ecstruct.engine import plan

    monkeypatch.setattr(plan, "TOKENS_PER_BATCH", 20)
    options = {"positions": ["subject", "last", "all"], "progress": False}
    alone = graft(*hooked_pair("gpt2"), ASKED, ["mlps", "head 1.2 + MLP 0"], **options)
    np.testing.assert_allclose(alone.dataset["grafted"], found.dataset["grafted"], rtol=1e-9)


# --- Names of sets ---


def as_names(chosen: WeightSet) -> set[str]:
    flags = [*chosen.mlps.any(0), *chosen.heads.any(0).ravel()]
    return {name for name, chosen in zip(NAMES, flags, strict=True) if chosen}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("all", set(NAMES)),
        ("MLPs", {name for name in NAMES if name.startswith("MLP")}),
        ("heads", {name for name in NAMES if name.startswith("head")}),
        ("mlp 1", {"MLP 1"}),
        ("head 1.2", {"head 1.2"}),
        ("head 1", {f"head 1.{h}" for h in range(N_HEADS)}),
        ("heads 1-2", {f"head {n}.{h}" for n in (1, 2) for h in range(N_HEADS)}),
        ("layer 2", {"MLP 2", *(f"head 2.{h}" for h in range(N_HEADS))}),
        ("mlp 0 + head 2.3", {"MLP 0", "head 2.3"}),
        (["mlp 0", "head 2.3"], {"MLP 0", "head 2.3"}),
        (FRAME.iloc[[1]], {"MLP 1"}),
        (None, set(NAMES)),
    ],
)
def test_sets_by_name(names, expected):
    assert as_names(named(names, HookedView(hooked_pair("gpt2")[0]))) == expected


def test_sets_of_the_strongest_components_need_scores():
    pair = hooked_pair("gpt2")
    scores = ecstruct.score(*pair, ASKED, progress=False)
    found = graft(*pair, ASKED, "downstream top 2", scores=scores, progress=False)
    top = graft(*pair, ASKED, {"top": scores.top(2, "downstream")}, progress=False)
    np.testing.assert_array_equal(found.dataset["grafted"], top.dataset["grafted"])
    with pytest.raises(InputError, match="'downstream top 2' needs scores"):
        graft(*pair, ASKED, "downstream top 2", progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": "mlp 3"}, "'mlp 3' names no layers of this model, which has 0 to 2"),
        ({"components": "head 1.4"}, "there is no component 'head 1.4'"),
        ({"components": "early"}, "'early' names no weights"),
        ({"components": "mlp.o"}, "'mlp.o' names no projection: those of MLPs are in, gate, out, norm"),
        ({"components": []}, "components= has no set"),
        ({"components": ["mlps", "mlps"]}, "names a set twice"),
        ({"components": {"none": []}}, "a set of weights is empty"),
        ({"projections": ["w"]}, f"no projection 'w': choose among {', '.join(PROJECTIONS)}"),
        ({"projections": "o"}, "projections='o' is one name"),
        ({"projections": []}, "projections=\\[\\] names none"),
        ({"components": "mlps", "projections": ["o"]}, "the set 'mlps' has none of the projections o"),
        ({"positions": "end"}, "there is no group of positions 'end'"),
        ({"positions": {"far": 30}}, "there is no position 30 in the"),
        ({"prompts": PROMPTS, "positions": "subject"}, "has no subject"),
        ({"random_seeds": -1}, "random_seeds=-1"),
    ],
)
def test_bad_input(options, message):
    arguments = {"prompts": ASKED, "progress": False, **options}
    with pytest.raises(InputError, match=message):
        graft(*hooked_pair("gpt2"), **arguments)


def test_projections_of_a_mixture_of_experts_are_not_told_apart():
    pair = hooked_pair("mixtral")
    graft(*pair, ASKED, "mlps", projections=["in", "gate", "out"], progress=False)
    with pytest.raises(InputError, match="mixtures of experts, whose projections are not told apart"):
        graft(*pair, ASKED, "mlp.out", progress=False)
