"""Adapters of peft's, merged when a model is loaded or scored."""

import copy
import json

import peft
import pytest
import torch
import xarray as xr
from helpers.command_line import refused, run
from helpers.tiny import PROMPTS, plain_pair, tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import ecstruct
from ecstruct import InputError
from ecstruct.facts.prompt import write_jsonl
from ecstruct.models import to_hugging_face
from ecstruct.models.bridge import named_weights

KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
TARGETS = {
    "llama": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "neox": ["query_key_value", "dense_4h_to_h"],
}

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def adapted(family: str, folder, **options):
    """A base model in `folder/base`, an adapter in `folder/adapter`, and both merged by peft."""
    base = copy.deepcopy(plain_pair(family)[0]).float()
    base.save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    config = peft.LoraConfig(
        r=2,
        target_modules=TARGETS[family],
        task_type="CAUSAL_LM",
        fan_in_fan_out=family == "gpt2",
        **options,
    )
    model = peft.get_peft_model(base, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    model.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter", model.merge_and_unload()


def score(before, after):
    return ecstruct.score(before, after, PROMPTS, progress=False, device="cpu")


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "rslora"), ("llama", "dora"), ("gpt2", "lora"), ("gpt2", "dora"), ("neox", "lora")],
)
def test_weights_are_those_that_peft_merges(tmp_path, family, kind):
    base, adapter, merged = adapted(family, tmp_path, **KINDS[kind])
    model = ecstruct.load(base, adapter=adapter, device="cpu")
    found = dict(to_hugging_face(model).named_parameters())
    for name, p in merged.named_parameters():
        torch.testing.assert_close(found[name], p, rtol=0, atol=1e-6)
    unadapted = named_weights(ecstruct.load(base, device="cpu"))
    assert any(not torch.equal(p, unadapted[name]) for name, p in named_weights(model).items())


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_scores_of_an_adapter_are_those_of_the_merged_model(tmp_path, family):
    base, adapter, merged = adapted(family, tmp_path, **KINDS["dora"])
    merged.save_pretrained(tmp_path / "merged")
    tokenizer().save_pretrained(tmp_path / "merged")
    expected = score(base, tmp_path / "merged").dataset
    for after in (adapter, str(adapter), ecstruct.load(base, adapter=adapter, device="cpu")):
        found = score(base, after)
        for name in expected.data_vars:
            scale = float(abs(expected[name]).max())
            xr.testing.assert_allclose(found.dataset[name], expected[name], rtol=0, atol=1e-5 * scale)
        assert "adapter" in found.attrs["after"]["source"]


def test_the_model_before_is_not_changed_by_the_adapter(tmp_path):
    base, adapter, _ = adapted("llama", tmp_path)
    model = ecstruct.load(base, device="cpu")
    was = {name: p.clone() for name, p in named_weights(model).items()}
    score(model, adapter)
    assert all(torch.equal(p, was[name]) for name, p in named_weights(model).items())


def test_what_finetune_writes_is_an_adapter(tmp_path):
    from ecstruct.finetuning.lora import save_adapter

    base, _, _ = adapted("llama", tmp_path)
    model = ecstruct.load(base, device="cpu")
    tuned = ecstruct.finetune(model, PROMPTS, lora=2, lr=1e-2, epochs=1, progress=False)
    save_adapter(tuned.adapter, tmp_path / "tuned")
    assert (tmp_path / "tuned" / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o644
    loaded = named_weights(ecstruct.load(base, adapter=tmp_path / "tuned", device="cpu"))
    for name, p in named_weights(tuned.model).items():
        torch.testing.assert_close(loaded[name], p, rtol=0, atol=1e-6)


def test_bfloat16_is_merged_in_float32(tmp_path):
    base, adapter, merged = adapted("llama", tmp_path)
    model = ecstruct.load(base, adapter=adapter, device="cpu", dtype=torch.bfloat16)
    found = dict(to_hugging_face(model).named_parameters())
    assert all(torch.equal(found[name], p.bfloat16()) for name, p in merged.named_parameters())


# --- What is refused ---


def load_refused(message, base, adapter):
    refused(lambda: ecstruct.load(base, adapter=adapter, device="cpu"), message)


def test_pickled_weights_are_refused(tmp_path):
    base, adapter, _ = adapted("llama", tmp_path)
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), adapter / "adapter_model.bin")
    file.unlink()
    load_refused("has no adapter_model.safetensors: save it", base, adapter)


def test_adapters_of_other_models_are_refused(tmp_path):
    _, adapter, _ = adapted("llama", tmp_path / "llama")
    base, _, _ = adapted("gpt2", tmp_path / "gpt2")
    load_refused("does not fit this GPT2LMHeadModel", base, adapter)


def test_damaged_adapters_are_refused(tmp_path):
    base, adapter, _ = adapted("llama", tmp_path)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    some = next(name for name in tensors if "layers.1" in name)
    save_file({name: t for name, t in tensors.items() if name != some}, file)
    load_refused("does not fit this LlamaForCausalLM", base, adapter)
    save_file({**tensors, some: tensors[some][:, :1].clone()}, file)
    load_refused("does not fit this LlamaForCausalLM", base, adapter)
    file.write_bytes(file.read_bytes()[:-20])
    load_refused(r"adapter_model\.safetensors cannot be read \(.*not fully covered", base, adapter)
    save_file(tensors, file)
    (adapter / "adapter_config.json").write_text("{")
    load_refused(r"adapter_config\.json is no configuration of an adapter: save", base, adapter)


def test_what_is_no_adapter_is_refused(tmp_path):
    base, adapter, _ = adapted("llama", tmp_path)
    load_refused("is no adapter: a folder with an adapter_config.json", base, base)
    with pytest.raises(InputError, match="is an adapter: give the model that it changes"):
        ecstruct.load(adapter)
    load_refused("is no adapter", base, tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(InputError, match="is an adapter, which is merged in memory: save the whole model"):
        ecstruct.score(base, adapter, PROMPTS, offload=True, progress=False)


def test_an_adapters_folder_is_its_base_with_it(tmp_path, monkeypatch):
    base, adapter, merged = adapted("llama", tmp_path)
    adapter.rename(tmp_path / "checkpoint-20")
    config = json.loads((tmp_path / "checkpoint-20" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (tmp_path / "checkpoint-20" / "adapter_config.json").write_text(json.dumps(config))
    expected = dict(merged.named_parameters())
    for source in (tmp_path / "checkpoint-20", f"{tmp_path}@20"):
        found = dict(to_hugging_face(ecstruct.load(source, device="cpu")).named_parameters())
        for name, p in expected.items():
            torch.testing.assert_close(found[name], p, rtol=0, atol=1e-6)
    write_jsonl(PROMPTS, tmp_path / "prompts.jsonl")
    words = ("--prompts", tmp_path / "prompts.jsonl", "--out", tmp_path / "ranks.json", "--device", "cpu")
    ranks = ecstruct.ranks(ecstruct.load(base, adapter=tmp_path / "checkpoint-20", device="cpu"), PROMPTS)
    for model in (("--model", f"{tmp_path}@20"), ("--model", base, "--adapter", f"{tmp_path}@20")):
        result = run("rank", *model, *words)
        assert result.exit_code == 0, result.output
        rows = json.loads((tmp_path / "ranks.json").read_text())["ranks"]
        assert [row["rank"] for row in rows] == list(ranks)
    del config["base_model_name_or_path"]
    (tmp_path / "checkpoint-20" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="is an adapter: give the model that it changes, which"):
        ecstruct.load(tmp_path / "checkpoint-20")


def test_a_model_that_peft_has_wrapped_is_merged_into_a_copy(tmp_path):
    base, adapter, merged = adapted("llama", tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped = peft.PeftModel.from_pretrained(plain, adapter)
    before = {name: p.clone() for name, p in wrapped.state_dict().items()}
    with pytest.raises(InputError, match="needs its tokenizer"):
        ecstruct.load(wrapped)
    found = dict(
        to_hugging_face(ecstruct.load(wrapped, tokenizer=tokenizer(), device="cpu")).named_parameters()
    )
    for name, p in merged.named_parameters():
        torch.testing.assert_close(found[name], p, rtol=0, atol=1e-6)
    assert wrapped.state_dict().keys() == before.keys()
    for name, p in wrapped.state_dict().items():
        assert torch.equal(p, before[name])
