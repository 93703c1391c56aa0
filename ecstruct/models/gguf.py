"""GGUF files, the format of llama.cpp, as Hugging Face folders of float32 weights.

transformers reads them, its own dequantisation of every tensor included; what comes out is kept in the
assets cache of huggingface_hub, by the content of the file and the versions of what read it, so that it is
done once and that everything else finds a folder like any other.

That reader takes what it knows from a file and lets the rest go: rescaled rotary frequencies, a window of
attention, a way to cut text into words. A model that lacks one of these computes something else, so what a
file says is compared with the configuration that was made of it, and a file with more is refused.
"""

import json
import logging
import struct
from collections.abc import Mapping
from dataclasses import dataclass
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
from ecstruct.models.plain import plain_model

_logger = logging.getLogger(__name__)

ARCHITECTURES = (
    *("falcon", "gemma2", "gemma3", "gpt2", "llama"),
    *("nemotron", "phi3", "qwen2", "qwen3", "stablelm"),
)
"""Of which files were held against the models that they were made of. Mistral's are said to be llama."""

_SCALES_OF_27B = {"gemma2": 46, "gemma3": 62}
"""Layers of those whose attention has a scale of its own, which no file says."""

_GPT2_WORDS = ("gpt-2", "mpt", "olmo", "trillion")
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""How byte-level vocabularies cut text into words before merging, by llama.cpp's names: as GPT-2 does, and
so with every digit by itself. transformers knows the others that are accepted."""

_WEIGHTS = "dequantised.json"
"""Beside the weights: what they were dequantised from."""
_BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, struct.error)


def is_gguf(path: Path) -> bool:
    """Whether a path is that of a GGUF file, by its name."""
    return path.suffix == ".gguf" and path.is_file()


def only_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder that has no other weights.

    Raises:
        InputError: it has several.
    """
    files = sorted(folder.glob("*.gguf"))
    if not files or any(folder.glob("*.safetensors")):
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise InputError(f"the folder {folder} has several GGUF files ({names}): give the path of one.")
    return files[0]


def dequantised(path: Path) -> tuple[Path, str]:
    """The folder of a GGUF file's weights in float32, and what these are, as "dequantised from Q4_1".

    The folder is made when the file is first asked for, and takes four bytes for every weight.

    Raises:
        InputError: no package gguf; a file that is broken, an adapter or a part of a model; a quantisation
            or architecture that transformers does not read; something in the file that it would let go.
    """
    check_installed(str(path))
    cache = cached_assets_path("ecstruct", namespace="gguf")
    folder = cache / "-".join([_digest(path), version("transformers"), version("gguf")])
    with locked(cache / f"{folder.name}.lock", wait=True):
        if not folder.exists():
            _write(path, folder)
    return folder, json.loads((folder / _WEIGHTS).read_text(encoding="utf-8"))


def check_installed(what: str) -> None:
    """Raise `InputError` if what reads GGUF files is not installed; `what` is to be read."""
    if find_spec("gguf") is None or find_spec("transformers.integrations.gguf") is None:
        raise InputError(
            f"{what} is a GGUF file, which takes the package gguf and a recent transformers to read: "
            "pip install 'ecstruct[gguf]'."
        )


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 24):
                digest.update(part)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): fetch it again.") from error
    return digest.hexdigest()


def _write(path: Path, folder: Path) -> None:
    try:
        found = _Contents.of(path)
        found.check()
        _logger.warning("%s is dequantised to float32 in %s, which is done once", path, folder)
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


_ELSE = "use the checkpoint that it was made from"


@dataclass(frozen=True)
class _Contents:
    """What a file says of itself: its `metadata`, and the types of its tensors by name."""

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
        """What the weights are."""
        from gguf import GGMLQuantizationType as Type

        names = dict.fromkeys(Type(n).name for n in sorted({*self.types.values()}))
        quantised = [name for name in names if name not in ("F32", "F16", "BF16")]
        return f"dequantised from {', '.join(quantised)}" if quantised else "as a GGUF file has them"

    def check(self) -> None:
        """Raise `InputError` for what is no whole model of an architecture that is known."""
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
        """Raise `InputError` for a tokenizer that transformers would build otherwise than it was."""
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

        pre = self.metadata.get("tokenizer.ggml.pre")
        byte_level = self.metadata.get("tokenizer.ggml.model") == "gpt2"
        if byte_level and pre not in (*_GPT2_WORDS, *_DIGITS_APART, *GGUF_PRE_TOKENIZER_SPLITS):
            raise InputError(
                f"{self.path} has a tokenizer that cuts text into words in the way {pre!r}, which is not "
                f"known here: {_ELSE}."
            )

    def read(self) -> tuple[Any, Any]:
        """The model as transformers makes it, and its tokenizer.

        Raises:
            InputError: it made something else of the file than this says.
        """
        of_file: dict[str, Any] = {"gguf_file": self.path.name}
        config = AutoConfig.from_pretrained(self.path.parent, **of_file)
        self._check_config(config)
        # Its own bar, which --quiet does not reach, in place of one that it does.
        with without_bars(), patch.object(modeling_gguf_pytorch_utils, "tqdm", tqdm):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.path.parent,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
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
        said = _said(config)
        scale = getattr(config, "query_pre_attn_scalar", said["attention.key_length"])
        of_27b = config.num_hidden_layers == _SCALES_OF_27B.get(self.architecture)
        if of_27b or scale != said["attention.key_length"]:
            raise InputError(f"{self.path} does not say by what its attention is scaled: {_ELSE}.")
        for key, value in self.metadata.items():
            of, _, name = key.partition(".")
            if of != self.architecture or (name in said and _same(value, said[name])):
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
        if lacking := sorted([*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])]):
            raise InputError(f"{self.path} has no weights of the right shape for {lacking[0]}: {_ELSE}.")


_OF_THE_FILE = ("quantization_config", "_name_or_path", "dtype", "transformers_version")
"""Of a configuration: how it was read."""


def _said(config: Any) -> dict[str, Any]:
    """What a configuration says of what GGUF files may say, by their words."""
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
    for key, names in _CALLED.items():
        said[key] = next((getattr(config, name) for name in names if hasattr(config, name)), None)
    return {key: value for key, value in said.items() if value is not None}


_CALLED = {
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
}


def _same(value: Any, said: Any) -> bool:
    """Files have floats in 32 bits."""
    return np.float32(value) == np.float32(said) if isinstance(value, float) else value == said
