"""Refusals that name their cause, and inputs that need no refusal.

Each is a kind of file or model that users of other tools have reported.
"""

import copy
import json
import logging

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from helpers import tiny
from helpers.tiny import PROMPTS, perturb
from safetensors.torch import load_file, save_file
from test_two_checkpoints import OFFLOAD, assert_right, llama, rewards_after, save

import ecstruct
from ecstruct import InputError, WeightDelta
from ecstruct.facts.tokens import tokenize

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def before(tmp_path):
    return save(llama(), tmp_path / "before")


# --- Tokenizers ---


@pytest.fixture
def appending(tmp_path):
    """A tokenizer that ends every text with <pad>."""
    tiny.tokenizer().save_pretrained(tmp_path / "appending")
    path = tmp_path / "appending" / "tokenizer.json"
    parts = json.loads(path.read_text())
    processor = parts["post_processor"]
    processor["single"].append({"SpecialToken": {"id": "<pad>", "type_id": 0}})
    processor["special_tokens"]["<pad>"] = {"id": "<pad>", "ids": [0], "tokens": ["<pad>"]}
    path.write_text(json.dumps(parts))
    return type(tiny.tokenizer()).from_pretrained(tmp_path / "appending")


def test_a_token_that_is_appended_to_every_text(appending):
    assert appending("people")["input_ids"][-1] == appending.pad_token_id == 0
    with pytest.raises(InputError, match=r"ends every text with '<pad>', which is not its eos_token"):
        tokenize(PROMPTS, appending)
    appending.eos_token = "<pad>"
    expected = [t.ids for t in tokenize(PROMPTS, tiny.tokenizer())]
    assert [t.ids for t in tokenize(PROMPTS, appending)] == expected


def test_a_tokenizer_with_code_of_its_own(before):
    path = before / "tokenizer_config.json"
    own = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["tokenization_mine.Mine", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    with pytest.raises(InputError, match=r"needs code of its own \(auto_map .* which is never run"):
        ecstruct.load(before)


@OFFLOAD
@pytest.mark.parametrize("has", ["none", "one that needs code"])
def test_the_model_after_needs_no_tokenizer(before, tmp_path, caplog, has, offload):
    after = save(perturb(llama()), tmp_path / "after")
    if has == "none":
        for path in after.glob("token*"):
            path.unlink()
    else:
        test_a_tokenizer_with_code_of_its_own(after)
    with caplog.at_level(logging.WARNING):
        assert_right(rewards_after(before, after, offload=offload), after)
    assert "The tokenizer of the model before reads all prompts" in caplog.text
    with pytest.raises(InputError, match="tokenizer"):
        rewards_after(after, before, offload=offload)


# --- Weights ---


@OFFLOAD
@pytest.mark.parametrize(
    ("wrapper", "kind"), [("_orig_mod.", "one file"), ("module.", "shards"), ("module._orig_mod.", "tied")]
)
def test_what_a_model_was_wrapped_in_is_no_part_of_its_names(
    before, tmp_path, caplog, wrapper, kind, offload
):
    after = save(
        perturb(llama(tie_word_embeddings=kind == "tied")),
        tmp_path / "after",
        max_shard_size="20KB" if kind == "shards" else "1GB",
    )
    expected = rewards_after(before, after)
    for path in after.glob("*.safetensors"):
        tensors = load_file(path)
        save_file({wrapper + name: t for name, t in tensors.items()}, path, {"format": "pt"})
    index = after / "model.safetensors.index.json"
    if kind == "shards":
        whole = json.loads(index.read_text())
        whole["weight_map"] = {wrapper + name: file for name, file in whole["weight_map"].items()}
        index.write_text(json.dumps(whole))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(rewards_after(before, after, offload=offload), expected, atol=1e-6)
    assert f"begin with {wrapper!r}, which is left out" in caplog.text


@OFFLOAD
def test_a_wrapper_of_some_tensors_is_none(before, tmp_path, offload):
    after = save(perturb(llama()), tmp_path / "after")
    tensors = load_file(after / "model.safetensors")
    tensors["module.lm_head.weight"] = tensors.pop("lm_head.weight")
    save_file(tensors, after / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"no weights of the right shape for lm_head\.weight"):
        rewards_after(before, after, offload=offload)


def test_a_model_in_memory_with_an_adapter_that_is_not_merged():
    added, wrapped = llama(), llama()
    added.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    of_peft = peft.get_peft_model(wrapped, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    for plain in (added, wrapped):
        with pytest.raises(InputError, match=r"an adapter that is not merged: .*merge_and_unload\(\)"):
            ecstruct.load(plain, tokenizer=tiny.tokenizer())
    for whole in (of_peft, of_peft.merge_and_unload()):
        ecstruct.load(whole, tokenizer=tiny.tokenizer())


@pytest.mark.parametrize(("dtype", "offload"), [(torch.bfloat16, False), (torch.float16, True)])
def test_a_change_that_is_rounding_alone_is_told(before, tmp_path, caplog, dtype, offload):
    half = save(llama().to(dtype), tmp_path / "half")
    for pair, said in (
        ((before, half), "after are those before"),
        ((half, before), "before are those after"),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            rewards_after(*pair, offload=offload)
        assert f"{said} rounded to {str(dtype)[6:]}: nothing else differs" in caplog.text
    tuned = llama()
    with torch.no_grad():
        tuned.lm_head.weight[3, 3] += 0.5
    tuned = save(tuned.to(dtype), tmp_path / "tuned")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        rewards_after(before, tuned, offload=offload)
    assert "rounded" not in caplog.text


def test_a_delta_of_rounding_is_told(before, tmp_path, caplog):
    models = [ecstruct.load(before), ecstruct.load(before, dtype=torch.bfloat16)]
    with caplog.at_level(logging.WARNING):
        rewards_after(models[0], WeightDelta.between(*models))
        rewards_after(models[0], copy.deepcopy(models[1]))
    assert caplog.text.count("rounded to bfloat16") == 2


# --- What the libraries below do not understand ---

CONFIGS = {
    "heads that do not divide": (
        {"num_attention_heads": 5},
        "not a multiple of the number of attention heads",
    ),
    "no heads": ({"num_attention_heads": 0}, "cannot be loaded|num_attention_heads is 0"),
    "fewer than no heads": (
        {"num_attention_heads": -1},
        "num_attention_heads is -1, but it must be between",
    ),
    "heads in words": ({"num_attention_heads": "4"}, "'num_attention_heads' expected int, got str"),
    "no value heads": ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
    "no width": ({"hidden_size": 0}, "hidden_size is 0|cannot be loaded"),
    "a broken width": ({"hidden_size": 32.0}, "'hidden_size' expected int, got float"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    "no tokens": ({"vocab_size": 0}, "vocab_size is 0"),
    "too many tokens": ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
    "no positions": ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
    "heads of no size": ({"head_dim": 0}, "head_dim is 0"),
    "an activation": ({"hidden_act": "swish2"}, r"\(KeyError: 'swish2'\): see whether its config\.json"),
    "a rotation": ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "KeyError: 'spiral'"),
    "a base in words": ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "TypeError: "),
    "an architecture": ({"model_type": "nothing"}, "has model type `nothing`"),
    "no architecture": ({"model_type": None}, "has model type `None`"),
    "an encoder": ({"model_type": "clip"}, "Unrecognized configuration class"),
    "architectures": ({"architectures": 3}, "TypeError: "),
    "padding": ({"pad_token_id": 999}, "Padding_idx must be within num_embeddings"),
    "a dtype": ({"dtype": "float3"}, "no attribute 'float3'|no weights"),
    "code": ({"auto_map": 3}, "TypeError: argument of type 'int'"),
    "layers of a kind": ({"layer_types": ["full_attention"]}, "layer_types|model.layers"),
}


@OFFLOAD
@pytest.mark.parametrize("what", CONFIGS)
def test_strange_configurations_are_refused_in_a_sentence(before, what, offload):
    path = before / "config.json"
    values, said = CONFIGS[what]
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(InputError, match=said) as error:
        rewards_after(before, before, offload=offload)
    assert "\n" not in str(error.value) and str(before) in str(error.value)


@OFFLOAD
def test_a_model_that_returns_tuples_is_as_good(before, offload):
    expected = rewards_after(before, before)
    path = before / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"return_dict": False}))
    np.testing.assert_array_equal(rewards_after(before, before, offload=offload), expected)


def saved_adapter(before, folder, config):
    adapted = peft.get_peft_model(hf.AutoModelForCausalLM.from_pretrained(before), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    adapted.save_pretrained(folder)
    return adapted.eval()


MERGED = {
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "adalora": peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10),
    "loha": peft.LoHaConfig(target_modules=["q_proj"], r=2),
    "oft": peft.OFTConfig(target_modules=["q_proj"], oft_block_size=4),
    "vera": peft.VeraConfig(target_modules=["q_proj"], r=2),
    "norms": peft.LNTuningConfig(target_modules=["input_layernorm"]),
}


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
@pytest.mark.parametrize("kind", MERGED)
def test_adapters_of_other_kinds_are_merged(before, tmp_path, kind):
    adapted = saved_adapter(before, tmp_path / "adapter", copy.deepcopy(MERGED[kind]))
    ids = torch.tensor([tiny.tokenizer()(PROMPTS[2].text)["input_ids"]])
    model = ecstruct.load(before, adapter=tmp_path / "adapter", device="cpu")
    with torch.no_grad():
        expected, found = adapted(input_ids=ids).logits, model.original_model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT"])
def test_adapters_that_change_no_weight_are_refused(before, tmp_path, kind):
    config = {
        "PROMPT_TUNING": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "PREFIX_TUNING": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "ADAPTION_PROMPT": peft.AdaptionPromptConfig(
            task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1
        ),
    }[kind]
    saved_adapter(before, tmp_path / "adapter", config)
    with pytest.raises(InputError, match=rf"\({kind}\) adds to what a model reads, and changes no weight"):
        ecstruct.load(before, adapter=tmp_path / "adapter")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"peft_type": "ZZ"}, r"KeyError: 'ZZ'"),
        ({"peft_type": ["LORA"]}, r"peft_type=\['LORA'\]: it should be a valid string"),
        ({"megatron_config": {"a": 1}}, "ModuleNotFoundError: No module named 'megatron'"),
    ],
)
def test_what_peft_does_not_know_is_told(before, tmp_path, values, said):
    saved_adapter(before, tmp_path / "adapter", peft.LoraConfig(target_modules=["q_proj"], r=2))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(InputError, match=said):
        ecstruct.load(before, adapter=tmp_path / "adapter")
