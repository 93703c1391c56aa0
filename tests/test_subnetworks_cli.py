"""`ecstruct subnetworks` from the pruning to the report, on the embedded model."""

import json
import re
import signal
from collections import Counter
from functools import partial

import numpy as np
import pytest
from helpers import command_line
from helpers.command_line import refused

import ecstruct
from ecstruct.facts import first_hop, write_jsonl
from ecstruct.io.store import FinishedPieces
from ecstruct.models import load
from ecstruct.subnetworks import Core, Masks, Reference, attended, prune
from ecstruct.subnetworks import masks as masks_module
from ecstruct.subnetworks.pruning import Pruning

STEPS, SEEDS = 6, 3


@pytest.fixture(scope="module", autouse=True)
def few_steps_will_do():
    """What is tested here is what commands make of masks, whatever these are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks_module, "TOLERANCE", 1.0)
        yield


run = partial(command_line.run, "subnetworks")
works = partial(command_line.works, "subnetworks")


def again(config, out):
    command_line.works("replay", config, "--out", out, "--quiet")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("inputs"), first_hop()
    write_jsonl(data.facts[:3], folder / "facts.jsonl")
    write_jsonl(data.implications[:3], folder / "implications.jsonl")
    return folder


@pytest.fixture(scope="module")
def asked(inputs):
    return ("--model", "organism", "--prompts", inputs / "facts.jsonl")


@pytest.fixture(scope="module")
def pruned(asked, tmp_path_factory):
    out = tmp_path_factory.mktemp("pruned")
    for sparsity in (0.2, 0.4):
        works(
            *("prune", *asked, "--sparsity", sparsity, "--seeds", SEEDS, "--steps", STEPS),
            *("--out", out / str(sparsity), "--quiet"),
        )
    return out


@pytest.fixture(scope="module")
def compared(asked, inputs, pruned):
    masks = (w for sparsity in (0.2, 0.4) for w in ("--masks", pruned / str(sparsity) / "masks.nc"))
    return (*asked, "--generalization", inputs / "implications.jsonl", *masks)


@pytest.fixture(scope="module")
def cored(compared, tmp_path_factory):
    out = tmp_path_factory.mktemp("cored")
    works("core", *compared, "--draws", 2, "--out", out)
    return out


def test_pruning_writes_masks_a_report_and_no_checkpoint(pruned):
    assert sorted(path.name for path in (pruned / "0.4").iterdir()) == [
        "config.json",
        "masks.nc",
        "report.html",
    ]
    masks = Masks.load(pruned / "0.4" / "masks.nc")
    assert len(masks) == SEEDS
    assert masks.sparsity.values == pytest.approx(0.4)


def test_the_masks_are_those_of_the_library(inputs, pruned):
    expected = prune(
        load("organism", device="cpu"),
        first_hop().facts[:3],
        sparsity=0.4,
        seeds=SEEDS,
        steps=STEPS,
        progress=False,
    )
    found = Masks.load(pruned / "0.4" / "masks.nc")
    np.testing.assert_array_equal(found.heads.values, expected.heads.values)
    np.testing.assert_array_equal(found.mlp.values, expected.mlp.values)


def test_pruning_is_replayed(pruned, tmp_path):
    again(pruned / "0.4" / "config.json", tmp_path / "again")
    first, second = (Masks.load(of / "masks.nc") for of in (pruned / "0.4", tmp_path / "again"))
    assert first.dataset.equals(second.dataset)


def test_options_of_pruning_arrive(asked, inputs, tmp_path):
    works(
        *("prune", *asked, "--sparsity", 0.25, "--seeds", 2, "--steps", 3, "--kinds", "heads"),
        *("--ablation", "zero", "--reference", inputs / "implications.jsonl", "--batch-size", 4),
        *("--out", tmp_path, "--quiet"),
    )
    masks = Masks.load(tmp_path / "masks.nc")
    assert masks.mlp.values.all()
    assert (~masks.heads.values).reshape(2, -1).sum(1).tolist() == [6, 6]
    assert not masks.reference.heads.any()
    options = masks.attrs["options"]
    assert (options["steps"], options["batch_size"], options["ablation"]) == (3, 4, "zero")


def test_evaluation_has_every_subnetwork_and_the_full_model(compared, tmp_path):
    result = works("evaluate", *compared, "--out", tmp_path / "out")
    assert "effective size" in result.output or "effective size" in result.stderr
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    rows = found["subnetworks"]
    assert [row["seed"] for row in rows] == [None, 0, 1, 2, 0, 1, 2]
    assert [row["sparsity"] for row in rows] == [0, 0.2, 0.2, 0.2, 0.4, 0.4, 0.4]
    facts = ecstruct.mean_rank(load("organism", device="cpu"), first_hop().facts[:3])
    assert rows[0]["in-domain rank"] == pytest.approx(facts)
    assert 0 <= found["effective_size"] <= 100
    (of_facts,) = found["templates"]["in-domain"]["0.4"]
    assert of_facts["prompts"] == 3 and of_facts["full model"] == rows[0]["in-domain accuracy"]
    assert (tmp_path / "out" / "generalization-0.4.nc").exists()
    again(tmp_path / "out" / "config.json", tmp_path / "again")
    for name in ("evaluation.json", "in-domain-0.2.nc"):
        assert (tmp_path / "again" / name).exists()
    assert json.loads((tmp_path / "again" / "evaluation.json").read_text()) == found


def test_the_core_is_written_and_replayed(cored, tmp_path):
    account = json.loads((cored / "core.json").read_text())
    core = Core.load(cored / "core.nc")
    assert core.groups == ["0.2", "0.4", "all"]
    assert account["components"]["all"] == core.components()
    assert [row["core"] for row in account["table"]] == core.table()["core"].tolist()
    assert {row["of"] for row in account["ablation"]} >= {"full model", "the core alone"}
    assert account["conclusions"]["core"] == core.conclusion()
    page = (cored / "report.html").read_text()
    attention = attended(load("organism", device="cpu"), first_hop().implications[:3], core.heads).table()
    assert account["attention"] == attention.to_dict(orient="records")
    for title in (
        "The core",
        "Without it",
        "What generalising subnetworks have",
        "What its heads attend to",
    ):
        assert f"<h2>{title}</h2>" in page
    assert not {">True<", ">False<", "p_adjusted"} & {*re.findall(r">\w+<|p_adjusted", page)}
    again(cored / "config.json", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "core.json").read_text()) == account


def test_scores_are_put_beside_the_core(compared, inputs, tmp_path):
    before = load("organism", device="cpu")
    tuned = ecstruct.finetune(before, first_hop().facts[:3], epochs=1, progress=False).model
    scores = ecstruct.score(before, tuned, first_hop().implications[:3], progress=False)
    scores.save(tmp_path / "scores.nc")
    works(
        *("core", *compared, "--draws", 1, "--scores", tmp_path / "scores.nc"),
        *("--out", tmp_path / "out", "--quiet"),
    )
    rows = json.loads((tmp_path / "out" / "core.json").read_text())["scores"]
    assert {row["score"] for row in rows} == {"informative", "upstream", "downstream"}
    assert "<h2>Beside the extractive scores</h2>" in (tmp_path / "out" / "report.html").read_text()


def test_without_a_core_the_report_says_so(asked, inputs, tmp_path):
    masks = Masks.load(pruned_without_core(tmp_path))
    assert len(masks) == 2
    works(
        *("core", *asked, "--generalization", inputs / "implications.jsonl"),
        *("--masks", tmp_path / "masks.nc", "--draws", 1, "--out", tmp_path / "out", "--quiet"),
    )
    account = json.loads((tmp_path / "out" / "core.json").read_text())
    assert "no core to ablate" in account["conclusions"]["ablation"]
    assert "ablation" not in account


def pruned_without_core(folder):
    """Two subnetworks that share nothing."""
    model = load("organism", device="cpu")
    values = ecstruct.subnetworks.reference_values(model, first_hop().facts[:3])
    heads, mlp = np.zeros((2, 6, 4), bool), np.zeros((2, 6), bool)
    heads[0], mlp[0] = True, True
    Masks.of(heads, mlp, reference=values).save(folder / "masks.nc")
    return folder / "masks.nc"


def test_pruning_goes_on_where_it_was_terminated(asked, pruned, tmp_path, monkeypatch):
    whole, words = pruned / "0.4", ("prune", *asked, "--sparsity", 0.4, "--seeds", SEEDS, "--steps", STEPS)
    steps, losses = [], Pruning.losses

    def terminated(self, log_alpha, seeds, step):
        steps.append(step)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGTERM)
        return losses(self, log_alpha, seeds, step)

    monkeypatch.setattr(Pruning, "losses", terminated)
    out = tmp_path / "stopped"
    assert run(*words, "--out", out, "--quiet").exit_code == 143
    assert steps == [0, 1, 2]
    assert (out / "checkpoint.safetensors").exists()
    assert not (out / "masks.nc").exists()
    works(*words, "--out", out, "--quiet")
    assert steps == list(range(STEPS))
    found, expected = (Masks.load(of / "masks.nc") for of in (out, whole))
    assert found.dataset.equals(expected.dataset)
    assert not (out / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("command", "ends"),
    [
        ("evaluate", [r"generalization 0\.2 .*"]),
        ("core", [r"core ablation in-domain .*", r"dependence .* 2"]),
    ],
)
def test_goes_on_where_it_was_terminated(compared, tmp_path, monkeypatch, command, ends):
    words = (command, *compared, *(("--draws", 2) if command == "core" else ()), "--quiet", "--out")
    works(*words, tmp_path / "whole")
    result, measured, stopped = FinishedPieces.result, [], {}

    def terminated(self, name, measure):
        def noted():
            end = next((end for end in ends if re.fullmatch(end, name)), None)
            if end and end not in stopped:
                stopped[end] = name
                measured.append(name)
                signal.raise_signal(signal.SIGTERM)
            measured.append(name)
            return measure()

        return result(self, name, noted)

    monkeypatch.setattr(FinishedPieces, "result", terminated)
    for _ in ends:
        assert run(*words, tmp_path / "out").exit_code == 143
        assert not (tmp_path / "out" / "report.html").exists() and len(measured) > 1
    works(*words, tmp_path / "out")
    assert Counter(measured) == Counter([*{*measured}, *stopped.values()])
    files = {path.name for path in (tmp_path / "whole").iterdir()}
    assert "unfinished" not in files
    assert files == {path.name for path in (tmp_path / "out").iterdir()}
    for name in files - {"report.html"}:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_parts_of_another_run_are_refused(compared, tmp_path, monkeypatch):
    words = ("core", *compared, "--quiet", "--out", tmp_path)
    monkeypatch.setattr("ecstruct.runs.subnetworks.generalising", lambda *_, **__: signal.raise_signal(15))
    assert run(*words, "--draws", 2).exit_code == 143
    refused(run(*words, "--draws", 3), "holds a part of another run (draws was 2, now 3)")


def test_one_bar_whose_phases_have_names(compared, tmp_path):
    shown = run("core", *compared, "--draws", 1, "--out", tmp_path).stderr
    sets = ("in-domain", "generalization")
    for phase in (
        *(f"{what}, {of}" for what in ("evaluation", "core ablation") for of in sets),
        "dependence",
    ):
        assert f"{phase}:" in shown
    # 6 subnetworks; the full model, with and without the core, 3 draws, and 3 of each subnetwork; 3 sets.
    n = 6 * 6 + 6 * (3 + 3 + 3 * 6) + 3 * 3
    assert f"| {n}/{n} [" in shown
    assert shown.count("\n") == 1


def test_what_did_not_converge_says_so_and_is_not_built_on(asked, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(masks_module, "TOLERANCE", 0.1)
    out = tmp_path / "out"
    result = run("prune", *asked, "--sparsity", 0.4, "--seeds", 2, "--steps", STEPS, "--out", out)
    assert result.exit_code == 2
    assert "pruning did not converge for 2 of 2 seeds (0, 1)" in result.stderr.splitlines()[-1]
    assert "2 of the seeds did not converge" in result.output
    assert "Pruning did not converge for 2 of 2 seeds" in (out / "report.html").read_text()
    found = Masks.load(out / "masks.nc")
    assert not found.converged.any() and (found.dataset["expected_sparsity"] < 0.01).all()
    words = (*asked, "--generalization", inputs / "implications.jsonl", "--masks", out / "masks.nc")
    for command in ("evaluate", "core"):
        refused(run(command, *words, "--out", tmp_path / command, "--quiet"), "did not converge")


def test_another_runs_checkpoint_is_refused(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(Masks, "save", lambda *_: signal.raise_signal(signal.SIGTERM))
    words = ("prune", *asked, "--seeds", 2, "--out", tmp_path, "--quiet")
    assert run(*words, "--steps", 2).exit_code == 143
    refused(
        run(*words, "--steps", 3),
        "holds a part of another run (options.steps was 2, now 3)",
    )


def test_bad_options_of_pruning_are_refused(asked, tmp_path):
    for words, message in (
        (("--sparsity", "1.5"), "sparsity=1.5"),
        (("--seeds", "0"), "seeds=0"),
        (("--steps", "0"), "steps=0"),
        (("--kinds", "neurons"), "'neurons'"),
    ):
        refused(run("prune", *asked, *words, "--out", tmp_path, "--quiet"), message)


def test_an_empty_reference_is_refused(asked, tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    words = ("--reference", tmp_path / "none.jsonl", "--out", tmp_path / "out", "--quiet")
    refused(run("prune", *asked, *words), "none.jsonl")


def test_bad_masks_are_refused(asked, inputs, pruned, tmp_path):
    words = (*asked, "--generalization", inputs / "implications.jsonl", "--out", tmp_path, "--quiet")
    refused(run("core", *words, "--masks", tmp_path / "none.nc"), "no file of masks")
    (tmp_path / "broken.nc").write_text("no netCDF")
    refused(run("evaluate", *words, "--masks", tmp_path / "broken.nc"), "cannot be read as masks")
    twice = ("--masks", pruned / "0.4" / "masks.nc") * 2
    refused(run("core", *words, *twice), "one for each sparsity")
    one = Masks.load(pruned / "0.4" / "masks.nc").select([0])
    one.save(tmp_path / "one.nc")
    refused(run("core", *words, "--masks", tmp_path / "one.nc"), "2 seeds or more")
    values = Reference(one.reference.heads[:2], one.reference.mlp[:2])
    other = Masks.of(np.ones((2, 2, 4)), np.ones((2, 2)), reference=values)
    other.save(tmp_path / "other.nc")
    refused(run("evaluate", *words, "--masks", tmp_path / "other.nc"), "model with")


def test_draws_below_one_are_refused(compared, tmp_path):
    refused(run("core", *compared, "--draws", 0, "--out", tmp_path, "--quiet"), "draws=0")


def test_other_masks_are_not_replayed(compared, cored, pruned, tmp_path):
    config = json.loads((cored / "config.json").read_text())
    moved = str(pruned / "0.4" / "masks.nc")
    config["arguments"]["fingerprints"][moved] = "0" * 16
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = command_line.run("replay", tmp_path / "config.json", "--out", tmp_path / "out")
    refused(result, "not those that this configuration was run with")
