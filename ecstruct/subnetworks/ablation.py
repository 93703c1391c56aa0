"""What the core is for: it is removed from the full model and from every subnetwork, or kept alone.

The controls are as many random components of each kind that are not in the core, drawn several times:

* for the full model: any of them;
* for the core's layers: as many from each layer as the core has there, or all if there are fewer. What
  early heads write reaches more of the model, so a core may look important only because it is early;
* for a subnetwork: those that it keeps beyond the core, or all of them if there are fewer.

Source: Bhaskar, Friedman & Chen, "The Heuristic Core" (ACL 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ecstruct.engine.session import Model
from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike
from ecstruct.io.store import Steps, stepping
from ecstruct.io.values import bounded
from ecstruct.plots.bars import grouped_bars
from ecstruct.subnetworks.common_core import Core, MasksLike, as_groups, core
from ecstruct.subnetworks.evaluation import both_sets, mean_ranks
from ecstruct.subnetworks.masks import Masks

Parts = Mapping[str, np.ndarray]
"""A set of components, by kind: whether it has each of the "heads" (layer, head) and "mlp" (layer)."""

_ORDER = (
    *("full model", "without the core", "without random ones", "without random ones of its layers"),
    *("the core alone", "random ones alone"),
    *("subnetworks", "subnetworks without the core", "subnetworks without random ones"),
)


class NothingToAblate(InputError):
    """There is no core, or nothing to compare it with."""


@dataclass(frozen=True)
class CoreAblation:
    """What remains without the core, or with the core alone.

    `frame` has a row per network and set of prompts: `of` is what was done (as in `table`), `group` and
    `seed` name a subnetwork, `draw` counts random draws, `kept` is the number of components that remain,
    `prompts` is "in-domain" or "generalization", `rank` is the mean rank of the answers (0 is best), and
    `accuracy` is the share of answers with rank 0.
    """

    frame: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """Return a row per `of` and set of `prompts`: the mean `rank` with its `lowest` and `highest`, the
        mean `accuracy`, the mean number of components that are `kept`, and the number `n` of networks."""
        grouped = self.frame.groupby(["of", "prompts"], sort=False)
        ranks = grouped["rank"]
        columns = {"rank": ranks.mean(), "lowest": ranks.min(), "highest": ranks.max()}
        columns |= {name: grouped[name].mean() for name in ("accuracy", "kept")} | {"n": ranks.size()}
        return pd.DataFrame(columns).reset_index()

    def conclusion(self) -> str:
        """Say what ablating the core costs on each set of prompts, compared with random components."""
        sentences = []
        for prompts in dict.fromkeys(self.frame["prompts"]):
            asked = self.frame.loc[self.frame["prompts"] == prompts]
            ranks = {of: asked.loc[asked["of"] == of, "rank"].to_numpy() for of in _ORDER}
            without, random = ranks["without the core"].item(), ranks["without random ones"]
            as_much = int((random >= without).sum())
            sentences.append(
                f"{str(prompts).capitalize()}, the mean rank is {ranks['full model'].item():.2f}, without "
                f"the core {without:.2f}, without as many random components {random.mean():.2f} ({as_much} "
                f"of {len(random)} draws cost as much as the core), and with the core alone "
                f"{ranks['the core alone'].item():.2f}."
            )
        return " ".join(sentences)

    @property
    def figure(self) -> go.Figure:
        """Mean ranks by what was done; each dot is a draw or a subnetwork."""
        ranks: dict[str, dict[str, list[float]]] = {}
        for row in self.frame.to_dict(orient="records"):
            ranks.setdefault(row["of"], {}).setdefault(row["prompts"], []).append(row["rank"])
        return grouped_bars(ranks, y="mean rank of the answer (0 is best)")


@bounded
def ablate_core(
    model: Model,
    masks: MasksLike,
    prompts: PromptsLike,
    generalization: PromptsLike | None = None,
    *,
    kinds: str | Sequence[str] = ("heads",),
    draws: int = 20,
    seed: int = 0,
    progress: bool | Steps = True,
) -> CoreAblation:
    """Measure the full model and every subnetwork without the core, and the core alone.

    Args:
        model: The model that was pruned.
        masks: Subnetworks of one sparsity, or by sparsity, that share the core.
        prompts: In-domain prompts, such as the facts.
        generalization: Prompts to generalise to, such as the implications.
        kinds: The kinds of components that count as the core, "heads" or "mlp"; heads, as in the source.
            All components of other kinds are kept, also where the core is alone.
        draws: How often random components are drawn for each network.
        seed: The same seed draws the same components.

    Raises:
        NothingToAblate: no component of these kinds is in the core, or all are.
        InputError: masks of another model; prompts that cannot be ranked; no draws.
    """
    asked = both_sets(prompts, generalization)
    networks = networks_of(masks, kinds=kinds, draws=draws, seed=seed)
    every = next(iter(as_groups(masks).values())).like(
        *(np.stack([network.kept[kind] for network in networks]) for kind in ("heads", "mlp"))
    )
    with stepping(progress, len(networks) * sum(map(len, asked.values())), "core ablation") as steps:
        rows = mean_ranks(model, every, [n.labels for n in networks], asked, steps, "core ablation")
    rows.sort(key=lambda row: _ORDER.index(row["of"]))
    return CoreAblation(pd.DataFrame(rows))


def networks_of(
    masks: MasksLike, *, kinds: str | Sequence[str] = ("heads",), draws: int = 20, seed: int = 0
) -> list[_Network]:
    """Return all networks that `ablate_core` measures; raise what it raises of these arguments."""
    check_draws(draws)
    of_core = parts_of(core(masks), kinds)
    return list(_networks(as_groups(masks), of_core, draws, np.random.default_rng(seed)))


def check_draws(draws: int) -> None:
    if draws < 1:
        raise InputError(f"draws={draws} leave nothing to compare the core with: use 1 or more, as in 20.")


def parts_of(found: Core, kinds: str | Sequence[str]) -> dict[str, np.ndarray]:
    """Return masks of the core's components by kind, [layer, head] for heads and [layer] for MLPs.

    Raises:
        InputError: a kind is unknown, or the core has no component of a kind, or all of them.
    """
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if not kinds:
        raise InputError("kinds=() leave no core: name 'heads', 'mlp' or both.")
    parts = {}
    for kind in kinds:
        if kind not in ("heads", "mlp"):
            raise InputError(f"kinds= names {kind!r}, but components are 'heads' or 'mlp'.")
        parts[kind] = found.dataset[kind].isel(group=-1).values
        if parts[kind].all():
            raise NothingToAblate(
                f"all {parts[kind].size} of the {kind} are in the core, and none is left to compare them "
                "with: prune more."
            )
    if not any(part.any() for part in parts.values()):
        raise NothingToAblate(
            f"none of the {' and '.join(kinds)} are in all subnetworks, so there is no core to ablate: "
            "prune less, or take fewer subnetworks."
        )
    return parts


def drawn_outside(
    of_core: Parts, rng: np.random.Generator, *, among: Parts | None = None, by_layer: bool = False
) -> dict[str, np.ndarray]:
    """Draw as many components of each kind as the core has, at random from those that are not in it.

    With `among`, draw only from these. With `by_layer`, draw as many per layer. Draw fewer if fewer exist.
    """
    drawn = {}
    for kind, taken in of_core.items():
        free = ~taken if among is None else among[kind] & ~taken
        rows = len(taken) if by_layer else 1
        chosen = np.zeros((rows, taken.size // rows), bool)
        for row, (its_free, its_core) in enumerate(
            zip(free.reshape(rows, -1), taken.reshape(rows, -1), strict=True)
        ):
            places = np.flatnonzero(its_free)
            chosen[row, rng.choice(places, min(its_core.sum(), len(places)), replace=False)] = True
        drawn[kind] = chosen.reshape(taken.shape)
    return drawn


@dataclass(frozen=True)
class _Network:
    """A network to measure: the components that are `kept`, and labels that say how it was made. `of` is
    one of `_ORDER`, `group` and `seed` name a subnetwork, and `draw` is the number of a random draw."""

    of: str
    kept: Parts
    group: str | None = None
    seed: int | None = None
    draw: int | None = None

    @property
    def labels(self) -> dict[str, str | int | None]:
        kept = sum(int(part.sum()) for part in self.kept.values())
        return {"of": self.of, "group": self.group, "seed": self.seed, "draw": self.draw, "kept": kept}


def _networks(
    groups: Mapping[str, Masks], of_core: Parts, draws: int, rng: np.random.Generator
) -> Iterator[_Network]:
    """Yield all networks to measure."""
    of_one = next(iter(groups.values())).dataset.isel(seed=0)
    full = {kind: np.ones(of_one[kind].shape, bool) for kind in ("heads", "mlp")}
    yield _Network("full model", full)
    yield _Network("without the core", _without(full, of_core))
    yield _Network("the core alone", {**full, **of_core})
    for draw in range(draws):
        drawn = drawn_outside(of_core, rng)
        yield _Network("without random ones", _without(full, drawn), draw=draw)
        yield _Network("random ones alone", {**full, **drawn}, draw=draw)
        of_layers = drawn_outside(of_core, rng, by_layer=True)
        yield _Network("without random ones of its layers", _without(full, of_layers), draw=draw)
    for group, masks in groups.items():
        for seed in masks.seeds:
            kept = {kind: masks.dataset[kind].sel(seed=seed).values for kind in full}
            yield _Network("subnetworks", kept, group, seed)
            yield _Network("subnetworks without the core", _without(kept, of_core), group, seed)
            for draw in range(draws):
                drawn = drawn_outside(of_core, rng, among=kept)
                yield _Network("subnetworks without random ones", _without(kept, drawn), group, seed, draw)


def _without(kept: Parts, ablated: Parts) -> Parts:
    return {kind: part & ~ablated[kind] if kind in ablated else part for kind, part in kept.items()}
