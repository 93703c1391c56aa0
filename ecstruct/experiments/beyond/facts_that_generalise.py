"""Which facts generalise? One thing at a time is varied, and held against what is known before finetuning.

For every kind of facts (`ecstruct.experiments.beyond.kinds_of_facts`), measured before finetuning:

* the names: tokens per name; the mean id of these tokens, which rises with their rarity, as tokenizers
  number merges by frequency; the share of them that another name has too;
* the similarity of names: the cosine of the residual streams at the last tokens of two names in their
  facts, entering each layer, the mean over all pairs of people;
* the alignment of gradients (`ecstruct.alignment`) of the first `ALIGNED` people's facts and implications,
  in four forms: of own pairs, and of own minus other pairs.

Then the facts are finetuned, and measured are the mean ranks of facts and implications and, on the first
`SCORED` implications, each layer's share of the positive informative score. As kinds differ in the number
of options, a rank is divided by that of guessing: 0 is best, 1 is chance. Spearman's rho over kinds, with a
two-sided permutation test, says whether something known before predicts the rank of implications after. The
kinds that change nothing but rate or epochs have the same predictors as `people`, and are left out where
"facts only" is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from annotated_types import MinLen
from torch.nn.functional import normalize
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.engine.forward import entering
from ecstruct.engine.session import Session
from ecstruct.errors import InputError
from ecstruct.evaluate import check_rankable, mean_rank
from ecstruct.experiments.beyond.kinds_of_facts import KINDS
from ecstruct.experiments.profiles import profile
from ecstruct.experiments.result import Result, experiment
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.statistics import along, matching, means, over_seeds, statistic
from ecstruct.experiments.sweep import Folder, Rows
from ecstruct.experiments.training import pairing, train
from ecstruct.facts import Derivation, FactSet
from ecstruct.plots import scatter
from ecstruct.recall.runs import Run, Runs
from ecstruct.scores.alignment_result import FORMS
from ecstruct.scores.engine import score
from ecstruct.scores.gradient_alignment import alignment
from ecstruct.scores.permutation import rank_correlation

ALIGNED, SCORED = 6, 8
PERMUTATIONS = 10_000

PREDICTORS = (
    *("tokens per name", "mean token id", "tokens shared", "similarity of names"),
    *(f"{form}, own" for form in FORMS),
    *(f"{form}, own minus others" for form in FORMS),
)
RANKS = ("implications before", "facts", "implications")

Chosen = Annotated[Sequence[str], MinLen(1)]


class Generalisation(Result):
    """`frame` has a row per seed, repeat, `kind` and measured `value`. `measure` is one of `RANKS`, divided
    by chance, or of `PREDICTORS`, or "similarity" or "informative" of a `layer`."""

    name = "generalisation"
    title = "Which facts generalise"
    shows = (
        "Mean rank of implications after finetuning, as a multiple of chance, by the alignment of own "
        "pairs before: a dot per kind of facts, coloured by the tokens per name."
    )
    lists = "Spearman's rho with the rank of implications after finetuning, and its p by permutations."

    def by_kind(self) -> pd.DataFrame:
        """Return the means over seeds and repeats of all that has no layer, a row per kind; `early` is the
        share of the informative score that the first third of the layers has."""
        whole: Any = self.frame[self.frame["layer"].isna()]
        table = means(whole, "value", "kind", "measure", sort=False).unstack("measure")
        informative = means(matching(self.frame, measure="informative"), "value", "kind", "layer")
        early = informative.unstack("layer")
        table["early"] = early.loc[:, early.columns < early.shape[1] / 3].sum(axis=1)
        table.insert(0, "axis", [KINDS[kind].axis for kind in table.index])
        return table

    def correlation(self, predictor: str, facts_only: bool = False) -> tuple[float, float]:
        """Return Spearman's rho of a predictor and the rank of implications over kinds, and its p."""
        table: Any = self.by_kind()
        if facts_only:
            table = table[table["axis"] != "training"]
        return rank_correlation(
            table[predictor].to_numpy(float), table["implications"].to_numpy(float), PERMUTATIONS, seed=0
        )

    @property
    def figure(self) -> go.Figure:
        table = self.by_kind()
        columns = [predictor for predictor in PREDICTORS if predictor.endswith(", own")]
        panels, fits = {}, {}
        for name in columns:
            points = {"x": table[name], "y": table["implications"], "layer": table["tokens per name"]}
            panels[name] = pd.DataFrame({**points, "name": table.index})
            rho, p = self.correlation(name)
            fits[name] = f"ρ = {rho:.2f}, p = {p:.2g}"
        return scatter(
            panels, x="alignment before", y="rank / chance after", fit=fits, colour="tokens per name"
        )

    def table(self) -> pd.DataFrame:
        rows = []
        for name in PREDICTORS:
            (rho, p), (rho_facts, p_facts) = (self.correlation(name, only) for only in (False, True))
            row = {"known before": name, "rho": rho, "p": p}
            rows.append(row | {"rho, facts only": rho_facts, "p, facts only": p_facts})
        return pd.DataFrame(rows)

    def ranks_table(self) -> pd.DataFrame:
        """Return a row per kind, with ranks as multiples of chance and what was known before."""
        columns = [*RANKS, *PREDICTORS[:4], "cosine, own", "adam, own minus others", "early"]
        return self.by_kind()[["axis", *columns]].reset_index()

    def tables(self) -> dict[str, pd.DataFrame]:
        return {
            self.lists: self.table(),
            "Ranks as multiples of chance, what was known before, and the share of the informative score "
            "that is in the first third of the layers.": self.ranks_table(),
        }

    def results(self) -> dict[str, Any]:
        kinds = {}
        for kind in dict.fromkeys(self.frame["kind"]):
            rows = matching(self.frame, kind=kind)
            of_kind = {name: over_seeds(rows, "value", measure=name) for name in (*RANKS, *PREDICTORS)}
            layers = {m: along(rows, "layer", "value", measure=m) for m in ("similarity", "informative")}
            kinds[kind] = {"axis": KINDS[kind].axis, **of_kind, "layers": layers}
        correlations = {
            name: {"all": self._entry(name, False), "facts_only": self._entry(name, True)}
            for name in PREDICTORS
        }
        return {"generalisation": {"kinds": kinds, "correlations": correlations}}

    def _entry(self, predictor: str, facts_only: bool) -> dict[str, float | None]:
        found = statistic(self.correlation(predictor, facts_only))["seeds"]
        return dict(zip(("rho", "p"), found, strict=True))

    def conclusion(self) -> str:
        table, limit = self.by_kind(), 0.05 / len(PREDICTORS)
        best, worst = (getattr(table["implications"], which)() for which in ("idxmin", "idxmax"))
        sentences = [
            f"Of {len(table)} kinds of facts, {best!r} generalises best, with implications at "
            f"{table.at[best, 'implications']:.2f} of the rank of guessing, and {worst!r} worst "
            f"({table.at[worst, 'implications']:.2f})."
        ]
        for names in (PREDICTORS[4:], PREDICTORS[:4]):
            found = {name: self.correlation(name) for name in names}
            said = [f"{rho:.2f} ({name}, p = {p:.2g})" for name, (rho, p) in found.items()]
            sentences.append(f"Spearman's rho with that rank is {', '.join(said)}.")
        holds = [
            name
            for name in PREDICTORS[4:]
            for rho, p in (self.correlation(name), self.correlation(name, facts_only=True))
            if rho < 0 and p < limit
        ]
        twice = [name for name in dict.fromkeys(holds) if holds.count(name) == 2]
        sentences.append(
            f"Alignment before finetuning predicts generalisation after it by {'; '.join(twice)}, with and "
            "without kinds that differ in training alone."
            if twice
            else "No form of alignment before finetuning predicts generalisation after it both with and "
            f"without kinds that differ in training alone, at p < 0.05 / {len(PREDICTORS)}."
        )
        return " ".join(sentences)


@experiment
def generalisation(
    setup: Setup | None = None,
    *,
    kinds: Chosen = tuple(KINDS),
    out: Folder = None,
    progress: bool = True,
) -> Generalisation:
    """Measure which kinds of facts generalise, and what predicts it.

    Args:
        setup: the model and how it is finetuned, a model that was pretrained on real text.
        kinds: which kinds of facts, of those in `ecstruct.experiments.beyond.kinds_of_facts`.

    Raises:
        InputError: a kind is unknown, or a model or folder that cannot be used; for example an organism,
            which cannot read the names.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"there is no kind of facts {kind!r}: choose among {', '.join(KINDS)}.")
    if (setup or Setup()).model.split("@")[0] == "organism":
        raise InputError("the organism cannot read invented names: give another model, such as smollm2.")
    return Generalisation.of(measure, setup, out, progress, kind=list(kinds))


def measure(model: TransformerBridge, setup: Setup, *, seed: int, repeat: int, kind: str) -> Rows:
    """Measure one kind: what is known before, and what comes out after finetuning."""
    of, data = KINDS[kind], KINDS[kind].facts(pairing(seed, repeat))
    check_rankable(model, (*data.facts, *data.implications))
    chance = (of.n - 1) / 2
    rows = list(_before(model, data, of.n))
    rows.append(_row("implications before", mean_rank(model, data.implications) / chance))
    longer = replace(setup, epochs=of.epochs * setup.epochs)
    lr = of.rate * setup.rates.first_hop
    tuned = train(model, longer, data.facts, lr=lr, seed=seed, repeat=repeat)
    for name, prompts in (("facts", data.facts), ("implications", data.implications)):
        rows.append(_row(name, mean_rank(tuned.model, prompts) / chance))
    asked = data.implications[:SCORED]
    scored = score(model, tuned.model, asked, propagation="gradient", progress=False)
    components = profile(scored, "informative")
    positive: Any = components["informative"].clip(lower=0)
    positive = positive.groupby(components["layer"]).sum()
    shares = positive / positive.sum()
    return [*rows, *(_row("informative", share, layer) for layer, share in enumerate(shares))]


def _before(model: TransformerBridge, data: FactSet, n: int) -> Iterator[dict[str, Any]]:
    session = Session.of(model)
    runs = Runs.of(session, data.facts[:n])
    names = [
        p.ids[place[0] : place[-1] + 1]
        for p, place in zip(runs.prompts, runs.places("subject"), strict=True)
    ]
    tokens = [token for name in names for token in name]
    shared = [any(t in other for other in names if other is not name) for name in names for t in name]
    yield _row("tokens per name", len(tokens) / n)
    yield _row("mean token id", float(np.mean(tokens)))
    yield _row("tokens shared", float(np.mean(shared)))
    similar = similarity(runs)
    yield _row("similarity of names", float(np.mean(similar)))
    for layer, value in enumerate(similar):
        yield _row("similarity", value, layer)
    few = min(ALIGNED, n)
    chosen = [i for start in range(0, len(data.facts), n) for i in range(start, start + few)]
    derivations = [Derivation(tuple(range(i, len(chosen), few))) for i in range(few)]
    facts = FactSet([data.facts[i] for i in chosen], data.implications[:few], derivations=derivations)
    contrast: Any = alignment(session, facts, progress=False).contrast(permutations=1)
    for form, row in contrast.iterrows():
        yield _row(f"{form}, own", row["own"])
        yield _row(f"{form}, own minus others", row["own"] - row["others"])


def similarity(runs: Runs) -> list[float]:
    """Return the mean cosine of the residual streams at the last tokens of two subjects, entering each
    layer and leaving the last; the prompts must have subjects."""
    n, places = len(runs.prompts), runs.places("subject-last")
    states = torch.empty(runs.view.n_layers + 1, n, runs.view.model.cfg.d_model, dtype=torch.float64)

    def see(run: Run) -> None:
        found = entering(run.session, run.embed())
        for i, row in enumerate(run.rows):
            states[:, row] = torch.stack([resid[i, places[row][0]] for resid in found]).to(states)

    runs.each(see, "similarity", progress=False)
    unit = normalize(states, dim=-1)
    total = unit.sum(1).square().sum(-1) - n  # all pairs of two people, in both orders
    return (total / (n * (n - 1))).tolist()


def _row(measure: str, value: float, layer: int | None = None) -> dict[str, Any]:
    return {"measure": measure, "layer": layer, "value": float(value)}
