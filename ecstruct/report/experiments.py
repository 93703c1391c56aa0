"""The page of the experiments: each with its figures, its table beside the paper's, and what it shows."""

from collections.abc import Sequence
from pathlib import Path

from ecstruct.experiments.result import Result
from ecstruct.report.page import Item, Picture, Replay, Section, Table, write_report


def experiments_report(path: Path, results: Sequence[Result], replay: str) -> None:
    """Write the report of some experiments, all of one setup."""
    setup = results[0].setup
    seeds = "one seed" if len(setup.seed_list) == 1 else f"{len(setup.seed_list)} seeds"
    summary = (
        f"Experiments of Feng, Russell & Steinhardt (ICML 2025) on {setup.model}, {seeds}. Ranks count "
        "from 0 among 20 options: 0 is a right answer, 9.5 is chance. The paper's numbers are those of "
        "OLMo-7B-0424."
    )
    sections = [*(_section(result) for result in results), Section("Make it again", [Replay(replay)])]
    write_report(path, title="The paper, reproduced", summary=summary, sections=sections)


def _section(result: Result) -> Section:
    pictures: list[Item] = [Picture(figure, caption) for caption, figure in result.figures().items()]
    tables: list[Item] = [Table(frame, caption) for caption, frame in result.tables().items()]
    return Section(result.title, [result.conclusion(), *pictures, *tables])
