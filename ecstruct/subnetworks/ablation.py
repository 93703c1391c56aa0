"""What the core is for: it is forced out of the full model and of every subnetwork, or left alone.

Beside the core stand, drawn several times, as many random components of each kind that are not in it:

* of the model: any of them;
* of the core's layers: as many from each layer as the core has there, as far as there are so many; what
  early heads write reaches more of the model, so that a core may look important for being early;
* of a subnetwork: of what it keeps beyond the core, all of it if that is less.

Source: Bhaskar, Friedman & Chen, "The Heuristic Core" (ACL 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.cost import Bar
from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.io.store import Steps
from ecstruct.io.values import bounded
from ecstruct.plots.bars import grouped_bars
from ecstruct.subnetworks.core import Core, MasksLike, as_groups, core
from ecstruct.subnetworks.evaluation import evaluated
from ecstruct.subnetworks.masks import Masks

Parts = Mapping[str, np.ndarray]
"""Components by kind: whether each of the "heads" (layer, head) and of the "mlp" (layer) is one."""

_ORDER = (
    *("full model", "without the core", "without random ones", "without random ones of its layers"),
    *("the core alone", "random ones alone"),
    *("subnetworks", "subnetworks without the core", "subnetworks without random ones"),
)


class NothingToAblate(InputError):
    """There is no core, or nothing to compare it with."""


@dataclass(frozen=True)
class CoreAblation:
    """What is left without the core, or of it alone.

    `frame` has a row per network and set of prompts: `of` is what was done (as in `table`), `group` and
    `seed` name a subnetwork, `draw` counts random draws, `kept` is how many components are left, `prompts`
    is "in-domain" or "generalization"; `rank` is the mean rank of the answers (0 is best) and `accuracy`
    the share that is ranked first.
    """

    frame: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """A row per `of` and set of `prompts`: mean `rank`, its `lowest` and `highest`, mean `accuracy`,
        how many components are `kept` on average, and of how many networks (`n`)."""
        grouped = self.frame.groupby(["of", "prompts"], sort=False)
        ranks = grouped["rank"]
        columns = {"rank": ranks.mean(), "lowest": ranks.min(), "highest": ranks.max()}
        columns |= {name: grouped[name].mean() for name in ("accuracy", "kept")} | {"n": ranks.size()}
        return pd.DataFrame(columns).reset_index()

    def conclusion(self) -> str:
        """What the core's ablation costs in-domain and in generalisation, beside that of random ones."""
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
        """Mean ranks by what was done; dots are draws or subnetworks."""
        return grouped_bars(
            {
                of: {
                    prompts: self.frame.loc[
                        (self.frame["of"] == of) & (self.frame["prompts"] == prompts), "rank"
                    ].tolist()
                    for prompts in dict.fromkeys(self.frame["prompts"])
                }
                for of in dict.fromkeys(self.frame["of"])
            },
            y="mean rank of the answer (0 is best)",
        )


@bounded
def ablate_core(
    model: TransformerBridge,
    masks: MasksLike,
    prompts: PromptsLike,
    generalization: PromptsLike | None = None,
    *,
    kinds: str | Sequence[str] = ("heads",),
    draws: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> CoreAblation:
    """Measure the full model and every subnetwork without the core, and the core alone.

    Args:
        model: That was pruned.
        masks: Subnetworks of one sparsity, or by sparsity, that share the core.
        prompts: In-domain, as the facts.
        generalization: As the implications.
        kinds: Of components that count as the core, "heads" or "mlp"; heads, as in the source. All of
            another kind stay as they are, also beside the core alone.
        draws: Of random components, for each network.
        seed: The same seed draws the same components.

    Raises:
        NothingToAblate: no component of these kinds is in the core, or all are.
        InputError: masks of another model; prompts that cannot be ranked; no draws.
    """
    asked = {"in-domain": prompts} | ({} if generalization is None else {"generalization": generalization})
    asked = {name: as_prompts(its) for name, its in asked.items()}
    networks = networks_of(masks, kinds=kinds, draws=draws, seed=seed)
    n_runs = len(networks) * sum(map(len, asked.values()))
    with Bar(n_runs, "core ablation", unit="run", disable=not progress) as bar:
        return ablated(model, masks, networks, asked, Steps(bar))


def ablated(
    model: TransformerBridge,
    masks: MasksLike,
    networks: Sequence[_Network],
    asked: Mapping[str, PromptsLike],
    steps: Steps,
) -> CoreAblation:
    """`ablate_core`, in steps."""
    every = next(iter(as_groups(masks).values())).like(
        *(np.stack([network.kept[kind] for network in networks]) for kind in ("heads", "mlp"))
    )
    rows = []
    for name, its in asked.items():
        steps.bar.phase(f"core ablation, {name}")
        measured = evaluated(model, every, its, steps, f"ablation {name}")
        ranks, accuracy = (measured[what].values.tolist() for what in ("mean_rank", "accuracy"))
        for network, rank, right in zip(networks, ranks, accuracy, strict=True):
            rows.append({**network.labels, "prompts": name, "rank": rank, "accuracy": right})
    rows.sort(key=lambda row: _ORDER.index(row["of"]))
    return CoreAblation(pd.DataFrame(rows))


def networks_of(
    masks: MasksLike, *, kinds: str | Sequence[str] = ("heads",), draws: int = 20, seed: int = 0
) -> list[_Network]:
    """All that `ablate_core` measures, and raises of its arguments."""
    check_draws(draws)
    of_core = parts_of(core(masks), kinds)
    return list(_networks(as_groups(masks), of_core, draws, np.random.default_rng(seed)))


def check_draws(draws: int) -> None:
    if draws < 1:
        raise InputError(f"draws={draws} leave nothing to compare the core with: use 1 or more, as in 20.")


def parts_of(found: Core, kinds: str | Sequence[str]) -> dict[str, np.ndarray]:
    """The core's components of these kinds, checked for being some and not all."""
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
    """As many components of each kind as the core has, drawn at random from those that are not in it.

    With `among` from these only, and with `by_layer` as many of each layer; fewer where there are fewer.
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
    """What is kept, and what was done to get there."""

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
    """All that is measured."""
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
