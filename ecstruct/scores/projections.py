"""Informative scores by projection: the matrices whose change they are of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from ecstruct.errors import InputError
from ecstruct.plots.projections import projection_map
from ecstruct.scores.components import component_frame


@dataclass(frozen=True, eq=False)
class Projections:
    """Informative scores by projection, summed over tokens: `mlp` (projection, prompt, layer) and `heads`
    (projection, prompt, layer, head), which sum to the informative scores of MLPs and heads.

    Projections are "q", "k", "v", "o", "in", "gate" and "out"; "norm" are pre-norms and the norms of
    queries and keys; a mixture of experts has "experts" in the place of the MLP's.
    """

    dataset: xr.Dataset

    @classmethod
    def of(cls, scores: xr.Dataset) -> Projections:
        """Return the scores by projection in a dataset of scores.

        Raises:
            InputError: the dataset has none.
        """
        if "projections_mlp" not in scores:
            raise InputError("these scores were computed without projections: score with projections=True.")
        found = scores[["projections_mlp", "projections_heads"]]
        return cls(found.rename(projections_mlp="mlp", projections_heads="heads"))

    @property
    def mlp(self) -> xr.DataArray:
        """The informative scores of the MLPs by projection (projection, prompt, layer)."""
        return self.dataset["mlp"]

    @property
    def heads(self) -> xr.DataArray:
        """The informative scores of the attention heads by projection (projection, prompt, layer, head)."""
        return self.dataset["heads"]

    def table(self) -> pd.DataFrame:
        """Return all components, MLPs first, layer by layer: `kind`, `layer`, `head`, a column with the
        score of every projection (the mean over prompts), and their sum as `value`."""
        parts = [its.mean("prompt").values for its in (self.mlp, self.heads)]
        values = np.concatenate([part.reshape(len(part), -1) for part in parts], 1)
        names = [str(name) for name in self.dataset["projection"].values]
        frame = component_frame(self.dataset["layer"].values, self.dataset["head"].values)
        return frame.assign(**dict(zip(names, values, strict=True)), value=values.sum(0))

    @property
    def figure(self) -> go.Figure:
        """A map of layer by projection, for MLPs and for the sum over the heads of a layer."""
        return projection_map(self.dataset)
