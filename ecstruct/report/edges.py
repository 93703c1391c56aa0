"""The page of `ecstruct edges`: what goes from component to component."""

from pathlib import Path

from ecstruct.report.page import Picture, Replay, Section, Table, write_report
from ecstruct.scores.edges import Edges


def edges_report(path: Path, edges: Edges, replay: str) -> None:
    """Write the report of the edges between the strongest components."""
    drawn = (
        "A line from an upstream to an informative component is the part of the informative score that "
        "goes when it is not asked through the upstream one; a line to a downstream component is the part "
        "of its score that comes of the change of the informative one."
    )
    every = "Every edge, the mean over prompts with its interval, and its share in the score of the second."
    own = (
        "The scores of these components by intervention; of downstream ones also the share that the edges "
        "into the component sum to."
    )
    sections = [
        Section("From component to component", [Picture(edges.figure, drawn), Table(edges.table(), every)]),
        Section("Components", [Table(edges.nodes(), own)]),
        Section("Make it again", [Replay(replay, edges.attrs)]),
    ]
    write_report(path, title="Edges", summary=edges.conclusion(), sections=sections)
