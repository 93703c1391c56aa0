"""Checks of the scores: against interventions and against controls."""

from ecstruct.checks.against_causal import fidelity
from ecstruct.checks.agreement import Fidelity
from ecstruct.checks.constant_steering import Steering
from ecstruct.checks.control_models import Controls, controls
from ecstruct.scores.permutation import above_control

__all__ = ["Controls", "Fidelity", "Steering", "above_control", "controls", "fidelity"]
