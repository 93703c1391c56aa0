"""Inputs for the tests of the command line: two models, prompts, and runs on them."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from typer.testing import Result

from helpers.command_line import works
from helpers.facts_fixtures import FACTS
from helpers.folders import edit_weights, save

PROMPTS = [{"prompt": text, "answer": answer} for text, answer in FACTS]


def jsonl(path: Path, records: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def drop_from_text(path: Path, character: str) -> None:
    """Make a tokenizer drop this character from every text."""
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": character}, "content": ""}
    path.write_text(json.dumps(tokenizer))


def save_inputs(folder: Path) -> Path:
    """Save a model, another one of the same kind, and prompts."""
    save(folder / "model")
    drop_from_text(folder / "model" / "tokenizer.json", "\u200b")
    shutil.copytree(folder / "model", folder / "after")
    edit_weights(folder / "after", lambda tensors: [t.mul_(1.01) for t in tensors.values()])
    jsonl(folder / "prompts.jsonl", PROMPTS)
    return folder


def finetuned(inputs: Path, out: Path, *words: Any) -> Result:
    files = ("--model", inputs / "model", "--facts", inputs / "prompts.jsonl")
    return works("finetune", *files, "--out", out, "--lr", 0.01, "--epochs", 2, "--quiet", *words)


def scored(inputs: Path, out: Path, *words: Any, after: Path | None = None) -> Result:
    files = ("--before", inputs / "model", "--after", after or inputs / "after")
    return works("score", *files, "--prompts", inputs / "prompts.jsonl", "--out", out, "--quiet", *words)
