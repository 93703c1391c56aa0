"""Turn a Hugging Face model in memory into a hooked model, without processing its weights."""

import copy
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import nn
from transformer_lens.factories.architecture_adapter_factory import (
    SUPPORTED_ARCHITECTURES,
    ArchitectureAdapterFactory,
)
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ecstruct.errors import InputError
from ecstruct.models.classifiers import hookable, recognised
from ecstruct.models.hook_points import as_leaves
from ecstruct.models.tied import note_what_is_tied

_GRANITE_4 = "GraniteMoeHybridForCausalLM"

_OTHER_SENSES = ("vision_config", "audio_config")
"""Configuration keys of inputs other than text. TransformerLens would install packages for these."""


def boot(name: str, hf: Any, tokenizer: Any) -> TransformerBridge:
    """Return a hooked model in eval mode. The Hugging Face model `hf` becomes part of it.

    Raises:
        InputError: TransformerLens does not know the architecture.
    """
    if others := [key for key in _OTHER_SENSES if getattr(hf.config, key, None) is not None]:
        raise InputError(
            f"{name} is a {type(hf).__name__}, which reads more than text ({others[0]}): save its language "
            "model by itself, as a causal language model, and give that."
        )
    if type(hf).__name__ == _GRANITE_4 and _GRANITE_4 in SUPPORTED_ARCHITECTURES:
        _call_it_mlp()
    hf.config.architectures = hf.config.architectures or [type(hf).__name__]  # TransformerLens reads it
    hf = hookable(hf).eval()
    note_what_is_tied(hf)
    head = hf.get_output_embeddings()
    unbiased = getattr(head, "bias", None) is None
    hf.disable_input_require_grads()  # training with gradient checkpointing leaves this hook behind
    hf.config.return_dict = True  # outputs are read by name
    hf.config._experts_implementation = "eager"  # any dtype, and differentiable with respect to weights
    try:
        with nothing_installed(), recognised(hf), as_leaves():
            model = TransformerBridge.boot_transformers(
                name, hf_model=hf, tokenizer=kept_as_is(tokenizer), device=str(hf.device), dtype=hf.dtype
            )
    except InputError:
        raise
    except Exception as error:  # its architecture adapters raise any kind of error
        raise InputError(
            f"TransformerLens cannot hook {name}, a {type(hf).__name__}: {cause(error)}."
        ) from error
    if unbiased and isinstance(getattr(head, "bias", None), nn.Parameter):
        # TransformerLens 3 adds a bias of zeros, which would be trained.
        head.register_buffer("bias", head._parameters.pop("bias").detach())
    return model


def _call_it_mlp() -> None:
    """Let TransformerLens call the MLP of Granite 4's blocks as it does MLPs elsewhere, where there are no
    experts beside it: it is called `shared_mlp` there."""

    class OneMLP(SUPPORTED_ARCHITECTURES[_GRANITE_4]):
        def _build_component_mapping(self) -> dict[str, Any]:
            mapping = super()._build_component_mapping()
            parts = mapping["blocks"].submodules
            if "moe" not in parts:
                parts["mlp"] = parts.pop("shared_mlp")
            return mapping

    ArchitectureAdapterFactory.register_adapter(_GRANITE_4, OneMLP)


@contextmanager
def nothing_installed() -> Iterator[None]:
    """Raise `InputError` if a library tries to install packages within this context; start no process."""

    def refuse(command: Any, *_: Any, **__: Any) -> int:
        words = command if isinstance(command, str) else " ".join(map(str, command))
        raise InputError(f"loading this model would run {words!r}: run it yourself if you want to.")

    with patch.object(subprocess, "check_call", refuse):
        yield


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the progress bars of transformers while files are read or written; downloads keep theirs."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def kept_as_is(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer that TransformerLens uses as it is.

    TransformerLens reloads any other tokenizer from its origin, which may have changed or be unreachable,
    and adds special tokens to it in place."""
    own = copy.deepcopy(tokenizer)
    own.init_kwargs |= {"add_bos_token": True, "name_or_path": ""}  # what it checks; this adds no BOS
    return own


def gist(error: Exception) -> str:
    """Return the first sentence of an error's message, in at most 200 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    sentence = first.removeprefix("Error while deserializing header: ").partition(". ")[0]
    return textwrap.shorten(sentence.rstrip("."), 200, placeholder=" ...")


def cause(error: Exception) -> str:
    """Return the gist of an error, preceded by its type where the message alone says little: a KeyError
    raised inside a library, for example, has only the key."""
    told = (
        isinstance(error, OSError | ValueError | RuntimeError | Warning)
        or "Validation" in type(error).__name__
    )
    return gist(error) if told else f"{type(error).__name__}: {gist(error)}"
