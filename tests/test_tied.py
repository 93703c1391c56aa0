"""Tied embeddings, and embeddings that are tied in name alone, on every path that weights take.

The oracle is plain Hugging Face: the model that it reads from a folder, or peft's own with the adapter
unmerged.
"""

import peft
import pytest
import torch
import transformers as hf
from helpers.oracle import reward_of
from helpers.tiny import PROMPTS, perturb
from safetensors.torch import load_file, save_file
from test_two_checkpoints import assert_right, llama, rewards_after, save

import ecstruct
from ecstruct import WeightDelta
from ecstruct.models.bridge import named_weights

pytestmark = [
    # Of peft, about a name that transformers changed, and about what it saves and may not merge.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

OFFLOAD = pytest.mark.parametrize("offload", [False, True], ids=["in memory", "offloaded"])


@pytest.fixture
def tied(tmp_path):
    return save(llama(tie_word_embeddings=True), tmp_path / "tied")


@pytest.fixture
def own_head(tmp_path, tied):
    """The same, with a head of its own in the file; its config.json still ties it."""
    folder = save(llama(tie_word_embeddings=True), tmp_path / "own_head")
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    noise = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(5))
    tensors["lm_head.weight"] = embedding + 0.1 * noise
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def loaded(source, **options):
    return ecstruct.load(source, device="cpu", **options)


def is_tied(model):
    weights = named_weights(model)
    return weights["embed.weight"] is weights["unembed.weight"]


# --- A head of its own in a checkpoint whose configuration ties it ---


@OFFLOAD
def test_a_head_of_its_own_is_read(tied, own_head, offload):
    assert_right(rewards_after(tied, own_head, offload=offload), own_head)
    assert_right(rewards_after(own_head, tied, offload=offload), tied)


def test_both_states_have_their_own_head(own_head, tmp_path):
    after = save(perturb(llama(tie_word_embeddings=True)), tmp_path / "after")
    kept, offloaded = (
        ecstruct.score(own_head, after, PROMPTS, offload=offload, progress=False)
        for offload in (False, True)
    )
    torch.testing.assert_close(
        torch.tensor(offloaded.reward.values), torch.tensor(kept.reward.values), atol=1e-6, rtol=0
    )


def test_an_untied_configuration_after_a_tied_one(tied, tmp_path):
    after = save(perturb(llama(tie_word_embeddings=False)), tmp_path / "untied")
    for offload in (False, True):
        assert_right(rewards_after(tied, after, offload=offload), after)


def test_of_two_tied_tensors_a_file_may_have_either(tied, tmp_path):
    after = save(perturb(llama(tie_word_embeddings=True)), tmp_path / "head_only")
    tensors = load_file(after / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, after / "model.safetensors", {"format": "pt"})
    for offload in (False, True):
        assert_right(rewards_after(tied, after, offload=offload), after)


def test_a_head_of_its_own_is_saved(own_head, tmp_path):
    ecstruct.save_model(loaded(own_head), tmp_path / "saved")
    expected = load_file(own_head / "model.safetensors")
    found = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(found[name], t) for name, t in expected.items())


def test_an_adapter_of_a_model_with_its_own_head(own_head, tmp_path):
    assert_adapter_is_right(own_head, tmp_path, ["q_proj"])


@pytest.mark.parametrize("lora", [None, 2])
def test_finetuning_starts_with_the_head_that_is_there(own_head, lora):
    plain = hf.AutoModelForCausalLM.from_pretrained(own_head).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(own_head)
    losses = []
    for prompt in PROMPTS:
        known = len(tokenizer(prompt.text).input_ids)
        ids = torch.tensor([tokenizer(f"{prompt.text} {prompt.answer}").input_ids])
        with torch.no_grad():
            logits = plain(ids).logits[0, known - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, known:], reduction="none"))
    options = {"lora": lora} if lora else {}
    run = ecstruct.finetune(
        loaded(own_head), PROMPTS, lr=1e-9, epochs=1, batch_size=len(PROMPTS), progress=False, **options
    )
    assert float(run.history.loss[0]) == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)


# --- Changes of one of two tied embeddings ---


@pytest.mark.parametrize("kind", ["embed", "unembed"])
def test_a_change_of_one_of_the_two_leaves_the_other(tied, tmp_path, kind):
    before, after = loaded(tied), loaded(save(perturb(llama(tie_word_embeddings=True)), tmp_path / "after"))
    whole = WeightDelta.between(before, after)
    change = WeightDelta(whole.restrict(kinds=[kind]).tensors, whole.metadata)
    plain = hf.AutoModelForCausalLM.from_pretrained(tied)
    moved = plain.lm_head.weight.detach() + change.tensors[f"{kind}.weight"]
    module = plain.lm_head if kind == "unembed" else plain.model.embed_tokens
    module.weight = torch.nn.Parameter(moved)
    plain.config.tie_word_embeddings = False
    plain.save_pretrained(tmp_path / "expected")
    change.save(tmp_path / "change.safetensors")
    applied = change.apply_to(before)
    for source in (change, applied, loaded(tmp_path / "change.safetensors")):
        assert_right(rewards_after(before, source), tmp_path / "expected")
    assert_right(rewards_after(tied, tmp_path / "change.safetensors", offload=True), tmp_path / "expected")
    ecstruct.save_model(applied, tmp_path / "saved")
    assert_right(rewards_after(before, tmp_path / "saved"), tmp_path / "expected")
    assert is_tied(before) and not is_tied(applied)


def test_a_change_of_both_keeps_them_tied(tied, tmp_path):
    before, after = loaded(tied), loaded(save(perturb(llama(tie_word_embeddings=True)), tmp_path / "after"))
    applied = WeightDelta.between(before, after).apply_to(before)
    assert is_tied(applied) and applied.original_model.config.tie_word_embeddings


# --- Adapters ---


def assert_adapter_is_right(base, tmp_path, targets, **options):
    """Against peft's own model, which is not merged."""
    plain = hf.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    described = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets, **options)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(plain, described).eval()
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape))
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = [float(reward_of(adapted, prompt)) for prompt in PROMPTS]
    for after in (tmp_path / "adapter", loaded(base, adapter=tmp_path / "adapter")):
        found = rewards_after(base, after)
        torch.testing.assert_close(
            torch.tensor(found), torch.tensor(expected), atol=1e-5, rtol=0, check_dtype=False
        )


TARGETS = {
    "embedding": (["q_proj", "embed_tokens"], {}),
    "head": (["q_proj", "lm_head"], {}),
    "tied by peft": (["q_proj", "embed_tokens"], {"ensure_weight_tying": True}),
    "whole embedding": (["q_proj"], {"modules_to_save": ["embed_tokens"]}),
    "whole head": (["q_proj"], {"modules_to_save": ["lm_head"]}),
    "some tokens": (["q_proj"], {"trainable_token_indices": [5, 6]}),
}


@pytest.mark.parametrize("which", TARGETS)
def test_an_adapter_of_one_of_the_two_leaves_the_other(tied, tmp_path, which):
    targets, options = TARGETS[which]
    assert_adapter_is_right(tied, tmp_path, targets, **options)


def test_an_adapter_of_other_weights_keeps_them_tied(tied, tmp_path):
    assert_adapter_is_right(tied, tmp_path, ["q_proj"])
    assert is_tied(loaded(tied, adapter=tmp_path / "adapter"))
