"""Saved deltas as sources: the model that they were made from, changed; and what they say of that."""

import logging

import pytest
import torch
from helpers.facts_fixtures import word_tokenizer
from helpers.folders import edit_weights, save
from helpers.model_pairs import logits, pair

import ecstruct
from ecstruct import facts
from ecstruct.errors import InputError
from ecstruct.models import WeightDelta, load
from ecstruct.models.bridge import named_weights
from ecstruct.models.loading import load_after
from ecstruct.models.provenance import Provenance, mark, provenance, source_of


@pytest.fixture
def saved_pair(tmp_path):
    before, after = pair(tmp_path, "llama")
    path = tmp_path / "delta.safetensors"
    WeightDelta.between(before, after).save(path)
    return path, before, after


def test_a_saved_delta_is_a_source(saved_pair):
    path, before, after = saved_pair
    model = load(path, device="cpu")
    expected = WeightDelta.between(before, after).apply_to(before)
    for name, p in named_weights(expected).items():
        assert torch.equal(named_weights(model)[name], p)
    assert source_of(model) == str(path)
    assert torch.equal(logits(model), logits(expected))


def test_a_delta_of_other_weights_than_those_that_are_there_is_no_source(saved_pair, tmp_path):
    path, _, _ = saved_pair
    edit_weights(tmp_path / "before", lambda tensors: [t.mul_(2) for t in tensors.values()])
    with pytest.raises(InputError, match=r"made from other weights than those of .*before"):
        load(path)


def test_a_delta_of_a_model_in_memory_is_no_source(saved_pair, tmp_path):
    _, before, after = saved_pair
    moved = WeightDelta.between(before, after).apply_to(before)
    WeightDelta.between(moved, before).save(tmp_path / "back.safetensors")
    with pytest.raises(InputError, match=r"in no file.*apply_to"):
        load(tmp_path / "back.safetensors")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_that_holds_in_any_precision(saved_pair, tmp_path, dtype):
    path, before, after = saved_pair
    model = load(path, device="cpu", dtype=dtype)
    moved = WeightDelta.between(before, after).apply_to(before)
    for name, p in named_weights(moved).items():
        torch.testing.assert_close(named_weights(model)[name], p.to(dtype), rtol=2**-7, atol=2**-10)
    edit_weights(tmp_path / "before", lambda tensors: [t.mul_(2) for t in tensors.values()])
    with pytest.raises(InputError, match=r"made from other weights than those of .*before"):
        load(path, dtype=dtype)


def test_a_delta_of_half_precision_finds_its_model(tmp_path):
    before, after = (load(save(tmp_path / n), device="cpu", dtype=torch.bfloat16) for n in ("a", "b"))
    with torch.no_grad():
        named_weights(after)["unembed.weight"].mul_(2)
    WeightDelta.between(before, after).save(tmp_path / "delta.safetensors")
    model = load(tmp_path / "delta.safetensors", device="cpu")
    name = "unembed.weight"
    moved = named_weights(after)[name].float()
    torch.testing.assert_close(named_weights(model)[name], moved, rtol=2**-7, atol=0)


def test_added_to_another_model_it_warns(saved_pair, tmp_path, caplog):
    path, before, after = saved_pair
    with caplog.at_level(logging.WARNING):
        load_after(path, before)
        assert not caplog.records
        load_after(path, after)
    [record] = caplog.records
    assert "is the change of other weights" in record.getMessage()


def test_the_revision_is_part_of_the_source(saved_pair):
    _, before, after = saved_pair
    origin = provenance(before)
    mark(before, Provenance("org/model", "step1000", origin.tokenizer))
    assert WeightDelta.between(before, after).metadata["before"] == "org/model@step1000"
    moved = WeightDelta.between(before, after).apply_to(before)
    assert source_of(moved) == "org/model@step1000 (with a weight delta)"
    assert (provenance(moved).source, provenance(moved).revision) == ("org/model", "step1000")


def test_parentheses_in_a_name_are_part_of_it(tmp_path):
    before, after = pair(tmp_path / "saved (copy)", "llama")
    WeightDelta.between(before, after).save(tmp_path / "delta.safetensors")
    assert torch.allclose(
        logits(load(tmp_path / "delta.safetensors", device="cpu")), logits(after), atol=1e-5
    )
    hf = ecstruct.models.to_hugging_face(before)
    hf.config.name_or_path = "organism (mine)"
    mine = load(hf, tokenizer=word_tokenizer(), device="cpu")
    with pytest.raises(InputError, match=r"no learning rate is known for organism \(mine\)"):
        ecstruct.finetune(mine, [("Mia lives in", "Paris")], progress=False)


def test_tied_tensors_are_saved_as_two(tmp_path):
    tied = torch.ones(3, 2)
    path = tmp_path / "delta.safetensors"
    WeightDelta({"embed.weight": tied, "unembed.weight": tied}).save(path)
    assert all(torch.equal(t, tied) for t in WeightDelta.load(path).tensors.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sum_is_rounded_once(dtype):
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(1000, generator=generator).to(dtype) for _ in range(2))
    delta = WeightDelta.from_weights({"w": before}, {"w": after})
    assert torch.equal(delta.added_to({"w": before})["w"], after)


def test_the_home_folder_may_be_written_as_a_tilde(saved_pair, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert torch.equal(logits(load("~/delta.safetensors", device="cpu")), logits(load(saved_pair[0])))
    assert source_of(load("~/before", device="cpu")) == str(tmp_path / "before")


def test_prompts_are_put_into_the_chat_template_of_the_model_before(saved_pair):
    path, _, _ = saved_pair
    with pytest.raises(InputError, match=r"delta\.safetensors has no chat template"):
        facts.in_chat([("Mia lives in", "Paris")], path)
