"""Where a hooked model came from, carried by the model itself so that results can say it."""

from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError

_ATTRIBUTE = "_ecstruct_provenance"
_PACKAGES = ("ecstruct", "torch", "transformers", "transformer-lens")


@dataclass(frozen=True)
class Provenance:
    """`source` and `revision` as `ecstruct.load` takes them, and how the model was `made` from that, step
    by step. `tokenizer` is the checkpoint's own: TransformerLens replaces it by one that adds a BOS
    token."""

    source: str
    revision: str | None
    tokenizer: Any
    made: tuple[str, ...] = ()
    weights: str = ""

    @property
    def name(self) -> str:
        """As "organism (finetuned)"; the revision is apart."""
        return "".join([self.source, *(f" ({how})" for how in self.made)])

    @property
    def described(self) -> dict[str, Any]:
        """What a result says of it."""
        weights = {"weights": self.weights} if self.weights else {}
        return {"source": self.name, "revision": self.revision, **weights}

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return replace(self, source=f"{self.source}{at}").name


def provenance(model: TransformerBridge) -> Provenance:
    """Provenance of a model from `ecstruct.load`; of any other what TransformerLens knows.

    Raises:
        InputError: it is no hooked model.
    """
    check_hooked(model)
    known = model.__dict__.get(_ATTRIBUTE)
    return known or Provenance(getattr(model.cfg, "model_name", "unknown"), None, model.tokenizer)


def check_hooked(model: object) -> None:
    """Raise `InputError` for what is no hooked model, such as the name of one."""
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
    """The checkpoint's own tokenizer, whose defaults decide about BOS and EOS tokens."""
    return provenance(model).tokenizer


def source_of(model: TransformerBridge) -> str:
    """Where a model came from, with its revision and what became of it, as "id@revision (finetuned)"."""
    return str(provenance(model))


def versions() -> dict[str, str]:
    """Of the packages on which numbers depend."""
    return {name: version(name) for name in _PACKAGES}
