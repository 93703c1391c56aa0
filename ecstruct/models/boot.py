"""From a Hugging Face model in memory to a hooked one, unprocessed."""

import copy
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ecstruct.errors import InputError
from ecstruct.models.tied import note_what_is_tied

_OTHER_SENSES = ("vision_config", "audio_config")
"""What a configuration has for other inputs than text. TransformerLens installs packages for these."""


def boot(name: str, hf: Any, tokenizer: Any) -> TransformerBridge:
    """In eval mode; the Hugging Face model becomes part of it.

    Raises:
        InputError: TransformerLens does not know the architecture.
    """
    if others := [key for key in _OTHER_SENSES if getattr(hf.config, key, None) is not None]:
        raise InputError(
            f"{name} is a {type(hf).__name__}, which reads more than text ({others[0]}): save its language "
            "model by itself, as a causal language model, and give that."
        )
    hf.config.architectures = hf.config.architectures or [type(hf).__name__]  # it is told apart by this
    note_what_is_tied(hf)
    head = hf.get_output_embeddings()
    unbiased = getattr(head, "bias", None) is None
    hf.disable_input_require_grads()  # which training with gradient checkpointing leaves behind
    hf.config.return_dict = True  # blocks and heads are read by the names of what they return
    hf.config._experts_implementation = "eager"  # in any dtype, and differentiable along weights
    try:
        with nothing_installed():
            model = TransformerBridge.boot_transformers(
                name, hf_model=hf, tokenizer=settled(tokenizer), device=str(hf.device), dtype=hf.dtype
            )
    except InputError:
        raise
    except Exception as error:  # of whatever kind its adapters of architectures raise
        raise InputError(
            f"TransformerLens cannot hook {name}, a {type(hf).__name__}: {cause(error)}."
        ) from error
    if unbiased and isinstance(getattr(head, "bias", None), nn.Parameter):
        _as_buffer(head, "bias")  # TransformerLens 3 would train the zeros that it puts there
    model.eval()
    return model


@contextmanager
def nothing_installed() -> Iterator[None]:
    """Whatever a library starts to install packages raises `InputError`; no process is started."""

    def refuse(command: Any, *_: Any, **__: Any) -> int:
        words = command if isinstance(command, str) else " ".join(map(str, command))
        raise InputError(f"loading this model would run {words!r}: run it yourself if you want to.")

    with patch.object(subprocess, "check_call", refuse):
        yield


def _as_buffer(module: nn.Module, name: str) -> None:
    value = module._parameters.pop(name)
    assert value is not None
    module.register_buffer(name, value.detach())


@contextmanager
def without_bars() -> Iterator[None]:
    """Without the progress bars of transformers, for reading and writing what is on disk; downloads keep
    theirs."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def settled(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy that TransformerLens takes as it is. Any other it loads again from where it came from, be
    that another revision, gone or out of reach, and fills in its missing special tokens in place."""
    own = copy.deepcopy(tokenizer)
    own.init_kwargs |= {"add_bos_token": True, "name_or_path": ""}  # what it asks; this adds no BOS
    return own


def gist(error: Exception) -> str:
    """The first sentence of an error's message, shortened: some libraries tell all they know."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    sentence = first.removeprefix("Error while deserializing header: ").partition(". ")[0]
    return textwrap.shorten(sentence.rstrip("."), 200, placeholder=" ...")


def cause(error: Exception) -> str:
    """The gist of an error, and its kind where that is an accident within a library, whose message need not
    say much: a KeyError has the key alone."""
    told = (
        isinstance(error, OSError | ValueError | RuntimeError | Warning)
        or "Validation" in type(error).__name__
    )
    return gist(error) if told else f"{type(error).__name__}: {gist(error)}"
