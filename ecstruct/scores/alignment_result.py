"""What `ecstruct.alignment` returns: the products of the gradients of facts and implications, by component;
`ecstruct.scores.gradient_alignment` has the formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from ecstruct.errors import InputError
from ecstruct.io.saved import SavedDataset
from ecstruct.io.values import bounded
from ecstruct.plots.lines import Line, line_panels
from ecstruct.scores.components import PLURALS, both_kinds

Form = Literal["cosine", "sgd", "sign", "adam"]
FORMS: tuple[Form, ...] = get_args(Form)


_BOTH = ("fact", "implication")


@dataclass(frozen=True, eq=False)
class Alignment(SavedDataset):
    """How far a step on each fact raises the reward of each implication; `ecstruct.alignment` returns one.

    It wraps one `xarray.Dataset`, accessible as `.dataset`, whose variables are the properties below. Its
    coordinates name forms ("cosine", "sgd", "sign", "adam"), layers, heads and groups of other weights, and
    give the texts and answers of facts and implications (`fact_text`, `fact_answer`, `implication_text`,
    `implication_answer`).

    A component's *alignment* is A_C(F, I): positive means that the step on the fact raises the reward of
    the implication. A cosine has no unit; the other forms are changes of the reward per unit of learning
    rate. *Own pairs* are those of an implication and a fact from which it follows; *other pairs* are all
    others.
    """

    format = "ecstruct alignment 1"
    contents = "alignments"

    @property
    def mlp(self) -> xr.DataArray:
        """The alignments of the MLPs (form, fact, implication, layer)."""
        return self.dataset["mlp"]

    @property
    def heads(self) -> xr.DataArray:
        """The alignments of the attention heads (form, fact, implication, layer, head)."""
        return self.dataset["heads"]

    @property
    def rest(self) -> xr.DataArray:
        """The alignments of the weights outside MLPs and heads (form, fact, implication, group)."""
        return self.dataset["rest"]

    @property
    def pairs(self) -> xr.DataArray:
        """Whether an implication follows from a fact (fact, implication)."""
        return self.dataset["pair"]

    @property
    def total(self) -> xr.DataArray:
        """The alignment of the gradients as wholes (form, fact, implication): the sum of `mlp`, `heads` and
        `rest`."""
        parts = [array.astype("float64") for array in (self.mlp, self.heads, self.rest)]
        dims = ("form", *_BOTH)
        total: Any = sum(
            part.sum([dim for dim in part.dims if dim not in dims], skipna=False) for part in parts
        )
        return total.rename("total")

    def own(self, values: xr.DataArray) -> xr.DataArray:
        """Return the mean of an array (..., fact, implication, ...), such as `mlp`, over own pairs; the two
        dimensions are reduced."""
        return values.where(self.pairs).mean(_BOTH)

    def others(self, values: xr.DataArray) -> xr.DataArray:
        """Return the mean of an array over other pairs, as `own` does; NaN if there are none."""
        return values.where(~self.pairs).mean(_BOTH)

    @bounded
    def contrast(self, *, permutations: int = 10_000, seed: int = 0) -> pd.DataFrame:
        """Compare own pairs with others: is a fact aligned with its own implication more than with others?

        Args:
            permutations: how often implications are permuted among the facts, for p.
            seed: the same seed permutes them in the same way.

        Returns:
            A row per form: the means of the total over own pairs (`own`) and other pairs (`others`);
            `first`, the share of the implications whose largest total is with one of their own facts, and
            what it would be by `chance`; and `p`, one-sided: (1 + number of permutations whose mean over
            own pairs is at least as large) / (1 + number of permutations). If there are no other pairs, p
            is 1; if a gradient is zero, the p of the cosine is NaN.

        Raises:
            InputError: `permutations` is below 1.
        """
        if permutations < 1:
            raise InputError(f"permutations={permutations} give no p-value: use 1 or more, as 10000.")
        pairs, total = self.pairs.values, self.total
        derived = pairs.any(0)
        rng = np.random.default_rng(seed)
        orders = np.array([rng.permutation(pairs.shape[1]) for _ in range(permutations)])
        facts, implications = np.nonzero(pairs)
        rows = {}
        for form in FORMS:
            values = total.sel(form=form)
            sums = values.values[facts, orders[:, implications]].sum(1)
            seen = values.values[pairs].sum()
            as_large = int((sums >= seen - 1e-12 * abs(seen)).sum())
            first = np.take_along_axis(pairs, values.values.argmax(0)[None], 0)[0, derived]
            rows[form] = {
                "own": float(self.own(values)),
                "others": float(self.others(values)),
                "first": float(first.mean()),
                "chance": float(pairs.mean(0)[derived].mean()),
                "p": (1 + as_large) / (1 + permutations) if np.isfinite(seen) else np.nan,
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("form")

    def components(self, form: Form) -> pd.DataFrame:
        """Return a row per component, MLPs first, as `ExtractiveScores.components` does: `kind`, `layer`,
        `head` (missing for an MLP), and the means of its alignment over own pairs (`own`) and other pairs
        (`others`).

        Raises:
            InputError: the form is unknown.
        """
        if form not in FORMS:
            raise InputError(f"form={form!r} is unknown: use one of {', '.join(FORMS)}.")
        frames = []
        for array in (self.mlp, self.heads):
            of_form = array.sel(form=form, drop=True).astype("float64")
            means = {"own": self.own(of_form), "others": self.others(of_form)}
            frames.append(xr.Dataset(means).to_dataframe().reset_index())
        frame: Any = both_kinds(*frames)
        return frame[["kind", "layer", "head", "own", "others"]]

    def table(self) -> pd.DataFrame:
        """Return the contrast of all forms."""
        return self.contrast().reset_index()

    @property
    def figure(self) -> go.Figure:
        """The mean alignments of own and of other pairs by layer, of the MLP and summed over the heads,
        with a panel per form."""
        panels: dict[str, dict[str, Line]] = {}
        for form in FORMS:
            summed: Any = self.components(form).groupby(["kind", "layer"])[["own", "others"]].sum()
            panels[form] = {
                f"{PLURALS[kind]}, {which}": Line(rows.index.to_numpy(), rows.to_numpy())
                for kind in PLURALS
                for which, rows in summed.loc[kind].items()
            }
        return line_panels(
            panels,
            x="layer",
            y="alignment, summed per layer",
            hover="layer %{x}: %{y:.3~g}",
            between="",
            own_scales=True,
            include=(0.0,),
        )

    def conclusion(self) -> str:
        """Say whether facts are aligned with their own implications more than with others, by each form."""
        rows = self.contrast().to_dict("index")

        def listed(column: str, spec: str) -> str:
            return ", ".join(f"{row[column]:{spec}} ({form})" for form, row in rows.items())

        said = f"The mean alignment of facts with their own implications is {listed('own', '.3g')}"
        if self.pairs.all():
            return f"{said}."
        chance = next(iter(rows.values()))["chance"]
        return (
            f"{said}, and with others {listed('others', '.3g')}. Of the implications, "
            f"{listed('first', '.0%')} are aligned most with a fact that they follow from, by chance "
            f"{chance:.0%}. With the implications permuted among the facts, p is {listed('p', '.2g')}."
        )
