"""Check the `adapter_config.json` of an adapter (types, sizes, patterns) before peft acts on it."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ecstruct.errors import InputError
from ecstruct.io.files import from_json
from ecstruct.io.values import Number, Whole, check, or_none, shortened
from ecstruct.models.checkpoint import TensorFiles

SECONDS = 5.0
"""The time in seconds within which all patterns must be matched against all module names."""

_Rank = Annotated[int, Field(ge=1)]
_Index = Annotated[int, Field(ge=0)]

_NAMES = ("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern")

_TYPES: Mapping[str, Any] = {
    **dict.fromkeys(_NAMES, str | list[str] | None),
    "alpha_pattern": dict[str, Number] | None,
    "base_model_name_or_path": or_none(str),
    "bias": Literal["none", "all", "lora_only"],
    "fan_in_fan_out": bool,
    "init_lora_weights": bool | str | None,
    "layers_to_transform": int | list[Whole] | None,
    "lora_alpha": Number,
    "lora_bias": bool,
    "lora_dropout": Number,
    "modules_to_save": or_none(list[str]),
    "peft_type": str,
    "r": _Index,  # OFT has 0 here, since it uses blocks instead of a rank
    "rank_pattern": dict[str, _Rank] | None,
    "revision": or_none(str),
    "target_parameters": or_none(list[str]),
    "task_type": or_none(str),
    "trainable_token_indices": list[_Index] | dict[str, list[_Index]] | None,
    "use_dora": bool,
    "use_rslora": bool,
}

_TRIED = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for form in (pattern, rf"(.*\\.)?({pattern})$", rf"(?:^|.*?\\.){pattern}\\.(?P<idx>\\d+)\\."):
        for name in names:
            re.fullmatch(form, name), re.match(form, name)
"""
"""A script that matches patterns as peft does. It is a process, which can be stopped; a match cannot."""


def check_config(path: Path, weights: Path, hf: Any) -> None:
    """Check that peft can apply an adapter's configuration, given its weights file and the model.

    Raises:
        InputError: The file is not JSON, or it asks for something impossible.
    """
    try:
        config = dict(from_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is no configuration of an adapter: save the adapter again.") from error
    check(config, _TYPES, str(path))
    if config.get("layer_replication"):
        raise InputError(
            f"{path} has a layer_replication, which makes a model of other layers: merge the adapter and "
            "compare checkpoints of one depth."
        )
    if config.get("peft_type") == "LORA":
        _check_ranks(path, config, weights)
    _check_tokens(path, config.get("trainable_token_indices"), hf)
    _check_patterns(path, config, [name for name, _ in hf.named_modules()])


def _check_ranks(path: Path, config: Mapping[str, Any], weights: Path) -> None:
    """Check the ranks against the weights: peft allocates memory for a rank before it reads the weights."""
    most = max((n for shape in TensorFiles.of_file(weights).shapes.values() for n in shape), default=1)
    for rank in (config.get("r", 1), *(config.get("rank_pattern") or {}).values()):
        if rank > most:
            raise InputError(
                f"{path} has the rank {_shown(rank)}, and no weight of the adapter is larger than {most}: "
                "use the adapter_config.json that was saved with it."
            )


def _check_tokens(path: Path, given: Any, hf: Any) -> None:
    n_tokens = hf.get_input_embeddings().num_embeddings
    for tokens in given.values() if isinstance(given, dict) else [given or []]:
        if tokens and max(tokens) >= n_tokens:
            raise InputError(
                f"{path} trains the token {_shown(max(tokens))} of a vocabulary of {n_tokens}: use the "
                "model that the adapter was trained on."
            )


def _check_patterns(path: Path, config: Mapping[str, Any], names: list[str]) -> None:
    patterns = [pattern for pattern in _patterns(config) if not re.fullmatch(r"[\w.\-]*", pattern)]
    if not patterns:
        return
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(
                f"{path} has {_shown(pattern)}, which is no pattern of modules ({error})."
            ) from error
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRIED],
            input=json.dumps([patterns, names]).encode(),
            timeout=SECONDS,
            capture_output=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{path} names modules by {_shown(patterns[0])}, which takes longer than {SECONDS:g} seconds "
            "to be compared with those of this model: list the modules by their names."
        ) from error


def _patterns(config: Mapping[str, Any]) -> Iterator[str]:
    for key in (*_NAMES, "modules_to_save"):
        given = config.get(key) or []
        yield from [given] if isinstance(given, str) else given
    for key in ("rank_pattern", "alpha_pattern"):
        yield from config.get(key) or {}


def _shown(value: str | int) -> str:
    many_digits = isinstance(value, int) and value.bit_length() >= 200
    return "a number of many digits" if many_digits else shortened(repr(value))
