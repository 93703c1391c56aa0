"""Scores in a model's repository on the Hugging Face Hub, where others look for them."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import EntryNotFoundError

from ecstruct.errors import InputError
from ecstruct.models.boot import gist
from ecstruct.report.pages import score_report, top_table
from ecstruct.scores.result import ExtractiveScores

_BEGIN, _END = "<!-- begin of scores by ecstruct -->", "<!-- end of scores by ecstruct -->"
_SECTION = re.compile(rf"\n*{re.escape(_BEGIN)}.*?{re.escape(_END)}\n*", re.DOTALL)


def push_to_hub(
    scores: ExtractiveScores,
    repo_id: str,
    *,
    folder: str = "ecstruct",
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Add scores to a model's repository on the Hub, in one commit: FOLDER/scores.nc, FOLDER/report.html,
    and a section of the model card with the strongest components. Everything else in the repository stays
    as it is; a second push replaces the section and the files.

    Args:
        repo_id: the repository, as "me/my-finetuned-model"; it is made if there is none.
        folder: the folder in the repository.
        private: whether a repository that is made is private; the account's default if not given.
        token: an access token that may write; that of `hf auth login` if not given.

    Returns:
        The address of the commit.

    Raises:
        InputError: the Hub cannot be reached, or refuses.
    """
    api = HfApi(token=token)
    with TemporaryDirectory() as made:
        report, data = Path(made) / "report.html", Path(made) / "scores.nc"
        scores.save(data)
        score_report(report, scores, _reading(repo_id, f"{folder}/scores.nc"))
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            try:
                card = Path(api.hf_hub_download(repo_id, "README.md")).read_text(encoding="utf-8")
            except EntryNotFoundError:
                card = ""
            added = {"README.md": _with_section(card, _section(scores, folder)).encode()}
            added |= {f"{folder}/{path.name}": path.read_bytes() for path in (data, report)}
            operations = [CommitOperationAdd(name, content) for name, content in added.items()]
            told = api.create_commit(repo_id, operations, commit_message="Add extractive scores")
        except Exception as error:  # its client raises errors of several libraries
            raise InputError(
                f"{repo_id} cannot be written on the Hub ({gist(error)}): check its name and your access, "
                "with hf auth login or token=."
            ) from error
    return str(told.commit_url)


def _reading(repo_id: str, name: str) -> str:
    """Return the code that reads scores from the Hub."""
    return (
        f'from huggingface_hub import hf_hub_download\nhf_hub_download("{repo_id}", "{name}")  '
        "# the path for ecstruct.ExtractiveScores.load"
    )


def _with_section(card: str, section: str) -> str:
    """Return a model card with this section in the place of an earlier one, or at its end."""
    if _SECTION.search(card):
        return _SECTION.sub(lambda _: f"\n\n{section}\n", card, count=1).lstrip("\n")
    return f"{card.rstrip()}\n\n{section}\n".lstrip("\n")


def _section(scores: ExtractiveScores, folder: str) -> str:
    """Return the section of a model card, in Markdown."""
    rewards = [float(scores.reward.sel(state=state).mean()) for state in ("before", "after")]
    models: Any = [scores.attrs.get(state, {}).get("source", state) for state in ("before", "after")]
    n = scores.dataset.sizes["prompt"]
    return "\n".join(
        [
            _BEGIN,
            "## What finetuning changed",
            "",
            f"Which MLPs and attention heads carry the change from `{models[0]}` to `{models[1]}` on {n} "
            f"prompts, whose mean reward it took from {rewards[0]:.3g} to {rewards[1]:.3g}; in brackets by "
            f"how much a component raises it. [Report]({folder}/report.html), "
            f"[scores]({folder}/scores.nc), by ecstruct ([method](https://arxiv.org/abs/2412.04614)).",
            "",
            *_markdown(top_table(scores)),
            _END,
        ]
    )


def _markdown(table: pd.DataFrame) -> list[str]:
    """Return the lines of a table in Markdown."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.values.tolist()]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
