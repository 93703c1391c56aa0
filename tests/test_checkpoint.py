"""Checkpoints of a finetuning hold every bit of weights and averages, in files that run no code."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ecstruct.finetuning import checkpoint
from ecstruct.finetuning.checkpoint import Checkpoint, discard
from ecstruct.finetuning.result import History
from ecstruct.io.distributed import Ranks

SHAPES = {"a": (7, 5), "b": (11,), "c": (1,), "never stepped": (3,)}


def begun() -> tuple[dict[str, nn.Parameter], torch.optim.Adam, History]:
    weights = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    return weights, torch.optim.Adam(weights.values()), History([], {"facts": []}, 4)


def trained(steps: int) -> tuple[dict[str, nn.Parameter], torch.optim.Adam, History]:
    weights, optimizer, history = begun()
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        for name, weight in weights.items():
            if name != "never stepped":
                weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
        history.loss.append(1 / (step + 1))
    return weights, optimizer, history


@pytest.mark.parametrize(("file_bytes", "n_files"), [(2**30, 1), (100, 5)])
def test_comes_back_bit_for_bit_from_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_bytes: int, n_files: int
) -> None:
    monkeypatch.setattr(checkpoint, "FILE_BYTES", file_bytes)
    kept = Checkpoint(tmp_path, None, {"lr": 0.1}, Ranks())
    weights, optimizer, history = trained(3)
    kept.save(weights, optimizer, history)
    kinds = [path.suffix for path in (tmp_path / "step-3").iterdir()]
    assert sorted(kinds) == [".json", *[".safetensors"] * n_files]

    again, its_optimizer, its_history = begun()
    assert kept.load(again, its_optimizer, its_history)
    assert its_history == history
    for name, weight in weights.items():
        assert torch.equal(again[name], weight)
        ours, theirs = its_optimizer.state.get(again[name], {}), optimizer.state.get(weight, {})
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_what_others_put_there_stays(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    kept = Checkpoint(folder, None, {}, Ranks())
    for steps in (1, 2):
        kept.save(*trained(steps))
    (folder / "step-final").mkdir()
    (folder / ".writing-3").mkdir()
    (folder / "notes.md").write_text("mine")
    assert kept.load(*begun())
    discard(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["notes.md", "step-final"]
    other = tmp_path / "other"
    Checkpoint(other, None, {}, Ranks()).save(*trained(1))
    discard(other)
    discard(other)
    assert not other.exists()
