"""The provenance of a hooked model, stored on the model itself so that results can report it."""

from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError

_ATTRIBUTE = "_ecstruct_provenance"
_PACKAGES = ("ecstruct", "torch", "transformers", "transformer-lens")


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from: `source` and `revision` as `ecstruct.load` takes them, and the steps by
    which it was `made` from these. `tokenizer` is the checkpoint's own; TransformerLens uses one that adds
    a BOS token. `weights` says how the weights were converted, or which of several they are."""

    source: str
    revision: str | None
    tokenizer: Any
    made: tuple[str, ...] = ()
    weights: str = ""

    @property
    def name(self) -> str:
        """The source and how the model was made from it, as "organism (finetuned)", without revision."""
        return "".join([self.source, *(f" ({how})" for how in self.made)])

    @property
    def described(self) -> dict[str, Any]:
        """The entries by which a result describes the model."""
        weights = {"weights": self.weights} if self.weights else {}
        return {"source": self.name, "revision": self.revision, **weights}

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return replace(self, source=f"{self.source}{at}").name


def provenance(model: TransformerBridge) -> Provenance:
    """Return the provenance of a model; for one not from `ecstruct.load`, what TransformerLens knows.

    Raises:
        InputError: It is not a hooked model.
    """
    check_hooked(model)
    known = model.__dict__.get(_ATTRIBUTE)
    return known or Provenance(getattr(model.cfg, "model_name", "unknown"), None, model.tokenizer)


def check_hooked(model: object) -> None:
    """Raise `InputError` if an object, such as a name, is not a hooked model."""
    if not isinstance(model, TransformerBridge):
        raise InputError(
            f"a {type(model).__name__} is no TransformerBridge: load it with ecstruct.load(...)."
        )


def mark(model: TransformerBridge, value: Provenance) -> TransformerBridge:
    model.__dict__[_ATTRIBUTE] = value
    return model


def derived(model: TransformerBridge, parent: TransformerBridge, how: str) -> TransformerBridge:
    """Mark `model` as made from `parent`, for example by finetuning."""
    origin = provenance(parent)
    return mark(model, replace(origin, made=(*origin.made, how)))


def tokenizer_of(model: TransformerBridge) -> Any:
    """Return the checkpoint's own tokenizer, whose defaults decide about BOS and EOS tokens."""
    return provenance(model).tokenizer


def source_of(model: TransformerBridge) -> str:
    """Return the provenance of a model as a text, such as "id@revision (finetuned)"."""
    return str(provenance(model))


def versions() -> dict[str, str]:
    """Return the versions of the packages on which numbers depend."""
    return {name: _version(name) for name in _PACKAGES}


_version = cache(version)  # which reads files
