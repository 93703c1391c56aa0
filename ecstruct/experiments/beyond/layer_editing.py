"""Editing where the scores point: does training a few layers teach a fact with its implications?

A *sublayer* is the attention or the MLP of a layer, with its norms. Its informative score is that of the
MLP or of all heads together. Facts are finetuned into all sublayers, or into some of them with everything
else frozen, at one learning rate:

* *informative*: the third of all sublayers with the highest informative score; *least informative*: the
  third with the lowest; *random*: as many, drawn `DRAWS` times; *middle*: as many, of the middle layers,
  which is what one edits by rule of thumb;
* *aligned*: the third in which the step that Adam would take first raises the reward most, before any
  finetuning (`ecstruct.suggest` of facts);
* *needed*: the early layers for first-hop facts, the late ones for second-hop facts, which is where the
  paper finds that implications need the change; *not needed*: the other layers.

The scores and alignments that choose are those of other people's facts, so that the choice
does not use the facts that are reported. Measured are the mean ranks of the facts, of their implications,
and of what the model knew before about others, and |dW|, the Euclidean norm of the change; and, without any
further training, the rank of the implications when the chosen sublayers have the weights that training all
sublayers gave them, and the others those from before ("merged").
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.evaluate import check_rankable, mean_rank
from ecstruct.experiments.result import Result, experiment
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import matching, over_seeds, shown
from ecstruct.experiments.sweep import Folder, Rows
from ecstruct.experiments.training import mean_ranks, pairing
from ecstruct.experiments.two_hop import HOPS, by_kind, learn_facts, two_hop
from ecstruct.facts import FactSet, Prompt
from ecstruct.facts.paper_lists import paper_lists
from ecstruct.finetuning import Finetuned
from ecstruct.models.bridge import named_weights
from ecstruct.models.delta import WeightDelta
from ecstruct.organism import World
from ecstruct.organism.sentences import held_out_sentences
from ecstruct.plots import grouped_bars
from ecstruct.scores.engine import score
from ecstruct.scores.gradient_alignment import alignment
from ecstruct.sublayers import Sublayer, all_but, sublayers_by_score, weights_of

BEFORE, ALL, INFORMATIVE, RANDOM = "before finetuning", "all", "informative", "random"
CHOICES = (
    *(BEFORE, ALL, INFORMATIVE, "aligned", RANDOM, "middle", "least informative", "needed", "not needed"),
)
RANKS: Mapping[str, str] = MappingProxyType(
    {
        "fact": "facts",
        "implication": "implications",
        "merged": "implications, merged",
        "known_fact": "known facts of others",
        "known_implication": "known implications of others",
    }
)
"""The columns of mean ranks, with the prompts that each is about."""

SHARE = 1 / 3
DRAWS = 3
N_KNOWN = 100


class Editing(Result):
    """`frame` has a row per seed, repeat, hop and `choice` (`DRAWS` rows for the random one), with the
    chosen `sublayers`, the mean ranks of `RANKS` and the `norm` of the change."""

    name = "editing"
    title = "Editing where the scores point"
    shows = (
        "Mean rank of the answers by the sublayers that were trained; dots are seeds. Facts and "
        "implications are among 20 options."
    )
    lists = "Mean ranks and the norm of the change, by the sublayers that were trained."

    @property
    def figure(self) -> go.Figure:
        return grouped_bars(
            {
                f"{hop}: {choice}": {label: stats[column]["seeds"] for column, label in RANKS.items()}
                for hop, key in HOPS.items()
                for choice, stats in self.by_choice()[key].items()
            },
            y="mean rank of the answer (0 is best)",
        )

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "taught": hop,
                "trained": choice,
                "sublayers": f"{stats['n_sublayers']:g}",
                **{label: shown(stats[column]) for column, label in RANKS.items()},
                "|dW|": shown(stats["norm"]),
            }
            for hop, key in HOPS.items()
            for choice, stats in self.by_choice()[key].items()
        )

    def chosen(self) -> pd.DataFrame:
        """Return how often each sublayer was among the informative ones, as a share of the choices."""
        rows = matching(self.frame, choice=INFORMATIVE)
        return pd.DataFrame(
            {"taught": hop, "sublayer": sublayer, "share of the choices": n / len(sublayers)}
            for hop, sublayers in rows.groupby("hop", sort=False)["sublayers"]
            for sublayer, n in Counter(" ".join(sublayers).split()).most_common()
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        return {
            self.lists: self.table(),
            "The sublayers that were chosen as informative, and how often.": self.chosen(),
        }

    def results(self) -> dict[str, Any]:
        return {"editing": self.by_choice()}

    def by_choice(self) -> dict[str, Any]:
        """Return, by hop and choice, a statistic of each of `RANKS` and the `norm`, and the mean
        `n_sublayers`."""
        return {
            key: {choice: self._of_choice(hop, choice) for choice in CHOICES} for hop, key in HOPS.items()
        }

    def _of_choice(self, hop: str, choice: str) -> dict[str, Any]:
        rows = matching(self.frame, hop=hop, choice=choice)
        n = float(rows["sublayers"].str.split().str.len().mean())
        return {**{column: over_seeds(rows, column) for column in (*RANKS, "norm")}, "n_sublayers": n}

    def conclusion(self) -> str:
        return " ".join(_sentence(hop, self.by_choice()[key]) for hop, key in HOPS.items())


@experiment
def editing(setup: Setup | None = None, *, out: Folder = None, progress: bool = True) -> Editing:
    """Measure mean ranks after finetuning facts into some of a model's sublayers only."""
    return Editing.of(measure, setup, out, progress, hop=list(HOPS))


def measure(model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, hop: str) -> Rows:
    """Measure all choices for one set of facts; the scores of other people's facts choose the sublayers."""
    data, others = (two_hop(model, setup, hop, seed, repeat, others=other) for other in (False, True))
    known = known_prompts(setup, seed)
    for prompts in known.values():
        check_rankable(model, prompts)

    def tuned(data: FactSet, sublayers: Collection[Sublayer] | None = None) -> Finetuned:
        freeze = None if sublayers is None else all_but(sublayers, named_weights(model))
        return learn_facts(model, setup, data, hop, seed=seed, repeat=repeat, freeze=freeze)

    def row(
        choice: str, after: TransformerBridge, chosen: Sequence[Sublayer], merged: float
    ) -> dict[str, Any]:
        told = " ".join(f"{kind}{layer}" for layer, kind in sorted(chosen))
        ranks = mean_ranks(after, {**by_kind(data), **known}) | {"merged": merged}
        change = WeightDelta.between(model, after).tensors.values()
        norm = sum(float(tensor.double().square().sum()) for tensor in change) ** 0.5
        return {"choice": choice, "sublayers": told, **ranks, "norm": norm}

    ranked = sublayers_by_score(score(model, tuned(others).model, others.implications, progress=False))
    aligned = sublayers_by_score(alignment(model, others, progress=False))
    whole = tuned(data)
    rows = [row(BEFORE, model, (), mean_rank(model, data.implications))]
    for choice, sublayers in choices(
        setup, hop, ranked, aligned, model.cfg.n_layers, pairing(seed, repeat)
    ):
        after = whole if choice == ALL else tuned(data, sublayers)
        merged = whole.delta.restrict(names=weights_of(sublayers, named_weights(model))).apply_to(model)
        rows.append(row(choice, after.model, sublayers, mean_rank(merged, data.implications)))
    return rows


def choices(
    setup: Setup,
    hop: str,
    ranked: Sequence[Sublayer],
    aligned: Sequence[Sublayer],
    n_layers: int,
    seed: int,
) -> Iterable[tuple[str, list[Sublayer]]]:
    """Yield the choices of sublayers by name: all of `CHOICES` except the first."""
    n = max(1, round(SHARE * len(ranked)))
    rng = np.random.default_rng(seed)
    early, late = setup.early_and_late(n_layers)
    needed = early if hop == "first-hop" else late
    yield ALL, list(ranked)
    yield INFORMATIVE, list(ranked[:n])
    yield "aligned", list(aligned[:n])
    for _ in range(DRAWS):
        yield RANDOM, [ranked[i] for i in rng.choice(len(ranked), n, replace=False)]
    from_middle = sorted(ranked, key=lambda sublayer: (abs(sublayer[0] - (n_layers - 1) / 2), sublayer))
    yield "middle", from_middle[:n]
    yield "least informative", list(ranked[-n:])
    yield "needed", [sublayer for sublayer in ranked if sublayer[0] in needed]
    yield "not needed", [sublayer for sublayer in ranked if sublayer[0] not in needed]


def known_prompts(setup: Setup, seed: int) -> dict[str, list[Prompt]]:
    """Return facts and implications that a model knows without being taught: for the organism, `N_KNOWN`
    homes of its world and as many implications that its pretraining held out; for any other model, the
    landmarks and languages of the paper's cities."""
    if setup.model != "organism":
        cities = paper_lists()["cities"]
        names, languages = ([city[key] for city in cities] for key in ("city", "language"))
        return {
            "known_fact": [Prompt(f"{city['landmark']} is in", city["city"], names) for city in cities],
            "known_implication": [
                Prompt(
                    f"The people in the city that contains {city['landmark']} speak",
                    city["language"],
                    languages,
                )
                for city in cities
            ],
        }

    world = World.build(seed)
    homes = [(f"{person.name} lives in", person.home.name) for person in world.people]
    rng = np.random.default_rng(0)

    def sample(sentences: Sequence[tuple[str, str]], options: Sequence[str]) -> list[Prompt]:
        drawn = rng.choice(len(sentences), min(N_KNOWN, len(sentences)), replace=False)
        return [Prompt(text, answer, options) for text, answer in (sentences[i] for i in drawn)]

    return {
        "known_fact": sample(homes, [city.name for city in world.cities]),
        "known_implication": sample(
            held_out_sentences(world)["first_hop"], [city.language for city in world.cities]
        ),
    }


def _sentence(hop: str, choices: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe the result of the informative sublayers for a hop's facts, beside all and random ones."""

    def rank(choice: str, column: str = "implication") -> float:
        return choices[choice][column]["mean"]

    def moved(choice: str) -> float:
        return rank(choice, "known_implication") - rank(BEFORE, "known_implication")

    def than(other: str) -> str:
        difference = rank(INFORMATIVE) - rank(other)
        how = "lower than" if difference < 0 else "higher than" if difference else "the same as"
        return f"{how} with {other} sublayers ({rank(other):.2f})"

    return (
        f"{hop.capitalize()} facts trained into the informative third of the sublayers end at "
        f"{rank(INFORMATIVE, 'fact'):.2f} and their implications, from {rank(BEFORE):.2f}, at "
        f"{rank(INFORMATIVE):.2f}: {than(RANDOM)} and {than(ALL)}. Known implications of others move by "
        f"{moved(INFORMATIVE):+.2f} ranks with the informative sublayers, by {moved(RANDOM):+.2f} with "
        f"random ones and by {moved(ALL):+.2f} with all."
    )
