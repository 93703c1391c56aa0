"""Sublayers: the attention or the MLP of a layer, with its norms; their weights, and their scores.

On a prompt, the informative score I_s of a sublayer is that of the MLP, or the sum of those of the heads,
summed over tokens; its unit is that of the reward, and positive raises it. It is of the change that a
finetuning made or, before any finetuning, of the step that Adam would take first on each fact that the
prompt follows from. I_s is then the alignment A of `ecstruct.scores.gradient_alignment` in the form "sign",
in units of the reward per unit of learning rate.
"""

from collections.abc import Collection, Iterable, Mapping

import pandas as pd
import xarray as xr

from ecstruct.models.names import WeightSelection
from ecstruct.scores.alignment_result import Alignment
from ecstruct.scores.result import ExtractiveScores

Sublayer = tuple[int, str]
"""A layer, and "attn" or "mlp"."""

KINDS: Mapping[str, str] = {"attn": "attention", "mlp": "MLP"}
_MODULES = {"attn": ("attn", "ln1", "ln1_post"), "mlp": ("mlp", "ln2", "ln2_post")}


def sublayers_by_score(scores: ExtractiveScores | Alignment) -> list[Sublayer]:
    """Return all sublayers, that with the highest mean informative score first."""
    means = sublayer_scores(scores).mean("prompt")
    sublayers = [(layer, sublayer) for layer in means["layer"].values.tolist() for sublayer in KINDS]
    return sorted(
        sublayers, key=lambda sublayer: -float(means.sel(layer=sublayer[0], sublayer=sublayer[1]))
    )


def sublayer_scores(scores: ExtractiveScores | Alignment) -> xr.DataArray:
    """Return I_s (prompt, layer, sublayer) in the unit of the reward, or of the reward per unit of learning
    rate; of an alignment, the mean over the facts that a prompt follows from."""
    found = scores.dataset[["mlp", "heads"]].astype("float64")
    if isinstance(scores, Alignment):
        follows = scores.pairs.any("fact")
        found = found.sel(form="sign").where(scores.pairs).mean("fact").sel(implication=follows)
        found = found.rename(implication="prompt", implication_text="text", implication_answer="answer")
    else:
        found = found.sel(score="informative")
        found = found.sum("token") if "token" in found.dims else found
    of = {"attn": found["heads"].sum("head"), "mlp": found["mlp"]}
    joined = xr.concat([*of.values()], pd.Index([*of], name="sublayer"))
    return joined.transpose("prompt", "layer", "sublayer").rename("informative")


def weights_of(sublayers: Iterable[Sublayer], weights: Iterable[str]) -> list[str]:
    """Return the names of the weights of some sublayers; the norms before and after one belong to it."""
    of_sublayers = tuple(
        f"blocks.{layer}.{module}." for layer, sublayer in sublayers for module in _MODULES[sublayer]
    )
    return [name for name in weights if name.startswith(of_sublayers)]


def all_but(sublayers: Iterable[Sublayer], weights: Collection[str]) -> WeightSelection:
    """Select all weights except those of some sublayers."""
    free = set(weights_of(sublayers, weights))
    return WeightSelection(names=[name for name in weights if name not in free])
