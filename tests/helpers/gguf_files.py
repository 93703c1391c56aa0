"""GGUF files of tiny models, written as llama.cpp's converter writes them, with its own package `gguf`.

The layout is that of its `convert_hf_to_gguf.py`; `stored` converts the weights that it stores differently
from transformers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quantize
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import PreTrainedModel

from helpers.architectures import Architecture

F32 = GGMLQuantizationType.F32
MERGES = (("l", "i"), ("li", "v"), ("Ġ", "i"), ("Ġi", "n"), ("1", "2"), ("Ġ", "Ġ"))
WORDS = ["<|end|>", "<|start|>", *sorted(ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
"""A byte-level vocabulary: two special tokens, the bytes, and the results of the merges."""

_SIZES = {
    **{"vocab_size": len(WORDS), "hidden_size": 64, "intermediate_size": 96, "head_dim": 16},
    **{"sliding_window": ..., "rope_theta": 3000.0},
}
_GEMMA = {"head_dim": 256, "sliding_window": 4}
_OWN = {
    "falcon": Architecture("FalconForCausalLM", sizes={"head_dim": ...}),
    "gemma2": Architecture("Gemma2ForCausalLM", sizes=_GEMMA),
    "gemma3": Architecture("Gemma3ForCausalLM", sizes={**_GEMMA, "num_hidden_layers": 7}),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        sizes={
            **{"num_key_value_heads": ..., "head_dim": ..., "intermediate_size": 256},
            **{"layer_norm_epsilon": 1e-4, "max_position_embeddings": 1024},
        },
    ),
    "llama": Architecture("LlamaForCausalLM", sizes={"tie_word_embeddings": True}),
    "nemotron": Architecture("NemotronForCausalLM", sizes={"head_dim": ...}),
    "phi3": Architecture("Phi3ForCausalLM", sizes={"head_dim": ...}),
    "qwen2": Architecture("Qwen2ForCausalLM", sizes={"head_dim": ...}),
    "qwen3": Architecture("Qwen3ForCausalLM", sizes={"head_dim": 128}),
    "stablelm": Architecture(
        "StableLmForCausalLM",
        sizes={"head_dim": ..., "rope_theta": ..., "use_qkv_bias": True, "layer_norm_eps": 1e-4},
    ),
}
_RMS = ("gemma2", "gemma3", "llama", "phi3", "qwen2", "qwen3")
_EPSILONS = ("layer_norm_epsilon", "layer_norm_eps", "norm_eps")


def plain_model(kind: str, **sizes: Any) -> PreTrainedModel:
    """Return a random model of an architecture by llama.cpp's name, in float32."""
    own = _OWN[kind]
    rms = {"rms_norm_eps": 1e-4} if kind in _RMS else {}
    return Architecture(own.name, sizes={**_SIZES, **rms, **own.sizes, **sizes}).build().float()


def stored(kind: str, name: str, weight: Tensor, plain: PreTrainedModel) -> np.ndarray:
    """Return a weight as llama.cpp stores it."""
    config, w = plain.config, weight.detach().float()
    if kind == "llama" and name.split(".")[-2] in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = w.reshape(heads, 2, len(w) // heads // 2, *w.shape[1:])
        w = halves.swapaxes(1, 2).reshape(w.shape)  # the halves of a head are interleaved
    if kind in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        w = w + 1
    if kind == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        w = w.T
    return w.contiguous().numpy()


def tensors(kind: str, plain: PreTrainedModel) -> dict[str, tuple[str, Tensor]]:
    """Return the weights of a model by their names in a GGUF file, each with its name in transformers."""
    arch = next(a for a in MODEL_ARCH if a.name.lower() == kind)
    names = get_tensor_name_map(arch, plain.config.num_hidden_layers)
    found = {}
    for name, weight in plain.named_parameters():
        gguf_name = names.get_name(name, (".weight", ".bias"))
        assert gguf_name, name
        found[gguf_name] = (name, weight)
    return found


def write(
    path: Path,
    kind: str,
    plain: PreTrainedModel,
    quantised: GGMLQuantizationType = F32,
    *,
    said: Mapping[str, Any] | None = None,
    more: Mapping[str, np.ndarray] | None = None,
    raw: Mapping[str, tuple[np.ndarray, GGMLQuantizationType]] | None = None,
    without: str = "",
    pre: str = "gpt-2",
) -> Path:
    """Write a model to a file. Matrices of matching width are `quantised`; `said` adds or replaces keys of
    the metadata, `more` adds tensors, `raw` has blocks for some, and `without` is left out."""
    writer = GGUFWriter(path, kind)
    keys = {**_keys(kind, plain.config), **(said or {})}
    for key, value in keys.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, *[1] * (len(WORDS) - 2)])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_pad_token_id(0)
    for gguf_name, (name, weight) in tensors(kind, plain).items():
        if gguf_name == without:
            continue
        if raw and gguf_name in raw:
            blocks, type_ = raw[gguf_name]
            writer.add_tensor(gguf_name, blocks, raw_dtype=type_)
            continue
        values = stored(kind, name, weight, plain)
        type_ = quantised if values.ndim == 2 and values.shape[-1] % 32 == 0 else F32
        writer.add_tensor(gguf_name, quantize(values, type_), raw_dtype=type_)
    for gguf_name, values in (more or {}).items():
        writer.add_tensor(gguf_name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _keys(kind: str, config: Any) -> dict[str, Any]:
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    rotary = getattr(config, "rope_parameters", None) or {}
    rotary = rotary.get("full_attention", rotary)
    found: dict[str, Any] = {
        "general.name": "tiny",
        "general.file_type": 0,
        f"{kind}.context_length": config.max_position_embeddings,
        f"{kind}.block_count": config.num_hidden_layers,
        f"{kind}.embedding_length": config.hidden_size,
        f"{kind}.attention.head_count": heads,
    }
    for key, name in (
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        *(("attention.layer_norm_epsilon", name) for name in _EPSILONS),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("attention.sliding_window", "sliding_window"),
    ):
        value = getattr(config, name, None)
        if value is not None:
            found[f"{kind}.{key}"] = value
    if kind in ("gemma2", "gemma3", "qwen3"):
        found |= {f"{kind}.attention.{what}_length": size for what in ("key", "value")}
    if "rope_theta" in rotary:
        found[f"{kind}.rope.freq_base"] = float(rotary["rope_theta"])
        if kind != "gemma3":
            found[f"{kind}.rope.dimension_count"] = int(size * rotary.get("partial_rotary_factor", 1))
    return found


def ids() -> Tensor:
    return torch.arange(2, 26).reshape(2, 12)
