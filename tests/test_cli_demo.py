"""`ecstruct demo`, in a process of its own."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from helpers.chromium import CHROMIUM, drawn
from helpers.command_line import works
from helpers.folders import contents
from helpers.processes import command

from ecstruct import ExtractiveScores, InputError
from ecstruct import demo as demos
from ecstruct.facts import first_hop

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    start = time.monotonic()
    result = command("demo", "--out", out, "--seed", 0).ended()
    assert result.returncode == 0, result.stderr
    return out, time.monotonic() - start, result


def test_the_demo_is_quick_and_writes_what_it_says(demo):
    out, seconds, result = demo
    assert seconds <= 90
    names = ["config.json", "report.html", "scores-first-hop.nc", "scores-second-hop.nc", "summary.json"]
    assert contents(out) == names
    assert str(out / "report.html") in result.stdout
    for words in ("first-hop facts", "second-hop implications", "before", "after", "downstream", "MLP"):
        assert words in result.stdout
    config = json.loads((out / "config.json").read_text())
    assert config["command"] == "demo" and config["arguments"] == {"model": "organism", "seed": 0}
    assert "finetune" in result.stderr and "Warning" not in result.stderr


def test_the_demo_learns_the_facts_and_generalises(demo):
    summary = json.loads((demo[0] / "summary.json").read_text())
    assert set(summary) == {"first_hop", "second_hop", "seconds"}
    assert 0 < summary["seconds"] <= 90
    for hop, limit in (("first_hop", 0.5), ("second_hop", 2.5)):
        assert set(summary[hop]) == {"fact", "implication"}
        for before, _ in summary[hop].values():
            assert 7.5 < before < 11.5
        assert summary[hop]["fact"][1] <= 0.3
        assert summary[hop]["implication"][1] < limit


def test_the_scores_of_the_demo_can_be_read(demo):
    for hop in ("first-hop", "second-hop"):
        scores = ExtractiveScores.load(demo[0] / f"scores-{hop}.nc")
        assert dict(scores.mlp.sizes) | {"token": 0} == {"score": 3, "prompt": 20, "layer": 6, "token": 0}
        assert scores.heads.sizes["head"] == 4
        assert np.isfinite(scores.top(5, "informative")["value"]).all()


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_the_report_of_the_demo(demo, tmp_path):
    page = drawn(demo[0] / "report.html", tmp_path)
    assert page.count('class="main-svg"') >= 2
    assert page.count('class="heatmaplayer mlayer"') + page.count('class="hm"') >= 12
    assert page.count("scatterlayer") >= 1 and "first-hop" in page and "second-hop" in page


def test_the_demo_again_gives_the_same_scores(demo, tmp_path, monkeypatch):
    """Of one hop, and held against interventions in part, as that of a pretrained model."""
    plan = replace(demos.PLANS["organism"], hops={"first-hop": first_hop}, check={"sample": 8})
    monkeypatch.setattr(demos, "PLANS", {"organism": plan})
    result = works("replay", demo[0] / "config.json", "--out", tmp_path, "--quiet")
    assert result.output == ""
    old, new = (ExtractiveScores.load(f / "scores-first-hop.nc") for f in (demo[0], tmp_path))
    checks = [name for name in old.dataset.variables if "causal" in str(name)]
    assert old.dataset.drop_vars(checks).equals(new.dataset.drop_vars(checks))
    was, now = (scores.components("upstream")["causal"] for scores in (old, new))
    assert was.notna().sum() == 30 and now.notna().sum() == 8
    assert now.dropna().to_numpy() == pytest.approx(was[now.notna()].to_numpy(), abs=1e-5)
    page = (tmp_path / "report.html").read_text()
    assert "on 8 of 30 components, which stand for all" in page
    assert "among 20 options; 0 is best, 9.5 chance" in page


def test_there_is_no_demo_of_any_model():
    with pytest.raises(InputError, match="no demo of 'gpt2': choose among organism, smollm2"):
        demos.demo(model="gpt2")
