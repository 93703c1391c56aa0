"""ecstruct: which MLPs and attention heads make a finetuned language model generalise.

>>> import ecstruct
>>> before = ecstruct.load("organism", device="cpu")
>>> data = ecstruct.facts.first_hop()
>>> tuned = ecstruct.finetune(before, data.facts, progress=False)
>>> scores = ecstruct.score(before, tuned.model, data.implications, progress=False)
>>> scores.mlp.dims, scores.heads.dims
(('score', 'prompt', 'layer', 'token'), ('score', 'prompt', 'layer', 'head', 'token'))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ecstruct.named_models import NamedModel, register

if TYPE_CHECKING:
    from ecstruct import checks, experiments, facts, grafting, models, organism, plots, recall, subnetworks
    from ecstruct.checks.against_causal import fidelity
    from ecstruct.diagnosis import Diagnosis, diagnose
    from ecstruct.errors import InputError
    from ecstruct.evaluate import keep_known, mean_rank, ranks
    from ecstruct.facts import FactSet, Prompt
    from ecstruct.finetuning import Finetuned, finetune
    from ecstruct.grafting import Grafted, graft
    from ecstruct.models.delta import WeightDelta
    from ecstruct.models.export import save_model
    from ecstruct.models.loading import load
    from ecstruct.models.names import WeightSelection
    from ecstruct.models.steps import checkpoints
    from ecstruct.report.hub import push_to_hub
    from ecstruct.report.widget import explore
    from ecstruct.scores.alignment_result import Alignment
    from ecstruct.scores.causal import causal_scores
    from ecstruct.scores.edges import Edges
    from ecstruct.scores.engine import ScoreEngine, score
    from ecstruct.scores.gradient_alignment import alignment
    from ecstruct.scores.path_patching import edges
    from ecstruct.scores.read import read_words
    from ecstruct.scores.result import ExtractiveScores
    from ecstruct.scores.words import Words
    from ecstruct.scores.written import written_words
    from ecstruct.suggestions import Suggestion, suggest

__version__ = "0.2.0"

__all__ = [
    "Alignment",
    "Diagnosis",
    "Edges",
    "ExtractiveScores",
    "FactSet",
    "Finetuned",
    "Grafted",
    "InputError",
    "Prompt",
    "ScoreEngine",
    "Suggestion",
    "WeightDelta",
    "WeightSelection",
    "Words",
    "alignment",
    "causal_scores",
    "checkpoints",
    "checks",
    "diagnose",
    "edges",
    "experiments",
    "explore",
    "facts",
    "fidelity",
    "finetune",
    "graft",
    "grafting",
    "keep_known",
    "load",
    "mean_rank",
    "models",
    "organism",
    "plots",
    "push_to_hub",
    "ranks",
    "read_words",
    "recall",
    "save_model",
    "score",
    "subnetworks",
    "suggest",
    "written_words",
]

# Imported when first used: torch and TransformerLens take seconds, and `ecstruct --help` needs neither.
_HOMES = {
    "Alignment": "scores.alignment_result",
    "Diagnosis": "diagnosis",
    "Edges": "scores.edges",
    "ExtractiveScores": "scores.result",
    "FactSet": "facts",
    "Finetuned": "finetuning",
    "Grafted": "grafting",
    "InputError": "errors",
    "Prompt": "facts",
    "ScoreEngine": "scores.engine",
    "Suggestion": "suggestions",
    "WeightDelta": "models.delta",
    "WeightSelection": "models.names",
    "Words": "scores.words",
    "alignment": "scores.gradient_alignment",
    "causal_scores": "scores.causal",
    "checkpoints": "models.steps",
    "diagnose": "diagnosis",
    "edges": "scores.path_patching",
    "explore": "report.widget",
    "fidelity": "checks.against_causal",
    "finetune": "finetuning",
    "graft": "grafting",
    "keep_known": "evaluate",
    "load": "models.loading",
    "mean_rank": "evaluate",
    "push_to_hub": "report.hub",
    "ranks": "evaluate",
    "read_words": "scores.read",
    "save_model": "models.export",
    "score": "scores.engine",
    "suggest": "suggestions",
    "written_words": "scores.written",
}


def _organism() -> NamedModel:
    from ecstruct.organism.shipped import ORGANISM

    return ORGANISM


def _smollm2() -> NamedModel:
    from ecstruct.models.pretrained import SMOLLM2

    return SMOLLM2


def _minilm() -> NamedModel:
    from ecstruct.models.pretrained import MINILM

    return MINILM


register("organism", _organism)
register("smollm2", _smollm2)
register("minilm", _minilm)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ecstruct' has no attribute {name!r}")
    if name not in _HOMES:
        return import_module(f"ecstruct.{name}")
    value = globals()[name] = getattr(import_module(f"ecstruct.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
