"""The page of the experiments: each with its figures, its table beside the paper's, and what it shows."""

from collections.abc import Sequence
from pathlib import Path

from ecstruct.experiments.reproduction import BEYOND, EXPERIMENTS, PRETRAINED
from ecstruct.experiments.result import Result
from ecstruct.report.page import write_page


def experiments_report(path: Path, results: Sequence[Result], replay: str) -> None:
    """Write the report of some experiments, all of one setup."""
    setup = results[0].setup
    seeds = "one seed" if len(setup.seed_list) == 1 else f"{len(setup.seed_list)} seeds"
    title, experiments = _content({result.name for result in results})
    invented = (
        "Facts are about people with unusual names, who are invented; two-hop facts are about 16, so that "
        "chance is 7.5. "
    )
    summary = (
        f"{experiments} Feng, Russell & Steinhardt (ICML 2025) on {setup.model}, {seeds}. Ranks count from "
        "0 among 20 options: 0 is a right answer, 9.5 is chance. "
        f"{invented if setup.facts == 'people' else ''}"
        "The paper's numbers, where they are given, are those of OLMo-7B-0424."
    )
    write_page(path, "experiments.html", title, summary, replay, results=results)


def _content(names: set[str]) -> tuple[str, str]:
    """Say what a page is about: its title, and the beginning of its summary.

    >>> _content({"ocr", "rates"}), _content({"origin"})
    (('The paper, reproduced', 'Experiments of'), ('Beyond the paper', 'Experiments beyond'))
    """
    of_paper, beyond = names & EXPERIMENTS.keys(), names & (BEYOND.keys() | PRETRAINED.keys())
    if of_paper and beyond:
        return "The paper, and beyond it", "Experiments of and beyond"
    if of_paper:
        return "The paper, reproduced", "Experiments of"
    if beyond:
        return "Beyond the paper", "Experiments beyond"
    return "Learning rates", "Learning rates for the experiments of"
