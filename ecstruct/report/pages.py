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
from ecstruct.report.page import Item, Picture, Replay, Section, Table, write_report
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

_MOST = "The components that raise the reward most"
_ENTITY = "X and Y stand for the last two tokens of what differs between the prompts"

_RANKS = (
    "Ranks take passes of their own: ecstruct rank gives those of a model, and ecstruct finetune "
    "--evaluate their course through training."
)
_UNCHANGED = (
    "Both models have the same weights: nothing was finetuned between them, and all scores are zero."
)
_RANKED = "Rank of the answer among its options, 0 being best; accuracy is the share of rank 0."
_TESTED = (
    "The components of lowest p, by permutations of prompts; p_adjusted is for the number of components."
)
_BY_PROJECTION = "Informative scores by layer and projection; the heads of a layer together."
_OF_STRONGEST = "The components of highest informative score, and the share of each projection in it."
_WRITTEN = "What the change of the components of highest {} score writes, at the token where it is highest."
_READ = (
    "What the OV circuits of the heads of highest downstream score read, at the token from which most of "
    "what changes in their outputs comes: what is new, all of it before and after finetuning, and what is "
    "new in the residual stream there."
)
_AS_IF_READ = (
    "Words are those whose logits the change raises most, as if the head read the stream at that token; "
    "the rank is that of the answer among its options. What only later layers can read does not show."
)
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
    before, after = (float(scores.reward.sel(state=s).mean()) for s in ("before", "after"))
    moved = f"from {before:.3g} to {after:.3g}".replace("-", "−")
    summary = f"Finetuning moved the mean reward of {_prompts(scores)} {moved}. {_strongest(scores)}"
    weights = {scores.attrs.get(state, {}).get("fingerprint", state) for state in ("before", "after")}
    if len(weights) == 1:
        summary = _UNCHANGED
    templates = list(dict.fromkeys(map(str, scores.dataset["template"].values)))
    parts = {template: _of_template(scores, template) for template in templates}
    sections = [
        Section("Which layer, at which token", [_explorer(scores)]),
        *(
            Section(f"Template {template}" if template else "Strongest components", [_top(part)])
            for template, part in parts.items()
        ),
        Section(
            "What finetuning changed",
            [
                _RANKS if ranks is None else Table(ranks, _RANKED),
                _rewards(parts),
                adding_up(scores.reward, scores.completeness),
            ],
        ),
        *([Section("In words", _in_words(words))] if words else []),
        *([Section("By projection", _projections(scores))] if "projection" in scores.dataset.dims else []),
        Section("Outside MLPs and heads", [_rest(scores)]),
        Section(
            "Can these scores be trusted?", [_trust(scores), Replay(_fidelity_command(scores, path.parent))]
        ),
        Section("Make it again", [Replay(replay, scores.attrs)]),
    ]
    write_report(path, title="Extractive scores", summary=summary, sections=sections)


def fidelity_report(path: Path, fidelity: Fidelity, replay: str) -> None:
    """Write the report of how far the scores of one set of prompts can be trusted."""
    both = {"The fast scores": fidelity.linear, "The interventions": fidelity.causal}
    sections = [
        Section("Fast scores and interventions", _agreement(fidelity)),
        *(
            Section(title, [Table(top_table(scores), f"{_MOST}{_unit(scores)}.")])
            for title, scores in both.items()
        ),
        Section("Make it again", [Replay(replay, fidelity.linear.attrs)]),
    ]
    write_report(path, title="Fidelity of the scores", summary=fidelity.verdict(), sections=sections)


def causal_report(path: Path, scores: ExtractiveScores, replay: str) -> None:
    """Write the report of scores by intervention."""
    summary = f"Interventions on the components of a model, on {_prompts(scores)}: no approximation."
    sections = [
        Section("Strongest components", [_top(scores)]),
        Section("Make it again", [Replay(replay, scores.attrs)]),
    ]
    write_report(path, title="Scores by intervention", summary=summary, sections=sections)


def controls_report(path: Path, controls: Controls, replay: str) -> None:
    """Write the report of scores beside those of controls."""
    tests = {
        f"Informative scores above those of {name}": rows.drop(columns="against")
        for name, rows in controls.above("informative").groupby("against", sort=False)
    }
    unit = _unit(controls.scores)
    sums = f"The sum of positive scores of all components of a kind{unit}."
    changes = (
        f"The mean reward{unit} and the mean rank before and after; the share that the change of the "
        "reward is of that of the finetuned model; absolute scores, the mean over prompts and components."
    )
    sections = [
        Section(
            "Finetuned and controls",
            [
                Picture(controls.figure, sums),
                Table(controls.totals().reset_index(), "The same sums."),
                Table(controls.changes().reset_index(names="changed"), changes),
            ],
        ),
        *_of_steering(controls),
        *(Section(title, [Table(_first(rows).round(4), _TESTED)]) for title, rows in tests.items()),
        Section("Make it again", [Replay(replay, controls.scores.attrs)]),
    ]
    summary = (
        "A control has the same prompts or the same size of change, but nothing to be found: scores that "
        f"are no larger than its scores say nothing of the facts. {controls.conclusion()}"
    )
    write_report(path, title="Controls", summary=summary, sections=sections)


def _of_steering(controls: Controls) -> list[Section]:
    """Return the section on a constant vector in place of the change, if one was added."""
    if controls.steering is None:
        return []
    caption = (
        "The share of the change of the reward that a constant vector regains, by the layer after which it "
        "is added to the model before finetuning: 1 is all that finetuning did, 0 nothing. The vector of a "
        "prompt comes from the other prompts of its template."
    )
    return [
        Section("A constant vector in place of the change", [Picture(controls.steering.figure, caption)])
    ]


def _first(tested: pd.DataFrame) -> pd.DataFrame:
    """Return the components of lowest p, the largest difference first."""
    return tested.sort_values(["p", "difference"], ascending=[True, False]).head(10)


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
    learnt = [
        Table(ranks, f"Mean rank of the right answer {scale}."),
        Picture(rank_curves(curves), "Mean ranks through finetuning."),
    ]
    caption = f"Scores on the implications, layer by token; positive raises the reward. {_ENTITY}."
    listed = f"{_MOST}: mean over prompts, sum over tokens, in logits."
    sections = [
        Section("What was learnt", learnt),
        Section("Which components make it generalise", [Picture(heatmap(scores), caption)]),
        *(
            Section(
                f"The {hop} scores, prompt by prompt", [_explorer(found), Table(top_table(found), listed)]
            )
            for hop, found in scores.items()
        ),
        *(
            Section(f"Can the {hop} scores be trusted?", [found.verdict(), *_agreement(found)])
            for hop, found in fidelity.items()
        ),
        Section("Make it again", [Replay(replay)]),
    ]
    write_report(path, title="ecstruct demo", summary=summary, sections=sections)


def _agreement(fidelity: Fidelity) -> list[Item]:
    """Show fast scores beside interventions, as a figure and a table."""
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
    """Return the scores to look through, with a caption that says how."""
    return Explorer(
        scores,
        "Layer by token, for a prompt or the mean of several; red raises the reward, blue lowers it. "
        "Choose a cell to see the heads behind it: click it, move there with the arrow keys, or use the "
        f"lists above. Of a mean, {_ENTITY}.",
    )


def _of_template(scores: ExtractiveScores, template: str) -> ExtractiveScores:
    """Return the scores of the prompts of one template."""
    dataset = scores.dataset
    return ExtractiveScores(dataset.isel(prompt=dataset["template"].values.astype(str) == template))


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


def _top(part: ExtractiveScores) -> Table:
    """List the strongest components of the prompts of one template."""
    over = "one prompt" if part.dataset.sizes["prompt"] == 1 else f"mean over {_prompts(part)}"
    return Table(top_table(part), f"{_MOST}: {over}, sum over tokens{_unit(part)}.")


def _rewards(parts: Mapping[str, ExtractiveScores]) -> Table:
    """List the mean reward before and after finetuning, a row per template."""
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


def _in_words(words: Mapping[str, Words]) -> list[Item]:
    """Return a table of what the strongest components by each score write, and one of what heads read."""
    tables = [
        Table(its.table().round(2), _READ if of == "read" else _WRITTEN.format(of))
        for of, its in words.items()
    ]
    return [*tables, _AS_IF_READ]


def _projections(scores: ExtractiveScores) -> list[Item]:
    """Return the picture and the table of informative scores by projection."""
    most = scores.projections.table().nlargest(10, "value")
    table = most.drop(columns=["kind", "layer", "head"]).map("{:.3g}".format)
    table.insert(0, "component", component_names(most))
    return [Picture(scores.projections.figure, _BY_PROJECTION), Table(table, _OF_STRONGEST)]


def _rest(scores: ExtractiveScores) -> Table:
    """List the informative scores of what is neither MLP nor head."""
    rest: Any = scores.rest.mean("prompt")
    frame = pd.DataFrame({"weights": list(rest["group"].values), "informative": rest.values})
    return Table(frame, f"Informative scores of all other weights{_unit(scores)}.")
