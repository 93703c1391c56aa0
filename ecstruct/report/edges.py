"""The page of `ecstruct edges`: what goes from component to component."""

from pathlib import Path

from ecstruct.report.page import write_page
from ecstruct.scores.edges import Edges


def edges_report(path: Path, edges: Edges, replay: str) -> None:
    """Write the report of the edges between the strongest components."""
    write_page(path, "edges.html", "Edges", edges.conclusion(), replay, edges.attrs, edges=edges)
