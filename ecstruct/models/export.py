"""Saving a hooked model as the Hugging Face folder that its checkpoint would be.

A hooked model holds query, key and value apart where some checkpoints fuse them into one tensor; its
skeleton knows where they belong.
"""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

from ecstruct.errors import InputError
from ecstruct.files import writing
from ecstruct.models.hooked import named_weights
from ecstruct.models.provenance import tokenizer_of
from ecstruct.models.skeleton import Skeleton


def save_model(model: TransformerBridge, folder: str | Path) -> None:
    """Write config, safetensors weights and tokenizer; the folder appears only when it is whole.

    Raises:
        InputError: `folder` exists and is not empty, or cannot be written.
    """
    folder = Path(folder)
    check_free(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as temporary:
            whole = Path(temporary) / "model"
            to_hugging_face(model).save_pretrained(whole)
            tokenizer_of(model).save_pretrained(whole)
            whole.replace(folder)


def check_free(folder: Path) -> None:
    """Raise `InputError` unless a model can be written to `folder` without overwriting anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty: choose another folder for the model.")


def to_hugging_face(model: TransformerBridge) -> Any:
    """A plain Hugging Face model with this model's weights, sharing nothing with it."""
    config = copy.deepcopy(model.original_model.config)
    plain = AutoModelForCausalLM.from_config(config, dtype=next(model.parameters()).dtype)
    places = Skeleton.of("skeleton", config, tokenizer_of(model)).places
    tensors = dict(plain.named_parameters())
    with torch.no_grad():
        for p in tensors.values():
            p.fill_(torch.nan)  # so that no tensor that was forgotten could pass
        for name, p in named_weights(model).items():
            places[name].put(tensors[places[name].tensor], p)
    return plain.eval()
