"""What a run goes on from is what was written, or it is computed again: the log says so, nothing traces
back, and the result is that of a run that was never stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from helpers.fuzz.damage import HEADERS, PLACED, WRITTEN
from helpers.tiny import PROMPTS, hooked_pair
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.finetuning import checkpoint, finetune
from ecstruct.grids import Grid
from ecstruct.grids.cell import CellFiles
from ecstruct.io import store
from ecstruct.io.files import write_tensors
from ecstruct.subnetworks import prune

CONTENT = {"n": 7, "x": 0.1, "texts": ["ä", "\ud800", "a\\"], "none": None}
RESULTS = {
    "dataset": xr.Dataset(
        {"rank": ("token", [0.5, 2.0, -1.25], {"unit": "ranks"}), "right": ("token", [True, False, True])},
        {"token": ["\0ä", "", "\ud800"], "n": 7_654_321, "layer": ("depth", np.arange(2, dtype=np.int8))},
        {"x": "within", "sizes": {"a": [1, 0.1, None]}},
    ),
    "array": xr.DataArray(
        np.arange(6, dtype=np.float32).reshape(3, 2).T,
        {"name": np.nan},
        ("name_", "token"),
        "name",
        {"y": 1},
    ),
    "without a name, of no prompts": xr.DataArray(
        np.zeros((0, 2)), {"tokens": (("prompt", "token"), np.zeros((0, 2), "U1"))}, ("prompt", "token")
    ),
    "a number": xr.DataArray(np.int64(2**62)),
}
TENSORS = {"a": torch.arange(3.0), "rows": torch.tensor([4, 2]), "none": torch.zeros(0, 2)}


def json_piece(folder: Path) -> Path:
    store.save_json(folder / "piece.json", CONTENT)
    return folder / "piece.json"


def tensor_piece(folder: Path) -> Path:
    store.save_tensors(folder / "piece.safetensors", TENSORS, CONTENT)
    return folder / "piece.safetensors"


def folder_piece(folder: Path) -> Path:
    whole = folder / "whole"
    whole.mkdir()
    (whole / "data").write_bytes(bytes(range(256)))
    store.save_sums(whole / "sums.json", CONTENT)
    return whole / "data"


def result_piece(folder: Path) -> Path:
    store.save_result(folder / "result.safetensors", RESULTS["dataset"])
    return folder / "result.safetensors"


def read(path: Path) -> Any:
    if path.stem == "result":
        return store.read_result(path).to_dict()
    if path.suffix == ".json":
        return store.read_json(path)
    if path.suffix == ".safetensors":
        about, tensors = store.read_tensors(path)
        return about, {name: (str(t.dtype), t.tolist()) for name, t in sorted(tensors.items())}
    return store.read_sums(path.with_name("sums.json")), path.read_bytes()


MADE = [json_piece, tensor_piece, folder_piece, result_piece]


@pytest.mark.parametrize("make", MADE)
def test_every_flipped_bit_is_noticed(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    good, expected, harmless = path.read_bytes(), read(path), 0
    for i in range(8 * len(good)):
        bad = bytearray(good)
        bad[i // 8] ^= 1 << i % 8
        path.write_bytes(bad)
        try:
            assert read(path) == expected  # a line break became a space
            harmless += 1
        except store.Damaged:
            pass
    assert harmless < 0.03 * 8 * len(good)


@pytest.mark.parametrize("kind", RESULTS)
def test_labelled_arrays_come_back(tmp_path: Path, kind: str) -> None:
    result = RESULTS[kind]
    store.save_result(tmp_path / "result.safetensors", result)
    found = store.read_result(tmp_path / "result.safetensors")
    xr.testing.assert_identical(found, result)
    for name, mine in found.coords.items():
        assert mine.dtype == result.coords[name].dtype
    assert found.to_dict(data=False) == result.to_dict(data=False)  # the types


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("how", WRITTEN)
def test_files_of_other_contents(tmp_path: Path, make: Callable[[Path], Path], how: str) -> None:
    path = make(tmp_path)
    path.write_bytes(WRITTEN[how](path.read_bytes()))
    with pytest.raises(store.Damaged):
        read(path)


@pytest.mark.parametrize("how", HEADERS)
def test_safetensors_of_other_headers(tmp_path: Path, how: str) -> None:
    path = tensor_piece(tmp_path)
    path.write_bytes(HEADERS[how])
    with pytest.raises(store.Damaged):
        read(path)


def test_a_file_of_a_folder_is_missing(tmp_path: Path) -> None:
    folder_piece(tmp_path).unlink()
    with pytest.raises(store.Damaged, match=r"^data is missing$"):
        store.read_sums(tmp_path / "whole" / "sums.json")


def test_the_log_says_what_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = json_piece(tmp_path)
    assert store.if_whole(store.read_json, path) == CONTENT and not caplog.messages
    assert store.if_whole(store.read_json, tmp_path / "none") is None and not caplog.messages
    path.write_text("{}")
    assert store.if_whole(store.read_json, path) is None
    assert caplog.messages == [f"{path} is damaged (it has no checksum): it is computed again"]


@pytest.mark.parametrize("how", ["a folder", "a link to itself"])
def test_what_the_system_refuses_is_told(tmp_path: Path, how: str) -> None:
    path = json_piece(tmp_path)
    PLACED[how](path)
    with pytest.raises(InputError, match=r"^cannot read .*piece\.json .*: delete it to compute it"):
        store.if_whole(store.read_json, path)


def test_the_same_tensors_and_metadata_give_the_same_bytes(tmp_path: Path) -> None:
    """The library writes metadata in an order of chance, another one in every call."""
    metadata = {name: f'{name} \x01\x7f\n"\\ é \u2028 😀' for name in "zyxwvutsrq"}
    for n in range(3):
        write_tensors(tmp_path / f"{n}", TENSORS, metadata)
    assert len({(tmp_path / f"{n}").read_bytes() for n in range(3)}) == 1
    with safe_open(tmp_path / "0", framework="pt") as file:
        assert file.metadata() == metadata
    assert all(torch.equal(t, TENSORS[name]) for name, t in load_file(tmp_path / "0").items())


def edited(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Other tensors under the same header."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)


TENSOR_DAMAGE: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "NaN": lambda t: t["log_alpha"][0, 0].fill_(torch.nan),
    "shorter": lambda t: t.update({name: v[:1].clone() for name, v in t.items()}),
    "missing": lambda t: t.pop(sorted(t)[0]),
    "another dtype": lambda t: t.update({name: v.to(torch.int16) for name, v in t.items()}),
    "one more": lambda t: t.update({"more": torch.zeros(1)}),
}


@pytest.mark.parametrize("how", [*TENSOR_DAMAGE, "done"])
def test_pruning_begins_anew(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    model, file = hooked_pair("llama")[0], tmp_path / "state.safetensors"
    options: dict[str, Any] = {"seeds": 2, "steps": 4, "progress": False, "checkpoint": file}
    expected = prune(model, PROMPTS, **options)
    if how == "done":
        edited(file, lambda t: t["done"].fill_(10**9))
    else:
        edited(file, TENSOR_DAMAGE[how])
    caplog.clear()
    assert prune(model, PROMPTS, **options).dataset.identical(expected.dataset)
    assert [m.startswith(f"{file} is damaged") for m in caplog.messages].count(True) == 1


def test_pruning_does_not_overwrite_what_is_somebody_elses(tmp_path: Path) -> None:
    model, file = hooked_pair("llama")[0], tmp_path / "weights.safetensors"
    save_file({"mine": torch.zeros(2)}, file)
    with pytest.raises(InputError, match=r"is no checkpoint of ecstruct .*: delete it"):
        prune(model, PROMPTS, seeds=1, steps=1, checkpoint=file, progress=False)


def weights_bit(step: Path) -> None:
    path = next(step.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    path.write_bytes(content)


def of_history(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(step: Path) -> None:
        described = json.loads((step / "run.json").read_text())
        change(described["about"]["history"])
        (step / "run.json").write_text(json.dumps(described))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        weights_bit,
        of_history(lambda history: history.update(loss=[])),
        of_history(lambda history: history["loss"].append(0.5)),
        of_history(lambda history: history["ranks"].clear()),
        lambda step: next(step.glob("*.safetensors")).unlink(),
        lambda step: edited(next(step.glob("*.safetensors")), TENSOR_DAMAGE["shorter"]),
        lambda step: (step / "run.json").write_text("{"),
    ],
)
def test_finetuning_begins_anew(
    tmp_path: Path,
    damage: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = hooked_pair("llama")[0]
    options: dict[str, Any] = {"lr": 1e-3, "epochs": 2, "batch_size": 2, "progress": False}
    options |= {"evaluate": {"facts": PROMPTS}, "checkpoint": tmp_path / "kept", "checkpoint_every": 1}
    monkeypatch.setattr("ecstruct.finetuning.discard", lambda folder: None)
    expected = finetune(model, PROMPTS, **options)
    (step,) = (tmp_path / "kept").glob("step-*")
    damage(step)
    again = finetune(model, PROMPTS, **options)
    assert again.history == expected.history
    for name, change in expected.delta.tensors.items():
        assert torch.equal(again.delta.tensors[name], change), name
    assert [m for m in caplog.messages if "step-" in m and m.endswith(": it is computed again")]
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_a_folder_that_is_no_checkpoint_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "step-3").mkdir()
    (tmp_path / "step-3" / "mine").write_text("mine")
    with pytest.raises(InputError, match="step-3 is no checkpoint: delete it"):
        finetune(hooked_pair("llama")[0], PROMPTS, lr=1e-3, checkpoint=tmp_path, progress=False)
    assert (tmp_path / "step-3" / "mine").exists()


def test_what_stops_the_writing_of_a_checkpoint_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "save_sums", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    options: dict[str, Any] = {"lr": 1e-3, "checkpoint": tmp_path / "kept", "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        finetune(hooked_pair("llama")[0], PROMPTS, progress=False, **options)
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize("content", ["", "{}", '{"rows": [], "results": {}}', "[]", "null"])
def test_a_damaged_cell_of_a_sweep_is_not_done(tmp_path: Path, content: str) -> None:
    place = CellFiles(tmp_path, Grid(["ocr"]).cells()[0])
    found = {"cell": place.cell.columns(), "rows": [{"rank": 1.0}], "results": {}}
    place.home.mkdir(parents=True)
    store.save_json(place.home / "result.json", found)
    assert place.done() and place.result() == found
    (place.home / "result.json").write_text(content)
    assert not place.done() and place.result() is None
