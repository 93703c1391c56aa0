"""The page of `ecstruct alignment`: how the gradients of facts and implications are aligned."""

from pathlib import Path

import pandas as pd

from ecstruct.report.page import write_page
from ecstruct.scores.alignment_result import FORMS, Alignment
from ecstruct.scores.components import component_names


def alignment_report(path: Path, alignment: Alignment, replay: str) -> None:
    """Write the report of how gradients are aligned before finetuning."""
    write_page(
        path,
        "alignment.html",
        "Alignment of gradients",
        alignment.conclusion(),
        replay,
        alignment.attrs,
        alignment=alignment,
        most_aligned={form: _most_aligned(alignment.components(form)) for form in FORMS},
    )


def _most_aligned(components: pd.DataFrame) -> pd.DataFrame:
    """Return the components in which own pairs are aligned most."""
    most = components.nlargest(10, "own")
    return most[["own", "others"]].set_axis([component_names(most)]).rename_axis("component").reset_index()
