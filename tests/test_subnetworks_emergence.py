"""`ecstruct subnetworks emergence`: the core through checkpoints that the command loads one by one."""

import json

import numpy as np
import pandas as pd
from helpers.cli_inputs import save_inputs
from helpers.command_line import refused, run, works

from ecstruct.facts import read_jsonl
from ecstruct.models import load
from ecstruct.subnetworks import Masks, core, emergence, masks, prune


def saved(folder):
    """The words that follow a saved core through two saved models; the models, the core, the prompts."""
    inputs = save_inputs(folder)
    loaded = {str(path): load(path, device="cpu") for path in (inputs / "model", inputs / "after")}
    cfg = next(iter(loaded.values())).cfg
    heads = np.random.default_rng(0).random((3, cfg.n_layers, cfg.n_heads)) < 0.7
    found = core(Masks.of(heads, np.ones((3, cfg.n_layers), bool)))
    found.save(folder / "core.nc")
    asked = ("--core", folder / "core.nc", "--prompts", inputs / "prompts.jsonl", "--device", "cpu")
    models = (word for model in loaded for word in ("--model", model))
    return (
        ("subnetworks", "emergence", *asked, *models),
        loaded,
        found,
        read_jsonl(inputs / "prompts.jsonl"),
    )


def test_the_command_follows_a_core_and_is_replayed(tmp_path):
    words, loaded, found, prompts = saved(tmp_path)
    works(*words, "--out", tmp_path / "out", "--quiet")
    expected = emergence(loaded, found, prompts)
    written = pd.read_csv(tmp_path / "out" / "emergence.csv")
    pd.testing.assert_frame_equal(written, expected.frame, check_dtype=False)
    config = tmp_path / "out" / "config.json"
    assert json.loads(config.read_text())["arguments"]["fingerprints"].keys() == {*loaded}
    works("replay", config, "--out", tmp_path / "again", "--device", "cpu", "--quiet")
    for name in ("emergence.csv", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    twice = run(*words, "--model", next(iter(loaded)), "--out", tmp_path / "twice")
    refused(twice, "a checkpoint is given twice")


def test_the_command_finds_the_effective_size_of_every_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(masks, "TOLERANCE", 1.0)  # few steps will do: what counts is what is made of them
    words, loaded, found, prompts = saved(tmp_path)
    words += ("--sparsity", 0.25, "--seeds", 2, "--steps", 6, "--added", "head 0.0")
    works(*words, "--out", tmp_path / "out", "--quiet")
    expected = emergence(
        *(loaded, found, prompts),
        added=["head 0.0"],
        prune=lambda m: {0.25: prune(m, prompts, sparsity=0.25, seeds=2, steps=6, progress=False)},
    )
    for name, frame in (("subnetworks", expected.subnetworks), ("sizes", expected.sizes())):
        written = pd.read_csv(tmp_path / "out" / f"{name}.csv")
        pd.testing.assert_frame_equal(written, frame, check_dtype=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ("config.json", "emergence.csv", "report.html", "sizes.csv", "subnetworks.csv")
    )
    assert "Subnetworks of every checkpoint" in (tmp_path / "out" / "report.html").read_text()
    works("replay", tmp_path / "out" / "config.json", "--out", tmp_path / "again", "--quiet")
    for name in ("subnetworks.csv", "sizes.csv", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    unknown = run(*words, "--added", "head 9.9", "--out", tmp_path / "unknown")
    refused(unknown, "head 9.9")
    refused(run(*words, "--sparsity", 1.5, "--out", tmp_path / "none"), "1.5")
