"""Names of weights, the same for all architectures.

A weight has its TransformerLens name: `embed.weight`, `blocks.3.attn.q.weight`,
`blocks.3.ln2.bias`, `blocks.3.mlp.out.weight`, `ln_final.weight`, `unembed.weight`. Query, key and
value are separate even where the checkpoint fuses them. The name gives the layer and the kind of a
weight, and a `WeightSelection` selects weights by both, or by the beginnings of names.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ecstruct.errors import InputError

KINDS = ("embed", "attn", "mlp", "norm", "final_norm", "unembed")

_OUTSIDE = {"ln_final": "final_norm", "unembed": "unembed", "pooler": "unembed"}

_NAME = re.compile(
    r"blocks\.\d+(\.(attn|mlp|ln\w*)(\.\w+)*)?|"
    r"(((pos|token_type)_)?embed|embed_ln|ln_final|pooler|unembed)(\.\w+)*"
)
"""The names of modules and weights."""


def layer_of(name: str) -> int | None:
    """Return the layer of a weight, `None` for one outside the blocks.

    >>> layer_of("blocks.3.mlp.out.weight"), layer_of("embed.weight")
    (3, None)
    """
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blocks" else None


def kind_of(name: str) -> str:
    """Return the kind of a weight, one of `KINDS`. A norm of queries or keys counts as attention.

    >>> [kind_of(name) for name in ("blocks.0.attn.q.weight", "blocks.0.ln1.weight", "pos_embed.weight")]
    ['attn', 'norm', 'embed']
    """
    parts = name.split(".")
    if parts[0] != "blocks":
        return _OUTSIDE.get(parts[0], "embed")
    return parts[2] if parts[2] in ("attn", "mlp") else "norm"


@dataclass(frozen=True)
class WeightSelection:
    """A selection of weights by layer, kind or name; a weight must match all criteria that are given.

    `layers` selects within the blocks; weights outside them (embeddings, final norm, unembedding) are
    selected only by `kinds` or `names`, or when nothing is given, which selects everything.
    `names` are modules, such as "blocks.3.mlp" for all weights in it, or full names of weights.

    >>> early = WeightSelection(layers=range(4))
    >>> [early.matches(f"{place}.weight") for place in ("blocks.3.mlp.in", "blocks.4.mlp.in", "embed")]
    [True, False, False]
    >>> one = WeightSelection(names=["blocks.1.mlp"])
    >>> [one.matches(f"blocks.{place}.weight") for place in ("1.mlp.in", "1.attn.q", "11.mlp.in")]
    [True, False, False]
    """

    layers: Collection[int] | None = None
    kinds: Collection[str] | None = None
    names: Collection[str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.names, str):
            raise InputError(f"names={self.names!r} is one name: pass a list, as in [{self.names!r}].")
        for name in self.names or ():
            if not _NAME.fullmatch(name):
                raise InputError(
                    f"no weight's name begins with {name!r}: name a module such as 'blocks.3.mlp'."
                )
        if isinstance(self.kinds, str):
            raise InputError(f"kinds={self.kinds!r} is one kind: pass a list, as in [{self.kinds!r}].")
        if isinstance(self.layers, str) or not isinstance(self.layers, Collection | None):
            raise InputError(f"layers={self.layers!r} are no layers: pass a list, such as [{self.layers}].")
        for kind in self.kinds or ():
            if kind not in KINDS:
                raise InputError(f"unknown kind of weight {kind!r}: choose among {', '.join(KINDS)}.")

    @classmethod
    def of(cls, given: "SelectionLike", n_layers: int) -> "WeightSelection":
        """Return what a caller gave as a selection, checked for a model of `n_layers` layers.

        Raises:
            InputError: It is not a selection, has an unknown key, or names a layer that the model lacks.
        """
        if isinstance(given, WeightSelection):
            selection = given
        elif isinstance(given, str) or not isinstance(given, Collection):
            raise InputError(f"{given!r} selects no weights: pass layers or a WeightSelection.")
        elif isinstance(given, Mapping):
            named: dict[str, Any] = {str(key): value for key, value in given.items()}
            if unknown := sorted(set(named) - {"layers", "kinds", "names"}):
                raise InputError(f"{unknown[0]!r} selects no weights: give 'layers', 'kinds' and 'names'.")
            selection = cls(**named)
        else:
            selection = cls(layers=given)
        named_layers = [layer for layer in map(layer_of, selection.names or ()) if layer is not None]
        for layer in (*(selection.layers or ()), *named_layers):
            if layer not in range(n_layers):
                raise InputError(f"there is no layer {layer!r}: this model has 0 to {n_layers - 1}.")
        return selection

    def check_names(self, weights: Collection[str]) -> None:
        """Raise `InputError` unless each of `names` is a module or a weight among `weights`."""
        for name in self.names or ():
            if not any(WeightSelection(names=[name]).matches(weight) for weight in weights):
                raise InputError(
                    f"no weight of this model begins with {name!r}: {_instead(name, weights)}."
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the selection as JSON types, which `of` accepts."""
        return {
            "layers": None if self.layers is None else sorted(map(int, self.layers)),
            "kinds": None if self.kinds is None else sorted(self.kinds),
            "names": None if self.names is None else sorted(self.names),
        }

    def matches(self, name: str) -> bool:
        layer = layer_of(name)
        if self.kinds is not None and kind_of(name) not in self.kinds:
            return False
        if self.names is not None and not any(f"{name}.".startswith(f"{part}.") for part in self.names):
            return False
        if layer is None:
            return self.kinds is not None or self.names is not None or self.layers is None
        return self.layers is None or layer in self.layers


SelectionLike = WeightSelection | Mapping[str, Any] | Collection[int]
"""What selects weights: a selection, a mapping with `layers`, `kinds` and `names`, or only layers."""


def _instead(name: str, weights: Collection[str]) -> str:
    """Return a hint: what the module holds that is the longest existing beginning of `name`."""
    parts = name.split(".")
    for n in range(len(parts) - 1, 0, -1):
        start = ".".join(parts[:n])
        if held := sorted({w.split(".")[n] for w in weights if w.startswith(f"{start}.")}):
            return f"{start} has {', '.join(held)}"
    return "name a module such as 'blocks.3.mlp'"
