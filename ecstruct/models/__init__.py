"""Load checkpoints as hooked models, save them, and take their difference; `HookedView` is the one view of
a hooked model that the rest of the package uses."""

from ecstruct.models.delta import WeightDelta
from ecstruct.models.export import save_model, to_hugging_face
from ecstruct.models.hooked import HookedView
from ecstruct.models.loading import load
from ecstruct.models.names import WeightSelection

__all__ = ["HookedView", "WeightDelta", "WeightSelection", "load", "save_model", "to_hugging_face"]
