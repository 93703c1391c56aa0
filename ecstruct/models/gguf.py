"""Convert GGUF files, the format of llama.cpp, to Hugging Face folders of float32 weights.

transformers reads and dequantises them. The result is kept in the assets cache of huggingface_hub, keyed by
the content of the file and the versions of the readers, so that a file is converted once and all other code
finds an ordinary folder.

transformers takes what it knows from a file and ignores the rest: rescaled rotary frequencies, a sliding
window of attention, a way to cut text into words. A model without one of these computes something else, so
what a file says is compared with the configuration made from it, and a file that says more is refused.
"""

import hashlib
import json
import logging
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import xxhash
from huggingface_hub import cached_assets_path
from huggingface_hub.utils import tqdm
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

from ecstruct.errors import InputError
from ecstruct.io.files import locked, write_folder, write_text
from ecstruct.models.boot import gist, without_bars
from ecstruct.models.checkpoint import lacking
from ecstruct.models.plain import plain_model

_logger = logging.getLogger(__name__)

ARCHITECTURES = (
    *("falcon", "gemma2", "gemma3", "gpt2", "llama"),
    *("nemotron", "phi3", "qwen2", "qwen3", "stablelm"),
)
"""Architectures whose files were compared with the original models. Mistral files call theirs llama."""

_SCALES_OF_27B = {"gemma2": 46, "gemma3": 62}
"""The number of layers of the 27B models, whose attention has another scale, which no file says."""

_GPT2_WORDS = ("gpt-2", "mpt", "olmo", "trillion")
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""llama.cpp's names for how byte-level tokenizers cut text into words before merging: like GPT-2, and like
GPT-2 but with every digit separate. transformers knows the other names that are accepted."""

_WEIGHTS = "dequantised.json"
"""The file beside the weights that says from which types they were dequantised."""
_BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, struct.error)


def gguf_at(path: Path) -> Path | None:
    """Return the GGUF file that a path is or, as a folder without safetensors weights, has; or `None`.

    Raises:
        InputError: The folder has several GGUF files.
    """
    if path.suffix == ".gguf" and path.is_file():
        return path
    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if not files or any(path.glob("*.safetensors")):
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise InputError(f"the folder {path} has several GGUF files ({names}): give the path of one.")
    return files[0]


def dequantised(path: Path) -> tuple[Path, str]:
    """Return the folder with a GGUF file's weights in float32, and a description such as "dequantised from
    Q4_1". The folder is made on the first call, and takes four bytes per weight.

    Raises:
        InputError: The package gguf is missing; the file is broken, an adapter or a part of a model;
            transformers cannot read its quantisation or architecture, or would ignore something in it.
    """
    check_installed(str(path))
    cache = cached_assets_path("ecstruct", namespace="gguf")
    folder = cache / "-".join([_digest(path), version("transformers"), version("gguf")])
    with locked(cache / f"{folder.name}.lock", wait=True):
        if not folder.exists():
            _write(path, folder)
    return folder, json.loads((folder / _WEIGHTS).read_text(encoding="utf-8"))


def check_installed(what: str) -> None:
    """Raise `InputError` if the packages that read GGUF files are missing; `what` names the file in it."""
    if find_spec("gguf") is None or find_spec("transformers.integrations.gguf") is None:
        raise InputError(
            f"{what} is a GGUF file, which takes the package gguf and a recent transformers to read: "
            "pip install 'ecstruct[gguf]'."
        )


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): fetch it again.") from error


def _write(path: Path, folder: Path) -> None:
    try:
        found = _Contents.of(path)
        found.check()
        _logger.warning("%s is dequantised to float32 in %s, which is done once", path, folder)
        with _sooner():
            plain, tokenizer = found.read()
    except InputError:
        raise
    except NotImplementedError as error:
        raise InputError(f"{path} cannot be dequantised ({gist(error)}): {_ELSE}.") from error
    except _BROKEN as error:
        raise InputError(f"{path} is no GGUF file to be read ({gist(error)}): fetch it again.") from error

    def fill(whole: Path) -> None:
        with without_bars():
            plain.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        write_text(whole / _WEIGHTS, json.dumps(found.weights))

    write_folder(folder, fill)


@contextmanager
def _sooner() -> Iterator[None]:
    """Spare what takes most of the time to read a file: transformers asks gguf for all names of tensors
    again for every module, and gguf cuts every word of a vocabulary from a `np.memmap`, which is slow."""
    import gguf

    class Reader(gguf.GGUFReader):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value.view(np.ndarray) if name == "data" else value)

    names = cache(gguf.get_tensor_name_map)
    with patch.object(gguf, "GGUFReader", Reader), patch.object(gguf, "get_tensor_name_map", names):
        yield


_ELSE = "use the checkpoint that it was made from"


@dataclass(frozen=True)
class _Contents:
    """The header of a GGUF file: its `metadata`, and the numbers of its tensors' ggml types, by name."""

    path: Path
    metadata: Mapping[str, Any]
    types: Mapping[str, int]

    @classmethod
    def of(cls, path: Path) -> "_Contents":
        from transformers.integrations.gguf.reader import GgufHeader, read_gguf_metadata

        metadata, _ = read_gguf_metadata(str(path))
        try:
            types = GgufHeader.from_file(str(path)).ggml_types
        except ValueError as error:
            raise InputError(
                f"{path} is quantised in a way that transformers does not read "
                f"({gist(error).removeprefix(f'{path} ')}): {_ELSE}, or another quantisation of it."
            ) from error
        return cls(path, metadata, types)

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def weights(self) -> str:
        """A description of the types of the weights, such as "dequantised from Q4_1"."""
        from gguf import GGMLQuantizationType as Type

        names = dict.fromkeys(Type(n).name for n in sorted({*self.types.values()}))
        quantised = [name for name in names if name not in ("F32", "F16", "BF16")]
        return f"dequantised from {', '.join(quantised)}" if quantised else "as a GGUF file has them"

    def check(self) -> None:
        """Raise `InputError` unless the file is a whole model of a known architecture."""
        kind = self.metadata.get("general.type", "model")
        if kind != "model":
            raise InputError(f"{self.path} is no model but an {kind}: give the GGUF file of a model.")
        parts = self.metadata.get("split.count", 1)
        if parts > 1:
            raise InputError(f"{self.path} is one of {parts} parts of a model: merge them into one file.")
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise InputError(
                f"{self.path} has the architecture {self.architecture}, and those that are read from GGUF "
                f"files are {known}: {_ELSE}."
            )
        self._check_words()

    def _check_words(self) -> None:
        """Raise `InputError` for a tokenizer that transformers would not rebuild correctly."""
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

        pre = self.metadata.get("tokenizer.ggml.pre")
        byte_level = self.metadata.get("tokenizer.ggml.model") == "gpt2"
        if byte_level and pre not in (*_GPT2_WORDS, *_DIGITS_APART, *GGUF_PRE_TOKENIZER_SPLITS):
            raise InputError(
                f"{self.path} has a tokenizer that cuts text into words in the way {pre!r}, which is not "
                f"known here: {_ELSE}."
            )

    def read(self) -> tuple[Any, Any]:
        """Read the model and its tokenizer with transformers.

        Raises:
            InputError: The model that transformers made differs from what the file says.
        """
        of_file: dict[str, Any] = {"gguf_file": self.path.name}
        config = AutoConfig.from_pretrained(self.path.parent, **of_file)
        self._check_config(config)
        # transformers' progress bar ignores --quiet; this one does not.
        with without_bars(), patch.object(modeling_gguf_pytorch_utils, "tqdm", tqdm):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.path.parent,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with their names
                **of_file,
            )
        hf, info = loaded
        self._check_tensors(hf, info)
        clean = {k: v for k, v in hf.config.to_dict().items() if k not in _OF_THE_FILE}
        state = hf.state_dict()
        plain = plain_model(type(config)(**clean), torch.float32, "cpu", lambda name, _: state[name])
        plain.config.architectures = [type(hf).__name__]
        tokenizer = AutoTokenizer.from_pretrained(self.path.parent, **of_file)
        if self.metadata.get("tokenizer.ggml.pre") in _DIGITS_APART:
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            )
        return plain, tokenizer

    def _check_config(self, config: Any) -> None:
        from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

        read = GGUF_CONFIG_MAPPING[self.architecture]
        said = _in_gguf_keys(config)
        scale = getattr(config, "query_pre_attn_scalar", said["attention.key_length"])
        of_27b = config.num_hidden_layers == _SCALES_OF_27B.get(self.architecture)
        if of_27b or scale != said["attention.key_length"]:
            raise InputError(f"{self.path} does not say by what its attention is scaled: {_ELSE}.")
        for key, value in self.metadata.items():
            of, _, name = key.partition(".")
            if of != self.architecture or (name in said and _equal_in_32_bits(value, said[name])):
                continue
            if name in said or read.get(name) is None:
                raise InputError(
                    f"{self.path} has {key} = {str(value)[:50]}, of which transformers makes "
                    f"{said.get(name, 'nothing')}: {_ELSE}."
                )

    def _check_tensors(self, hf: Any, info: Mapping[str, Any]) -> None:
        reader: Any = modeling_gguf_pytorch_utils
        processor = reader.TENSOR_PROCESSORS.get(self.architecture, reader.TensorProcessor)
        known = reader.get_gguf_hf_weights_map(hf, processor(hf.config.to_dict()))
        if unread := sorted(name for name in self.types if name not in known):
            raise InputError(f"{self.path} has {unread[0]}, which transformers does not read: {_ELSE}.")
        if weights := lacking(info):
            raise InputError(f"{self.path} has no weights of the right shape for {weights[0]}: {_ELSE}.")


_OF_THE_FILE = ("quantization_config", "_name_or_path", "dtype", "transformers_version")
"""Configuration keys that say how the model was read, not what it computes."""


def _in_gguf_keys(config: Any) -> dict[str, Any]:
    """Return the values of a configuration under the keys of GGUF metadata, without the architecture."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotary = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in rotary:
        rotary = rotary["full_attention"]
    said = {
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.causal": True,
        "expert_count": 0,
        "expert_used_count": 0,
        "rope.scaling.type": "none",
        "rope.scaling.finetuned": False,
        "rope.dimension_count": int(size * rotary.get("partial_rotary_factor", 1.0)),
        "rope.freq_base": rotary.get("rope_theta"),
    }
    for key, names in _CONFIG_NAMES.items():
        said[key] = next((getattr(config, name) for name in names if hasattr(config, name)), None)
    return {key: value for key, value in said.items() if value is not None}


_CONFIG_NAMES = {
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
}


def _equal_in_32_bits(value: Any, said: Any) -> bool:
    """Return whether two values are equal; floats are compared in 32 bits, as files store them."""
    return np.float32(value) == np.float32(said) if isinstance(value, float) else value == said
