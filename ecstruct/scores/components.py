"""Components by name: "MLP 4", "head 5.2"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
from jaxtyping import Bool

from ecstruct.errors import InputError

Components = Iterable[str] | pd.DataFrame | None
"""Names such as "MLP 4" and "head 5.2", or a frame as of `component_frame`; `None` for all components."""

Component = tuple[int, int | None]
"""A layer, and the head or, for the MLP, None."""

PLURALS = {"mlp": "MLPs", "head": "heads"}
"""The plural of each kind of component, for display."""

_NAME = re.compile(r"MLP (\d+)|head (\d+)\.(\d+)", re.IGNORECASE)


def component_frame(layers: np.ndarray, heads: np.ndarray) -> pd.DataFrame:
    """Return a row per component, MLPs first, layer by layer: `kind`, `layer`, `head` (NA for MLPs)."""
    of_heads = {"layer": np.repeat(layers, len(heads)), "head": np.tile(heads, len(layers))}
    frame = both_kinds(pd.DataFrame({"layer": layers}), pd.DataFrame(of_heads))
    return frame.reindex(columns=["kind", "layer", "head"])


def both_kinds(mlp: pd.DataFrame, heads: pd.DataFrame) -> pd.DataFrame:
    """Concatenate rows of MLPs and of heads; `kind` and, for MLPs, a missing `head` tell them apart."""
    mlp = mlp.assign(kind="mlp", head=pd.array([pd.NA] * len(mlp), dtype="Int64"))
    heads = heads.assign(kind="head", head=heads["head"].astype("Int64"))
    return pd.concat([mlp, heads], ignore_index=True)


def component_names(frame: pd.DataFrame) -> list[str]:
    """Return the names of a frame's components: "MLP 4", "head 5.2"."""
    return [
        f"MLP {layer}" if kind == "mlp" else f"head {layer}.{head}"
        for kind, layer, head in zip(frame["kind"], frame["layer"], frame["head"], strict=True)
    ]


def selected(
    components: Components, n_layers: int, n_heads: int
) -> tuple[Bool[np.ndarray, " layer"], Bool[np.ndarray, "layer head"]]:
    """Return masks of the MLPs and heads that `components` names, in any order; `None` names all.

    >>> mlps, heads = selected(["MLP 1", "head 0.2"], n_layers=2, n_heads=3)
    >>> mlps.tolist(), heads.tolist()
    ([False, True], [[False, False, True], [False, False, False]])

    Raises:
        InputError: the model does not have a component, or none is named.
    """
    mlps, heads = np.zeros(n_layers, bool), np.zeros((n_layers, n_heads), bool)
    if components is None:
        return ~mlps, ~heads
    if isinstance(components, str):
        raise InputError(f"components={components!r} is one name: pass a list, as in [{components!r}].")
    names = component_names(components) if isinstance(components, pd.DataFrame) else list(components)
    if not names:
        raise InputError("components=[] names none: leave it out for all of them.")
    for _, (layer, head) in located(names, n_layers, n_heads):
        if head is None:
            mlps[layer] = True
        else:
            heads[layer, head] = True
    return mlps, heads


def located(names: Iterable[str], n_layers: int, n_heads: int) -> Iterator[tuple[str, Component]]:
    """Yield components, given by name, each with its usual name.

    Raises:
        InputError: the model does not have a component.
    """
    for name in names:
        found = _NAME.fullmatch(str(name))
        mlp, layer, head = (
            (None if part is None else int(part) for part in found.groups()) if found else (None,) * 3
        )
        if mlp is not None and mlp < n_layers:
            yield f"MLP {mlp}", (mlp, None)
        elif layer is not None and head is not None and layer < n_layers and head < n_heads:
            yield f"head {layer}.{head}", (layer, head)
        else:
            raise InputError(
                f"there is no component {name!r}: this model has 'MLP 0' to 'MLP {n_layers - 1}' and "
                f"'head 0.0' to 'head {n_layers - 1}.{n_heads - 1}'."
            )
