"""Every experiment on tiny models of several families, and its numbers against other ways to them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.paper_models import finished, plain_mean_rank, plain_model, save_paper_model, small
from torch import Tensor

import ecstruct
from ecstruct.errors import InputError
from ecstruct.experiments import EXPERIMENTS, sensitivity, training
from ecstruct.experiments.sweep import Sweep
from ecstruct.facts import Fictitious, fictitious, first_hop, second_hop
from ecstruct.facts.paper_lists import paper_lists

WHOLE = "llama"
"""The family on which whole experiments run. One with post-norms, and one whose tokenizer has a class of
its own, run a cell of each."""

CELLS = {
    "ocr": ({"hop": "second-hop"}, 2),
    "scores": ({"hop": "first-hop"}, None),
    "freezing": ({"hop": "first-hop"}, 6),
    "ordering": ({"words": "novel", "order": "facts first"}, 5),
    "grafting": ({"words": "known"}, 3),
    "localization": ({"words": "known"}, 15),
}
"""A cell of each experiment, and its number of rows with three layers of four heads and one epoch."""


def measure_of(name: str) -> Any:
    return import_module(EXPERIMENTS[name].__module__).measure


def leaves(entry: Any) -> list[dict[str, Any]]:
    """The statistics of an entry of results.json."""
    if isinstance(entry, list):
        return [leaf for part in entry for leaf in leaves(part)]
    if "seeds" in entry:
        return [entry]
    return [leaf for key, part in entry.items() if key != "pooled" for leaf in leaves(part)]


@pytest.mark.parametrize("family", ["gemma2", "qwen2"])
def test_every_experiment_runs_on_a_family(family: str, tmp_path: Path) -> None:
    setup = small(save_paper_model(tmp_path / "model", family))
    sweep = Sweep(setup, tmp_path / "out", progress=False)
    for name, (cell, n_rows) in CELLS.items():
        frame = sweep.run(name, measure_of(name), [{"seed": 0, "repeat": 0, **cell}])
        numbers = frame.select_dtypes("number")
        assert n_rows is None or len(frame) == n_rows, name
        ranks = frame[[c for c in ("fact", "implication", "Impl F'", "Impl F", "F'") if c in frame]]
        assert ranks.to_numpy().min(initial=0) >= 0 and ranks.to_numpy().max(initial=0) <= 19
        assert not np.isinf(numbers.to_numpy()).any()
        if name in ("scores", "localization"):
            value = "value" if name == "scores" else "informative"
            assert frame[value].notna().any() and frame[value].abs().max() > 0


@pytest.fixture(scope="module")
def home() -> Path:
    return finished(WHOLE)[0]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return finished(WHOLE)[1]


def test_a_result_shows_itself(results: dict[str, Any]) -> None:
    for name, result in results.items():
        assert result.figure.data and all(figure.data for figure in result.figures().values())
        assert len(result.table()) and all(len(table) for table in result.tables().values())
        assert result.conclusion().endswith(".")
        assert json.loads(json.dumps(result.config)) == {
            "command": "reproduce",
            "arguments": {
                "experiments": [name],
                "setup": result.setup.to_dict(),
                "options": {name: result.options},
            },
        }
        assert bool(result.options) == (name == "sensitivity")


def test_results_have_their_shape(results: dict[str, Any]) -> None:
    entries: dict[str, Any] = {}
    for result in results.values():
        entries |= result.results()
    entries = json.loads(json.dumps(entries, allow_nan=False))
    assert {hop: set(kinds) for hop, kinds in entries["ocr"].items()} == {
        "first_hop": {"fact", "implication"},
        "second_hop": {"fact", "implication"},
    }
    rows = ["None", "Early (post)", "Late (post)", "All", "Early (pre)", "Late (pre)"]
    assert {row: len(columns) for row, columns in entries["freezing"].items()} == dict.fromkeys(rows, 4)
    for suffix in ("", "_novel"):
        assert set(entries[f"ordering{suffix}"]) == {"joint", "facts_first", "implications_first"}
        columns = {row: len(stats) for row, stats in entries[f"grafting{suffix}"].items()}
        assert columns == {"W_F'": 3, "W_graft": 3, "W_control": 3}
    for kind in ("mlp", "heads"):
        assert set(entries["localization"][kind]) == {"r", "r2", "p", "pooled"}
    assert set(entries["mass"]) == {
        "first_hop_informative_mlp",
        "second_hop_informative_mlp",
        "first_hop_downstream",
    }
    for leaf in leaves(entries):
        assert set(leaf) == {"mean", "std", "seeds"}
        assert leaf["seeds"] == [leaf["mean"]] and leaf["std"] is None


def test_sensitivity_is_the_others_on_a_grid(home: Path, results: dict[str, Any]) -> None:
    result = sensitivity(small(home / "model"), factors=[1.0], epochs=[1], progress=False)
    assert result.frame["repeat"].unique().tolist() == [0]
    values = {row["measure"]: row["value"] for row in result.frame.to_dict("records")}
    assert values["first-hop implications"] == results["ocr"].final()["first_hop"]["implication"]["mean"]
    assert values["facts first"] == results["ordering"].final("known")["facts_first"]["mean"]
    assert values["W_graft on Impl F'"] == results["grafting"].final("known")["W_graft"][0]["mean"]
    assert result.figure.data and [len(table) for table in result.tables().values()] == [1, 80]
    assert "of 1 settings" in result.conclusion()
    json.dumps(result.results(), allow_nan=False)
    refused: dict[str, Any] = {"words": "old", "factors": [], "epochs": [0]}
    for option, value in refused.items():
        with pytest.raises(InputError, match=rf"^sensitivity has {option}(\.0)?="):
            sensitivity(small(home / "model"), **{option: value})


def finetuned(model: Any, prompts: Any, **options: Any) -> Any:
    return ecstruct.finetune(
        model, prompts, lr=1e-3, epochs=1, batch_size=80, seed=0, progress=False, **options
    )


def test_ocr_ends_at_the_ranks_of_a_finetuned_model(home: Path, results: dict[str, Any]) -> None:
    before = ecstruct.load(home / "model", device="cpu")
    for data, key in ((first_hop(0), "first_hop"), (second_hop(0), "second_hop")):
        after = finetuned(before, data.facts).model
        final, start = results["ocr"].final()[key], results["ocr"].at_epoch(0)[key]
        for kind, prompts in (("fact", data.facts), ("implication", data.implications)):
            assert final[kind]["mean"] == ecstruct.mean_rank(after, prompts)
            assert start[kind]["mean"] == plain_mean_rank(
                plain_model(home / "model"), home / "model", prompts
            )


def weights_of(folder: Path, model: Any) -> dict[str, Tensor]:
    """A hooked model's weights as those of a plain one."""
    ecstruct.save_model(model, folder)
    return {name: t.clone() for name, t in plain_model(folder).state_dict().items()}


def test_early_post_is_a_model_with_early_tensors_copied_back(
    home: Path, results: dict[str, Any], tmp_path: Path
) -> None:
    data = first_hop(0)
    before = ecstruct.load(home / "model", device="cpu")
    after = finetuned(before, data.facts).model
    weights = weights_of(tmp_path / "after", after)
    plain = plain_model(home / "model")
    old = plain.state_dict()
    mixed = {n: old[n] if n.startswith(("model.layers.0.", "model.layers.1.")) else weights[n] for n in old}
    assert any(not torch.equal(weights[n], mixed[n]) for n in old)
    plain.load_state_dict(mixed)
    row = results["freezing"].by_row()["Early (post)"]
    assert row[0]["mean"] == plain_mean_rank(plain, home / "model", data.facts)
    assert row[1]["mean"] == plain_mean_rank(plain, home / "model", data.implications)


def test_before_freezing_the_others_learn_alone(home: Path, results: dict[str, Any]) -> None:
    data = first_hop(0)
    before = ecstruct.load(home / "model", device="cpu")
    late = finetuned(before, data.facts, freeze=[2])
    assert not any(".2." in name for name in late.delta.tensors) and late.delta.tensors
    row = results["freezing"].by_row()["Late (pre)"]
    assert row[1]["mean"] == ecstruct.mean_rank(late.model, data.implications)


def test_the_graft_is_arithmetic_of_weights(home: Path, results: dict[str, Any], tmp_path: Path) -> None:
    data = fictitious(0, fact="{name} dax", implication="{name} zong is the")
    before = ecstruct.load(home / "model", device="cpu")
    f = finetuned(before, data.train.facts).model
    f_then_impl = finetuned(f, data.train.implications).model
    impl = finetuned(before, data.train.implications).model
    other = finetuned(before, data.counterfactual.facts).model
    named = {"f": f, "f_impl": f_then_impl, "impl": impl, "other": other}
    w = {name: weights_of(tmp_path / name, model) for name, model in named.items()}
    plain = plain_model(home / "model")
    old = {name: t.clone() for name, t in plain.state_dict().items()}
    sums = {
        "W_graft": {n: w["other"][n] + w["f_impl"][n] - w["f"][n] for n in old},
        "W_control": {n: w["other"][n] + w["impl"][n] - old[n] for n in old},
    }
    asked = (data.counterfactual.implications, data.train.implications, data.counterfactual.facts)
    for row, weights in sums.items():
        plain.load_state_dict(weights)
        for stat, prompts in zip(results["grafting"].final("novel")[row], asked, strict=True):
            # Sums in another order: two options that are nearly even may change places.
            expected = plain_mean_rank(plain, home / "model", prompts)
            assert stat["mean"] == pytest.approx(expected, abs=1.01 / len(prompts))


@pytest.mark.parametrize("order", ["joint", "facts first", "implications first"])
def test_every_document_is_seen_as_often_in_every_order(
    home: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = import_module("ecstruct.finetuning.loop")
    seen: list[str] = []
    phases: list[tuple[int, Any]] = []
    teach, finetune = loop.teacher_forced, training.finetune

    def watched(part: Any, *rest: Any) -> Any:
        seen.extend(t.prompt.text for t in part)
        return teach(part, *rest)

    def counted(model: Any, facts: Any, **options: Any) -> Any:
        start = len(seen)
        tuned = finetune(model, facts, **options)
        phases.append((start, (model, tuned.model)))
        return tuned

    monkeypatch.setattr(loop, "teacher_forced", watched)
    monkeypatch.setattr(training, "finetune", counted)
    epochs, cell = 2, {"seed": 0, "repeat": 0, "words": "novel", "order": order}
    setup = small(home / "model", epochs=epochs)
    rows = Sweep(setup, progress=False).run("ordering", measure_of("ordering"), [cell])
    data: Fictitious = fictitious(0)
    facts, implications = (
        [p.text for p in prompts] for prompts in (data.train.facts, data.train.implications)
    )
    tested = [p.text for p in data.test.facts]
    assert Counter(seen) == dict.fromkeys([*facts, *implications, *tested], epochs)
    first, second = (seen[:160], seen[160:320])
    expected = {"facts first": (facts, implications), "implications first": (implications, facts)}
    if order in expected:
        assert (set(first), set(second)) == tuple(map(set, expected[order]))
        assert len(phases) == 3
    else:
        assert Counter(first) == Counter(second) == dict.fromkeys([*facts, *implications], 1)
        assert len(phases) == 2
    assert set(seen[320:]) == set(tested)
    # Each phase goes on with the model that the one before has made.
    assert all(a[1][1] is b[1][0] for a, b in pairwise(phases))
    n = epochs * (len(phases) - 1)
    assert rows["epoch"].tolist() == [*range(n + 1), *range(epochs + 1)]
    assert rows["stage"].tolist() == ["continued pretraining"] * (n + 1) + ["test finetuning"] * (
        epochs + 1
    )


def test_mass_of_real_scores(results: dict[str, Any]) -> None:
    inside = total = 0.0
    for row in results["scores"].frame.to_dict("records"):
        if (row["hop"], row["score"], row["kind"]) == ("second-hop", "informative", "mlp"):
            value = max(row["value"], 0.0)
            total += value
            # Two of three layers are early; "The mayor of the city that contains X Y is".
            inside += value if row["layer"] == 2 and row["slot_text"].strip("Ġ ") == "is" else 0.0
    mass = results["scores"].mass()["second_hop_informative_mlp"]["mean"]
    assert total > 0 and mass == pytest.approx(inside / total)


# --- A tokenizer that cannot tell the options apart


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_options_that_look_the_same_are_refused_before_training(
    name: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of sensitivity's experiments, only the last ones ask for animals.
    one, other = paper_lists()["animals"][:2] if name == "sensitivity" else ("Tokyo", "Beijing")
    model = shutil.copytree(home / "model", tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Replace", "pattern": {"String": f" {word}"}, "content": f" ~{word}"}
            for word in (one, other)
        ],
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    monkeypatch.setattr(training, "finetune", lambda *args, **options: pytest.fail("trained"))
    with pytest.raises(InputError, match=r"begin with the same token '[^']*'") as raised:
        EXPERIMENTS[name](small(model), out=tmp_path / "out", progress=False)
    assert repr(one) in str(raised.value) and repr(other) in str(raised.value)
    assert not list((tmp_path / "out").rglob("cells/*/*"))
