"""When the core appears in training, and when the added heads.

The core and the added heads are those of the trained model. At every checkpoint, under its weights and with
the means of its own runs, they are taken away and left alone; what that costs says whether they do yet what
they do at the end:

    cost(X) = mean rank without X - mean rank of the full model.

X has *appeared* at the first checkpoint from which on it costs at least half of what it costs at the last.
The core alone (with all components of other kinds) says whether it suffices; with the added heads beside
it, whether these are what it lacked.

With `prune`, subnetworks are found at every checkpoint anew: the share of them that keeps a head of the
core, beside that of all heads, says when pruning begins to choose it.

Source: Bhaskar, Friedman & Chen, "The Heuristic Core" (ACL 2024), who find that the core appears early, and
generalisation when further heads do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike
from ecstruct.models.load import load
from ecstruct.plots.curves import curve_panels
from ecstruct.subnetworks.ablation import Parts, parts_of
from ecstruct.subnetworks.core import Core
from ecstruct.subnetworks.evaluation import evaluate
from ecstruct.subnetworks.generalising import Generalising
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
    """The course of the core and of the added components.

    `frame` has a row per `checkpoint`, `network` (of `NETWORKS`) and set of `prompts` ("in-domain",
    "generalization"): mean `rank` and `accuracy`. `chosen`, of subnetworks that were found at each
    checkpoint, has a row per `checkpoint`, `kind` and `components` ("core", "added", "all"): the mean
    `frequency` with which these are kept, missing where there are none; empty without pruning.
    """

    frame: pd.DataFrame
    chosen: pd.DataFrame

    @property
    def checkpoints(self) -> list[str]:
        return list(dict.fromkeys(self.frame["checkpoint"]))

    def ranks(self, network: str, prompts: str) -> list[float]:
        """The mean ranks of one network through the checkpoints."""
        rows = self.frame.loc[(self.frame["network"] == network) & (self.frame["prompts"] == prompts)]
        return rows["rank"].tolist()

    def appeared(self) -> pd.DataFrame:
        """A row per `components` ("core", "added") and set of `prompts`: their `cost` at the last
        checkpoint, in ranks, and the `checkpoint` at which they appeared; missing if they cost nothing."""
        rows = []
        for components in ("core", "added"):
            network = f"without the {components}"
            if network not in set(self.frame["network"]):
                continue
            for prompts in dict.fromkeys(self.frame["prompts"]):
                cost = np.subtract(self.ranks(network, prompts), self.ranks("full model", prompts))
                there = np.logical_and.accumulate((cost >= cost[-1] / 2)[::-1])[::-1]
                first = self.checkpoints[int(np.argmax(there))] if cost[-1] > 0 else None
                row = {"components": components, "prompts": prompts}
                rows.append(row | {"cost": float(cost[-1]), "checkpoint": first})
        return pd.DataFrame(rows)

    def conclusion(self) -> str:
        """Since when core and added components do what they do at the end."""
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
        return " ".join(sentences)

    @property
    def figure(self) -> go.Figure:
        """Mean ranks through the checkpoints, a panel per set of prompts."""
        shown = [name for name in NETWORKS if name in set(self.frame["network"])]
        panels = {
            prompts: {name: self.ranks(name, prompts) for name in shown}
            for prompts in dict.fromkeys(self.frame["prompts"])
        }
        figure = curve_panels(panels, x="checkpoint", y="mean rank of the answer (0 is best)")
        places = list(range(len(self.checkpoints)))
        return figure.update_xaxes(tickvals=places, ticktext=self.checkpoints, tickmode="array")


def emergence(
    models: Mapping[str | int, TransformerBridge | str | Path],
    core: Core,
    prompts: PromptsLike,
    generalization: PromptsLike | None = None,
    *,
    added: Generalising | None = None,
    kinds: str | Sequence[str] = ("heads",),
    reference: PromptsLike | None = None,
    ablation: Ablation = "mean",
    prune: Callable[[TransformerBridge], Masks] | None = None,
) -> Emergence:
    """Follow the core through the checkpoints of a training run.

    Args:
        models: By step or epoch, in their order, models or what `ecstruct.load` takes; one is loaded at a
            time. Finetuning at a constant rate for n epochs is a prefix of finetuning for more, so that
            `ecstruct.finetune(..., epochs=n).model` are the checkpoints of one run.
        core: Of the trained model's subnetworks.
        prompts: In-domain, as the facts.
        generalization: As the implications.
        added: Which components the subnetworks that generalise add to the core.
        kinds: As in `ablate_core`.
        reference, ablation: As in `prune`, at every checkpoint anew.
        prune: Finds subnetworks of a checkpoint, as `lambda model: prune(model, facts, seeds=4)`.

    Raises:
        InputError: no checkpoints, no component of these kinds is in the core, or all are; models of other
            shapes; prompts that cannot be ranked.
    """
    if not models:
        raise InputError("there are no checkpoints: give models by step, in their order.")
    of_core = parts_of(core, kinds)
    of_added = {kind: getattr(added, kind).values & ~of_core[kind] for kind in of_core} if added else {}
    networks = _networks(core, of_core, of_added)
    kept = [np.stack([parts[kind] for parts in networks.values()]) for kind in ("heads", "mlp")]
    asked = {"in-domain": prompts} | ({} if generalization is None else {"generalization": generalization})
    rows, chosen = [], []
    for label, source in models.items():
        model = load(source) if isinstance(source, str | Path) else source
        values = reference_values(model, prompts if reference is None else reference, ablation=ablation)
        masks = Masks.of(*kept, reference=values)
        for name, its in asked.items():
            found = evaluate(model, masks, its, progress=False)
            ranks, accuracy = (found[what].values.tolist() for what in ("mean_rank", "accuracy"))
            for network, rank, right in zip(networks, ranks, accuracy, strict=True):
                row = {"checkpoint": str(label), "network": network, "prompts": name}
                rows.append(row | {"rank": rank, "accuracy": right})
        if prune is not None:
            here = prune(model)
            chosen += [{"checkpoint": str(label), **row} for row in _frequencies(here, of_core, of_added)]
    columns = ["checkpoint", "kind", "components", "frequency"]
    return Emergence(pd.DataFrame(rows), pd.DataFrame(chosen, columns=columns))


def _networks(core: Core, of_core: Parts, of_added: Parts) -> dict[str, Parts]:
    """What each network keeps."""
    full = {kind: np.ones(getattr(core, kind).shape, bool) for kind in ("heads", "mlp")}
    found = {"full model": full, "without the core": full | {k: ~part for k, part in of_core.items()}}
    if of_added:
        found["without the added"] = full | {kind: ~part for kind, part in of_added.items()}
    found["the core alone"] = {**full, **of_core}
    if of_added:
        both = {kind: of_core[kind] | of_added[kind] for kind in of_core}
        found["the core and the added alone"] = full | both
    return found


def _frequencies(masks: Masks, of_core: Parts, of_added: Parts) -> list[dict[str, str | float]]:
    masks.check_converged()
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
