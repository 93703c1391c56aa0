"""Extractive scores after finetuning (Fig. 5): which MLPs and heads store, query and decode the facts.

The scores are those of the implications, in the convention of the published code, averaged over the prompts
of a hop onto "The people in the city X Y is from speak" and "The mayor of the city that contains X Y is".

What the paper reads off its figure is stated as *mass*: the share of all positive score (of one kind of
component) that lies in the named layers and at the named tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.experiments.result import Result, experiment
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import matching, means, over_seeds, rows_by, shown
from ecstruct.experiments.sweep import Folder, Rows
from ecstruct.experiments.two_hop import HOPS, learn_facts, two_hop
from ecstruct.plots import heatmap
from ecstruct.scores.aggregate import ENTITY_SLOTS
from ecstruct.scores.engine import score
from ecstruct.scores.slots import SlotScores


@dataclass(frozen=True)
class Region:
    """The place where the paper finds a score of a hop: kinds of components, layers and tokens."""

    hop: str
    score: str
    kinds: Sequence[str]
    late: bool
    slots: Sequence[str]  # "X" and "Y", or "last"
    said: str


REGIONS: Mapping[str, Region] = {
    "first_hop_informative_mlp": Region(
        "first-hop", "informative", ("mlp",), False, ENTITY_SLOTS, "informative MLPs, early, at the name"
    ),
    "second_hop_informative_mlp": Region(
        "second-hop", "informative", ("mlp",), True, ("last",), "informative MLPs, late, at the last token"
    ),
    "first_hop_downstream": Region(
        "first-hop",
        "downstream",
        ("mlp", "head"),
        True,
        ("last",),
        "downstream components, late, at the last token",
    ),
}
"""The regions, by their names in `results.json`."""


class Scores(Result):
    """`frame` has a row per seed, repeat, hop, score, component and slot, with the `value` in logits."""

    name = "scores"
    title = "Extractive scores (Fig. 5)"
    shows = (
        "Mean scores on the implications, layer by token, in the paper's colours; X and Y are the last two "
        "tokens of the entity."
    )
    lists = "Where the paper finds the scores; with several seeds, mean ± standard deviation."

    @property
    def figure(self) -> go.Figure:
        """Layer by token in the paper's colours, which span -0.25 times the maximum to the maximum."""
        return heatmap({hop: self.slots(hop) for hop in HOPS}, scale="paper")

    @property
    def figure_about_zero(self) -> go.Figure:
        """The same with colours centred on zero, so that scores that lower the reward are visible too."""
        return heatmap({hop: self.slots(hop) for hop in HOPS})

    def figures(self) -> dict[str, go.Figure]:
        twin = "The same with colours centred on zero: red raises the reward, blue lowers it."
        return {self.shows: self.figure, twin: self.figure_about_zero}

    def slots(self, hop: str) -> SlotScores:
        """Return the scores of a hop, averaged over seeds and repeats."""
        rows = matching(self.frame, hop=hop)
        mlp = means(matching(rows, kind="mlp"), "value", "score", "layer", "slot")
        heads = matching(rows, kind="head").astype({"head": int})
        by_slot = rows.groupby("slot")[["count", "slot_text", "part"]].first()
        return SlotScores(
            xr.Dataset(
                {
                    "mlp": mlp.to_xarray(),
                    "heads": means(heads, "value", "score", "layer", "head", "slot").to_xarray(),
                    "count": ("slot", by_slot["count"].to_numpy()),
                    "slot_text": ("slot", by_slot["slot_text"].to_numpy(dtype=object)),
                    "part": ("slot", by_slot["part"].to_numpy(dtype=object)),
                },
                attrs={"reward": "logit_diff", "aggregate": {"over": "prompts, seeds and repeats"}},
            ).set_coords(["slot_text", "part"])
        )

    def table(self) -> pd.DataFrame:
        """Return the share of the positive score that lies where the paper finds it, and the share it would
        be if all components scored the same at every token."""
        return pd.DataFrame(
            {
                "region": f"{region.hop}: {region.said}",
                "share of the positive score": shown(stat),
                "share of the components and tokens": f"{self._cells(region)['inside'].mean():.2f}",
            }
            for region, stat in zip(REGIONS.values(), self.mass().values(), strict=True)
        )

    def results(self) -> dict[str, Any]:
        return {"mass": self.mass()}

    def mass(self) -> dict[str, Any]:
        """Return the share of the positive score in each of `REGIONS`."""
        return {name: self._mass(region) for name, region in REGIONS.items()}

    def conclusion(self) -> str:
        shares = "; ".join(
            f"of the {region.hop} one, {shown(stat, '.0%')} is that of {region.said}"
            for region, stat in zip(REGIONS.values(), self.mass().values(), strict=True)
        )
        return f"Of the positive score of each kind: {shares}."

    def _mass(self, region: Region) -> dict[str, Any]:
        shares = []
        for (seed, _), rows in rows_by(self._cells(region), "seed", "repeat").items():
            positive: Any = rows["value"].clip(lower=0)
            inside, total = positive[rows["inside"]].sum(), positive.sum()
            shares.append({"seed": seed, "share": inside / total if total else None})
        return over_seeds(pd.DataFrame(shares).astype({"share": float}), "share")

    def _cells(self, region: Region) -> Any:
        """Return the scores of a region's hop, score and kinds; `inside` marks those in the region."""
        frame: Any = self.frame
        early, late = self.setup.early_and_late(int(frame["layer"].max()) + 1)
        rows = matching(frame, hop=region.hop, score=region.score)
        rows = rows[rows["kind"].isin(region.kinds) & rows["value"].notna()]
        last = rows["slot"] == rows["slot"].max()
        here = last if region.slots == ("last",) else rows["slot_text"].isin(region.slots)
        return rows.assign(inside=here & rows["layer"].isin(list(late if region.late else early)))


@experiment
def scores(setup: Setup | None = None, *, out: Folder = None, progress: bool = True) -> Scores:
    """Compute informative, upstream and downstream scores of both hops' implications."""
    return Scores.of(measure, setup, out, progress, hop=list(HOPS))


def measure(model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, hop: str) -> Rows:
    """Finetune once, and return the scores averaged over the prompts."""
    data = two_hop(model, setup, hop, seed, repeat)
    tuned = learn_facts(model, setup, data, hop, seed=seed, repeat=repeat)
    scored = score(
        model,
        tuned.model,
        data.implications,
        upstream="surrogate",
        propagation="gradient",
        convention="reference",
        progress=False,
    )
    slots = scored.aggregate(like="reference")
    frame: Any = slots.to_dataframe()
    frame["part"] = slots.dataset["part"].values[frame["slot"].to_numpy()]
    return [
        {key: None if pd.isna(value) else value for key, value in row.items()}
        for row in frame.astype({"head": object}).to_dict("records")
    ]
