"""Grafts of the finetuned weights onto the original model: sets of weights at chosen positions, and the top
components of a ranking."""

from ecstruct.grafting.sets_at_positions import Grafted, graft
from ecstruct.grafting.sums_of_scores import RandomSets, random_sets
from ecstruct.grafting.top_components import Grafts, grafts

__all__ = ["Grafted", "Grafts", "RandomSets", "graft", "grafts", "random_sets"]
