"""What the scores are worth: beside interventions and controls, and when what they name is grafted."""

from ecstruct.checks.agreement import Fidelity
from ecstruct.checks.controls import Controls, controls
from ecstruct.checks.fidelity import fidelity
from ecstruct.checks.grafts import Grafts, grafts
from ecstruct.scores.permutation import above_control

__all__ = ["Controls", "Fidelity", "Grafts", "above_control", "controls", "fidelity", "grafts"]
