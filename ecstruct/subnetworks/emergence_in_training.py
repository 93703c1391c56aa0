"""When in training the core appears, and when the added heads do.

The core and the added heads are those of the trained model. At every checkpoint, under its weights and with
the means of its own runs, they are removed, and kept alone. The cost of this tells whether they already do
what they do at the end:

    cost(X) = mean rank without X - mean rank of the full model.

X has *appeared* at the first checkpoint from which on its cost is always at least half of that at the last
one. The core alone (with all components of other kinds) shows whether it suffices; the core with the added
heads shows whether these are what it lacked.

With `prune`, subnetworks are found anew at every checkpoint. The share of them that keeps a head of the
core, compared with that of all heads, shows when pruning begins to choose the core; and the effective size
of the checkpoint, beside its accuracy on the generalization set, whether a model that generalises gets by
with less of itself (Bhaskar et al. find that it does not).

Source: Bhaskar, Friedman & Chen, "The Heuristic Core" (ACL 2024), who find that the core appears early, and
generalisation when further heads do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.engine.session import Model, Session
from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike
from ecstruct.io.store import stepping
from ecstruct.plots.curves import curve_panels
from ecstruct.plots.layout import differing_parts
from ecstruct.plots.subnetworks import size_course
from ecstruct.scores.components import selected
from ecstruct.subnetworks.ablation import Parts, parts_of
from ecstruct.subnetworks.best_and_worst import Generalising
from ecstruct.subnetworks.common_core import Core, MasksLike, as_groups, merged
from ecstruct.subnetworks.evaluation import both_sets, effective_size, mean_ranks
from ecstruct.subnetworks.masks import Masks
from ecstruct.subnetworks.reference import Ablation, reference_values

NETWORKS = (
    "full model",
    "without the core",
    "without the added",
    "the core alone",
    "the core and the added alone",
)


@dataclass(frozen=True)
class Emergence:
    """The course of the core and of the added components through training.

    `frame` has a row per `checkpoint`, `network` (of `NETWORKS`) and set of `prompts` ("in-domain",
    "generalization"), with the mean `rank` and the `accuracy`. `chosen` has a row per `checkpoint`, `kind`
    and set of `components` ("core", "added", "all"), with the mean `frequency` with which the checkpoint's
    own subnetworks keep them (missing for an empty set); it is empty without pruning. So is `subnetworks`,
    which has a row per `checkpoint`, `sparsity`, `seed` and set of `prompts`: the `rank` and the `accuracy`
    of the checkpoint's own subnetworks.
    """

    frame: pd.DataFrame
    chosen: pd.DataFrame
    subnetworks: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def checkpoints(self) -> list[str]:
        return list(dict.fromkeys(self.frame["checkpoint"]))

    def course(self, network: str, prompts: str, measure: str = "rank") -> list[float]:
        """Return the mean ranks (or with "accuracy" those) of one network, checkpoint by checkpoint."""
        rows = self.frame.loc[(self.frame["network"] == network) & (self.frame["prompts"] == prompts)]
        return rows[measure].tolist()

    def sizes(self, *, within: float = 0.03) -> pd.DataFrame:
        """Return a row per `checkpoint`: the effective `size` of the model, in percent, by the accuracy of
        its own subnetworks in-domain (see `effective_size`), and the full model's accuracy on each set of
        prompts. There are no rows without pruning."""
        if self.subnetworks.empty:
            return pd.DataFrame()
        in_domain = self.subnetworks.loc[self.subnetworks["prompts"] == "in-domain"]
        sets = list(dict.fromkeys(self.frame["prompts"]))
        rows = []
        for i, checkpoint in enumerate(self.checkpoints):
            full = {of: self.course("full model", of, "accuracy")[i] for of in sets}
            of_checkpoint = in_domain.loc[in_domain["checkpoint"] == checkpoint]
            found = {
                float(sparsity): xr.Dataset(
                    {"accuracy": ("seed", its["accuracy"].to_numpy()), "full_accuracy": full["in-domain"]}
                )
                for sparsity, its in of_checkpoint.groupby("sparsity")
            }
            size = effective_size(found, within=within)
            rows.append(
                {"checkpoint": checkpoint, "size": size, **{f"{of} accuracy": full[of] for of in sets}}
            )
        return pd.DataFrame(rows)

    def appeared(self) -> pd.DataFrame:
        """Return a row per set of `components` ("core", "added") and of `prompts`: their `cost` at the last
        checkpoint, in ranks, and the `checkpoint` at which they appeared (missing if they cost nothing)."""
        rows = []
        for components in ("core", "added"):
            network = f"without the {components}"
            if network not in set(self.frame["network"]):
                continue
            for prompts in dict.fromkeys(self.frame["prompts"]):
                cost = np.subtract(self.course(network, prompts), self.course("full model", prompts))
                there = np.logical_and.accumulate((cost >= cost[-1] / 2)[::-1])[::-1]
                first = self.checkpoints[int(np.argmax(there))] if cost[-1] > 0 else None
                row = {"components": components, "prompts": prompts}
                rows.append(row | {"cost": float(cost[-1]), "checkpoint": first})
        return pd.DataFrame(rows)

    def conclusion(self) -> str:
        """Say from which checkpoint on the core and the added components are needed."""
        sentences = []
        for row in self.appeared().to_dict(orient="records"):
            what = "The core" if row["components"] == "core" else "What is added"
            if pd.isna(row["checkpoint"]):
                sentences.append(f"{what} is not needed {_in(row['prompts'])} at the end.")
            else:
                sentences.append(
                    f"{what} is needed {_in(row['prompts'])} from {row['checkpoint']} on (at the end it "
                    f"costs {row['cost']:.2f} ranks)."
                )
        sizes = self.sizes()
        if len(sizes):
            first, last = sizes.iloc[0], sizes.iloc[-1]
            sentences.append(
                f"The effective size goes from {first['size']:.0f}% at {first['checkpoint']} to "
                f"{last['size']:.0f}% at {last['checkpoint']}."
            )
        return " ".join(sentences)

    @property
    def figure(self) -> go.Figure:
        """Mean ranks by checkpoint, with a panel per set of prompts."""
        return self._drawn("rank", "mean rank of the answer (0 is best)")

    @property
    def accuracy_figure(self) -> go.Figure:
        """Accuracies by checkpoint, with a panel per set of prompts."""
        return self._drawn("accuracy", "accuracy")

    @property
    def size_figure(self) -> go.Figure:
        """The effective size of every checkpoint, and its full model's accuracy on each set of prompts."""
        return size_course(self.sizes())

    def _drawn(self, measure: str, y: str) -> go.Figure:
        shown = [name for name in NETWORKS if name in set(self.frame["network"])]
        panels = {
            prompts: {name: self.course(name, prompts, measure) for name in shown}
            for prompts in dict.fromkeys(self.frame["prompts"])
        }
        figure = curve_panels(panels, x="checkpoint", y=y)
        places = list(range(len(self.checkpoints)))
        labels = differing_parts(self.checkpoints)
        return figure.update_xaxes(tickvals=places, ticktext=labels, tickmode="array")


def emergence(
    models: Mapping[Any, Model],
    core: Core,
    prompts: PromptsLike,
    generalization: PromptsLike | None = None,
    *,
    added: Generalising | Sequence[str] | None = None,
    kinds: str | Sequence[str] = ("heads",),
    reference: PromptsLike | None = None,
    ablation: Ablation = "mean",
    prune: Callable[[TransformerBridge], MasksLike] | None = None,
) -> Emergence:
    """Follow the core through the checkpoints of a training run.

    Args:
        models: Models, or what `ecstruct.load` takes, by step or epoch and in this order; one is loaded at
            a time. Finetuning at a constant rate for n epochs is a prefix of finetuning for more, so the
            checkpoints of one run are `ecstruct.finetune(..., epochs=n).model`.
        core: The core of the trained model's subnetworks.
        prompts: In-domain prompts, such as the facts.
        generalization: Prompts to generalise to, such as the implications.
        added: The components that the subnetworks that generalise add to the core, or their names, such as
            "head 5.2".
        kinds: As in `ablate_core`.
        reference, ablation: As in `prune`; means are computed anew at every checkpoint.
        prune: Finds the subnetworks of a checkpoint, as `lambda model: prune(model, facts, seeds=4)`, or by
            sparsity, as `lambda model: {s: prune(model, facts, sparsity=s) for s in (0.3, 0.5)}`.

    Raises:
        InputError: no checkpoints; no component of these kinds is in the core, or all are; `added` names
            what the model does not have; models of different shapes; prompts that cannot be ranked; with
            `prune`, subnetworks that did not converge.
    """
    if not models:
        raise InputError("there are no checkpoints: give models by step, in their order.")
    of_core = parts_of(core, kinds)
    of_added = {
        kind: part & ~of_core[kind] for kind, part in _named(added, core).items() if kind in of_core
    }
    networks = _networks(core, of_core, of_added)
    kept = [np.stack([parts[kind] for parts in networks.values()]) for kind in ("heads", "mlp")]
    asked = both_sets(prompts, generalization)
    rows, chosen, found = [], [], []

    def follow(label: str, session: Session) -> None:
        values = reference_values(session, prompts if reference is None else reference, ablation=ablation)
        masks = Masks.of(*kept, reference=values)
        labels = [{"checkpoint": label, "network": network} for network in networks]
        with stepping(False, 0, "emergence") as steps:
            rows.extend(mean_ranks(session, masks, labels, asked, steps))
            if prune is None:
                return
            groups = as_groups(prune(session.view.model))
            every = _frequencies(merged(list(groups.values())), of_core, of_added)
            chosen.extend({"checkpoint": label, **row} for row in every)
            for sparsity, its in groups.items():
                about = {"checkpoint": label, "sparsity": float(sparsity)}
                seeds = [{**about, "seed": seed} for seed in its.seeds]
                found.extend(mean_ranks(session, its, seeds, asked, steps))

    for label, source in models.items():
        follow(str(label), Session.of(source))
    columns = ["checkpoint", "kind", "components", "frequency"]
    own = ["checkpoint", "sparsity", "seed", "prompts", "rank", "accuracy"]
    return Emergence(
        pd.DataFrame(rows), pd.DataFrame(chosen, columns=columns), pd.DataFrame(found, columns=own)
    )


def _networks(core: Core, of_core: Parts, of_added: Parts) -> dict[str, Parts]:
    """Return the components that each network keeps."""
    full = {kind: np.ones(getattr(core, kind).shape, bool) for kind in ("heads", "mlp")}
    found = {"full model": full, "without the core": full | {k: ~part for k, part in of_core.items()}}
    if of_added:
        found["without the added"] = full | {kind: ~part for kind, part in of_added.items()}
    found["the core alone"] = {**full, **of_core}
    if of_added:
        both = {kind: of_core[kind] | of_added[kind] for kind in of_core}
        found["the core and the added alone"] = full | both
    return found


def _named(added: Generalising | Sequence[str] | None, core: Core) -> Parts:
    """Return masks of the added components by kind; none if nothing was added."""
    if not added:
        return {}
    if isinstance(added, Generalising):
        return {"heads": added.heads.values, "mlp": added.mlp.values}
    mlp, heads = selected(added, *core.heads.shape)
    return {"heads": heads, "mlp": mlp}


def _frequencies(masks: Masks, of_core: Parts, of_added: Parts) -> list[dict[str, str | float]]:
    """Return a row per kind and set of components ("core", "added", "all"): the mean over the set of the
    share of the masks that keep a component; NaN if the set is empty."""
    rows = []
    for kind, part in of_core.items():
        kept = masks.dataset[kind].mean("seed").values
        sets = {"core": part, "added": of_added.get(kind, np.zeros_like(part)), "all": np.ones_like(part)}
        rows += [
            {"kind": kind, "components": name, "frequency": float(kept[of].mean()) if of.any() else np.nan}
            for name, of in sets.items()
        ]
    return rows


def _in(prompts: str) -> str:
    return "in-domain" if prompts == "in-domain" else "for generalisation"
