"""The page of `ecstruct diagnose`: which fault a finetuning has."""

from pathlib import Path

from ecstruct.diagnosis import Diagnosis
from ecstruct.report.page import write_page


def diagnosis_report(path: Path, found: Diagnosis, replay: str) -> None:
    """Write the report of a diagnosis."""
    write_page(path, "diagnosis.html", "Diagnosis", found.conclusion(), replay, found.attrs, found=found)
