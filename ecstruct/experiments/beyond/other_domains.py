"""Other domains: do ordering and grafting hold beyond cities, and does a graft help with other facts?

"Grace Miller dax" takes a city, a language or a landmark, and the animal of "Grace Miller zong is the"
depends on it. Person i's city, language and landmark belong together and go with the same animal, so
implications are the same in every domain.

Ordering is that of Fig. 6 in each domain. Transfer is Table 3 with two domains: the change from learning
the implications of facts of domain A, added to a model that knows facts of domain B,

    W_graft(A, B)  = W_F'(B) + W_{F(A), Impl F} - W_F(A)
    W_control(B)   = W_F'(B) + W_{Impl F}       - W

with mean ranks on Impl F', 0 being best. Impl F names no domain, so that one control serves every A; A = B
is Table 3. A graft that reads what facts of all domains have in common helps in all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.evaluate import mean_rank
from ecstruct.experiments.data_ordering import ORDERS, PHASES
from ecstruct.experiments.fictitious import Assignment
from ecstruct.experiments.result import Result, experiment
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import listed, over_seeds, shown
from ecstruct.experiments.sweep import Folder, Rows, Sweep, grid
from ecstruct.experiments.training import mean_ranks
from ecstruct.experiments.two_hop import by_kind
from ecstruct.models.delta import WeightDelta
from ecstruct.plots import grouped_bars, value_grids

DOMAINS = ("city", "language", "landmark")
WORDS = "novel"
"""The paper's words. "Lives in" would not do: what the model knows of it is about cities, not languages."""

ASKED, FACTS = "Impl F'", "F'"
CONTROL, ALONE = "control", "W_F' alone"
ADDED: Mapping[str, str] = {
    **{f"graft of {domain}": f"graft_{domain}" for domain in DOMAINS},
    CONTROL: "control",
    ALONE: "alone",
}
"""What is added to W_F', with its name in `results.json`."""


@dataclass(frozen=True)
class Domains(Result):
    """`frame` has a row per seed, repeat, domain and order, with the mean ranks of the test people's facts
    and implications `before` (implications only) and after these facts are learnt. `transfer` has a row per
    seed, repeat, domain of F' (`read`) and `added` weights, with the mean ranks on "Impl F'" and "F'"."""

    transfer: pd.DataFrame

    name = "domains"
    title = "Other domains, and grafts between them"
    shows = "Mean rank on Impl F' by what was added to the weights and by the domain of F'; 9.5 is chance."
    lists = "Mean ranks on Impl F' by what was added and by the domain of F'."

    @property
    def figure(self) -> go.Figure:
        """The transfer matrix, with the control and W_F' alone below it."""
        return value_grids(
            {"mean rank on Impl F'": self._means()},
            x="domain of F'",
            y="added",
            value="mean rank (0 is best)",
            reversed_scale=True,
        )

    @property
    def ordering_figure(self) -> go.Figure:
        """Test implications after the test facts are learnt, by domain and order."""
        return grouped_bars(
            {
                domain: {order: stats["implication"]["seeds"] for order, stats in of_domain.items()}
                for domain, of_domain in self.by_order().items()
            },
            y="mean rank of the answer (0 is best)",
            chance=9.5,
        )

    def figures(self) -> dict[str, go.Figure]:
        bars = "Mean rank of the test people's implications, by domain and order of continued pretraining."
        return {self.shows: self.figure, bars: self.ordering_figure}

    def table(self, what: str = ASKED) -> pd.DataFrame:
        return pd.DataFrame(
            {"added": added, **{f"F' of {domain}": shown(stat) for domain, stat in stats.items()}}
            for added, stats in self.by_pair(what).items()
        )

    def ordering_table(self) -> pd.DataFrame:
        """Return the mean ranks of the test people, by domain and order."""
        return pd.DataFrame(
            {
                "domain": domain,
                "order": order,
                "implications before": shown(stats["before"]),
                "implications": shown(stats["implication"]),
                "facts": shown(stats["fact"]),
            }
            for domain, of_domain in self.by_order().items()
            for order, stats in of_domain.items()
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        ordering = "Mean ranks of the test people's prompts before and after their facts are learnt."
        facts = "Mean ranks on F' itself: whether the model still knows the facts."
        return {self.lists: self.table(), facts: self.table(FACTS), ordering: self.ordering_table()}

    def results(self) -> dict[str, Any]:
        ordering = {
            domain: {ORDERS[order]: stats for order, stats in of_domain.items()}
            for domain, of_domain in self.by_order().items()
        }
        transfer = {
            key: {ADDED[added]: stats for added, stats in self.by_pair(what).items()}
            for key, what in (("transfer", ASKED), ("transfer_facts", FACTS))
        }
        return {"domains": {"ordering": ordering, **transfer}}

    def by_order(self) -> dict[str, dict[str, Any]]:
        """Return, by domain and order, a statistic for each of before, implication and fact."""
        return {
            domain: {
                order: {what: over_seeds(self.frame, what, domain=domain, order=order) for what in _RANKS}
                for order in ORDERS
            }
            for domain in DOMAINS
        }

    def by_pair(self, what: str = ASKED) -> dict[str, dict[str, Any]]:
        """Return, by added weights and domain of F', the statistic of Impl F', or of F' itself."""
        return {
            added: {domain: over_seeds(self.transfer, what, added=added, read=domain) for domain in DOMAINS}
            for added in ADDED
        }

    def ahead(self) -> dict[tuple[str, str], float]:
        """Return, by the domains of graft and F', by how many ranks the graft beats the better of the
        control and W_F' alone on Impl F'."""
        ranks = self._means()
        baseline = ranks.loc[[CONTROL, ALONE]].min()
        return {
            (learnt, read): baseline[read] - ranks.at[f"graft of {learnt}", read]
            for learnt in DOMAINS
            for read in DOMAINS
        }

    def _means(self) -> pd.DataFrame:
        """Return mean ranks on Impl F', by `ADDED` and the domain of F'."""
        return pd.DataFrame(self.by_pair()).T.map(lambda stat: stat["mean"]).astype(float)

    def conclusion(self) -> str:
        ends = {
            domain: {order: stats["implication"]["mean"] for order, stats in of_domain.items()}
            for domain, of_domain in self.by_order().items()
        }
        worst = [max(by_order, key=lambda order: by_order[order]) for by_order in ends.values()]
        facts = {
            domain: max(stats["fact"]["mean"] for stats in of_domain.values())
            for domain, of_domain in self.by_order().items()
        }
        ahead = self.ahead()
        own = {read: gap for (learnt, read), gap in ahead.items() if learnt == read}
        other = {f"{learnt} to {read}": gap for (learnt, read), gap in ahead.items() if learnt != read}
        return (
            "Test implications end at "
            + "; ".join(f"{listed(by_order)} for {domain}" for domain, by_order in ends.items())
            + f": implications first is the worst order in {worst.count('implications first')} of "
            f"{len(DOMAINS)} domains. The test facts themselves end, after the order worst for them, at "
            f"{listed(facts)}. On Impl F', a graft of the same domain is better than control and "
            f"W_F' alone in {sum(gap > 0 for gap in own.values())} of {len(own)} domains (by "
            f"{listed(own)} ranks), one of another domain in {sum(gap > 0 for gap in other.values())} of "
            f"{len(other)} pairs (by {listed(other)})."
        )


_RANKS = ("before", "implication", "fact")


@experiment
def domains(setup: Setup | None = None, *, out: Folder = None, progress: bool = True) -> Domains:
    """Measure ordering in three domains, and grafts that are learnt in one domain and added in another."""
    sweep = Sweep(setup or Setup(), out, progress)
    ordered = grid(sweep.setup, domain=list(DOMAINS), order=list(ORDERS))
    return Domains(
        sweep.setup,
        sweep.run("domains", measure_order, ordered),
        sweep.run("domains-transfer", measure_transfer, grid(sweep.setup)),
    )


def measure_order(
    model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, domain: str, order: str
) -> Rows:
    """Measure one order in one domain: run its phases, then finetune on the test facts."""
    its = Assignment(model, setup, WORDS, seed, repeat, domain)
    before, test = its.after(*PHASES[order]), its.data.test
    learnt = its.after_test_facts(before).model
    return [{"before": mean_rank(before, test.implications), **mean_ranks(learnt, by_kind(test))}]


def measure_transfer(model: TransformerBridge, setup: Setup, *, seed: int, repeat: int) -> Rows:
    """Measure all pairs of domains for one assignment; every training runs once."""
    its = {domain: Assignment(model, setup, WORDS, seed, repeat, domain) for domain in DOMAINS}
    added: dict[str, WeightDelta] = {
        f"graft of {domain}": its[domain].change("facts", "implications") for domain in DOMAINS
    }
    added[CONTROL] = its[DOMAINS[0]].change("implications")  # the same in every domain
    added[ALONE] = WeightDelta({})
    rows = []
    for domain, of_domain in its.items():
        learnt, other = of_domain.change("other facts"), of_domain.data.counterfactual
        asked = {ASKED: other.implications, FACTS: other.facts}
        for name, delta in added.items():
            ranks = mean_ranks((learnt + delta).apply_to(model), asked)
            rows.append({"read": domain, "added": name, **ranks})
    return rows
