"""Checkpoints as hooked models: loading and saving them, their differences, and the one view of a hooked
model that everything else uses."""

from ecstruct.models.delta import WeightDelta
from ecstruct.models.export import save_model, to_hugging_face
from ecstruct.models.hooked import HookedView
from ecstruct.models.load import load
from ecstruct.models.names import WeightSelection

__all__ = ["HookedView", "WeightDelta", "WeightSelection", "load", "save_model", "to_hugging_face"]
