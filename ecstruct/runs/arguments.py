"""The types of the arguments in configurations, by name; nearly all mean the same in every run."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from ecstruct.io.values import NUMBERS, Number, Rate, Text, Whole, or_none

_Prompts = Annotated[list[dict[str, Any]], Field(min_length=1)]


class _Freeze(TypedDict, total=False):
    layers: list[Whole] | None
    kinds: list[str] | None
    names: list[str] | None


class _Attributes(TypedDict):
    source: str
    words: dict[str, list[str]]


class _Lora(TypedDict, total=False):
    r: Annotated[int, Field(lt=2**20)]
    alpha: Number
    targets: list[str] | None
    rslora: bool
    dora: bool


_OR_NONE = ("batch_size", "checkpoint_every", "memory", "sample", "window")

_TYPES: Mapping[str, Any] = {
    **NUMBERS,
    **{name: or_none(NUMBERS[name]) for name in _OR_NONE},
    "ablation": str,
    "after": Text,
    "answer_tokens": str,
    "attributes": str | _Attributes | None,
    "baseline": str,
    "before": Text,
    "convention": str,
    "evaluate": dict[str, _Prompts] | None,
    "experiments": list[str],
    "facts": _Prompts,
    "fingerprint": str | None,
    "fingerprints": dict[str, str] | None,
    "forms": list[str],
    "freeze": or_none(_Freeze),
    "generalization": _Prompts,
    "kinds": list[str],
    "lora": or_none(_Lora),
    "lr": or_none(Rate),
    "masks": Annotated[list[Text], Field(min_length=1)],
    "model": Text,
    "offload": bool,
    "onto": str,
    "options": dict[str, dict[str, Any]],
    "prompts": _Prompts,
    "propagation": str,
    "recompute": bool,
    "reference": or_none(_Prompts),
    "reward": str,
    "save_model": bool,
    "schedule": str,
    "scores": or_none(Text),
    "setup": dict[str, Any],
    "sparsity": Number,
    "token": str,
    "train_embeddings": bool,
    "upstream": str,
}
_OF_TRAINING: Mapping[str, Any] = {"batch_size": NUMBERS["batch_size"]}


def types_of(command: str) -> Mapping[str, Any]:
    """Return the types of the arguments of a command."""
    return {**_TYPES, **_OF_TRAINING} if command == "finetune" else _TYPES
