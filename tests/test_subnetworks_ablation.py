"""Ablations of the core and its emergence, against plain Hugging Face models with hooks."""

from contextlib import ExitStack
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import oracle, tiny
from helpers.tiny import D_HEAD, N_HEADS, N_LAYERS, PROMPTS

import ecstruct
from ecstruct.errors import InputError
from ecstruct.scores.components import component_names
from ecstruct.subnetworks.ablation import ablate_core, drawn_outside
from ecstruct.subnetworks.best_and_worst import generalising
from ecstruct.subnetworks.common_core import core
from ecstruct.subnetworks.dependence_on_core import Dependence, dependence
from ecstruct.subnetworks.emergence_in_training import Emergence, emergence
from ecstruct.subnetworks.evaluation import effective_size, evaluate
from ecstruct.subnetworks.masks import Masks
from ecstruct.subnetworks.reference import Reference

FAMILIES = ("llama", "gpt2")
FACTS, IMPLICATIONS = PROMPTS[:3], PROMPTS[2:]
CORE = ((0, 1), (1, 3))


# --- The oracle: a plain model, prompt by prompt ---


def run(plain, prompt, heads=None, mlp=None, means=None):
    """Logits at the last token and the z of every layer before any is replaced, [head, pos, d_head]."""
    seen = []

    def of_heads(layer):
        def hook(_module, args):
            z = args[0].unflatten(-1, (N_HEADS, D_HEAD)).clone()
            seen.append(z[0].transpose(0, 1).clone())
            for head in range(N_HEADS) if heads is not None else ():
                if not heads[layer, head]:
                    z[:, :, head] = means[0][layer, head]
            return (z.flatten(-2), *args[1:])

        return hook

    def of_mlp(layer):
        def hook(_module, _args, output):
            return output if mlp is None or mlp[layer] else means[1][layer].expand_as(output)

        return hook

    with ExitStack() as stack, torch.no_grad():
        for layer, block in enumerate(oracle.blocks(plain)):
            stack.callback(block.o.register_forward_pre_hook(of_heads(layer)).remove)
            stack.callback(block.out.register_forward_hook(of_mlp(layer)).remove)
        logits = plain(input_ids=oracle.ids_of(prompt), use_cache=False).logits[0, -1]
    return logits, seen


@cache
def means(family):
    """Of z and of what the MLPs write, over all tokens of the facts."""
    plain = tiny.plain_pair(family)[0]
    zs, ys = [], []
    for prompt in FACTS:
        zs.append(torch.stack([z.transpose(0, 1) for z in run(plain, prompt)[1]]))
        with oracle.watching(dict(enumerate(b.out for b in oracle.blocks(plain)))) as seen, torch.no_grad():
            plain(input_ids=oracle.ids_of(prompt), use_cache=False)
        ys.append(torch.stack([seen[layer].output[0] for layer in range(N_LAYERS)]))
    return torch.cat(zs, 1).mean(1), torch.cat(ys, 1).mean(1)


def mean_rank(family, prompts, heads, mlp):
    plain, ranks = tiny.plain_pair(family)[0], []
    for prompt in prompts:
        logits, _ = run(plain, prompt, heads, mlp, means(family))
        ids = oracle.first_ids(prompt)
        answer = logits[ids[prompt.options.index(prompt.answer)]]
        ranks.append(float((logits[ids] > answer).sum()))
    return np.mean(ranks)


@cache
def masks(family):
    """Subnetworks whose core are the heads of `CORE` and the first MLP."""
    rng = np.random.default_rng(3)
    heads, mlp = rng.random((4, N_LAYERS, N_HEADS)) < 0.5, rng.random((4, N_LAYERS)) < 0.5
    heads[0], mlp[0] = False, False
    for layer, head in CORE:
        heads[:, layer, head] = True
    mlp[:, 0] = True
    return Masks.of(heads, mlp, reference=Reference(*means(family)))


FULL = np.ones((N_LAYERS, N_HEADS), bool)
ONLY = np.zeros((N_LAYERS, N_HEADS), bool)
ONLY[tuple(zip(*CORE, strict=True))] = True
ALL_MLPS = np.ones(N_LAYERS, bool)


@pytest.mark.parametrize("family", FAMILIES)
def test_ablations_are_those_of_hooks(family):
    model, its = tiny.hooked_pair(family)[0], masks(family)
    frame = ablate_core(model, its, FACTS, IMPLICATIONS, draws=2, progress=False).frame
    for name, prompts in (("in-domain", FACTS), ("generalization", IMPLICATIONS)):
        ranks = frame[frame["prompts"] == name].groupby("of")["rank"].apply(list)
        assert ranks["full model"] == [mean_rank(family, prompts, FULL, ALL_MLPS)]
        assert ranks["without the core"] == [mean_rank(family, prompts, ~ONLY, ALL_MLPS)]
        assert ranks["the core alone"] == [mean_rank(family, prompts, ONLY, ALL_MLPS)]
        heads, mlp = its.heads.values, its.mlp.values
        pairs = list(zip(heads, mlp, strict=True))
        assert ranks["subnetworks"] == [mean_rank(family, prompts, *pair) for pair in pairs]
        without = [mean_rank(family, prompts, h & ~ONLY, m) for h, m in pairs]
        assert ranks["subnetworks without the core"] == without
        assert len(ranks["without random ones"]) == 2
        assert len(ranks["subnetworks without random ones"]) == 8


def test_mlps_are_ablated_if_they_count():
    family = "llama"
    model = tiny.hooked_pair(family)[0]
    ablated = ablate_core(
        model, masks(family), IMPLICATIONS, kinds=("heads", "mlp"), draws=1, progress=False
    )
    rank = ablated.frame.set_index("of")["rank"]["without the core"]
    assert rank == mean_rank(family, IMPLICATIONS, ~ONLY, np.array([False, True, True]))


def test_the_table_and_conclusion_are_those_of_the_frame():
    ablated = ablate_core(
        tiny.hooked_pair("llama")[0], masks("llama"), FACTS, IMPLICATIONS, draws=3, progress=False
    )
    table = ablated.table().set_index(["of", "prompts"])
    rows = ablated.frame[ablated.frame["of"] == "without random ones"]
    rows = rows[rows["prompts"] == "in-domain"]
    assert table.loc[("without random ones", "in-domain"), "rank"] == rows["rank"].mean()
    assert table.loc[("without random ones", "in-domain"), "n"] == 3
    assert table.loc[("without random ones", "in-domain"), "kept"] == N_LAYERS * (N_HEADS + 1) - 2
    assert "of 3 draws cost as much" in ablated.conclusion()
    assert len(ablated.figure.data) >= 2


def test_the_same_seed_draws_the_same():
    arguments = (tiny.hooked_pair("llama")[0], masks("llama"), FACTS)
    frames = [ablate_core(*arguments, draws=3, seed=s, progress=False).frame for s in (0, 0)]
    pd.testing.assert_frame_equal(*frames)


def test_what_is_drawn_is_outside_of_the_core():
    rng = np.random.default_rng(0)
    parts = {"heads": ONLY, "mlp": np.array([True, False, False])}
    for _ in range(20):
        drawn = drawn_outside(parts, rng)
        assert {kind: part.sum() for kind, part in drawn.items()} == {"heads": 2, "mlp": 1}
        assert not any((drawn[kind] & parts[kind]).any() for kind in parts)
        of_layers = drawn_outside(parts, rng, by_layer=True)
        assert of_layers["heads"].sum(1).tolist() == [1, 1, 0]
        assert not (of_layers["heads"] & ONLY).any()
        assert not of_layers["mlp"].any()  # a layer has one MLP
        kept = ONLY.copy()
        kept[2, 0] = True
        among = drawn_outside({"heads": ONLY}, rng, among={"heads": kept})
        assert np.argwhere(among["heads"]).tolist() == [[2, 0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_dependence_is_the_change_of_z_in_a_plain_model(family):
    plain, model = tiny.plain_pair(family)[0], tiny.hooked_pair(family)[0]
    found = dependence(model, masks(family), IMPLICATIONS, draws=2, progress=False).frame
    changes = np.zeros((N_LAYERS, N_HEADS))
    for prompt in IMPLICATIONS:
        whole = torch.stack(run(plain, prompt)[1])
        ablated = torch.stack(run(plain, prompt, ~ONLY, ALL_MLPS, means(family))[1])
        change = (ablated - whole).norm(dim=-1) / whole.norm(dim=-1)
        changes += change.mean(-1).numpy() / len(IMPLICATIONS)
    rows = found[found["ablated"] == "the core"]
    later = [(layer, head) for layer, head in np.ndindex(FULL.shape) if layer > 0 and not ONLY[layer, head]]
    assert list(zip(rows["layer"], rows["head"], strict=True)) == later
    assert rows["change"].tolist() == pytest.approx([changes[at] for at in later], rel=1e-5)
    assert changes[0].max() == 0  # of which the core is not seen
    # Those of later layers alone, as few as are asked for.
    added = np.zeros_like(FULL)
    added[2, 1] = True
    alone = dependence(model, masks(family), IMPLICATIONS, added=added, draws=2, progress=False)
    assert alone.table()["change"][0] == pytest.approx(changes[2, 1], rel=1e-5)


def test_p_of_dependence_is_the_share_of_draws_that_change_as_much():
    rows = [("the core", 0, 0.5)]
    rows += [("random ones", i, 0.1 * i) for i in range(9)]
    rows += [("random ones of its layers", 0, 0.4)]
    frame = pd.DataFrame(
        [{"layer": 1, "head": 0, "ablated": a, "components": 2, "draw": d, "change": c} for a, d, c in rows]
    )
    table = Dependence(frame).table().set_index("ablated")
    assert table["p"]["random ones"] == pytest.approx((1 + 4) / 10)
    assert table["p"]["random ones of its layers"] == pytest.approx(1 / 2)
    assert np.isnan(table["p"]["the core"])


def test_what_cannot_be_ablated_is_refused():
    model, reference = tiny.hooked_pair("llama")[0], Reference(*means("llama"))
    none = Masks.of(np.stack([ONLY, ~ONLY]), np.ones((2, N_LAYERS)), reference=reference)
    with pytest.raises(InputError, match="no core to ablate"):
        ablate_core(model, none, FACTS, progress=False)
    every = Masks.of(np.stack([FULL, FULL]), np.ones((2, N_LAYERS)), reference=reference)
    with pytest.raises(InputError, match="none is left"):
        dependence(model, every, FACTS, progress=False)
    with pytest.raises(InputError, match="draws=0"):
        ablate_core(model, masks("llama"), FACTS, draws=0, progress=False)
    with pytest.raises(InputError, match="names 'neurons'"):
        ablate_core(model, masks("llama"), FACTS, kinds=("neurons",), progress=False)
    with pytest.raises(InputError, match="no added head comes after layer 0"):
        dependence(model, masks("llama"), FACTS, added=np.zeros_like(FULL), progress=False)
    bare = Masks.of(masks("llama").heads.values, masks("llama").mlp.values)
    with pytest.raises(InputError, match="takes the place"):
        dependence(model, bare, FACTS, progress=False)


# --- Emergence ---


def test_checkpoints_have_the_ranks_of_plain_models():
    pair = tiny.hooked_pair("llama")
    course = emergence({"start": pair[0], 7: pair[1]}, core(masks("llama")), FACTS, IMPLICATIONS)
    assert course.checkpoints == ["start", "7"]
    assert course.course("full model", "in-domain") == [ecstruct.mean_rank(m, FACTS) for m in pair]
    assert course.course("the core alone", "in-domain")[0] == mean_rank("llama", FACTS, ONLY, ALL_MLPS)
    without = course.course("without the core", "generalization")[0]
    assert without == mean_rank("llama", IMPLICATIONS, ~ONLY, ALL_MLPS)
    assert course.chosen.empty
    assert len(course.figure.data) > 2


def test_pruning_at_a_checkpoint_says_how_often_the_core_is_chosen():
    model, its = tiny.hooked_pair("llama")[0], masks("llama")
    found = generalising(its, np.arange(4.0)[::-1])  # the first keeps the core alone
    assert found.heads.any()
    course = emergence({0: model}, core(its), FACTS, added=found, prune=lambda _: its)
    chosen = course.chosen.set_index("components")["frequency"]
    assert chosen["core"] == 1
    assert chosen["all"] == pytest.approx(its.heads.values.mean())
    assert chosen["added"] == pytest.approx(its.heads.values[:, found.heads.values].mean())
    assert "the core and the added alone" in set(course.frame["network"])


def test_the_effective_size_is_that_of_each_checkpoints_own_subnetworks():
    pair, its = tiny.hooked_pair("llama"), masks("llama")
    few, many = its.select(its.seeds[:1]), its.select(its.seeds[1:])
    course = emergence(
        {"start": pair[0], "end": pair[1]},
        core(its),
        FACTS,
        IMPLICATIONS,
        prune=lambda _: {0.3: few, 0.6: many},
    )
    sizes = course.sizes(within=0.2).set_index("checkpoint")
    for label, model in zip(("start", "end"), pair, strict=True):
        evaluations = {s: evaluate(model, of, FACTS, progress=False) for s, of in ((0.3, few), (0.6, many))}
        assert sizes.loc[label, "size"] == effective_size(evaluations, within=0.2)
        full = evaluate(model, few, IMPLICATIONS, progress=False)["full_accuracy"].item()
        assert sizes.loc[label, "generalization accuracy"] == full
        own = course.subnetworks.query(
            "checkpoint == @label and prompts == 'in-domain' and sparsity == 0.6"
        )
        assert own["accuracy"].tolist() == evaluations[0.6]["accuracy"].values.tolist()
    assert "effective size goes from" in course.conclusion()
    assert len(course.size_figure.data) == 2 and len(course.accuracy_figure.data) > 2


def test_what_is_added_may_be_named():
    model, its = tiny.hooked_pair("llama")[0], masks("llama")
    found = generalising(its, np.arange(4.0)[::-1])
    names = component_names(found.frame.loc[found.frame["added"] & (found.frame["kind"] == "head")])
    by_name, whole = (emergence({0: model}, core(its), FACTS, added=of) for of in (names, found))
    pd.testing.assert_frame_equal(by_name.frame, whole.frame)
    with pytest.raises(InputError, match=r"head 9\.9"):
        emergence({0: model}, core(its), FACTS, added=["head 9.9"])


def test_components_have_appeared_once_they_cost_half_of_what_they_cost_at_the_end():
    ranks = {"full model": [9, 5, 2, 0, 0], "without the core": [9, 9, 3, 2, 4]}
    rows = [
        {"checkpoint": str(step), "network": network, "prompts": "in-domain", "rank": rank, "accuracy": 0}
        for network, its in ranks.items()
        for step, rank in enumerate(its)
    ]
    course = Emergence(pd.DataFrame(rows), pd.DataFrame())
    row = course.appeared().iloc[0]  # it costs 0, 4, 1, 2, 4
    assert (row["cost"], row["checkpoint"]) == (4, "3")
    assert "needed in-domain from 3 on" in course.conclusion()
    rows += [row | {"network": "without the added"} for row in rows if row["network"] == "full model"]
    assert (
        "added is not needed in-domain at the end"
        in Emergence(pd.DataFrame(rows), pd.DataFrame()).conclusion()
    )


def test_fewer_epochs_are_the_beginning_of_more():
    before, data = ecstruct.load("organism", device="cpu"), ecstruct.facts.first_hop()
    short, long = (
        ecstruct.finetune(
            before, data.facts, epochs=n, evaluate={"facts": data.facts}, progress=False
        ).history.ranks["facts"]
        for n in (1, 2)
    )
    assert short == long[:2]


def test_no_checkpoints_are_refused():
    with pytest.raises(InputError, match="no checkpoints"):
        emergence({}, core(masks("llama")), FACTS)
