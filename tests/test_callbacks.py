"""Ranks and scores through a training by transformers' Trainer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.facts_fixtures import hugging_face, save_tiny
from helpers.processes import TESTS, forked
from helpers.trainings import ASKED, TAUGHT, trainer
from transformers import Trainer

import ecstruct
from ecstruct.callbacks import ScoreCallback
from ecstruct.errors import InputError
from ecstruct.scores.result import ExtractiveScores

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")  # with dropout


def scored(training: Trainer, out: Path, **options: Any) -> ScoreCallback:
    given = {"every": 5, "at_most": None} | options
    callback = ScoreCallback(training, TAUGHT, ASKED, out=out, **given)
    training.add_callback(callback)
    return callback


def weights(training: Trainer) -> dict[str, torch.Tensor]:
    assert training.model is not None
    return {name: p.detach() for name, p in training.model.named_parameters()}


def test_what_is_logged_is_what_scoring_the_checkpoints_gives(folder: Path, tmp_path: Path) -> None:
    training, reporter = trainer(folder, tmp_path / "run")
    callback = scored(training, tmp_path / "out", every=6)
    training.train()
    table = pd.read_csv(tmp_path / "out/training.csv")
    assert table["step"].tolist() == [0, 6, 12]
    pd.testing.assert_frame_equal(table, callback.history, check_dtype=False)
    before = ecstruct.load(folder)
    assert table["rank_facts"][0] == ecstruct.mean_rank(before, TAUGHT)
    assert pd.isna(table["informative"][0]) and not (tmp_path / "out/scores-0.nc").exists()
    for _, row in table[1:].iterrows():
        saved = tmp_path / f"run/checkpoint-{row['step']:.0f}"
        hugging_face(saved)  # transformers reads it too
        after = ecstruct.load(saved)
        for name, prompts in (("facts", TAUGHT), ("implications", ASKED)):
            assert row[f"rank_{name}"] == ecstruct.mean_rank(after, prompts)
        expected = ecstruct.score(before, after, ASKED, progress=False)
        found = ExtractiveScores.load(tmp_path / f"out/scores-{row['step']:.0f}.nc")
        for kind in ("mlp", "heads"):
            np.testing.assert_allclose(found.dataset[kind], expected.dataset[kind], atol=1e-6)
        means = np.maximum(expected.mlp.sum("token").mean("prompt"), 0)
        heads = np.maximum(expected.heads.sum("token").mean("prompt"), 0)
        for score in ("informative", "upstream", "downstream"):
            of_mlps, of_heads = means.sel(score=score), heads.sel(score=score).sum("head")
            mass = float((of_mlps + of_heads).sum())
            assert row[score] == pytest.approx(mass, rel=1e-4)
            assert row[f"{score}_mlps"] == pytest.approx(float(of_mlps.sum()) / mass, abs=1e-4)
            layer = float(((of_mlps + of_heads) * expected.dataset["layer"]).sum()) / mass
            assert row[f"{score}_layer"] == pytest.approx(layer, abs=1e-4)
        logged = next(
            logs for step, logs in reporter.logged if step == row["step"] and "ecstruct/informative" in logs
        )
        assert logged["ecstruct/rank_facts"] == row["rank_facts"]


@pytest.mark.parametrize("how", [{}, {"lora": True}, {"bf16": True}], ids=["plain", "lora", "bf16"])
def test_training_is_the_same_with_it(how: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    source = folder if "lora" not in how else save_tiny(tmp_path / "llama")
    options = {"save_strategy": "no", "logging_steps": 5} | how
    plain, expected = trainer(source, tmp_path / "plain", **options)
    plain.train()
    watched, reporter = trainer(source, tmp_path / "watched", **options)
    callback = scored(watched, tmp_path / "out")
    watched.train()
    assert callback.history["step"].tolist() == [0, 5, 10, 12]
    assert callback.history["informative"][3] > 0
    losses = [[log["loss"] for _, log in each.logged if "loss" in log] for each in (expected, reporter)]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    old, new = weights(plain), weights(watched)
    assert old.keys() == new.keys()
    for name, w in old.items():
        assert torch.equal(w, new[name]), name


def test_an_adapter_is_measured_merged(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "llama")
    training, _ = trainer(folder, tmp_path / "run", lora=True)
    callback = scored(training, tmp_path / "out")
    training.train()
    adapted = ecstruct.load(folder, adapter=tmp_path / "run/checkpoint-12")
    assert callback.history["rank_facts"].iloc[-1] == ecstruct.mean_rank(adapted, TAUGHT)
    expected = ecstruct.score(folder, adapted, ASKED, progress=False)
    found = ExtractiveScores.load(tmp_path / "out/scores-12.nc")
    np.testing.assert_allclose(found.mlp, expected.mlp, atol=1e-5)


def test_it_goes_on_with_a_training_from_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    whole, _ = trainer(folder, tmp_path / "run")
    expected = scored(whole, tmp_path / "out", every=4)
    whole.train()
    again, _ = trainer(folder, tmp_path / "run")
    callback = scored(again, tmp_path / "out", every=4)  # W is that of the model, not of the checkpoint
    again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-6"))
    assert callback.history["step"].tolist() == [0, 4, 8, 12]
    pd.testing.assert_frame_equal(callback.history, expected.history, check_exact=False, atol=1e-5)
    anew, _ = trainer(folder, tmp_path / "other")
    callback = scored(anew, tmp_path / "out", every=7)
    anew.train()
    assert callback.history["step"].tolist() == [0, 7, 12]  # a training that begins anew begins the table


def test_measurements_take_no_more_than_their_share(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that says that a step takes a second and a measurement four."""
    now = [0.0]
    monkeypatch.setattr("ecstruct.callbacks.time.monotonic", lambda: now[0])
    training, _ = trainer(folder, tmp_path / "run", save_strategy="no", max_steps=30)
    callback = scored(training, tmp_path / "out", every=1, at_most=0.4)
    measure, step = callback._ranks, training.training_step
    monkeypatch.setattr(
        callback, "_ranks", lambda model: (now.__setitem__(0, now[0] + 4), measure(model))[1]
    )
    monkeypatch.setattr(
        training, "training_step", lambda *args: (now.__setitem__(0, now[0] + 1), step(*args))[1]
    )
    training.train()
    steps = callback.history["step"].tolist()
    # After n measurements, 4 (n + 1) <= .4 (4 n + step) makes another one due at step 6 n + 10.
    assert steps == [0, 16, 22, 28, 30]


def test_two_processes_measure_what_one_does(folder: Path, tmp_path: Path) -> None:
    done = forked(2, str(TESTS / "helpers/trainings.py"), str(folder), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-2000:]
    table = pd.read_csv(tmp_path / "out/scored/training.csv")
    assert table["step"].tolist() == [0, 5, 10, 12]
    after = ecstruct.load(tmp_path / "out/trained")
    assert table["rank_implications"].iloc[-1] == ecstruct.mean_rank(after, ASKED)


def test_bad_input(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, _ = trainer(folder, tmp_path / "run")

    def refused(facts: Any = TAUGHT, implications: Any = ASKED, **given: Any) -> str:
        with pytest.raises(InputError) as error:
            ScoreCallback(training, facts, implications, out=tmp_path / "out", **given)
        return str(error.value)

    assert "every=0" in refused(every=0)
    assert "at_most=0" in refused(at_most=0)
    assert "'sum'" in refused(reward="sum")
    assert "options" in refused([("Mia lives in", "Rome")])
    ScoreCallback(training, TAUGHT, ASKED, out=tmp_path / "out")
    assert "its implications are others" in refused(implications=TAUGHT)
    assert "its options are others" in refused(path_steps=2)
    embeddings = training.model.get_input_embeddings().weight
    with torch.no_grad():
        embeddings += 1
    assert "its weights are others" in refused()
    with torch.no_grad():
        embeddings -= 1
    (tmp_path / "out/config.json").write_text("[]")
    assert "its configuration are others" in refused()
    (tmp_path / "out/config.json").write_text(json.dumps({}))
    assert "another training" in refused()
    monkeypatch.setattr(training, "is_fsdp_enabled", True)
    assert "folder@step" in refused()
    monkeypatch.setattr(training, "is_fsdp_enabled", False)
    monkeypatch.setattr(training, "processing_class", None)
    assert "processing_class=tokenizer" in refused()
