"""A vocabulary that a finetuning extended, in models and in adapters: its new tokens are left out."""

import logging

import numpy as np
import peft
import pytest
import torch
from helpers.tiny import PROMPTS, perturb
from safetensors.torch import load_file, save_file
from test_two_checkpoints import OFFLOAD, llama, rewards_after, save

import ecstruct
from ecstruct import InputError, WeightDelta

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def before(tmp_path):
    return save(llama(), tmp_path / "before")


def resized(model, n, seed=0):
    """A model with n tokens, the new ones with random rows."""
    old = model.config.vocab_size
    model.resize_token_embeddings(n, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            end.weight[old:] = torch.randn(end.weight[old:].shape, generator=generator)
    return model


@OFFLOAD
@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
def test_a_vocabulary_that_has_grown(tmp_path, caplog, tied, offload):
    """As if the new tokens were not there; the rows of the others are compared."""
    before = save(llama(tie_word_embeddings=tied), tmp_path / "before")
    tuned = perturb(llama(tie_word_embeddings=tied))
    n = tuned.config.vocab_size
    expected_from = save(tuned, tmp_path / "tuned")
    after = save(resized(tuned, n + 2), tmp_path / "after")
    asked = {"reward": "logprob", "offload": offload, "progress": False}
    expected = ecstruct.score(before, expected_from, PROMPTS, **asked)
    with caplog.at_level(logging.WARNING):
        found = ecstruct.score(before, after, PROMPTS, **asked)
    assert f"the vocabulary after has {n + 2} tokens and that before {n}" in caplog.text
    for name in ("mlp", "heads", "rest", "reward"):
        np.testing.assert_array_equal(found.dataset[name], expected.dataset[name], name)
    assert abs(found.rest.sel(group="embed")).max() > 0
    delta = WeightDelta.between(ecstruct.load(before), ecstruct.load(after))
    assert len(delta.tensors["embed.weight"]) == n
    with pytest.raises(InputError, match=rf"{n} tokens, and that before {n + 2}|embed\.weight"):
        rewards_after(after, before, offload=offload)


@pytest.mark.parametrize(
    ("tied", "options", "whole_ends"),
    [
        (False, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}, "auto"),
        (False, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}, True),
        (False, {"target_modules": ["q_proj"]}, True),
        (True, {"target_modules": ["q_proj"]}, True),
    ],
    ids=["trained", "trained, saved twice", "saved", "tied, saved"],
)
def test_an_adapter_of_a_model_with_more_tokens(tmp_path, tied, options, whole_ends):
    before = save(llama(tie_word_embeddings=tied), tmp_path / "before")
    n = llama().config.vocab_size
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, **options)
    adapted = peft.get_peft_model(resized(llama(tie_word_embeddings=tied), n + 1), config)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) / 4)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=whole_ends)
    whole = save(adapted.merge_and_unload(), tmp_path / "whole")
    expected = ecstruct.score(before, whole, PROMPTS, progress=False)
    found = ecstruct.score(before, tmp_path / "adapter", PROMPTS, progress=False)
    for name in ("mlp", "heads", "rest", "reward"):
        np.testing.assert_allclose(found.dataset[name], expected.dataset[name], atol=1e-6)


@pytest.mark.parametrize("kept", [["embed_tokens"], []], ids=["one end", "fewer"])
def test_an_adapter_whose_tokens_are_not_all_there(before, tmp_path, kept):
    n = llama().config.vocab_size + (1 if kept else -1)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        target_modules=["q_proj"],
        modules_to_save=kept or ["embed_tokens", "lm_head"],
    )
    grown = llama()
    grown.resize_token_embeddings(n)
    peft.get_peft_model(grown, config).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(InputError, match=rf"a vocabulary of {n} tokens.*resize_token_embeddings\({n}\)"):
        ecstruct.load(before, adapter=tmp_path / "adapter")


def test_an_adapter_of_a_wider_model_says_which_tensor(before, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    wider = llama(hidden_size=2 * llama().config.hidden_size)
    peft.get_peft_model(wider, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"does not fit .*size mismatch for .*q_proj\.lora_A"):
        ecstruct.load(before, adapter=tmp_path / "adapter")


def test_what_peft_saves_beside_a_module_counts_only_if_the_module_is_there(before, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    peft.get_peft_model(llama(), config).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    alone = "base_model.model.lm_head.modules_to_save.weight"
    save_file({**load_file(path), alone: llama().lm_head.weight.detach().clone()}, path)
    with pytest.raises(InputError, match=r"has .*lm_head\.modules_to_save\.weight, for which"):
        ecstruct.load(before, adapter=tmp_path / "adapter")
