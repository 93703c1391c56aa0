"""The demo: a small model learns facts, generalises, and shows which components did it."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from ecstruct.checks.against_causal import fidelity
from ecstruct.checks.agreement import FORMS, Fidelity
from ecstruct.errors import InputError
from ecstruct.facts import FactSet, first_hop, people, second_hop
from ecstruct.finetuning import History, finetune
from ecstruct.io.files import write_text
from ecstruct.models.loading import load
from ecstruct.report.pages import demo_report, top_table
from ecstruct.scores.result import ExtractiveScores


@dataclass(frozen=True)
class _Plan:
    """The plan of a model's demo: facts by hop, and the options of `fidelity`."""

    hops: Mapping[str, Callable[[int], FactSet]]
    check: Mapping[str, Any]


PLANS: Mapping[str, _Plan] = MappingProxyType(
    {
        "organism": _Plan(
            {"first-hop": first_hop, "second-hop": second_hop}, {"forms": FORMS, "sample": None}
        ),
        "smollm2": _Plan({"first-hop": people}, {"sample": 18, "batch_size": 2, "memory": 2**28}),
    }
)
"""The organism learns the paper's facts; a pretrained model learns about people with unique names, with
small batches, so that the demo runs on a laptop, and interventions on a sample of the components."""


@dataclass(frozen=True)
class Demo:
    """The demo's measurements of a model, by hop; each hop has `n_facts` facts, and as many options."""

    model: str
    n_facts: int
    histories: Mapping[str, History]
    scores: Mapping[str, ExtractiveScores]
    fidelity: Mapping[str, Fidelity]
    seconds: float

    def ranks(self) -> pd.DataFrame:
        """Return mean ranks of facts and implications before and after finetuning."""
        rows = [
            {"prompts": f"{hop} {kind}s", "before": curve[0], "after": curve[-1]}
            for hop, history in self.histories.items()
            for kind, curve in history.ranks.items()
        ]
        return pd.DataFrame(rows)

    def summary(self) -> dict[str, Any]:
        """`{"first_hop": {"fact": [before, after], "implication": [before, after]}, ..., "seconds": s}`."""
        ranks = {
            hop.replace("-", "_"): {kind: [curve[0], curve[-1]] for kind, curve in history.ranks.items()}
            for hop, history in self.histories.items()
        }
        return {**ranks, "seconds": round(self.seconds, 1)}

    @property
    def scale(self) -> str:
        """The scale of the ranks, in words: the number of options, the best rank, and chance."""
        return f"among {self.n_facts} options; 0 is best, {(self.n_facts - 1) / 2:.1f} chance"

    def table(self) -> str:
        """Return the short table that the command line prints."""
        parts = [f"mean rank {self.scale}"]
        parts.append(self.ranks().to_string(index=False, float_format="{:.2f}".format))
        for hop, scores in self.scores.items():
            parts.append(f"\n{hop} implications: strongest components, in logits")
            parts.append(top_table(scores, 3).drop(columns="rank").to_string(index=False))
        return "\n".join(parts)

    def write(self, out: Path, replay: str) -> None:
        """Write `report.html`, `summary.json` and the scores of every hop to a folder."""
        for hop, scores in self.scores.items():
            scores.save(out / f"scores-{hop}.nc")
        curves = {
            f"{hop} {kind}": curve
            for hop, history in self.histories.items()
            for kind, curve in history.ranks.items()
        }
        text = f"The model {self.model} was finetuned on {self.n_facts} facts. " + " ".join(
            f"On {hop} implications, which it never saw, its mean rank went from "
            f"{history.ranks['implication'][0]:.2f} to {history.ranks['implication'][-1]:.2f}."
            for hop, history in self.histories.items()
        )
        page = out / "report.html"
        demo_report(page, self.ranks(), self.scale, curves, self.scores, self.fidelity, text, replay)
        write_text(out / "summary.json", json.dumps(self.summary(), indent=1))


def demo(
    *, model: str = "organism", seed: int = 0, device: str | None = None, progress: bool = True
) -> Demo:
    """Finetune a model on facts of one or two hops, score their implications, and compare the scores with
    interventions.

    Args:
        model: `"organism"`, on first- and second-hop facts of the paper, or `"smollm2"`, on first-hop facts
            of people with unusual names.
        seed: draws who lives where, the names of `ecstruct.facts.people`, and the order of the facts.
        device: the model's device, by default a GPU if there is one.
        progress: show progress bars.

    Raises:
        InputError: the model is neither of these, or cannot be fetched.
    """
    if model not in PLANS:
        raise InputError(f"there is no demo of {model!r}: choose among {', '.join(PLANS)}.")
    start, plan = time.perf_counter(), PLANS[model]
    before = load(model, device=device)
    facts = {hop: make(seed) for hop, make in plan.hops.items()}
    histories: dict[str, History] = {}
    scores: dict[str, ExtractiveScores] = {}
    checked: dict[str, Fidelity] = {}
    for hop, data in facts.items():
        asked = {"fact": data.facts, "implication": data.implications}
        tuned = finetune(before, data.facts, seed=seed, evaluate=asked, progress=progress)
        histories[hop] = tuned.history
        checked[hop] = fidelity(
            *(before, tuned.model, data.implications), **plan.check, seed=seed, progress=progress
        )
        scores[hop] = checked[hop].linear.verified(checked[hop].causal)
    n_facts = len(next(iter(facts.values())).facts)
    return Demo(model, n_facts, histories, scores, checked, time.perf_counter() - start)
