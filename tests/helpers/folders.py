"""Checkpoint folders, sound and broken, for the tests of loading, saving and the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from helpers.facts_fixtures import N_CTX, save_tiny, word_tokenizer

FAMILIES = ("llama", "gpt2", "neox", "gemma2")


def save(folder: Path, family: str = "llama", *, tied: bool = False) -> Path:
    """Save a random two-layer model; Gemma-2's post-norms, soft-caps and sliding window take effect."""
    if family != "gemma2":
        return save_tiny(folder, family, tied=tied)
    tokenizer = word_tokenizer()
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        max_position_embeddings=N_CTX,
        sliding_window=3,
        attn_logit_softcapping=1.0,
        final_logit_softcapping=2.0,
        tie_word_embeddings=tied,
    )
    hf = Gemma2ForCausalLM(config)
    fill(hf)
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_llama(folder: Path, tokenizer: Any = None, seed: int = 0, **config: Any) -> Path:
    """Save a Llama of another size or tokenizer than `save` does; `config` has the values that differ."""
    tokenizer = tokenizer or word_tokenizer()
    values = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": 1,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": N_CTX,
    }
    hf = LlamaForCausalLM(LlamaConfig(**values | config))
    fill(hf, seed)
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fill(model: torch.nn.Module, seed: int = 0) -> None:
    """Set every parameter to random values, including norm gains and biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Rewrite the weights of a folder after `change` has modified them in place."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    return folder


def edit_json(path: Path, **values: Any) -> Path:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return path


def edit_config(folder: Path, **values: Any) -> Path:
    return edit_json(folder / "config.json", **values).parent


def truncate(path: Path, n_bytes: int = 64) -> Path:
    """Cut `n_bytes` off the end of a file."""
    path.write_bytes(path.read_bytes()[:-n_bytes])
    return path


def contents(folder: Path) -> list[str]:
    """Return the names of all files under a folder, including hidden ones."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
