"""The pages that runs write: of one set of scores, of their fidelity, and of the demo."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ecstruct.checks.agreement import Fidelity
from ecstruct.plots import heatmap, rank_curves
from ecstruct.report.explorer import Explorer
from ecstruct.report.page import Item, Picture, Replay, Section, Table, write_report
from ecstruct.scores.components import component_names
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.summary import adding_up, with_values

_MEANING = {
    "informative": "its weight change stores the fact",
    "upstream": "it writes the query that changed weights answer",
    "downstream": "it decodes what changed weights wrote",
}
PROMPTS = "prompts.jsonl"
"""The file beside a report of scores with the prompts that were scored."""

_MOST = "The components that raise the reward most"
_ENTITY = "X and Y stand for the last two tokens of what differs between the prompts"

_RANKS = (
    "Ranks take passes of their own: ecstruct rank gives those of a model, and ecstruct finetune "
    "--evaluate their course through training."
)
_CHECK = "check them with ecstruct fidelity"


def top_table(scores: ExtractiveScores, n: int = 5) -> pd.DataFrame:
    """The `n` components that raise the reward most by every score, or fewer, with what they add to it."""
    columns = {score: _raising(scores, score, n) for score in map(str, scores.dataset["score"].values)}
    rows = max(map(len, columns.values()))
    filled = {score: cells + ["–"] * (rows - len(cells)) for score, cells in columns.items()}
    return pd.DataFrame({"rank": range(1, rows + 1), **filled})


def _raising(scores: ExtractiveScores, score: str, n: int) -> list[str]:
    return with_values(scores.top(n, score).query("value > 0"))


def score_report(
    path: Path, scores: ExtractiveScores, replay: str, ranks: pd.DataFrame | None = None
) -> None:
    """Write the report of one set of scores; `ranks` are those of `ecstruct.evaluate.rank_summary`."""
    before, after = (float(scores.reward.sel(state=s).mean()) for s in ("before", "after"))
    its = [scores.attrs.get(state, {}).get("fingerprint", state) for state in ("before", "after")]
    summary = (
        "Both models have the same weights: nothing was finetuned between them, and all scores are zero."
        if its[0] == its[1]
        else f"Finetuning moved the mean reward of {_prompts(scores)} from "
        f"{before:.3g} to {after:.3g}. ".replace("-", "−")
        + _strongest(scores)
    )
    templates = list(dict.fromkeys(map(str, scores.dataset["template"].values)))
    parts = {template: _of_template(scores, template) for template in templates}
    sections = [
        Section("Which layer, at which token", [_explorer(scores)]),
        *(
            Section(f"Template {template}" if template else "Strongest components", [_top(part)])
            for template, part in parts.items()
        ),
        Section("What finetuning changed", [_ranks(ranks), _rewards(parts), adding_up(scores)]),
        Section(
            "Outside MLPs and heads",
            [Table(_rest(scores), f"Informative scores of all other weights{_unit(scores)}.")],
        ),
        Section(
            "Can these scores be trusted?", [_trust(scores), Replay(_fidelity_command(scores, path.parent))]
        ),
        Section("Make it again", [Replay(replay, scores.attrs)]),
    ]
    write_report(path, title="Extractive scores", summary=summary, sections=sections)


def fidelity_report(path: Path, fidelity: Fidelity, replay: str) -> None:
    """Write the report of how far the scores of one set of prompts can be trusted."""
    sections = [
        Section("Fast scores and interventions", _agreement(fidelity)),
        Section(
            "The fast scores",
            [Table(top_table(fidelity.linear), f"{_MOST}{_unit(fidelity.linear)}.")],
        ),
        Section(
            "The interventions",
            [Table(top_table(fidelity.causal), f"{_MOST}{_unit(fidelity.causal)}.")],
        ),
        Section("Make it again", [Replay(replay, fidelity.linear.attrs)]),
    ]
    write_report(path, title="Fidelity of the scores", summary=fidelity.verdict(), sections=sections)


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
    """Write the report of the demo: `ranks` before and after, on what `scale`, `curves` per epoch, the
    scores, and how far they can be trusted."""
    closer = [
        Section(
            f"The {hop} scores, prompt by prompt",
            [
                _explorer(of_hop),
                Table(top_table(of_hop), f"{_MOST}: mean over prompts, sum over tokens, in logits."),
            ],
        )
        for hop, of_hop in scores.items()
    ]
    sections = [
        Section(
            "What was learnt",
            [
                Table(ranks, f"Mean rank of the right answer {scale}."),
                Picture(rank_curves(curves), "Mean ranks through finetuning."),
            ],
        ),
        Section(
            "Which components make it generalise",
            [
                Picture(
                    heatmap(scores),
                    f"Scores on the implications, layer by token; positive raises the reward. {_ENTITY}.",
                ),
            ],
        ),
        *closer,
        *(
            Section(f"Can the {hop} scores be trusted?", [of_hop.verdict(), *_agreement(of_hop)])
            for hop, of_hop in fidelity.items()
        ),
        Section("Make it again", [Replay(replay)]),
    ]
    write_report(path, title="ecstruct demo", summary=summary, sections=sections)


def _agreement(fidelity: Fidelity) -> list[Item]:
    caption = (
        "A point per component, coloured by layer, mean over prompts: the fast score across, the effect of "
        f"the intervention that it stands for up{_unit(fidelity.linear)}."
    )
    lists = (
        "Agreement over components: Pearson's r, Spearman's rho, r over components of single prompts; the "
        "slope of interventions on fast scores; the share of the top components that both have."
    )
    return [Picture(fidelity.figure, caption), Table(fidelity.table().round(3), lists)]


def _explorer(scores: ExtractiveScores) -> Explorer:
    return Explorer(
        scores,
        "Layer by token, for a prompt or the mean of several; red raises the reward, blue lowers it. "
        "Choose a cell to see the heads behind it: click it, move there with the arrow keys, or use the "
        f"lists above. Of a mean, {_ENTITY}.",
    )


def _of_template(scores: ExtractiveScores, template: str) -> ExtractiveScores:
    dataset = scores.dataset
    return ExtractiveScores(dataset.isel(prompt=dataset["template"].values.astype(str) == template))


def _strongest(scores: ExtractiveScores) -> str:
    """The first component by each score, if it raises the reward. Fast scores may be wrong about it, but
    not where its intervention agrees."""
    named, verified = [], scores.interventions is not None
    by = "by fast scores and interventions" if verified else f"by the fast scores ({_CHECK})"
    for score, meaning in _MEANING.items():
        top = scores.top(scores.heads.size, score).query("value > 0")
        if verified:
            top = top[top["agrees"].fillna(False)]
        named += [f"{name} ({score}: {meaning})" for name in component_names(top.head(1))]
    if not named:
        return f"{by[0].upper()}{by[1:]}, no component raises it."
    return f"Strongest {by}: " + ", ".join(named) + "."


def _top(part: ExtractiveScores) -> Table:
    over = "one prompt" if part.dataset.sizes["prompt"] == 1 else f"mean over {_prompts(part)}"
    return Table(top_table(part), f"{_MOST}: {over}, sum over tokens{_unit(part)}.")


def _ranks(ranks: pd.DataFrame | None) -> Item:
    if ranks is None:
        return _RANKS
    return Table(
        ranks, "Rank of the answer among its options, 0 being best; accuracy is the share of rank 0."
    )


def _rewards(parts: Mapping[str, ExtractiveScores]) -> Table:
    rows = []
    for template, part in parts.items():
        mean: Any = part.reward.astype("float64").mean("prompt")
        before, after = (float(mean.sel(state=state)) for state in ("before", "after"))
        n = part.dataset.sizes["prompt"]
        row = {"template": template or "–", "prompts": n, "before": before, "after": after}
        rows.append(row | {"change": after - before})
    unit = _unit(next(iter(parts.values())))
    return Table(pd.DataFrame(rows), f"The mean reward before and after finetuning{unit}.")


def _trust(scores: ExtractiveScores) -> str:
    run = "not run here" if scores.interventions is None else "run here on some of the strongest only"
    return (
        f"They are linear approximations of interventions, which were {run}. This command runs them on a "
        "sample of all components of the same two models, and says how far both agree."
    )


def _fidelity_command(scores: ExtractiveScores, folder: Path) -> str:
    """How these scores would be held against interventions."""
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
    n = scores.dataset.sizes["prompt"]
    return f"{n} prompt{'s' * (n != 1)}"


def _unit(scores: ExtractiveScores) -> str:
    units = {"logit_diff": ", in logits", "logprob": ", in nats"}
    return units.get(str(scores.attrs.get("options", {}).get("reward")), "")


def _rest(scores: ExtractiveScores) -> pd.DataFrame:
    rest: Any = scores.rest.mean("prompt")
    return pd.DataFrame({"weights": list(rest["group"].values), "informative": rest.values})
