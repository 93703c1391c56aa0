"""The options of finetuning, checked."""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ecstruct.errors import InputError
from ecstruct.models.names import WeightSelection
from ecstruct.options import FinetuneOptions

_RANKS = 2**20
"""An upper bound on ranks, larger than any matrix allows."""


@dataclass(frozen=True)
class Lora:
    """Options of low-rank adapters, named as in peft: rank `r`, scale `alpha` / `r` (with `rslora`: /
    sqrt(r)), the `targets` by the module names of the checkpoint (`None`: all projections of the blocks),
    and whether magnitudes are learned apart from directions (`dora`)."""

    r: int
    alpha: float
    targets: tuple[str, ...] | None = None
    rslora: bool = False
    dora: bool = False

    @classmethod
    def of(cls, given: "LoraLike") -> "Lora":
        """Return options from a rank, with `alpha` twice as large, or from a mapping.

        Raises:
            InputError: `given` does not describe an adapter.
        """
        if isinstance(given, Lora):
            return given
        fields: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"r": given}
        if unknown := sorted(set(fields) - set(cls.__dataclass_fields__)):
            raise InputError(f"lora has {unknown[0]!r}: give r, alpha, targets, rslora and dora.")
        r = fields.get("r")
        if isinstance(r, bool) or not isinstance(r, int) or not 1 <= r < _RANKS:
            raise InputError(f"lora has rank r={r!r}: use a whole number from 1, such as 16.")
        alpha = fields.get("alpha", 2 * r)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
            raise InputError(f"lora has alpha={alpha!r}: use a positive number, such as {2 * r}.")
        targets = fields.get("targets")
        if isinstance(targets, str) or not isinstance(targets, Collection | None) or targets in ([], ()):
            raise InputError(f"lora has targets={targets!r}: give a list, such as ['q_proj', 'v_proj'].")
        named = None if targets is None else tuple(targets)
        return cls(r, alpha, named, bool(fields.get("rslora")), bool(fields.get("dora")))

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON types, which `of` accepts."""
        return {**asdict(self), "targets": None if self.targets is None else list(self.targets)}


LoraLike = Lora | Mapping[str, Any] | int


@dataclass(frozen=True, kw_only=True)
class Options(FinetuneOptions):
    """All options of a training: those that are numbers and words, which weights stay, and adapters."""

    freeze: Any = None
    lora: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accumulate > self.batch_size:
            raise InputError(
                f"accumulate={self.accumulate} parts cannot be made of batch_size={self.batch_size} "
                f"prompts: use at most {self.batch_size}."
            )
        object.__setattr__(self, "lora", None if self.lora is None else Lora.of(self.lora))
        if self.lora and self.train_embeddings:
            raise InputError("lora adapts the blocks only: leave train_embeddings away, or lora.")

    def frozen(self, n_layers: int) -> WeightSelection | None:
        """Return the weights that `freeze` selects in a model of `n_layers`."""
        return None if self.freeze is None else WeightSelection.of(self.freeze, n_layers)

    def to_dict(self, n_layers: int) -> dict[str, Any]:
        """Return the options as JSON types."""
        frozen = self.frozen(n_layers)
        return {
            **{name: value for name, value in vars(self).items() if name != "lr"},
            "freeze": None if frozen is None else frozen.to_dict(),
            "lora": self.lora.to_dict() if isinstance(self.lora, Lora) else None,
        }
