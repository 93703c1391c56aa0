"""Pairs of checkpoints that are not what they seem: the right reward, or a refusal that says why.

The oracle is the plain Hugging Face model of the folder after, prompt by prompt.
"""

import json
import logging
import shutil
import subprocess

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from helpers import oracle, tiny
from helpers.command_line import works
from helpers.tiny import PROMPTS, build, perturb
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import ecstruct
from ecstruct import InputError, WeightDelta
from ecstruct.models.boot import nothing_installed
from ecstruct.models.provenance import tokenizer_of
from ecstruct.scores.ranks import ranks_of_pair

OFFLOAD = pytest.mark.parametrize("offload", [False, True], ids=["in memory", "offloaded"])


def save(plain, folder, **options):
    plain.save_pretrained(folder, **options)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def llama(**options):
    """A small Llama in float32, whose weights depend on the options in no way."""
    config = build("llama").config.to_dict() | options
    plain = hf.LlamaForCausalLM(hf.LlamaConfig(**config)).float().eval()
    return tiny.fill(plain)


def rewards_after(before, after, **options):
    scores = ecstruct.score(before, after, PROMPTS, progress=False, **options)
    return scores.reward.sel(state="after").values


def assert_right(found, folder):
    plain = hf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = [float(oracle.reward_of(plain, prompt)) for prompt in PROMPTS]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture
def before(tmp_path):
    return save(llama(), tmp_path / "before")


# --- Configurations ---

ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
CONFIGS = {
    "rope_theta": {"rope_parameters": ROTARY | {"rope_theta": 1e6}},
    "rope_type": {"rope_parameters": ROTARY | {"rope_type": "linear", "factor": 4.0}},
    "rms_norm_eps": {"rms_norm_eps": 1e-2},
    "hidden_act": {"hidden_act": "gelu"},
}


@OFFLOAD
@pytest.mark.parametrize("key", CONFIGS)
def test_configurations_that_compute_otherwise_are_refused(before, tmp_path, key, offload):
    after = save(perturb(llama(**CONFIGS[key])), tmp_path / "after")
    with pytest.raises(InputError, match=f"different computations.*{key}"):
        rewards_after(before, after, offload=offload)
    with pytest.raises(InputError, match=f"different computations.*{key}"):
        WeightDelta.between(*(ecstruct.load(folder, device="cpu") for folder in (before, after)))


@OFFLOAD
def test_configurations_may_differ_in_what_does_not_compute(before, tmp_path, offload):
    after = save(perturb(llama()), tmp_path / "after")
    config = json.loads((after / "config.json").read_text())
    config |= {"max_position_embeddings": 64, "use_cache": False, "eos_token_id": 2, "unsloth_version": "1"}
    config |= {"rms_norm_eps": float(np.float32(config["rms_norm_eps"])), "attention_dropout": 0.1}
    (after / "config.json").write_text(json.dumps(config))
    assert_right(rewards_after(before, after, offload=offload), after)


# --- Tensors and files ---


@OFFLOAD
def test_biases_that_the_configuration_does_not_ask_for_are_refused(before, tmp_path, offload):
    after = save(llama(attention_bias=True, mlp_bias=True), tmp_path / "after")
    config = json.loads((after / "config.json").read_text())
    config |= {"attention_bias": False, "mlp_bias": False}
    (after / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"has weights in model\.layers\.0\..*bias that its config\.json"):
        rewards_after(before, after, offload=offload)


@OFFLOAD
def test_buffers_of_older_versions_are_no_loss(before, tmp_path, offload):
    after = save(perturb(llama()), tmp_path / "after")
    tensors = load_file(after / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, after / "model.safetensors", {"format": "pt"})
    assert_right(rewards_after(before, after, offload=offload), after)


def stale_shards(plain, folder):
    save(llama(), folder, max_shard_size="20KB")
    plain.save_pretrained(folder.parent / "one")
    shutil.copy(folder.parent / "one" / "model.safetensors", folder)


def a_backup(plain, folder):
    save(plain, folder)
    llama().save_pretrained(folder.parent / "old")
    shutil.copy(folder.parent / "old" / "model.safetensors", folder / "model_old.safetensors")


def saved_over_shards(plain, folder):
    save(llama(), folder, max_shard_size="20KB")
    plain.save_pretrained(folder)


def consolidated(plain, folder):
    save(plain, folder)
    save_file({"layers.0.attention.wq.weight": torch.zeros(4, 4)}, folder / "consolidated.safetensors")


def sharded(plain, folder):
    save(plain, folder, max_shard_size="20KB")


@OFFLOAD
@pytest.mark.parametrize("fill", [stale_shards, a_backup, saved_over_shards, consolidated, sharded])
def test_files_are_those_that_transformers_reads(before, tmp_path, fill, offload):
    after = tmp_path / "after"
    fill(perturb(llama()), after)
    assert_right(rewards_after(before, after, offload=offload), after)


def test_a_file_of_another_name_is_not_guessed(before):
    (before / "model.safetensors").rename(before / "weights.safetensors")
    with pytest.raises(InputError, match=r"has weights\.safetensors, but neither model\.safetensors nor"):
        ecstruct.load(before)
    (before / "weights.safetensors").rename(before / "delta.safetensors")
    with pytest.raises(InputError, match=r"but a change of weights: give .*/delta\.safetensors\.$"):
        ecstruct.load(before)


# --- Adapters ---


def adapted(plain, targets):
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets)
    tuned = peft.get_peft_model(plain, config)
    with torch.no_grad():
        for p in tuned.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape))
    return tuned.eval()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_all_tensors_of_an_adapter_find_their_module(before, tmp_path):
    folder = tmp_path / "adapter"
    adapted(llama(), ["q_proj", "v_proj"]).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
    with pytest.raises(InputError, match=r"has .*layers\.0\.self_attn\.v_proj\.lora_A\.weight, for which"):
        rewards_after(before, folder)
    deeper = tmp_path / "deeper"
    adapted(llama(num_hidden_layers=5), ["q_proj"]).save_pretrained(deeper)
    with pytest.raises(InputError, match=r"has .*layers\.3\.self_attn\.q_proj\.lora_A\.weight, for which"):
        rewards_after(before, deeper)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_of_another_base_is_named(before, tmp_path, caplog):
    folder = tmp_path / "adapter"
    adapted(llama(), ["q_proj"]).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    for base, is_told in ((None, False), (f"elsewhere/{before.name}", False), ("another/model", True)):
        named = config | {"base_model_name_or_path": base}
        (folder / "adapter_config.json").write_text(json.dumps(named))
        caplog.clear()
        rewards_after(before, folder)
        assert ("is of another/model" in caplog.text) == is_told


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@OFFLOAD
def test_a_folder_with_an_adapter_and_a_model_is_not_guessed(before, tmp_path, offload):
    folder, tuned = tmp_path / "both", adapted(perturb(llama()), ["q_proj"])
    tuned.save_pretrained(folder)
    save(tuned.merge_and_unload(), folder)
    for attempt in (lambda: rewards_after(before, folder, offload=offload), lambda: ecstruct.load(folder)):
        with pytest.raises(InputError, match="has an adapter and the weights of a model"):
            attempt()
    (folder / "adapter_config.json").unlink()
    assert_right(rewards_after(before, folder, offload=offload), folder)


# --- One checkpoint twice ---


def test_a_model_against_itself_is_told(before, tmp_path):
    asked = tmp_path / "asked.jsonl"
    ecstruct.facts.write_jsonl(PROMPTS, asked)
    pair = ("--before", before, "--after", before, "--prompts", asked)
    works("score", *pair, "--out", tmp_path / "out", "--quiet")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Both models have the same weights: nothing was finetuned" in page
    assert "moved the mean reward" not in page


# --- Tokenizers ---


@OFFLOAD
def test_another_tokenizer_after_is_told(before, tmp_path, caplog, offload):
    after = save(perturb(llama()), tmp_path / "after")
    with caplog.at_level(logging.WARNING):
        rewards_after(before, after, offload=offload)
    assert "tokenizer" not in caplog.text
    written = json.loads((after / "tokenizer.json").read_text())
    vocab = written["model"]["vocab"]
    vocab["Thai"], vocab["Zulu"] = vocab["Zulu"], vocab["Thai"]
    (after / "tokenizer.json").write_text(json.dumps(written))
    with caplog.at_level(logging.WARNING):
        rewards_after(before, after, offload=offload)
    assert "the tokenizer after reads 'people that Cy de Wit knows speak Thai' otherwise" in caplog.text


def test_a_tokenizer_is_what_its_file_says(tmp_path, caplog):
    """transformers 5 gives every Qwen2 the words of Qwen2, whatever its tokenizer.json has."""
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    of_file = Tokenizer(models.BPE())
    of_file.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    of_file.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    of_file.train_from_iterator([f"Ada was born in {year}" for year in range(1900, 2030)] * 3, trainer)
    config = build("qwen2").config
    config.vocab_size = of_file.get_vocab_size()
    hf.Qwen2ForCausalLM(config).float().save_pretrained(tmp_path)
    of_file.save(str(tmp_path / "tokenizer.json"))
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(own | {"pad_token": "<|endoftext|>"}))
    with caplog.at_level(logging.WARNING):
        tokenizer = tokenizer_of(ecstruct.load(tmp_path, device="cpu"))
    assert "'Ada was born in 1987' differs" in caplog.text
    for text in ("Ada was born in 1987", "in 2024 12345"):
        assert tokenizer(text).input_ids == of_file.encode(text).ids
    assert tokenizer.eos_token == "<|endoftext|>"


# --- What is not text ---


@OFFLOAD
def test_nothing_is_installed_for_a_model_that_sees(tmp_path, monkeypatch, offload):
    """TransformerLens would install torchvision into the user's environment."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **options: started.append(words))
    text = build("gemma3").config.to_dict()
    seen = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.Gemma3Config(
        text_config=text,
        vision_config={**seen, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=20,
        boi_token_index=19,
        eoi_token_index=18,
    )
    folder = save(hf.Gemma3ForConditionalGeneration(config), tmp_path / "sees")
    with pytest.raises(InputError, match=r"reads more than text \(vision_config\)"):
        rewards_after(folder, folder, offload=offload)
    assert started == []


def test_an_installation_is_refused():
    with pytest.raises(InputError, match="would run 'pip install torchvision'"), nothing_installed():
        subprocess.check_call(["pip", "install", "torchvision"])


# --- How models are run ---


def test_long_and_short_prompts_do_not_share_a_batch_of_longrope(tmp_path):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 7}
    config = build("llama").config.to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {key: config[key] for key in (*kept, "num_key_value_heads", "max_position_embeddings")}
    rope = {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **factors}}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    phi = hf.Phi3Config(**sizes, **rope, **special, original_max_position_embeddings=7)
    plain = tiny.fill(hf.Phi3ForCausalLM(phi).eval())
    before, after = save(plain, tmp_path / "before"), save(perturb(plain), tmp_path / "after")
    with pytest.raises(
        InputError, match=r"prompts of 6 and of 8 tokens cannot share a batch.*batch_size=1"
    ):
        rewards_after(before, after)
    assert_right(rewards_after(before, after, batch_size=1), after)
    engine = ecstruct.ScoreEngine(before, after, batch_size=1, device="cpu", progress=False)
    found = ranks_of_pair(engine.pair, engine.pair.tokenize(PROMPTS, engine.reward)[0], 1)
    of_each = [ecstruct.ranks(ecstruct.load(after, device="cpu"), [prompt])[0] for prompt in PROMPTS]
    assert found["after"].tolist() == of_each


def test_gradients_and_autocast_may_be_whatever_the_notebook_wants():
    before, after = tiny.single_pair("llama")
    expected = ecstruct.score(before, after, PROMPTS, progress=False)
    torch.set_grad_enabled(False)
    try:
        without = ecstruct.score(before, after, PROMPTS, progress=False)
        masks = ecstruct.subnetworks.prune(before, PROMPTS, steps=2, seeds=1, progress=False)
    finally:
        torch.set_grad_enabled(True)
    assert masks.heads.sizes["seed"] == 1
    with torch.autocast("cpu", torch.bfloat16):
        cast = ecstruct.score(before, after, PROMPTS, progress=False)
        causal = ecstruct.causal_scores(before, after, PROMPTS, progress=False)
    for found in (without, cast):
        assert found.dataset.equals(expected.dataset)
    assert causal.dataset.equals(ecstruct.causal_scores(before, after, PROMPTS, progress=False).dataset)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_a_model_that_was_trained_with_gradient_checkpointing(before, tmp_path):
    after = save(perturb(llama()), tmp_path / "after")
    plain = hf.AutoModelForCausalLM.from_pretrained(before)
    plain.gradient_checkpointing_enable()
    hooked = ecstruct.load(plain, tokenizer=tiny.tokenizer(), device="cpu")
    assert_right(rewards_after(hooked, after), after)
