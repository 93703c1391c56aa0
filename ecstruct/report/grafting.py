"""The pages of `ecstruct graft` and `ecstruct grafts`."""

from __future__ import annotations

from pathlib import Path

from ecstruct.grafting import Grafted, Grafts, RandomSets
from ecstruct.report.page import Picture, Replay, Section, Table, write_report

_SHARES = (
    "The share of the change of reward from before to after finetuning that each set has at each group of "
    "positions: 0 is nothing, 1 is all of it. Negative shares are white. Random sets have as many MLPs and "
    "heads; the control has the weights of another finetuning, and shares of the same change."
)
_EVERY = (
    "Means over prompts, and the share with its interval over prompts, beside random sets and the control."
)
_RANKS = (
    "Mean rank of the answer against the number of components that have the finetuned weights, or lack "
    "them."
)
_FAITHFUL = (
    "Faithfulness of the rankings: the mean share of the change of reward of the top 0.1% to 50% of the "
    "components."
)
_CELLS = "Mean rank and mean reward for every choice of components."
_SUMS = (
    "Random sets of components: the gain in reward when their weights are grafted, against the sum of "
    "their values."
)
_CORRELATIONS = (
    "Spearman's correlation of summed values and gains, with its interval over sets; of random values, "
    "over draws of these."
)


def graft_report(path: Path, grafted: Grafted, replay: str) -> None:
    """Write the report of sets of weights that were grafted at positions."""
    sections = [
        Section("Sets and positions", [Picture(grafted.figure, _SHARES), Table(grafted.table(), _EVERY)]),
        Section("Make it again", [Replay(replay, grafted.attrs)]),
    ]
    write_report(path, title="Grafts at positions", summary=grafted.conclusion(), sections=sections)


def grafts_report(path: Path, grafts: Grafts, drawn: RandomSets | None, replay: str) -> None:
    """Write the report of what grafting and reverting components does, and of what random sets do."""
    of_random = drawn and Section(
        "Sums of scores", [Picture(drawn.figure, _SUMS), Table(drawn.table().round(3), _CORRELATIONS)]
    )
    sections = [
        Section(
            "Grafted and reverted",
            [
                Picture(grafts.figure, _RANKS),
                Table(grafts.faithfulness().round(3).reset_index(), _FAITHFUL),
            ],
        ),
        *([of_random] if of_random else []),
        Section("Every choice", [Table(grafts.frame, _CELLS)]),
        Section("Make it again", [Replay(replay)]),
    ]
    summary = grafts.conclusion() + (f" {drawn.conclusion()}" if drawn else "")
    write_report(path, title="Grafts", summary=summary, sections=sections)
