"""Subnetworks that do what a model does: pruned, evaluated and compared (Bhaskar, Friedman, Chen 2024)."""

from ecstruct.subnetworks.ablation import CoreAblation, ablate_core
from ecstruct.subnetworks.attended_tokens import Attended, attended
from ecstruct.subnetworks.beside_scores import WithScores, with_scores
from ecstruct.subnetworks.best_and_worst import Generalising, generalising
from ecstruct.subnetworks.common_core import Core, core
from ecstruct.subnetworks.dependence_on_core import Dependence, dependence
from ecstruct.subnetworks.emergence_in_training import Emergence, emergence
from ecstruct.subnetworks.evaluation import by_template, effective_size, evaluate
from ecstruct.subnetworks.masks import Masks
from ecstruct.subnetworks.pruning import prune
from ecstruct.subnetworks.reference import Reference, reference_values

__all__ = [
    "Attended",
    "Core",
    "CoreAblation",
    "Dependence",
    "Emergence",
    "Generalising",
    "Masks",
    "Reference",
    "WithScores",
    "ablate_core",
    "attended",
    "by_template",
    "core",
    "dependence",
    "effective_size",
    "emergence",
    "evaluate",
    "generalising",
    "prune",
    "reference_values",
    "with_scores",
]
