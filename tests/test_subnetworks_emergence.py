"""`ecstruct subnetworks emergence`: the core through checkpoints that the command loads one by one."""

import json

import numpy as np
import pandas as pd
from helpers.cli_inputs import save_inputs
from helpers.command_line import refused, run, works

from ecstruct.facts import read_jsonl
from ecstruct.models import load
from ecstruct.subnetworks import Core, Masks, core, emergence, reference_values


def test_the_command_follows_a_core_and_is_replayed(tmp_path):
    inputs = save_inputs(tmp_path)
    prompts, models = (
        read_jsonl(inputs / "prompts.jsonl"),
        [str(inputs / name) for name in ("model", "after")],
    )
    loaded = {name: load(name, device="cpu") for name in models}
    cfg = loaded[models[0]].cfg
    heads = np.random.default_rng(0).random((3, cfg.n_layers, cfg.n_heads)) < 0.7
    reference = reference_values(loaded[models[0]], prompts)
    core(Masks.of(heads, np.ones((3, cfg.n_layers), bool), reference=reference)).save(tmp_path / "core.nc")
    asked = ("--core", tmp_path / "core.nc", "--prompts", inputs / "prompts.jsonl", "--device", "cpu")
    words = ("subnetworks", "emergence", *asked, "--model", models[0])
    works(*words, "--model", models[1], "--out", tmp_path / "out", "--quiet")
    expected = emergence(loaded, Core.load(tmp_path / "core.nc"), prompts)
    written = pd.read_csv(tmp_path / "out" / "emergence.csv")
    pd.testing.assert_frame_equal(written, expected.frame, check_dtype=False)
    config = tmp_path / "out" / "config.json"
    assert json.loads(config.read_text())["arguments"]["fingerprints"].keys() == {*models}
    works("replay", config, "--out", tmp_path / "again", "--device", "cpu", "--quiet")
    for name in ("emergence.csv", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    twice = run(*words, "--model", models[0], "--out", tmp_path / "twice")
    refused(twice, "a checkpoint is given twice")
