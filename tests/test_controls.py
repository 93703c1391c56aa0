"""Scores under noise of the same size, and after facts with other answers."""

from collections import Counter

import numpy as np
import pytest
import xarray as xr
from helpers.comparisons import scored
from helpers.tiny import PROMPTS, hooked_pair

import ecstruct
from ecstruct import FactSet, InputError, ScoreEngine, WeightDelta, finetune, finetuning, score
from ecstruct.checks import control_models
from ecstruct.checks.control_models import Controls, controls
from ecstruct.facts import first_hop
from ecstruct.scores.permutation import above_control

FACTS = FactSet(PROMPTS, PROMPTS[:2], name="tiny")
TUNE = {"lr": 1e-2, "epochs": 2, "seed": 3}


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
    dies("measured", control_models, "_measured", at=3)  # after the finetuned model and the random change
    dies("scored", ScoreEngine, "score", at=-1)
    for expected in (
        {"scored": 2, "measured": 2, "steps": 2},  # died in the second step of finetuning
        {"scored": 2, "measured": 3, "steps": 3},  # only that step again; died before its scores
    ):
        with pytest.raises(KeyboardInterrupt):
            controls(*pair, PROMPTS, progress=False, **how)
        assert calls == expected
    again = controls(*pair, PROMPTS, **how)
    assert calls == {"scored": 4, "measured": 5, "steps": 3}
    bar = capsys.readouterr().err
    assert "unrelated prompts: 100%" in bar and "block" not in bar and "step" not in bar  # one of all
    for name, scores in {"finetuned": checked.scores, **checked.controls}.items():
        found = again.scores if name == "finetuned" else again.controls[name]
        xr.testing.assert_identical(found.dataset.drop_attrs(), scores.dataset.drop_attrs())
        assert found.attrs == scores.attrs
    suffixes = sorted(p.suffix for p in folder.iterdir())
    assert suffixes == [".json", *[".safetensors"] * 4]  # no checkpoint is left
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
        "the preserved prompts": {"preserved": PROMPTS[:3]},
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
        ({"convention": "mine"}, "convention='mine': it should be 'definition'"),
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
