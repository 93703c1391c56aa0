"""Files of masks that others wrote: their types and sizes are checked when they are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from helpers.fuzz.damage import VALUES, put
from helpers.tiny import D_HEAD, N_HEADS, N_LAYERS, PROMPTS, hooked_pair

from ecstruct.commands import Evaluate
from ecstruct.errors import InputError
from ecstruct.io import netcdf
from ecstruct.runs import subnetworks as runs
from ecstruct.subnetworks import Masks, Reference, core, evaluate, reference_values

ATTRS = {
    "method": "pruning",
    "model": {"source": "a", "fingerprint": "0"},
    "options": {"sparsity": 0.5, "kinds": ["heads", "mlp"], "steps": 1},
    "seeds": [0, 1],
}


@cache
def masks() -> Masks:
    rng = np.random.default_rng(0)
    reference: Reference = reference_values(hooked_pair("llama")[0], PROMPTS)
    heads, mlp = rng.random((2, N_LAYERS, N_HEADS)) < 0.5, rng.random((2, N_LAYERS)) < 0.5
    return Masks.of(heads, mlp, reference=reference, attrs=ATTRS)


def use(path: Path) -> None:
    """All that the commands do with a file of masks."""
    model = hooked_pair("llama")[0]
    asked = [prompt.to_record() for prompt in PROMPTS]
    config = Evaluate(masks=[str(path)], model="none", prompts=asked, generalization=asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "session_of", lambda *_: (model, "print"))
        _, masks, _ = runs._model_and_masks(config, None)
    (found,) = masks.values()
    repr(found)
    evaluate(model, found, PROMPTS, progress=False)
    core({0.5: found})


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "masks.nc"
    masks().save(path)
    return path


def test_a_good_file_is_used(good: Path) -> None:
    use(good)


def with_attrs(good: Path, path: Path, attrs: Any) -> Path:
    shutil.copy(good, path)
    with h5py.File(path, "r+") as file:
        file.attrs["attrs"] = json.dumps(attrs)
        del file.attrs["checksum"]  # which a file need not have
    return path


READ = [("options",), ("options", "sparsity"), ("options", "kinds"), ("options", "kinds", 0)]
READ += [("model",), ("model", "source"), ("model", "fingerprint")]


@pytest.mark.parametrize("way", READ, ids=lambda way: ".".join(map(str, way)))
def test_attributes_of_other_types_are_refused(good: Path, tmp_path: Path, way: tuple[Any, ...]) -> None:
    refused = 0
    for value in VALUES.values():
        try:
            use(with_attrs(good, tmp_path / "masks.nc", put(ATTRS, way, value)))
        except InputError as error:
            assert str(error).endswith(".") and str(way[-1]) in str(error), str(error)
            refused += 1
    assert bool(refused) == (way != ("model", "source"))


def test_attributes_that_nothing_reads_may_be_anything(good: Path, tmp_path: Path) -> None:
    for value in VALUES.values():
        attrs = put({**ATTRS, "method": value, "seeds": value}, ("options", "steps"), value)
        use(with_attrs(good, tmp_path / "masks.nc", attrs))


DATASETS: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "no heads": lambda d: d.drop_vars("heads"),
    "half of a reference": lambda d: d.drop_vars("mlp_reference"),
    "masks of numbers": lambda d: d.assign(heads=d["heads"].astype(float)),
    "masks turned round": lambda d: d.assign(mlp=d["mlp"].T),
    "a reference of text": lambda d: d.assign(mlp_reference=d["mlp_reference"].astype(str)),
    "a reference of whole numbers": lambda d: d.assign(mlp_reference=d["mlp_reference"].astype(int)),
    "a reference that is NaN": lambda d: d.assign(mlp_reference=d["mlp_reference"] * np.nan),
    "a reference without layers": lambda d: d.assign(heads_reference=d["heads_reference"][0]),
    "a reference of other widths": lambda d: d.isel(d_head=slice(D_HEAD - 1)),
    "a reference of no width": lambda d: d.isel(d_model=slice(0)),
    "no layers": lambda d: d.isel(layer=slice(0)),
    "no heads of a layer": lambda d: d.isel(head=slice(0)),
    "other layers": lambda d: d.isel(layer=[2, 1, 0]),
    "some layers": lambda d: d.isel(layer=[0, 2]),
    "layers of text": lambda d: d.assign_coords(layer=list("abc")),
    "seeds of text": lambda d: d.assign_coords(seed=["a", "b"]),
    "seeds that are NaN": lambda d: d.assign_coords(seed=[np.nan, 1.0]),
    "one seed twice": lambda d: d.assign_coords(seed=[1, 1]),
    "no seeds": lambda d: d.isel(seed=slice(0)),
}


@pytest.mark.parametrize("how", DATASETS)
def test_arrays_of_other_types_and_sizes_are_refused(tmp_path: Path, how: str) -> None:
    netcdf.write(DATASETS[how](masks().dataset), tmp_path / "masks.nc", Masks.format)
    with pytest.raises(InputError) as raised:
        use(tmp_path / "masks.nc")
    assert str(raised.value).endswith(".")


@pytest.mark.parametrize("name", ["seed", "layer", "head"])
def test_coordinates_that_are_not_there_count_from_0(tmp_path: Path, name: str) -> None:
    netcdf.write(masks().dataset.drop_vars(name), tmp_path / "masks.nc", Masks.format)
    use(tmp_path / "masks.nc")
