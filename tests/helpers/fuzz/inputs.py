"""Good inputs of every kind, copies of which the cases damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from transformers import AutoModelForCausalLM

from ecstruct.models import WeightDelta, load
from helpers.command_line import works
from helpers.facts_fixtures import FACTS
from helpers.folders import edit_weights, save
from helpers.fuzz.cases import Words


def save_inputs(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        model, prompts = folder / "model", folder / "prompts.jsonl"
        save(model)
        shutil.copytree(model, folder / "after")
        edit_weights(folder / "after", lambda tensors: [t.mul_(1.01) for t in tensors.values()])
        prompts.write_text("".join(f"{json.dumps({'prompt': p, 'answer': a})}\n" for p, a in FACTS))
        both = [load(folder / name, device="cpu") for name in ("model", "after")]
        WeightDelta.between(*both).save(folder / "delta.safetensors")
        shards(folder)
        # A finished run removes its checkpoints and parts; these runs must keep them.
        patch.setattr("ecstruct.runs.training.discard", lambda _: None)
        patch.setattr("ecstruct.scores.batching.TOKENS_PER_ROUND", 1)  # one part is not kept
        patch.setattr("shutil.rmtree", lambda *_args, **_options: None)
        tuned = ("--model", model, "--facts", prompts, "--lr", 0.01, "--epochs", 1, "--quiet")
        works("finetune", *tuned, "--lora", "r=2", "--out", folder / "tuned")
        works("finetune", *tuned, "--checkpoint-every", 1, "--out", folder / "begun")
        works(*score_words(folder, folder / "parts"), "--batch-size", 2, "--quiet")
    for name in ("delta.safetensors", "history.json", "config.json"):
        (folder / "begun" / name).unlink()
    for name in ("scores.nc", "report.html", "config.json"):
        (folder / "parts" / name).unlink()
    return folder


def shards(folder: Path) -> None:
    """Save the good model again, in two files with an index."""
    model = Path(shutil.copytree(folder / "model", folder / "sharded"))
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(model, max_shard_size="30KB")
    (model / "model.safetensors").unlink()


def score_words(inputs: Path, out: Path, **other: Any) -> Words:
    files = {"before": inputs / "model", "after": inputs / "after", "prompts": inputs / "prompts.jsonl"}
    given = [word for name, path in {**files, **other}.items() for word in (f"--{name}", path)]
    return ["score", *given, "--out", out]
