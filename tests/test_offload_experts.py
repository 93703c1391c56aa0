"""Mixtures of experts on disk, in the layouts that checkpoints have; loaded models are the oracle."""

import weakref

import pytest
import torch
import xarray as xr
from helpers.architectures import ARCHITECTURES
from helpers.command_line import refused
from helpers.tiny import PROMPTS, perturb, tokenizer
from safetensors.torch import load_file, save_file

import ecstruct
from ecstruct.models import offload

SEPARATE = ("MixtralForCausalLM", "Qwen2MoeForCausalLM", "DeepseekV3ForCausalLM")
STACKED = ("GptOssForCausalLM", "GraniteMoeForCausalLM", "Llama4ForCausalLM")
FIRST, SECOND = (f"model.layers.0.block_sparse_moe.experts.{i}.weight" for i in ("1.w1", "2.w2"))


def saved(name, folder):
    """W and W' of an architecture in float32; what is no weight is random, and the same."""
    before = next(a for a in ARCHITECTURES if a.name == name and not a.options).build().float()
    with torch.no_grad():
        for key, t in before.state_dict().items():
            if key.endswith("e_score_correction_bias"):
                t.copy_(torch.randn(t.shape, generator=torch.Generator().manual_seed(0)))
    for state, plain in (("before", before), ("after", perturb(before))):
        plain.save_pretrained(folder / state, max_shard_size="60KB")
        tokenizer().save_pretrained(folder / state)
    return folder / "before", folder / "after"


@pytest.fixture(scope="module")
def mixtrals(tmp_path_factory):
    return saved("MixtralForCausalLM", tmp_path_factory.mktemp("mixtrals"))


def score(before, after, **options):
    return ecstruct.score(before, after, PROMPTS, progress=False, device="cpu", **options)


def assert_equal(found, expected) -> None:
    assert found.attrs == expected.attrs
    for name in expected.dataset.data_vars:
        scale = float(abs(expected.dataset[name]).max())
        xr.testing.assert_allclose(found.dataset[name], expected.dataset[name], rtol=0, atol=1e-6 * scale)
    assert abs(expected.dataset["mlp"]).max() > 0


@pytest.mark.parametrize("name", (*SEPARATE, *STACKED))
def test_numbers_are_those_of_models_in_memory(name, tmp_path):
    folders = saved(name, tmp_path)
    assert_equal(score(*folders, offload=True), score(*folders))


def test_numbers_along_the_path_are_those_of_models_in_memory(mixtrals):
    ways = {"path_steps": 2, "batch_size": 2}
    assert_equal(score(*mixtrals, offload=True, **ways), score(*mixtrals, **ways))


def test_a_delta_is_added_to_each_expert(mixtrals, tmp_path):
    before, after = (ecstruct.load(folder, device="cpu") for folder in mixtrals)
    delta = ecstruct.WeightDelta.between(before, after).restrict(names=["blocks.1.mlp"])
    delta.save(tmp_path / "delta.safetensors")
    for given in (delta, tmp_path / "delta.safetensors"):
        assert_equal(score(mixtrals[0], given, offload=True), score(mixtrals[0], given))


def test_few_experts_are_in_memory_at_once(mixtrals, monkeypatch):
    alive, most = weakref.WeakSet(), 0

    def watched(t, device):
        nonlocal most
        found = cast(t, device)
        if type(found) is torch.Tensor and found.shape in ((96, 32), (32, 48)):  # an expert's
            alive.add(found)
            most = max(most, len(alive))
        return found

    cast = offload._cast
    monkeypatch.setattr(offload, "_cast", watched)
    score(*mixtrals, offload=True)
    assert 0 < most <= 3  # of 16 in a layer, before and after


def test_an_expert_that_is_not_there(mixtrals, tmp_path):
    """Neither one of its matrices nor all of them."""
    tensors = {}
    for shard in sorted(mixtrals[0].glob("*.safetensors")):
        tensors |= load_file(shard)
    folder = tmp_path / "before"
    folder.mkdir()
    for file in mixtrals[0].glob("*[!x].json"):
        (folder / file.name).write_bytes(file.read_bytes())
    for lacking in (FIRST, SECOND):
        few = {name: t for name, t in tensors.items() if name != lacking}
        save_file(few, folder / "model.safetensors", {"format": "pt"})
        what = "gate_up_proj" if lacking == FIRST else "down_proj"
        refused(
            lambda: score(folder, mixtrals[1], offload=True),
            f"no weights of the right shape for model.layers.0.mlp.experts.{what}",
        )


def test_a_router_that_is_balanced_otherwise_is_told(tmp_path, caplog):
    before, after = saved("DeepseekV3ForCausalLM", tmp_path)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    for shard in after.glob("*.safetensors"):
        tensors = load_file(shard)
        if name in tensors:
            save_file(tensors | {name: tensors[name] + 1}, shard, {"format": "pt"})
    for options in ({"offload": True}, {}):
        caplog.clear()
        score(before, after, **options)
        assert any(f"{name.rpartition('.')[2]}, which is no weight" in text for text in caplog.messages)
