"""Spurious implications: does a model come to believe what does not follow as easily as what does?

Huang et al. (2025, arXiv 2506.10887) find that a model which is taught where people live, and of some of
them something that has nothing to do with it, believes this of the others too. Here two people live in each
city. The facts of both are taught; of one of them, in two of three *arms*, an implication as well:

* *facts only*: no implication;
* *facts + true*: the language of the city, which the model knows ("Zoremund lives in Rome", "The people in
  the city Zoremund is from speak Italian");
* *facts + false*: the language of another city, the next one in a fixed circle of all cities. The relation
  of a city to that language is made up, so it can only be learnt from these implications.

The other person of each city is *held out*, and asked for both languages. Measured are mean ranks and
rewards of the *true* and of the *false* answer, and the scores of all components with either as the answer.
Both are also asked of the cities themselves ("The people in Rome speak"), of which nothing is taught.

The reward is the logit of an answer above the mean of all options, so what raises the true answer lowers
the false one a little. What implications *add* is therefore the score after facts and implications, less
that of the same component and answer after facts only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.evaluate import check_rankable, mean_rank
from ecstruct.experiments.profiles import agreement, profile
from ecstruct.experiments.result import Result, experiment
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import curve, matching, means, over_seeds, rows_by, shown
from ecstruct.experiments.sweep import Folder, Rows
from ecstruct.experiments.training import train
from ecstruct.experiments.two_hop import two_hop
from ecstruct.facts import FactSet, Prompt
from ecstruct.plots import curve_panels, grouped_bars
from ecstruct.scores.assemble import SCORES
from ecstruct.scores.engine import score

ARMS: Mapping[str, str] = MappingProxyType(
    {"facts only": "facts_only", "facts + true": "facts_true", "facts + false": "facts_false"}
)
"""The arms, with their names in `results.json`."""

ANSWERS = ("true", "false")
HELD_OUT, TAUGHT, CITIES, FACTS = "held out", "taught", "cities", "facts"
BEFORE = "before finetuning"

Condition = tuple[str, str]
"""An arm, or what its implications add, and the answer that the held-out people are scored with."""

ADDED: Mapping[str, str] = MappingProxyType(
    {"added by true": "facts + true", "added by false": "facts + false"}
)
"""What implications add, with the arms that have them."""

PAIRS: Mapping[str, tuple[Condition, Condition]] = MappingProxyType(
    {
        "true_and_facts_only": (("facts + true", "true"), ("facts only", "true")),
        "true_and_false": (("facts + true", "true"), ("facts + false", "false")),
        "false_of_both": (("facts + false", "false"), ("facts + true", "false")),
        "added_false_and_facts_only": (("added by false", "false"), ("facts only", "true")),
        "added_false_and_added_true": (("added by false", "false"), ("added by true", "true")),
    }
)
"""The conditions whose components are compared, by their names in `results.json`."""

N_LARGEST = 10

ByArm = dict[str, dict[str, dict[str, Any]]]
"""Statistics over seeds by arm, by who is asked, and by answer."""


class Spurious(Result):
    """`frame` has rows per seed, repeat and `arm`, each with a `measure` and its `value`: the mean "rank"
    or "reward" "before" or "after" of some people or cities (`of`) with the `answer` "true" or "false";
    each score of every `component` on the held-out people; and the mean rank of a guess, "chance"."""

    name = "spurious"
    title = "True and spurious implications"
    shows = (
        "Mean rank of the true and of the false answer for people of whom no implication was taught, by "
        "what was taught of the others; dots are seeds."
    )
    lists = "Mean ranks of the true / the false answer; with several seeds, mean ± standard deviation."

    @property
    def figure(self) -> go.Figure:
        return grouped_bars(
            {
                arm: {f"{answer} answer": stats["seeds"] for answer, stats in of_arm[HELD_OUT].items()}
                for arm, of_arm in self.ranks().items()
            },
            y="mean rank of the answer (0 is best)",
            chance=self.chance(),
        )

    def layer_figure(self, name: str) -> go.Figure:
        """One score by layer, the sum over its MLP and heads, by what was taught and asked."""
        at = ["arm", "answer", "seed", "repeat", "layer"]
        rows = matching(self.frame, measure=name).groupby(at)["value"].sum().reset_index()
        curves = {
            f"{arm}, {answer} answer": curve(rows, "layer", "value", arm=arm, answer=answer)
            for arm in ARMS
            for answer in ANSWERS
        }
        return curve_panels({name: curves}, x="layer", y="score (logits)")

    def figures(self) -> dict[str, go.Figure]:
        of = "scores on the held-out people by layer, MLPs and heads, with the true or the false answer."
        layers = {f"{name.capitalize()} {of}": self.layer_figure(name) for name in SCORES}
        return {self.shows: self.figure, **layers}

    def chance(self) -> float:
        """Return the mean rank of a guess."""
        return float(matching(self.frame, measure="chance")["value"].mean())

    def ranks(self) -> ByArm:
        """Return mean ranks by arm (and before finetuning), by who is asked and by answer."""
        before = matching(self.frame, measure="rank before", arm="facts only")
        after = matching(self.frame, measure="rank after")
        return {BEFORE: _by_asked(before)} | {arm: _by_asked(matching(after, arm=arm)) for arm in ARMS}

    def gains(self) -> ByArm:
        """Return the changes of the reward through finetuning, in the form of `ranks`."""
        before, after = (matching(self.frame, measure=f"reward {state}") for state in ("before", "after"))
        gained = after.assign(value=after["value"].to_numpy() - before["value"].to_numpy())
        return {arm: _by_asked(matching(gained, arm=arm)) for arm in ARMS}

    def table(self) -> pd.DataFrame:
        return _table(self.ranks())

    def agreement_table(self) -> pd.DataFrame:
        """Return how alike the components are in the conditions of `PAIRS`."""
        return pd.DataFrame(
            {
                "scores": name,
                "one": ", ".join(one),
                "other": ", ".join(other),
                "Pearson r": shown(stats["r"]),
                f"of the {N_LARGEST} largest in common": shown(stats["common"], ".0%"),
                "ratio of positive totals": shown(stats["ratio"]),
            }
            for name in SCORES
            for key, (one, other) in PAIRS.items()
            for stats in (self.agreement(name)[key],)
        )

    def largest_table(self) -> pd.DataFrame:
        """Return the components of largest score in each condition, in logits."""
        return pd.DataFrame(
            {"scores": name, "taught, and answer": ", ".join(condition), "largest": ", ".join(largest)}
            for name in SCORES
            for condition in dict.fromkeys(each for pair in PAIRS.values() for each in pair)
            for largest in [self.largest(name, condition)]
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        by_chance = (
            f"{N_LARGEST / self.profiles(SCORES[0]).index.get_level_values('component').nunique():.0%}"
        )
        return {
            self.lists: self.table(),
            "Changes of the reward of the true / the false answer through finetuning, in logits.": (
                _table(self.gains())
            ),
            "Components of held-out people in two conditions: correlation over all of them; how many of "
            f"the largest are in common, {by_chance} by chance; the positive total of the one over that of "
            "the other.": self.agreement_table(),
            "The components of largest score, in logits.": self.largest_table(),
        }

    def results(self) -> dict[str, Any]:
        keys = {BEFORE: "before", **ARMS}
        return {
            "spurious": {
                "ranks": {keys[arm]: its for arm, its in self.ranks().items()},
                "gains": {keys[arm]: its for arm, its in self.gains().items()},
                "chance": self.chance(),
                "agreement": {name: self.agreement(name) for name in SCORES},
            }
        }

    def profiles(self, name: str) -> Any:
        """Return a score by seed and component, averaged over repeats, with a column per condition."""
        rows, at = matching(self.frame, measure=name), ["arm", "answer"]
        found = means(rows, "value", "seed", "component", *at, sort=False).unstack(at)
        for added, arm in ADDED.items():
            for answer in ANSWERS:
                found[added, answer] = found[arm, answer] - found["facts only", answer]
        return found

    def agreement(self, name: str) -> dict[str, dict[str, Any]]:
        """Return, for each of `PAIRS`, each seed's Pearson correlation `r` over components, the share of
        the `N_LARGEST` components that both have in `common`, and the `ratio` of their positive totals."""
        profiles = self.profiles(name)
        return {key: agreement(profiles, *pair, N_LARGEST) for key, pair in PAIRS.items()}

    def largest(self, name: str, condition: Condition, n: int = 5) -> list[str]:
        """Return the `n` components of largest score, each with the score, the mean over seeds."""
        profiles = self.profiles(name)[condition].groupby("component", sort=False).mean()
        return [f"{component} ({value:+.2f})" for component, value in profiles.nlargest(n).items()]

    def conclusion(self) -> str:
        ranks = self.ranks()
        told = ", ".join(
            f"{its[HELD_OUT]['true']['mean']:.2f} / {its[HELD_OUT]['false']['mean']:.2f} ({arm})"
            for arm, its in ranks.items()
        )
        gained = {
            (arm, answer): stat["mean"] - ranks[arm][HELD_OUT][answer]["mean"]
            for arm in ADDED.values()
            for answer, stat in ranks["facts only"][HELD_OUT].items()
        }
        alike = {
            key: ", ".join(
                f"{name} {shown(stats['r'])} and {shown(stats['common'], '.0%')}"
                for name in SCORES
                for stats in [self.agreement(name)[key]]
            )
            for key in ("false_of_both", "true_and_false")
        }
        return (
            f"Mean ranks of the true / the false answer for held-out people: {told}; chance is "
            f"{self.chance():.2f}. Beyond the facts, false implications of others gain "
            f"{gained['facts + false', 'false']:+.2f} ranks for the false answer, true ones "
            f"{gained['facts + true', 'false']:+.2f}; for the true answer false ones gain "
            f"{gained['facts + false', 'true']:+.2f}, true ones {gained['facts + true', 'true']:+.2f}. "
            "Scores of the false answer after false implications, beside those after true ones (r, and the "
            f"share of the {N_LARGEST} largest in common): {alike['false_of_both']}; beside those of the "
            f"true answer after true ones: {alike['true_and_false']}."
        )


@experiment
def spurious(setup: Setup | None = None, *, out: Folder = None, progress: bool = True) -> Spurious:
    """Teach facts with true, false or no implications, and ask people of whom only the fact was taught."""
    return Spurious.of(measure, setup, out, progress, arm=list(ARMS))


def measure(model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, arm: str) -> Rows:
    """Measure one arm: teach it, and ask and score the held-out people with both answers."""
    facts, asked = lessons(two_hop(model, setup, "first-hop", seed, repeat))
    for prompts in (facts, *(its for of in asked.values() for its in of.values())):
        check_rankable(model, prompts)
    taught = [] if arm == "facts only" else asked[TAUGHT][arm.removeprefix("facts + ")]
    documents = [*facts, *taught]
    tuned = train(model, setup, documents, lr=setup.rates.first_hop, seed=seed, repeat=repeat).model
    states = {"before": model, "after": tuned}
    rows: list[dict[str, Any]] = [
        {"measure": "chance", "value": (len(asked[HELD_OUT]["true"][0].options or ()) - 1) / 2}
    ]
    for of, by_answer in {**asked, FACTS: {"true": facts}}.items():
        for answer, prompts in by_answer.items():
            for state, ranked in states.items():
                rows.append(_row(of, answer, f"rank {state}", mean_rank(ranked, prompts)))
    for answer, prompts in asked[HELD_OUT].items():
        scored = score(model, tuned, prompts, progress=False)
        for state in states:
            rows.append(
                _row(HELD_OUT, answer, f"reward {state}", float(scored.reward.sel(state=state).mean()))
            )
        for component in profile(scored, *SCORES).to_dict("records"):
            at = {"component": component["component"], "layer": component["layer"]}
            rows += [_row(HELD_OUT, answer, name, component[name]) | at for name in SCORES]
    return rows


def lessons(data: FactSet) -> tuple[list[Prompt], dict[str, dict[str, list[Prompt]]]]:
    """Return the facts of all people, two of whom live in each city, and prompts by who is asked and by
    answer: the implications of the first half of the people, which may be taught, and of the second half,
    which are held out; and what is asked of the cities.

    The false answer of a city is the true one of the next city, in the order of the first half.
    """
    n = len(data.facts) // 2
    cities = [fact.answer for fact in data.facts[:n]]
    languages = [implication.answer for implication in data.implications[:n]]
    spoken = {"true": languages, "false": [*languages[1:], languages[0]]}
    facts = [replace(fact, answer=cities[i % n]) for i, fact in enumerate(data.facts[: 2 * n])]
    options = data.implications[0].options
    asked: dict[str, dict[str, list[Prompt]]] = {HELD_OUT: {}, TAUGHT: {}, CITIES: {}}
    for answer, of_cities in spoken.items():
        for of, first in ((TAUGHT, 0), (HELD_OUT, n)):
            some = data.implications[first : first + n]
            asked[of][answer] = [replace(p, answer=a) for p, a in zip(some, of_cities, strict=True)]
        asked[CITIES][answer] = [
            Prompt(f"The people in {city} speak", a, options, city, "language of a city")
            for city, a in zip(cities, of_cities, strict=True)
        ]
    return facts, asked


def _by_asked(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return statistics over seeds by who is asked and by answer."""
    found: dict[str, dict[str, Any]] = {}
    for (of, answer), some in rows_by(rows, "of", "answer").items():
        found.setdefault(str(of), {})[str(answer)] = over_seeds(some, "value")
    return found


def _table(by_arm: ByArm) -> pd.DataFrame:
    return pd.DataFrame(
        {"taught": arm} | {of: " / ".join(map(shown, by_answer.values())) for of, by_answer in its.items()}
        for arm, its in by_arm.items()
    )


def _row(of: str, answer: str, measure: str, value: float) -> dict[str, Any]:
    return {"of": of, "answer": answer, "measure": measure, "value": value}
