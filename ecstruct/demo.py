"""The demo: the organism learns the paper's facts, generalises, and shows which components did it."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ecstruct.checks.fidelity import Fidelity, fidelity
from ecstruct.facts import FactSet, first_hop, second_hop
from ecstruct.files import write_text
from ecstruct.finetuning import History, finetune
from ecstruct.models.load import load
from ecstruct.report.pages import demo_report, top_table
from ecstruct.scores.result import ExtractiveScores

HOPS = ("first-hop", "second-hop")


@dataclass(frozen=True)
class Demo:
    """What the demo measured, by hop."""

    histories: Mapping[str, History]
    fidelity: Mapping[str, Fidelity]
    seconds: float

    @property
    def scores(self) -> dict[str, ExtractiveScores]:
        """The scores of the implications, by hop."""
        return {hop: of_hop.linear for hop, of_hop in self.fidelity.items()}

    def ranks(self) -> pd.DataFrame:
        """Mean ranks of facts and implications before and after finetuning."""
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

    def table(self) -> str:
        """The short table that the command line prints."""
        parts = ["mean rank among 20 options (0 is best, 9.5 chance)"]
        parts.append(self.ranks().to_string(index=False, float_format="{:.2f}".format))
        for hop, scores in self.scores.items():
            parts.append(f"\n{hop} implications: strongest components, in logits")
            parts.append(top_table(scores, 3).drop(columns="rank").to_string(index=False))
        return "\n".join(parts)

    def write(self, out: Path, replay: str) -> None:
        """Write `report.html`, `summary.json` and the scores of both hops to a folder."""
        for hop, scores in self.scores.items():
            scores.save(out / f"scores-{hop}.nc")
        curves = {
            f"{hop} {kind}": curve
            for hop, history in self.histories.items()
            for kind, curve in history.ranks.items()
        }
        text = "The organism, a small language model, was finetuned on 20 facts per hop. " + " ".join(
            f"On {hop} implications, which it never saw, its mean rank went from "
            f"{history.ranks['implication'][0]:.2f} to {history.ranks['implication'][-1]:.2f}."
            for hop, history in self.histories.items()
        )
        demo_report(out / "report.html", self.ranks(), curves, self.scores, self.fidelity, text, replay)
        write_text(out / "summary.json", json.dumps(self.summary(), indent=1))


def demo(*, seed: int = 0, device: str | None = None, progress: bool = True) -> Demo:
    """Finetune the organism on first- and second-hop facts, score both sets of implications, and hold
    the scores against interventions.

    `seed` draws which name goes with which city and the order of the facts.
    """
    start = time.perf_counter()
    organism = load("organism", device=device)
    histories: dict[str, History] = {}
    checked: dict[str, Fidelity] = {}
    for hop, make in zip(HOPS, (first_hop, second_hop), strict=True):
        data: FactSet = make(seed=seed)
        asked = {"fact": data.facts, "implication": data.implications}
        tuned = finetune(organism, data.facts, seed=seed, evaluate=asked, progress=progress)
        histories[hop] = tuned.history
        checked[hop] = fidelity(organism, tuned.model, data.implications, progress=progress)
    return Demo(histories, checked, time.perf_counter() - start)
