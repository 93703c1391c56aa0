"""Noise of the same size, facts with other answers, and the scores under either."""

import sys
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
import xarray as xr
from helpers.comparisons import scored
from helpers.tiny import PROMPTS, hooked_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

import ecstruct
from ecstruct import FactSet, InputError, Prompt, ScoreEngine, WeightDelta, finetune, finetuning, score
from ecstruct.checks.controls import Controls, controls
from ecstruct.facts import first_hop
from ecstruct.scores.permutation import above_control

FACTS = FactSet(PROMPTS, PROMPTS[:2], name="tiny")
TUNE = {"lr": 1e-2, "epochs": 2, "seed": 3}

# --- Noise ---


def made_up() -> WeightDelta:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "embed.weight": torch.randn(50, 40, generator=generator),
        "blocks.0.mlp.in.weight": 1e-3 * torch.rand(300, 40, generator=generator, dtype=torch.float64),
        "blocks.0.ln1.bias": torch.zeros(7),
        "blocks.0.attn.q.bias": torch.tensor([2.0]),
    }
    return WeightDelta(
        tensors, {"before": "a", "before_fingerprint": "1", "after": "b", "after_fingerprint": "2"}
    )


def test_noise_has_the_norm_and_the_type_of_every_tensor():
    delta = made_up()
    noise = delta.random_like(0)
    assert noise.tensors.keys() == delta.tensors.keys()
    for name, t in delta.tensors.items():
        found = noise.tensors[name]
        assert found.dtype == t.dtype and found.shape == t.shape
        assert float(found.double().norm()) == pytest.approx(float(t.double().norm()), rel=1e-6)
    assert not noise.tensors["blocks.0.ln1.bias"].any()
    assert abs(float(noise.tensors["blocks.0.attn.q.bias"])) == 2.0


def test_noise_is_gaussian_and_has_nothing_to_do_with_the_change_or_with_other_noise():
    delta = made_up()
    draws = [delta.random_like(seed).tensors for seed in (0, 1)]
    for name in ("embed.weight", "blocks.0.mlp.in.weight"):
        values = [of[name].double().flatten() for of in (*draws, delta.tensors)]
        size = len(values[0]) ** 0.5
        standard = (values[0] * size / values[0].norm()).numpy()
        assert kstest(standard, "norm").pvalue > 0.01
        for a, b in ((0, 1), (0, 2), (1, 2)):
            cosine = float(values[a] @ values[b] / (values[a].norm() * values[b].norm()))
            assert abs(cosine) < 4 / size
    both = [draws[0][name].double().flatten()[:2000] for name in ("embed.weight", "blocks.0.mlp.in.weight")]
    assert abs(float(torch.nn.functional.cosine_similarity(*both, dim=0))) < 4 / 2000**0.5


def test_the_seed_decides_about_the_noise_and_nothing_else_does():
    delta = made_up()
    turned = WeightDelta(dict(reversed(delta.tensors.items())))
    in_double = WeightDelta({name: t.double() for name, t in delta.tensors.items()})
    torch.manual_seed(1)
    state = torch.get_rng_state()
    expected, *others = (of.random_like(5).tensors for of in (delta, turned, in_double))
    assert torch.equal(torch.get_rng_state(), state)
    for name, t in expected.items():
        assert torch.equal(others[0][name], t)
        assert torch.equal(others[1][name].to(t.dtype), t)


def test_noise_keeps_tied_embeddings_tied():
    change = torch.arange(6.0).reshape(3, 2)
    tied = WeightDelta({"embed.weight": change, "unembed.weight": change.clone()}).random_like(0).tensors
    assert torch.equal(tied["embed.weight"], tied["unembed.weight"])
    untied = WeightDelta({"embed.weight": change, "unembed.weight": 2 * change}).random_like(0).tensors
    assert not torch.allclose(2 * untied["embed.weight"], untied["unembed.weight"])


def test_noise_says_what_it_is():
    assert made_up().random_like(4).metadata == {
        "before": "a",
        "before_fingerprint": "1",
        "after": "noise of the norms of b (seed 4)",
    }


# --- Shuffled facts ---


def test_every_fact_gets_the_answer_of_another():
    data = first_hop()
    orders = set()
    for seed in range(20):
        shuffled = data.shuffled(seed)
        assert shuffled.implications == data.implications and shuffled.name == "first-hop (shuffled)"
        answers = [p.answer for p in shuffled.facts]
        assert sorted(answers) == sorted(p.answer for p in data.facts)
        for old, new in zip(data.facts, shuffled.facts, strict=True):
            assert new.answer != old.answer
            assert (new.text, new.options, new.subject, new.template) == (
                (old.text, old.options, old.subject, old.template)
            )
        assert shuffled == data.shuffled(seed)
        orders.add(tuple(answers))
    assert len(orders) == 20


def test_all_ways_to_deal_are_about_as_likely():
    """Of four different answers there are 9."""
    data = FactSet([(f"{name} is", name) for name in "abcd"], ())
    counts = Counter("".join(p.answer for p in data.shuffled(seed).facts) for seed in range(900))
    assert len(counts) == 9
    assert min(counts.values()) > 50 and chisquare(list(counts.values())).statistic < 100


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sets(st.sampled_from("abcd"), min_size=2)),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 9),
)
def test_facts_are_shuffled_whenever_there_is_a_way(drawn, seed):
    """Against trying all orders; answers may be those of several facts, and options differ."""
    facts = [
        Prompt(f"fact {i}", answer, sorted(options | {answer})) for i, (answer, options) in enumerate(drawn)
    ]
    possible = any(
        all(answer != p.answer and answer in p.options for answer, p in zip(order, facts, strict=True))
        for order in permutations([p.answer for p in facts])
    )
    data = FactSet(facts, ())
    if possible:
        answers = [p.answer for p in data.shuffled(seed).facts]
        assert sorted(answers) == sorted(p.answer for p in facts)
        assert all(new != p.answer for new, p in zip(answers, facts, strict=True))
    else:
        with pytest.raises(InputError, match="cannot be dealt out"):
            data.shuffled(seed)


def test_facts_that_cannot_be_shuffled_are_named():
    data = FactSet([("a is", "x"), ("b is", "x"), ("c is", "y")], ())
    with pytest.raises(InputError, match=r"3 facts .* \('x' alone is that of 2\)"):
        data.shuffled(0)


# --- Scores under controls ---


@pytest.fixture(scope="module")
def pair():
    return hooked_pair("gpt2")


@pytest.fixture(scope="module")
def checked(pair) -> Controls:
    return controls(
        *pair,
        PROMPTS,
        facts=FACTS,
        unrelated=PROMPTS[1:4],
        seed=3,
        tune=TUNE,
        progress=False,
        baseline="mean",
    )


def assert_equal(found, expected):
    for name in ("mlp", "heads", "reward"):
        np.testing.assert_allclose(found.dataset[name].values, expected.dataset[name].values, atol=1e-9)


def test_controls_are_the_scores_of_other_changes_and_other_prompts(checked, pair):
    before, after = pair
    tuned = finetune(before, FACTS.shuffled(3).facts, **TUNE, progress=False).model
    noise = WeightDelta.between(before, after).random_like(3)
    assert list(checked.controls) == ["random change", "shuffled facts", "unrelated prompts"]
    assert_equal(checked.scores, scored("gpt2", baseline="mean"))
    for name, (changed, prompts) in {
        "random change": (noise, PROMPTS),
        "shuffled facts": (tuned, PROMPTS),
        "unrelated prompts": (after, PROMPTS[1:4]),
    }.items():
        expected = score(before, changed, prompts, progress=False, baseline="mean")
        assert_equal(checked.controls[name], expected)
        assert not np.allclose(
            expected.mlp.isel(prompt=0), checked.scores.mlp.isel(prompt=0), equal_nan=True
        )
    source = checked.controls["random change"].attrs["after"]["source"]
    assert source.startswith("noise of the norms of ") and source.endswith("(seed 3)")


def test_what_is_finished_is_not_computed_again(pair, checked, tmp_path, monkeypatch, capsys):
    folder, calls = tmp_path / "unfinished", Counter()
    how = {"facts": FACTS, "unrelated": PROMPTS[1:4], "seed": 3, "tune": {**TUNE, "checkpoint_every": 1}}
    how |= {"baseline": "mean", "folder": folder}

    def dies(key, module, name, at):
        """The `at`-th call dies; all are counted under a key."""
        real = getattr(module, name)

        def counted(*args, **kwargs):
            calls[key] += 1
            if calls[key] == at:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    dies("steps", finetuning.loop, "add_gradient", at=2)  # of two epochs of one step each
    dies("other changes", sys.modules["ecstruct.checks.controls"], "score", at=2)  # the first is random
    dies("scored", ScoreEngine, "score", at=-1)
    for expected in (
        {"scored": 2, "other changes": 1, "steps": 2},  # died in the second step of finetuning
        {"scored": 2, "other changes": 2, "steps": 3},  # only that step again; died before its scores
    ):
        with pytest.raises(KeyboardInterrupt):
            controls(*pair, PROMPTS, progress=False, **how)
        assert calls == expected
    again = controls(*pair, PROMPTS, **how)
    assert calls == {"scored": 4, "other changes": 3, "steps": 3}
    bar = capsys.readouterr().err
    assert "unrelated prompts: 100%" in bar and "block" not in bar and "step" not in bar  # one of all
    for name, scores in {"finetuned": checked.scores, **checked.controls}.items():
        found = again.scores if name == "finetuned" else again.controls[name]
        xr.testing.assert_identical(found.dataset.drop_attrs(), scores.dataset.drop_attrs())
        assert found.attrs == scores.attrs
    assert sorted(p.suffix for p in folder.iterdir()) == [".json", *[".nc"] * 4]  # no checkpoint is left
    before = calls.copy()
    controls(*pair, PROMPTS, progress=False, **how)
    assert calls == before

    others = {
        "the prompts": {"prompts": PROMPTS[:4]},
        "the weights after": {"after": pair[0]},
        "baseline": {"baseline": "zero"},
        "seed": {"seed": 4},
        "the shuffled facts": {"facts": FactSet(FACTS.facts[:4], ())},
        "the unrelated prompts": {"unrelated": PROMPTS[:3]},
        "the lr of finetuning": {"tune": {**TUNE, "lr": 2e-2}},
        "the seed of finetuning": {"tune": {**TUNE, "seed": 4}},
    }
    given = {"before": pair[0], "after": pair[1], "prompts": PROMPTS, **how, "progress": False}
    for what, other in others.items():
        with pytest.raises(InputError, match=f"holds a part of another run .{what} was "):
            controls(**{**given, **other})
    with pytest.raises(InputError, match="leave out the folder, or choose a reward by its name"):
        controls(**given, reward=lambda logits, batch: logits[:, 0])


def test_only_the_noise_is_always_there(pair):
    delta = WeightDelta.between(*pair)
    checked = controls(pair[0], delta, PROMPTS, progress=False)
    assert list(checked.controls) == ["random change"]
    assert set(checked.above("upstream")["against"]) == {"random change"}


def test_a_run_of_finetuning_is_repeated_with_its_config(pair):
    before, _ = pair
    tuned = finetune(before, FACTS.facts, **TUNE, evaluate={"asked": FACTS.implications}, progress=False)
    given = controls(before, tuned.model, PROMPTS, facts=FACTS, tune=tuned.config, progress=False)
    expected = finetune(before, FACTS.shuffled(0).facts, **TUNE, progress=False).model
    assert_equal(given.controls["shuffled facts"], score(before, expected, PROMPTS, progress=False))


def test_every_component_is_tested_against_every_control(checked):
    table = checked.above("informative", permutations=50, seed=1)
    assert list(table.columns)[:5] == ["against", "kind", "layer", "head", "value"]
    for name, control in checked.controls.items():
        rows = table[table["against"] == name].drop(columns="against").reset_index(drop=True)
        expected = above_control(checked.scores, control, "informative", permutations=50, seed=1)
        assert rows.equals(expected)
    assert len(table) == 3 * 3 * (1 + 4)


def test_totals_are_sums_of_what_is_positive(checked):
    totals = checked.totals()
    assert list(totals.columns) == ["finetuned", *checked.controls]
    mixed = 0
    for column, scores in {"finetuned": checked.scores, **checked.controls}.items():
        for kind, values in (("MLPs", scores.mlp), ("heads", scores.heads)):
            for name in ("informative", "upstream", "downstream"):
                means = np.nan_to_num(values.sel(score=name).values).sum(-1).mean(0)
                mixed += means.min() < 0 < means.max()
                assert totals.loc[(name, kind), column] == pytest.approx(means[means > 0].sum())
    assert mixed > 10


def test_the_figure_has_a_bar_for_every_total(checked):
    figure, totals = checked.figure, checked.totals()
    assert [bars.name for bars in figure.data] == list(totals.columns)
    for bars in figure.data:
        np.testing.assert_allclose(bars.y, totals[bars.name])
    assert figure.layout.xaxis.ticktext[1] == "informative,<br>heads"
    assert "logits" in figure.layout.yaxis.title.text


def test_on_the_organism_what_was_learnt_is_above_all_controls():
    before, data = ecstruct.load("organism", device="cpu"), first_hop()
    tuned = finetune(before, data.facts, progress=False)
    checked = controls(
        before,
        tuned.model,
        data.implications,
        facts=data,
        unrelated=first_hop(names=slice(20, 40)).implications,
        tune=tuned.config,
        progress=False,
    )
    totals = checked.totals()
    for score_name in ("informative", "downstream"):
        for kind in ("MLPs", "heads"):
            row = totals.loc[(score_name, kind)]
            assert row["finetuned"] > 3 * row[list(checked.controls)].max()
    gains = {
        name: float((its.reward.sel(state="after") - its.reward.sel(state="before")).mean())
        for name, its in {"real": checked.scores, **checked.controls}.items()
    }
    assert gains.pop("real") > 5 and max(gains.values()) < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tune": TUNE}, "give the facts as well"),
        ({"facts": FACTS, "tune": {"rate": 1}}, "'rate', which is no option of ecstruct.finetune"),
        ({"facts": FactSet([("Ada speaks", "Thai")], (), "one")}, "cannot be dealt out"),
        ({"lr": 0.1}, r"lr is no option of ecstruct.score: put it into tune=\{'lr': \.\.\.\}"),
        ({"steps": 2}, "steps is no option of ecstruct.score: leave it out"),
        ({"facts": FACTS, "tune": {"lr": -1.0}}, "lr=-1.0 is no learning rate"),
        ({"convention": "mine"}, "unknown convention"),
        ({"facts": FACTS, "offload": True}, "no model to finetune"),
    ],
)
def test_bad_input(pair, options, message):
    with pytest.raises(InputError, match=message):
        controls(*pair, PROMPTS, progress=False, **options)


def test_a_control_of_another_reward_is_refused(pair):
    scores, control = (
        score(*pair, PROMPTS, reward=reward, progress=False) for reward in ("logit_diff", "logprob")
    )
    with pytest.raises(InputError, match="'logit_diff' and the control of 'logprob'"):
        above_control(scores, control, "informative")
