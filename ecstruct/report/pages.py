"""The pages of scores, of what they are held against (interventions, controls), and of the demo."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ecstruct.checks import Controls
from ecstruct.checks.agreement import Fidelity
from ecstruct.plots import heatmap, rank_curves
from ecstruct.report.explorer import Explorer
from ecstruct.report.page import Replay, write_page
from ecstruct.scores.components import component_names
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.summary import adding_up, with_values
from ecstruct.scores.words import Words

_MEANING = {
    "informative": "its weight change stores the fact",
    "upstream": "it writes the query that changed weights answer",
    "downstream": "it decodes what changed weights wrote",
}
PROMPTS = "prompts.jsonl"
"""The file beside a report of scores with the prompts that were scored."""

_ENTITY = "X and Y stand for the last two tokens of what differs between the prompts"
_CHECK = "check them with ecstruct fidelity"


def top_table(scores: ExtractiveScores, n: int = 5) -> pd.DataFrame:
    """List the `n` components that raise the reward most by every score, or fewer, and by how much."""
    columns = {}
    for score in map(str, scores.dataset["score"].values):
        top = scores.top(n, score).query("value > 0")
        columns[score] = pd.Series(with_values(top), dtype=object)
    table = pd.DataFrame(columns).fillna("–")
    table.insert(0, "rank", range(1, len(table) + 1))
    return table


def score_report(
    path: Path,
    scores: ExtractiveScores,
    replay: str,
    ranks: pd.DataFrame | None = None,
    words: Mapping[str, Words] | None = None,
) -> None:
    """Write the report of one set of scores; `ranks` are those of `ecstruct.evaluate.rank_summary`, `words`
    what the strongest components by a score write, and under "read" what heads read."""
    dataset = scores.dataset
    before, after = (float(scores.reward.sel(state=s).mean()) for s in ("before", "after"))
    moved = f"from {before:.3g} to {after:.3g}".replace("-", "−")
    summary = f"Finetuning moved the mean reward of {_prompts(scores)} {moved}. {_strongest(scores)}"
    weights = {scores.attrs.get(state, {}).get("fingerprint", state) for state in ("before", "after")}
    if len(weights) == 1:
        summary = (
            "Both models have the same weights: nothing was finetuned between them, and all scores are "
            "zero."
        )
    templates = dataset["template"].values.astype(str)
    parts = {t: ExtractiveScores(dataset.isel(prompt=templates == t)) for t in dict.fromkeys(templates)}
    rest: Any = scores.rest.mean("prompt")
    _write(
        path,
        "score.html",
        "Extractive scores",
        summary,
        replay,
        scores.attrs,
        scores=scores,
        parts=parts,
        ranks=ranks,
        rewards=pd.DataFrame(_rewards(template, part) for template, part in parts.items()),
        adding_up=adding_up(scores.reward, scores.completeness),
        words=words,
        by_projection=_by_projection(scores) if "projection" in dataset.dims else None,
        rest=pd.DataFrame({"weights": list(rest["group"].values), "informative": rest.values}),
        fidelity=Replay(_fidelity_command(scores, path.parent)),
    )


def fidelity_report(path: Path, fidelity: Fidelity, replay: str) -> None:
    """Write the report of how far the scores of one set of prompts can be trusted."""
    _write(
        path,
        "fidelity.html",
        "Fidelity of the scores",
        fidelity.verdict(),
        replay,
        fidelity.linear.attrs,
        fidelity=fidelity,
    )


def causal_report(path: Path, scores: ExtractiveScores, replay: str) -> None:
    """Write the report of scores by intervention."""
    _write(
        path,
        "causal.html",
        "Scores by intervention",
        f"Interventions on the components of a model, on {_prompts(scores)}: no approximation.",
        replay,
        scores.attrs,
        part=scores,
    )


def controls_report(path: Path, controls: Controls, replay: str) -> None:
    """Write the report of scores beside those of controls."""
    tests = {
        name: rows.sort_values(["p", "difference"], ascending=[True, False]).head(10).round(4)
        for name, rows in controls.above("informative").groupby("against", sort=False)
    }
    _write(
        path,
        "controls.html",
        "Controls",
        "A control has the same prompts or the same size of change, but nothing to be found: scores that "
        f"are no larger than its scores say nothing of the facts. {controls.conclusion()}",
        replay,
        controls.scores.attrs,
        controls=controls,
        tests=tests,
    )


def demo_report(
    path: Path,
    ranks: pd.DataFrame,
    scale: str,
    curves: Mapping[str, list[float]],
    scores: Mapping[str, ExtractiveScores],
    fidelity: Mapping[str, Fidelity],
    summary: str,
    replay: str,
) -> None:
    """Write the report of the demo.

    Args:
        ranks: The mean ranks before and after finetuning.
        scale: The words that say among how many options ranks are counted.
        curves: The mean ranks per epoch, by set of prompts.
        scores, fidelity: The scores of each hop, and how far they can be trusted.
    """
    _write(
        path,
        "demo.html",
        "ecstruct demo",
        summary,
        replay,
        ranks=ranks,
        scale=scale,
        curves=rank_curves(curves),
        heatmap=heatmap(scores),
        entity=_ENTITY,
        scores=scores,
        fidelities=fidelity,
    )


def _write(path: Path, *said: Any, **shown: Any) -> None:
    """Write a page whose template may ask for more of the scores that it shows."""
    asked = {"top_table": top_table, "explorer_of": _explorer, "prompts_of": _prompts, "unit": _unit}
    write_page(path, *said, **asked, **shown)


def _explorer(scores: ExtractiveScores) -> Explorer:
    """Return the scores to look through, with a caption that says how."""
    return Explorer(
        scores,
        "Layer by token, for a prompt or the mean of several; red raises the reward, blue lowers it. "
        "Choose a cell to see the heads behind it: click it, move there with the arrow keys, or use the "
        f"lists above. Of a mean, {_ENTITY}.",
    )


def _strongest(scores: ExtractiveScores) -> str:
    """Name the first component by each score, if it raises the reward. Fast scores may be wrong about it,
    but not where its intervention agrees."""
    named, verified = [], scores.interventions is not None
    by = "by fast scores and interventions" if verified else f"by the fast scores ({_CHECK})"
    for score, meaning in _MEANING.items():
        top = scores.top(scores.heads.size, score).query("value > 0")
        if verified:
            top = top.loc[top["agrees"].fillna(False)]
        named += [f"{name} ({score}: {meaning})" for name in component_names(top.head(1))]
    if not named:
        return f"{by[0].upper()}{by[1:]}, no component raises it."
    return f"Strongest {by}: " + ", ".join(named) + "."


def _rewards(template: str, part: ExtractiveScores) -> dict[str, Any]:
    """Return a row with the mean reward of a template before and after finetuning."""
    mean: Any = part.reward.astype("float64").mean("prompt")
    before, after = (float(mean.sel(state=state)) for state in ("before", "after"))
    n = part.dataset.sizes["prompt"]
    row = {"template": template or "–", "prompts": n, "before": before, "after": after}
    return row | {"change": after - before}


def _fidelity_command(scores: ExtractiveScores, folder: Path) -> str:
    """Return the command that compares these scores with interventions."""
    words = ["ecstruct", "fidelity"]
    for state in ("before", "after"):
        source = scores.attrs.get(state, {})
        revision = f"@{source['revision']}" if source.get("revision") else ""
        words += [f"--{state}", f"{source.get('source', state.upper())}{revision}"]
    options = scores.attrs.get("options", {})
    for name in ("reward", "baseline"):
        if name in options:
            words += [f"--{name}", str(options[name])]
    return shlex.join([*words, "--prompts", str(folder / PROMPTS), "--out", str(folder / "fidelity")])


def _prompts(scores: ExtractiveScores) -> str:
    """Write the number of prompts, with the word."""
    n = scores.dataset.sizes["prompt"]
    return f"{n} prompt{'s' * (n != 1)}"


def _unit(scores: ExtractiveScores) -> str:
    """Return the unit of the reward as the end of a sentence, if it is known."""
    units = {"logit_diff": ", in logits", "logprob": ", in nats"}
    return units.get(str(scores.attrs.get("options", {}).get("reward")), "")


def _by_projection(scores: ExtractiveScores) -> pd.DataFrame:
    """List the components of highest informative score, with the share of each projection in it."""
    most = scores.projections.table().nlargest(10, "value")
    table = most.drop(columns=["kind", "layer", "head"]).map("{:.3g}".format)
    table.insert(0, "component", component_names(most))
    return table
