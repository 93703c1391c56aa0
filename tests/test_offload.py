"""Scoring two checkpoints that stay on disk: the numbers, what is read, and what is refused."""

import copy

import pytest
import torch
import xarray as xr
from tiny import FAMILIES, PROMPTS, hooked, plain_pair, tokenizer

import ecstruct


@pytest.fixture(scope="module", params=[f for f in FAMILIES if f != "qwen2"])
def folders(request, tmp_path_factory):
    """W and W' as folders in float32, W' in shards."""
    home = tmp_path_factory.mktemp(request.param)
    for plain, name, size in zip(
        plain_pair(request.param), ("before", "after"), ("1GB", "30KB"), strict=True
    ):
        copy.deepcopy(plain).float().save_pretrained(home / name, max_shard_size=size)
        tokenizer().save_pretrained(home / name)
    return home


def equal(a, b, tolerance=1e-5):
    for name in a.data_vars:
        scale = float(abs(b[name]).max())
        xr.testing.assert_allclose(a[name], b[name], rtol=0, atol=tolerance * max(scale, 1e-30))


def test_numbers_are_those_of_models_in_memory(folders):
    before, after = (str(folders / name) for name in ("before", "after"))
    resident = ecstruct.score(before, after, PROMPTS, progress=False, device="cpu")
    streamed = ecstruct.score(before, after, PROMPTS, progress=False, offload=True, device="cpu")
    equal(streamed.dataset, resident.dataset)
    assert streamed.attrs["before"] == resident.attrs["before"]
    assert streamed.attrs["after"] == resident.attrs["after"]
