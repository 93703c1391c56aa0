"""How every weight changed, and whether the change can be that of a finetuning at all."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from ecstruct.models.names import layer_of
from ecstruct.scores.pair import ROUNDINGS, Pair, only_rounded


def changes_of(pair: Pair) -> pd.DataFrame:
    """Return a row per tensor with the norms of dW, W and W' (`change`, `before`, `after`). `.attrs` have
    the dtype to which one model is the other one rounded, "" if it is not."""
    rows, roundings = [], list(ROUNDINGS)
    for name, w in pair.before.items():
        both = w, pair.after[name]
        roundings = only_rounded(both, roundings) if roundings else []
        norms = [torch.linalg.vector_norm(t, dtype=torch.float64).item() for t in (both[1] - w, *both)]
        rows.append((name, module_of(name), layer_of(name), w.ndim > 1, *norms))
    columns = ["tensor", "module", "layer", "matrix", "change", "before", "after"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["rounded to"] = str(roundings[0][1]).removeprefix("torch.") if roundings else ""
    return frame


def module_of(name: str) -> str:
    """Return what a weight is of, without its layer.

    >>> module_of("blocks.3.attn.q.weight"), module_of("embed.weight")
    ('attn.q', 'embed')
    """
    parts = name.split(".")
    return ".".join(parts[2:-1] if parts[0] == "blocks" else parts[:-1])


def relative(frame: pd.DataFrame) -> float:
    """Return |dW| / |W| of these tensors together."""
    whole = np.linalg.norm(frame["before"])
    return float(np.linalg.norm(frame["change"]) / whole) if whole else float("nan")


def inert(frame: pd.DataFrame) -> list[str]:
    """Return the modules of which no tensor changed in any layer."""
    return [str(name) for name, its in frame.groupby("module", sort=False) if not np.any(its["change"])]


def unrelated(frame: pd.DataFrame) -> float:
    """Return the share of the matrices to whose W' the matrix of zeros is at least as near as W."""
    matrices = frame[frame["matrix"]]
    return float(np.mean(matrices["change"] >= matrices["after"]))
