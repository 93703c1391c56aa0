"""Quantised checkpoints against formulas by hand, and the sentences that refuse them."""

import json
from importlib.util import find_spec

import pytest
import torch
from helpers.architectures import ARCHITECTURES
from helpers.comparisons import of
from helpers.tiny import PROMPTS, build, tokenizer
from safetensors.torch import load_file, save_file

import ecstruct
from ecstruct import InputError, load, score
from ecstruct.models.provenance import provenance
from ecstruct.models.quantised import dequantised


def quantise(folder, plain, config, of_tensor):
    """Save a plain model in which `of_tensor` (name, tensor) returns other tensors for some."""
    plain.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    tensors = {}
    for name, t in load_file(folder / "model.safetensors").items():
        tensors |= of_tensor(name, t) or {name: t}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"quantization_config": config}))
    return tensors


def projections(name):
    return name.endswith("_proj.weight")


def test_fp8_in_blocks(tmp_path, caplog):
    def of_tensor(name, t):
        if projections(name):
            blocks = t.unflatten(0, (-1, 16)).unflatten(2, (-1, 16))  # [row of blocks, 16, column, 16]
            scale = blocks.abs().amax((1, 3)) / 448
            eighths = (blocks / scale[:, None, :, None]).reshape(t.shape).to(torch.float8_e4m3fn)
            return {name: eighths, f"{name}_scale_inv": scale}
        return None

    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
    plain = build("llama", dtype=torch.float32)
    tensors = quantise(tmp_path, plain, config, of_tensor)
    model = load(tmp_path, device="cpu")
    name = "model.layers.1.mlp.up_proj.weight"
    scale = tensors[f"{name}_scale_inv"].repeat_interleave(16, 0).repeat_interleave(16, 1)
    found = model.blocks[1].mlp.get_submodule("in").weight
    torch.testing.assert_close(found, tensors[name].float() * scale, rtol=1e-6, atol=0)
    assert not torch.equal(found, plain.get_parameter(name))
    assert provenance(model).described["weights"] == "dequantised from fp8"
    assert f"the weights of {tmp_path} are dequantised from fp8" in caplog.text


_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def test_mxfp4_of_gpt_oss(tmp_path):
    """Two numbers of four bits a byte, the lower bits first, and a power of two for every 32 of them."""
    generator = torch.Generator().manual_seed(0)
    expected = {}

    def of_tensor(name, t):
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            return None
        experts, d_in, d_out = t.shape
        blocks = torch.randint(0, 256, (experts, d_out, d_in // 32, 16), generator=generator)
        scales = torch.randint(120, 128, (experts, d_out, d_in // 32), generator=generator)
        table = torch.tensor([*_FP4, *(-x for x in _FP4)])
        values = torch.stack([table[blocks % 16], table[blocks // 16]], -1).flatten(-2)
        values = values * 2.0 ** (scales[..., None] - 127)
        expected[name] = values.flatten(2).transpose(1, 2)
        return {f"{name}_blocks": blocks.to(torch.uint8), f"{name}_scales": scales.to(torch.uint8)}

    (oss,) = (a for a in ARCHITECTURES if a.name == "GptOssForCausalLM")
    plain = type(oss)(oss.name, sizes={"intermediate_size": 64}).build().float()
    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    quantise(tmp_path, plain, config, of_tensor)
    model = load(tmp_path, device="cpu")
    for layer in range(2):
        for part in ("gate_up_proj", "down_proj"):
            found = model.blocks[layer].mlp.original_component.experts.get_parameter(part)
            assert torch.equal(found, expected[f"model.layers.{layer}.mlp.experts.{part}"])
    assert provenance(model).described["weights"] == "dequantised from mxfp4"
    ecstruct.save_model(model, tmp_path / "whole")
    assert "quantization_config" not in json.loads((tmp_path / "whole" / "config.json").read_text())
    scores = score(model, tmp_path / "whole", PROMPTS, progress=False)
    assert (
        not of(scores, "informative").any()
        and scores.attrs["before"]["weights"] == "dequantised from mxfp4"
    )


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_bitsandbytes(tmp_path, kind):
    functional = pytest.importorskip("bitsandbytes").functional
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    plain = build("llama", dtype=torch.float32)
    plain.save_pretrained(tmp_path / "plain")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    config = BitsAndBytesConfig(**(four if kind == "nf4" else {"load_in_8bit": True}))
    small = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=config, dtype=torch.float32
    )
    small.save_pretrained(tmp_path / "small")
    tokenizer().save_pretrained(tmp_path / "small")
    model = load(tmp_path / "small", device="cpu")
    name = "model.layers.1.mlp.up_proj.weight"
    if kind == "nf4":
        weight = plain.get_parameter(name).detach()
        packed = functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
        expected = functional.dequantize_4bit(*packed)
    else:
        saved = load_file(tmp_path / "small" / "model.safetensors")
        expected = saved[name].float() * saved[name.replace("weight", "SCB")][:, None] / 127
    found = model.blocks[1].mlp.get_submodule("in").weight
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert provenance(model).described["weights"].startswith("dequantised from bitsandbytes_")
    in_memory = load(small, tokenizer=tokenizer(), device="cpu")
    assert torch.equal(in_memory.blocks[1].mlp.get_submodule("in").weight, found)


def in_fp8(name, t):
    scale = t.abs().amax(1, keepdim=True) / 448
    return {name: (t / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale}


def in_four_bits(name, t):
    """Eight numbers of four bits an int32, the lowest bits first, with a scale for every 16 numbers."""
    scale = t.unflatten(1, (-1, 16)).abs().amax(2) / 7
    whole = (t / scale.repeat_interleave(16, 1)).round().long().clamp(-8, 7) + 8
    packed = (whole.unflatten(1, (-1, 8)) * 16 ** torch.arange(8)).sum(2)
    shape = torch.tensor(t.shape)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).int()
    return {f"{name}_packed": packed, f"{name}_scale": scale, f"{name}_shape": shape}


@pytest.mark.parametrize("quantise_one", [in_fp8, in_four_bits])
def test_compressed_tensors(tmp_path, quantise_one):
    pytest.importorskip("compressed_tensors")
    fp8 = quantise_one is in_fp8
    weights = {"num_bits": 8, "type": "float", "strategy": "channel"}
    weights = weights if fp8 else {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16}
    group = {"targets": ["Linear"], "weights": {**weights, "symmetric": True, "dynamic": False}}
    config = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized" if fp8 else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    plain = build("llama", dtype=torch.float32)
    quantise(tmp_path, plain, config, lambda n, t: quantise_one(n, t) if projections(n) else None)
    model = load(tmp_path, device="cpu")
    weight = plain.model.layers[1].mlp.up_proj.weight.detach()
    if fp8:
        made = in_fp8("", weight)
        expected = made[""].float() * made["_scale"]
    else:
        scale = in_four_bits("", weight)["_scale"].repeat_interleave(16, 1)
        expected = (weight / scale).round() * scale
    found = model.blocks[1].mlp.get_submodule("in").weight
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert provenance(model).described["weights"] == "dequantised from compressed-tensors"


def saying(tmp_path, config):
    plain = build("llama", dtype=torch.float32)
    quantise(tmp_path, plain, config, lambda _name, _t: None)
    return tmp_path


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_without_bitsandbytes(tmp_path):
    folder = saying(tmp_path, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(InputError, match=r"is quantised \(bitsandbytes_4bit\).*`pip install bitsandbytes`"):
        load(folder)


@pytest.mark.parametrize("config", [["gptq"], "gptq", {"quant_method": "fp8", "weight_block_size": "x"}])
def test_damaged_configurations(tmp_path, config):
    with pytest.raises(InputError):
        load(saying(tmp_path, config))


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq", "of-tomorrow"])
def test_a_format_that_transformers_does_not_dequantise(tmp_path, method):
    folder = saying(tmp_path, {"quant_method": method, "bits": 4, "group_size": 128})
    with pytest.raises(
        InputError, match=rf"is quantised \({method}\), which transformers cannot dequantise"
    ):
        load(folder)


def test_a_model_in_memory_that_cannot_be_dequantised():
    plain = build("llama")

    class Quantizer:
        def dequantize(self, *_args, **_kwargs):
            raise NotImplementedError

    plain.hf_quantizer = Quantizer()
    with pytest.raises(InputError, match="this LlamaForCausalLM is quantised, and transformers cannot"):
        dequantised(plain)
