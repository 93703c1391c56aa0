"""The page of `ecstruct alignment`: how the gradients of facts and implications are aligned."""

from pathlib import Path

import pandas as pd

from ecstruct.report.page import Picture, Replay, Section, Table, write_report
from ecstruct.scores.alignment_result import FORMS, Alignment
from ecstruct.scores.components import component_names

_MOST_ALIGNED = "The components in which facts are aligned most with their own implications, on average."


def alignment_report(path: Path, alignment: Alignment, replay: str) -> None:
    """Write the report of how gradients are aligned before finetuning."""
    caption = (
        "Mean alignment by layer, of facts with their own implications and with others; positive raises "
        "the reward of the implication."
    )
    compared = (
        "Own pairs beside others: means of the whole alignment, the share of implications that are aligned "
        "most with a fact that they follow from, and p with the implications permuted among the facts."
    )
    sections = [
        Section(
            "By layer", [Picture(alignment.figure, caption), Table(alignment.table().round(4), compared)]
        ),
        *(
            Section(f"By {form}", [Table(_most_aligned(alignment.components(form)), _MOST_ALIGNED)])
            for form in FORMS
        ),
        Section("Make it again", [Replay(replay, alignment.attrs)]),
    ]
    summary = alignment.conclusion()
    write_report(path, title="Alignment of gradients", summary=summary, sections=sections)


def _most_aligned(components: pd.DataFrame) -> pd.DataFrame:
    """Return the components in which own pairs are aligned most."""
    most = components.nlargest(10, "own")
    columns = most[["own", "others"]].map("{:.4g}".format)
    return columns.set_axis([component_names(most)]).rename_axis("component").reset_index()
