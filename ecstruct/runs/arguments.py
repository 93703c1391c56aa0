"""The types of what configurations say, by name: nearly all of them mean the same in all runs."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from ecstruct.values import Count, Number, Rate, Seed, Text, Whole, or_none

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


_TYPES: Mapping[str, Any] = {
    "ablation": str,
    "accumulate": Whole,
    "after": Text,
    "answer_tokens": str,
    "attributes": str | _Attributes | None,
    "baseline": str,
    "batch_size": or_none(Whole),
    "before": Text,
    "checkpoint_every": or_none(Whole),
    "convention": str,
    "draws": Count,
    "epochs": Count,
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
    "memory": or_none(Whole),
    "model": Text,
    "offload": bool,
    "onto": str,
    "options": dict[str, dict[str, Any]],
    "path_steps": Annotated[int, Field(le=1000)],
    "prompts": _Prompts,
    "propagation": str,
    "recompute": bool,
    "reference": or_none(_Prompts),
    "reward": str,
    "sample": or_none(Count),
    "save_model": bool,
    "schedule": str,
    "scores": or_none(Text),
    "seed": Seed,
    "seeds": Count,
    "setup": dict[str, Any],
    "sparsity": Number,
    "steps": Count,
    "token": str,
    "top": Whole,
    "train_embeddings": bool,
    "upstream": str,
    "verify": Whole,
    "window": or_none(Whole),
}
_OF_TRAINING: Mapping[str, Any] = {"batch_size": Whole}


def types_of(command: str) -> Mapping[str, Any]:
    """The types of the arguments of a command."""
    return {**_TYPES, **_OF_TRAINING} if command == "finetune" else _TYPES
