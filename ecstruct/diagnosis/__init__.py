"""Why did a finetuning not take? One fault among several, each told by a comparison in the same run."""

from ecstruct.diagnosis.questions import diagnose
from ecstruct.diagnosis.result import Diagnosis

__all__ = ["Diagnosis", "diagnose"]
