"""The experiments of the paper, on any model. Each is a function that returns a figure, a table and rows.

>>> from ecstruct.experiments import Setup, ocr
>>> result = ocr(Setup(repeats=1), progress=False)
>>> sorted(result.results()["ocr"])
['first_hop', 'second_hop']

`Setup` says which model is used and how it is finetuned. With `out=DIR`, an experiment keeps every finished
cell in that folder, and a later run continues from there. `reproduce` runs several experiments;
`ecstruct reproduce` does so from the command line and writes a report.
"""

from ecstruct.experiments import beyond
from ecstruct.experiments.data_ordering import Ordering, ordering
from ecstruct.experiments.extractive_scores import Scores, scores
from ecstruct.experiments.graft_localization import Localization, localization
from ecstruct.experiments.layer_freezing import Freezing, freezing
from ecstruct.experiments.learning_rates import ChosenRates, rates
from ecstruct.experiments.out_of_context import Ocr, ocr
from ecstruct.experiments.rate_sensitivity import Sensitivity, sensitivity
from ecstruct.experiments.reproduction import BEYOND, EXPERIMENTS, reproduce
from ecstruct.experiments.result import Result
from ecstruct.experiments.setup import Rates, Setup, Words
from ecstruct.experiments.weight_grafting import Grafting, grafting

__all__ = [
    "BEYOND",
    "EXPERIMENTS",
    "ChosenRates",
    "Freezing",
    "Grafting",
    "Localization",
    "Ocr",
    "Ordering",
    "Rates",
    "Result",
    "Scores",
    "Sensitivity",
    "Setup",
    "Words",
    "beyond",
    "freezing",
    "grafting",
    "localization",
    "ocr",
    "ordering",
    "rates",
    "reproduce",
    "scores",
    "sensitivity",
]
