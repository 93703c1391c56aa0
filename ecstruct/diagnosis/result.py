"""What a diagnosis found: an answer to every question, with the numbers that it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from ecstruct.diagnosis.weights import relative
from ecstruct.io.saved import SavedDataset
from ecstruct.plots.grids import value_grids

Verdict = Literal["yes", "no", "cannot be told", "does not arise"]

QUESTIONS: Mapping[str, str] = {
    "changed": "Did the weights change, as those of a finetuning do?",
    "learnt": "Were the facts learnt?",
    "general": "Are they facts, rather than strings?",
    "read": "Are they read by what follows from them?",
    "won": "Do the new answers win over the old ones?",
    "helped": "Did the last half of the change still help?",
    "kept": "Was everything else kept?",
}
"""In the order in which they are asked. Yes is the healthy answer to all of them."""

HEALTHY = "healthy"

_SAID = ("verdict", "says", "against", "fault", "advice")
"""The texts of a finding."""

_TEXTS = ("set", "text", "answer")
"""The texts of a prompt."""


@dataclass(frozen=True)
class Finding:
    """The answer to a question: the `verdict`, a sentence that `says` why, its `numbers` by name, what they
    were compared `against`, and of a fault its name and the `advice`."""

    verdict: Verdict
    says: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    against: str = ""
    fault: str = ""
    advice: str = ""


@dataclass(frozen=True, eq=False)
class Diagnosis(SavedDataset):
    """Which fault a finetuning has; `ecstruct.diagnose` returns one.

    It wraps one `xarray.Dataset`, accessible as `.dataset`: by `question` (see `QUESTIONS`) the `verdict`,
    what it `says`, what its numbers were compared `against`, the `fault` and the `advice`; `value` (number)
    has the numbers; `change` and `before` (tensor) the norms of dW and W; `rank` (prompt, state) the rank
    of every answer before and after finetuning, 0 being best, with the set that the prompt is of.
    """

    format = "ecstruct diagnosis 1"
    contents = "a diagnosis"

    @classmethod
    def of(
        cls,
        findings: Mapping[str, Finding],
        changes: pd.DataFrame,
        ranks: pd.DataFrame,
        attrs: Mapping[str, Any],
    ) -> Diagnosis:
        """Make one of findings by question, the frame of `changes_of`, and one with a row per prompt."""
        numbers = [(q, name, float(v)) for q, its in findings.items() for name, v in its.numbers.items()]
        variables = {
            **{name: ("question", [getattr(its, name) for its in findings.values()]) for name in _SAID},
            "value": ("number", np.array([value for *_, value in numbers])),
            "change": ("tensor", changes["change"].to_numpy()),
            "before": ("tensor", changes["before"].to_numpy()),
            "rank": (("prompt", "state"), ranks[["before", "after"]].to_numpy()),
        }
        labels = {
            "question": [*findings],
            "number": ("number", [name for _, name, _ in numbers]),
            "asked": ("number", [question for question, *_ in numbers]),
            "tensor": changes["tensor"].tolist(),
            "module": ("tensor", changes["module"].tolist()),
            "layer": ("tensor", changes["layer"].fillna(-1).to_numpy(dtype=int)),
            "state": ["before", "after"],
            **{column: ("prompt", ranks[column].tolist()) for column in _TEXTS},
        }
        return cls(xr.Dataset(variables, labels, dict(attrs)))

    @property
    def faults(self) -> dict[str, str]:
        """The names of the faults, by the question that found them; the first one is to be mended first."""
        names = zip(self.dataset["question"].values, self.dataset["fault"].values, strict=True)
        return {str(question): str(fault) for question, fault in names if fault}

    @property
    def diagnosis(self) -> str:
        """The name of the first fault; without one, "healthy" if facts were learnt, or "cannot be told"."""
        learnt = self.finding("learnt").verdict == "yes"
        return next(iter(self.faults.values()), HEALTHY if learnt else "cannot be told")

    def finding(self, question: str) -> Finding:
        """Return the finding of one of `QUESTIONS`."""
        its = self.dataset.sel(question=question)
        texts: dict[str, Any] = {name: str(its[name].values) for name in _SAID}
        numbers = self.numbers().query("question == @question")
        return Finding(**texts, numbers=dict(zip(numbers["number"], numbers["value"], strict=True)))

    def table(self) -> pd.DataFrame:
        """Return a row per question: its `verdict`, what it says, and what its numbers were compared
        with."""
        names = {"verdict": "verdict", "finding": "says", "compared with": "against"}
        asked = {"question": [QUESTIONS[str(q)] for q in self.dataset["question"].values]}
        return pd.DataFrame(asked | {column: self.dataset[name].values for column, name in names.items()})

    def numbers(self) -> pd.DataFrame:
        """Return a row per number: the `question`, the `number`, and its `value`."""
        names = {"question": "asked", "number": "number", "value": "value"}
        return pd.DataFrame({column: self.dataset[name].values for column, name in names.items()})

    def weights(self) -> pd.DataFrame:
        """Return a row per tensor: `tensor`, `module`, `layer` (-1 outside of the blocks), the norms
        `change` and `before`, and their ratio `relative`, NaN for a tensor of zeros."""
        names = ("tensor", "module", "layer", "change", "before")
        frame = pd.DataFrame({name: self.dataset[name].values for name in names})
        return frame.assign(relative=frame["change"] / frame["before"].where(frame["before"] > 0))

    def prompts(self) -> pd.DataFrame:
        """Return a row per prompt: the `set` that it is of, `text`, `answer`, and the rank `before` and
        `after`."""
        ranks = {state: self.dataset["rank"].sel(state=state).values for state in ("before", "after")}
        return pd.DataFrame({**{name: self.dataset[name].values for name in _TEXTS}, **ranks})

    @property
    def figure(self) -> go.Figure:
        """Draw |dW| / |W| in percent as a table of layers by modules; what did not change has 0."""
        frame = self.weights().query("layer >= 0")
        grid = {
            str(module): {layer: 100 * relative(its) for layer, its in of.groupby("layer")}
            for module, of in frame.groupby("module", sort=False)
        }
        return value_grids({"": pd.DataFrame(grid)}, x="module", y="layer", value="|dW| / |W| (%)")

    def conclusion(self) -> str:
        """Name the fault, with what it rests on and what to do next; or say that there is none."""
        if not self.faults:
            open_ = [
                f"{QUESTIONS[q]} {its.says}"
                for q in QUESTIONS
                if (its := self.finding(q)).verdict == "cannot be told"
            ]
            left = f" What cannot be told: {' '.join(open_)}" if open_ else ""
            found = [its.says for q in ("learnt", "read") if (its := self.finding(q)).verdict == "yes"]
            return f"{self.diagnosis.capitalize()}: no fault was found. {' '.join(found)}{left}"
        (first, fault), *others = self.faults.items()
        its = self.finding(first)
        also = [f"Also {name}: {self.finding(q).says}" for q, name in others]
        return " ".join([f"{fault[0].upper()}{fault[1:]}. {its.says}", *also, f"Next: {its.advice}"])
