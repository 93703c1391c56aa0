"""Saving a hooked model as the Hugging Face folder that its checkpoint would be.

A hooked model holds query, key and value apart where some checkpoints fuse them into one tensor. Which
entry of the fused tensor went where is found by asking: a skeleton of the model, its fused tensors
filled with the numbers of their entries, is hooked the same way, and its parts then hold the addresses.
"""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

from ecstruct.errors import InputError
from ecstruct.models.hooked import named_weights
from ecstruct.models.load import settled
from ecstruct.models.provenance import tokenizer_of


def save_model(model: TransformerBridge, folder: str | Path) -> None:
    """Write config, safetensors weights and tokenizer; the folder appears only when it is whole.

    Raises:
        InputError: `folder` exists and is not empty, or cannot be written.
    """
    folder = Path(folder)
    check_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as temporary:
            whole = Path(temporary) / "model"
            to_hugging_face(model).save_pretrained(whole)
            tokenizer_of(model).save_pretrained(whole)
            whole.replace(folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}.") from error


def check_free(folder: Path) -> None:
    """Raise `InputError` unless a model can be written to `folder` without overwriting anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty: choose another folder for the model.")


def to_hugging_face(model: TransformerBridge) -> Any:
    """A plain Hugging Face model with this model's weights, sharing nothing with it."""
    config = copy.deepcopy(model.original_model.config)
    plain = AutoModelForCausalLM.from_config(config, dtype=next(model.parameters()).dtype)
    skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    starts: dict[str, int] = {}
    offset = 0
    with torch.no_grad():
        for name, p in skeleton.named_parameters():
            starts[name] = offset
            p.copy_(torch.arange(offset, offset + p.numel(), dtype=p.dtype).view_as(p))
            offset += p.numel()
    addresses = named_weights(
        TransformerBridge.boot_transformers(
            "skeleton", hf_model=skeleton, tokenizer=settled(tokenizer_of(model)), dtype=torch.float64
        )
    )
    flat = torch.full((offset,), torch.nan, dtype=next(model.parameters()).dtype)
    for name, p in named_weights(model).items():
        flat[addresses[name].detach().long().flatten()] = p.detach().cpu().flatten()
    with torch.no_grad():
        for name, p in plain.named_parameters():
            values = flat[starts[name] : starts[name] + p.numel()]
            p.copy_(values.view_as(p))
    return plain.eval()
