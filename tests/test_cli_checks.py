"""`ecstruct alignment`, `causal`, `diagnose`, `edges`, `suggest`, `controls`, `graft` and `grafts`: files
that can be replayed."""

import json
from html import unescape

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.cli_inputs import PROMPTS, jsonl, save_inputs
from helpers.command_line import refused, run, works

import ecstruct
from ecstruct.checks import controls
from ecstruct.facts import FactSet, read_jsonl
from ecstruct.grafting import grafts, random_sets
from ecstruct.scores.result import ExtractiveScores

SUGGESTED = ("lora.json", "mergekit.yaml", "easyedit.yaml", "suggestion.csv")
TUNE = {"lr": 1e-2, "epochs": 1, "batch_size": 4}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = save_inputs(tmp_path_factory.mktemp("checks"))
    words = ("--model", folder / "model", "--facts", folder / "prompts.jsonl", "--device", "cpu", "--quiet")
    options = [word for name, value in TUNE.items() for word in (f"--{name.replace('_', '-')}", value)]
    works("finetune", *words, *options, "--out", folder / "tuned")
    pair = str(folder / "model"), str(folder / "tuned" / "delta.safetensors")
    ecstruct.score(*pair, folder / "prompts.jsonl", device="cpu", progress=False).save(folder / "scores.nc")
    return folder, pair


def words(inputs, command, *more):
    folder, (before, after) = inputs
    asked = ("--before", before, "--after", after, "--prompts", folder / "prompts.jsonl")
    return (command, *asked, *more, "--device", "cpu", "--quiet", "--out")


def replayed(out, *names):
    works("replay", out / "config.json", "--out", f"{out}-again", "--device", "cpu", "--quiet")
    for name in (*names, "config.json"):
        assert (out.parent / f"{out.name}-again" / name).read_bytes() == (out / name).read_bytes(), name


def test_causal_scores(inputs, tmp_path):
    some = ["MLP 1", "head 0.2"]
    more = [word for name in some for word in ("--component", name)]
    works(*words(inputs, "causal", *more, "--kind", "upstream"), tmp_path / "out")
    found = ExtractiveScores.load(tmp_path / "out" / "scores.nc")
    prompts = inputs[0] / "prompts.jsonl"
    expected = ecstruct.causal_scores(
        *inputs[1], prompts, kinds="upstream", components=some, progress=False
    )
    np.testing.assert_array_equal(found.heads, expected.heads)
    np.testing.assert_array_equal(found.mlp, expected.mlp)
    assert found.attrs["options"] == expected.attrs["options"]
    replayed(tmp_path / "out")
    refused(
        run(*words(inputs, "causal", "--component", "MLP 77"), tmp_path / "no"), "there is no component"
    )


def test_diagnose(inputs, tmp_path):
    folder, pair = inputs
    facts, known = folder / "prompts.jsonl", jsonl(tmp_path / "known.jsonl", PROMPTS[:3])
    asked = ("diagnose", "--before", pair[0], "--after", pair[1], "--facts", facts, "--implications", facts)
    more = ("--known", known, "--device", "cpu", "--quiet", "--out")
    works(*asked, *more, tmp_path / "out")
    given = {"implications": read_jsonl(facts), "known": read_jsonl(known), "progress": False}
    expected = ecstruct.diagnose(*pair, read_jsonl(facts), **given)
    found = ecstruct.Diagnosis.load(tmp_path / "out" / "diagnosis.nc")
    assert found.dataset.equals(expected.dataset)
    assert found.attrs["options"] == expected.attrs["options"]
    table = pd.read_csv(tmp_path / "out" / "diagnosis.csv")
    assert table["finding"].tolist() == expected.table()["finding"].tolist()
    assert expected.conclusion() in unescape((tmp_path / "out" / "report.html").read_text())
    replayed(tmp_path / "out", "diagnosis.csv")
    works("diagnose", *asked[1:3], "--after", pair[0], *asked[5:7], *more[2:], tmp_path / "same")
    same = ecstruct.Diagnosis.load(tmp_path / "same" / "diagnosis.nc")
    assert same.diagnosis == "nothing changed" and (tmp_path / "same" / "report.html").exists()
    refused(run(*asked, "--known", folder / "none.jsonl", *more[2:], tmp_path / "no"), "none.jsonl")
    alike = jsonl(
        tmp_path / "alike.jsonl", [{"prompt": p["prompt"], "answer": "Rome"} for p in PROMPTS[:2]]
    )
    refused(
        run(*asked[:5], "--facts", alike, *more[2:], tmp_path / "no"), "no other option|one answer|Rome"
    )


def test_edges(inputs, tmp_path):
    folder, pair = inputs
    prompts, scores = folder / "prompts.jsonl", ExtractiveScores.load(folder / "scores.nc")
    works(*words(inputs, "edges", "--scores", folder / "scores.nc", "--top", 2), tmp_path / "out")
    expected = ecstruct.edges(*pair, prompts, scores, top=2, progress=False)
    found = ecstruct.Edges.load(tmp_path / "out" / "edges.nc")
    assert found.dataset.equals(expected.dataset)
    assert found.attrs["options"] == expected.attrs["options"]
    table = pd.read_csv(tmp_path / "out" / "edges.csv")
    pd.testing.assert_frame_equal(table, expected.table(), check_dtype=False)
    assert expected.conclusion() in unescape((tmp_path / "out" / "report.html").read_text())
    replayed(tmp_path / "out", "edges.csv")
    works(*words(inputs, "edges", "--top", 2), tmp_path / "scored")
    assert (tmp_path / "scored" / "edges.csv").read_bytes() == (tmp_path / "out" / "edges.csv").read_bytes()
    refused(run(*words(inputs, "edges", "--scores", folder / "none.nc"), tmp_path / "no"), "none.nc")
    refused(run(*words(inputs, "edges", "--top", 0), tmp_path / "no"), "top")


def test_suggest(inputs, tmp_path):
    folder, pair = inputs
    works(*words(inputs, "suggest", "--scores", folder / "scores.nc", "--share", 0.9), tmp_path / "out")
    scores = ExtractiveScores.load(folder / "scores.nc")
    expected = ecstruct.suggest(*pair, folder / "prompts.jsonl", scores=scores, share=0.9, progress=False)
    found = ecstruct.Suggestion.load(tmp_path / "out" / "suggestion.nc")
    assert found.dataset.equals(expected.dataset) and found.attrs["share"] == 0.9
    read = {name: (tmp_path / "out" / name).read_text() for name in SUGGESTED}
    parsed = [json.loads(read["lora.json"]), *(yaml.safe_load(read[name]) for name in SUGGESTED[1:3])]
    assert parsed == [expected.lora(), expected.mergekit(), expected.easyedit()]
    report = unescape((tmp_path / "out" / "report.html").read_text())
    assert expected.conclusion() in report and "mergekit.yaml a merge" in report
    ranked = json.loads((tmp_path / "out" / "lora-by-score.json").read_text())
    assert ranked == expected.lora(by_score=True)
    replayed(tmp_path / "out", *SUGGESTED, "lora-by-score.json")
    works(*words(inputs, "suggest", "--share", 0.9), tmp_path / "scored")
    assert (tmp_path / "scored" / "suggestion.csv").read_text() == read["suggestion.csv"]
    refused(run(*words(inputs, "suggest", "--share", 1), tmp_path / "no"), "share")


def test_suggest_before_finetuning(inputs, tmp_path):
    folder, (before, _) = inputs
    prompts = folder / "prompts.jsonl"
    asked = ("suggest", "--before", before, "--prompts", prompts, "--device", "cpu", "--quiet")
    works(*asked, "--facts", prompts, "--out", tmp_path / "out")
    facts = ecstruct.FactSet(read_jsonl(prompts), read_jsonl(prompts))
    expected = ecstruct.suggest(before, facts, progress=False)
    found = ecstruct.Suggestion.load(tmp_path / "out" / "suggestion.nc")
    assert found.dataset.equals(expected.dataset) and found.chosen == expected.chosen
    assert json.loads((tmp_path / "out" / "lora.json").read_text()) == expected.lora()
    assert not (tmp_path / "out" / "mergekit.yaml").exists()
    assert "mergekit" not in (tmp_path / "out" / "report.html").read_text()
    replayed(tmp_path / "out", "suggestion.csv", "lora.json")
    refused(run(*asked, "--out", tmp_path / "no"), "give --after, or --facts")
    refused(run(*words(inputs, "suggest", "--facts", prompts), tmp_path / "no"), "leave out --after")


def test_controls(inputs, tmp_path):
    folder, pair = inputs
    preserved = jsonl(tmp_path / "preserved.jsonl", PROMPTS[:2])
    more = ("--tuned", folder / "tuned" / "config.json", "--preserved", preserved, "--steering")
    works(*words(inputs, "controls", *more), tmp_path / "out")
    prompts, facts = read_jsonl(folder / "prompts.jsonl"), FactSet(PROMPTS, ())
    given = {"preserved": read_jsonl(preserved), "steering": True, "facts": facts, "tune": TUNE}
    expected = controls(*pair, prompts, **given, progress=False)
    assert expected.steering is not None
    rows = json.loads((tmp_path / "out" / "controls.json").read_text())
    pd.testing.assert_frame_equal(pd.DataFrame(rows), expected.totals().reset_index())
    assert {path.stem for path in (tmp_path / "out").glob("scores-*.nc")} == {
        *("scores-finetuned", "scores-random-change", "scores-shuffled-facts", "scores-preserved-prompts")
    }
    changes = pd.read_csv(tmp_path / "out" / "changes.csv", index_col="changed")
    pd.testing.assert_frame_equal(changes, expected.changes(), check_names=False)
    steered = pd.read_csv(tmp_path / "out" / "steering.csv")
    pd.testing.assert_frame_equal(steered, expected.steering.frame(), check_dtype=False)
    report = (tmp_path / "out" / "report.html").read_text()
    assert expected.conclusion() in unescape(report)
    assert "A constant vector in place of the change" in report
    replayed(tmp_path / "out", "controls.json", "changes.csv", "steering.csv")
    refused(
        run(*words(inputs, "controls", "--tuned", folder / "prompts.jsonl"), tmp_path / "no"),
        "prompts.jsonl is no configuration of ecstruct finetune",
    )
    alone = jsonl(tmp_path / "alone.jsonl", PROMPTS[:1])
    for word, name in (("--preserved", "preserved"), ("--prompts", "prompts")):
        message = f"{name} has a single prompt, {PROMPTS[0]['prompt']!r}, but components are tested over"
        refused(run(*words(inputs, "controls", word, alone), tmp_path / "no"), message)


def test_graft(inputs, tmp_path):
    folder, pair = inputs
    sets = ("--set", "mlps", "--set", "informative top 2 + heads.o 1", "--scores", folder / "scores.nc")
    more = (*sets, "--position", "last", "--position", "all", "--random-seeds", 1, "--complement")
    more = (*more, "--control", pair[1])
    works(*words(inputs, "graft", *more), tmp_path / "out")
    expected = ecstruct.graft(
        *pair,
        read_jsonl(folder / "prompts.jsonl"),
        ["mlps", "informative top 2 + heads.o 1"],
        positions=["last", "all"],
        complement=True,
        scores=ExtractiveScores.load(folder / "scores.nc"),
        random_seeds=1,
        control=pair[1],
        progress=False,
    )
    found = ecstruct.Grafted.load(tmp_path / "out" / "graft.nc")
    for name in ("grafted", "ends", "random", "control", "mlps", "heads"):
        np.testing.assert_array_equal(found.dataset[name], expected.dataset[name])
    assert found.attrs["options"] == expected.attrs["options"]
    assert expected.conclusion() in (tmp_path / "out" / "report.html").read_text()
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "out" / "graft.csv"), expected.table(), check_dtype=False
    )
    replayed(tmp_path / "out", "graft.csv")
    refused(run(*words(inputs, "graft", "--set", "early"), tmp_path / "no"), "'early' names no weights")
    refused(
        run(*words(inputs, "graft", "--set", "upstream top 2"), tmp_path / "no"),
        "'upstream top 2' needs scores",
    )


def test_grafts(inputs, tmp_path):
    folder, pair = inputs
    scores = folder / "scores.nc"
    more = ("--scores", scores, "--k", 1, "--k", 3, "--random-seeds", 1, "--random-sets", 4)
    works(*words(inputs, "grafts", *more), tmp_path / "out")
    prompts, ranking = read_jsonl(folder / "prompts.jsonl"), ExtractiveScores.load(scores)
    expected = grafts(*pair, prompts, ranking, ks=[1, 3], random_seeds=1, progress=False)
    drawn = random_sets(*pair, prompts, ranking, n_sets=4, progress=False)
    for name, frame in {"grafts": expected.frame, "random_sets": drawn.frame}.items():
        pd.testing.assert_frame_equal(
            pd.read_csv(tmp_path / "out" / f"{name}.csv"), frame, check_dtype=False
        )
    assert drawn.conclusion() in (tmp_path / "out" / "report.html").read_text()
    replayed(tmp_path / "out", "grafts.csv")
    refused(run(*words(inputs, "grafts", "--scores", folder / "none.nc"), tmp_path / "no"), "none.nc")
    refused(run(*words(inputs, "grafts", *more[:-1], 2), tmp_path / "no"), "n_sets")


def test_alignment(inputs, tmp_path):
    folder, (before, _) = inputs
    facts = folder / "prompts.jsonl"
    asked = [{**record, "prompt": f"{record['prompt']} Mia lives in"} for record in PROMPTS]
    implied = jsonl(folder / "implied.jsonl", asked)
    words = ("alignment", "--model", before, "--facts", facts, "--device", "cpu", "--quiet", "--out")
    works(*words, tmp_path / "out", "--implications", implied, "--reward", "logprob")
    found = ecstruct.Alignment.load(tmp_path / "out" / "alignment.nc")
    expected = ecstruct.alignment(
        before, read_jsonl(facts), read_jsonl(implied), reward="logprob", progress=False
    )
    for name in ("mlp", "heads", "rest", "pair"):
        np.testing.assert_array_equal(found.dataset[name], expected.dataset[name])
    assert found.attrs["options"] == expected.attrs["options"]
    assert expected.conclusion() in (tmp_path / "out" / "report.html").read_text()
    replayed(tmp_path / "out")
    few = jsonl(folder / "few.jsonl", asked[:2])
    refused(
        run(*words, tmp_path / "no", "--implications", few), "2 implications cannot be paired with 6 facts"
    )
    changed = json.loads((tmp_path / "out" / "config.json").read_text())
    changed["arguments"]["model"] = str(folder / "after")
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    refused(run("replay", tmp_path / "changed.json", "--out", tmp_path / "no"), "are not those that this")
