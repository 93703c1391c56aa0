"""The pages of `ecstruct subnetworks`: masks, what subnetworks can do, and what they share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from ecstruct.errors import InputError
from ecstruct.plots.subnetworks import accuracy_lines, frequencies, spread, template_grid
from ecstruct.report.page import Item, Picture, Replay, Section, Table, write_report
from ecstruct.subnetworks import Core, Emergence, Masks, by_template, core

Evaluations = Mapping[str, Mapping[str, xr.Dataset]]

_KEPT = "How often each component is kept, layer by head; what all subnetworks keep has a dot."


def pruning_report(path: Path, masks: Masks, replay: str) -> None:
    """Write the report of pruning."""
    sizes = {"heads": masks.heads.sum(["layer", "head"]), "MLPs": masks.mlp.sum("layer")}
    kept = {name: size.values for name, size in sizes.items()}
    table = pd.DataFrame({"seed": masks.seeds, "ablated": masks.sparsity.values, **kept})
    caption = "The share that is ablated, and how many heads and MLPs are kept."
    if "expected_sparsity" in masks.dataset:
        table.insert(2, "expected", masks.dataset["expected_sparsity"].values)
        caption += " Expected is the share that the gates themselves would ablate after the last step."
    items: list[Item] = [Table(table, caption)]
    if len(masks) > 1 and masks.converged.all():
        items.insert(0, Picture(frequencies(core(masks)), _KEPT))
    sections = [Section("Subnetworks", items), Section("Make it again", [Replay(replay, masks.attrs)])]
    summary = repr(masks).strip("<>") + "."
    try:
        masks.check_converged()
    except InputError as error:
        summary += f" {str(error)[0].upper()}{str(error)[1:]}"
    write_report(path, title="Subnetworks", summary=summary, sections=sections)


def evaluation_report(
    path: Path, evaluations: Evaluations, table: pd.DataFrame, effective_size: float, replay: str
) -> None:
    """Write the report of what subnetworks can do; `table` has a row for each of them."""
    summary = (
        f"{_spans(evaluations)} The effective size is {effective_size:.0f}%: 100% minus the largest "
        "sparsity whose accuracy is within 0.03 of the full model's."
    )
    listed = "Every subnetwork, and the full model first; KL, in nats, and agreement with it are in-domain."
    sections = [
        _spread(evaluations),
        *_templates(evaluations),
        Section("Subnetworks", [Table(table, listed)]),
        Section("Make it again", [Replay(replay)]),
    ]
    write_report(path, title="What subnetworks know", summary=summary, sections=sections)


def core_report(path: Path, evaluations: Evaluations, parts: Mapping[str, Any], replay: str) -> None:
    """Write the report of the core.

    `parts` has the core itself and what was measured of it; a part that could not be measured is the
    sentence that says why.
    """
    found, thirds = parts["core"], parts["generalising"]
    frame = thirds.frame.sort_values("difference", key=abs, ascending=False).head(10)
    largest = "Shares of the best and of the worst third that keep a component: the largest."
    sections = [
        _spread(evaluations),
        *_templates(evaluations),
        Section(
            "The core",
            [
                Picture(found.figure, _KEPT),
                Table(_by_layer(found), "The components in all subnetworks: heads by their numbers."),
                Table(found.table(), "The size of the core, and what chance would leave."),
            ],
        ),
        _part("Without it", parts["ablation"], "Mean ranks; dots are draws or subnetworks.", "Mean ranks."),
        Section("What generalising subnetworks have", [thirds.conclusion(), Table(frame, largest)]),
        _part(
            "Do added heads depend on it?",
            parts["dependence"],
            "Relative change of what they write; dots are draws.",
            "Relative change, mean over heads.",
        ),
        _part(
            "What its heads attend to",
            parts["attention"],
            "Mean attention to each kind of token; dots are heads. Heads are those of the core.",
            "Share of the attention.",
        ),
    ]
    if "scores" in parts:
        beside = parts["scores"]
        items = [
            beside.conclusion(),
            Picture(beside.figure, "A point per component: its score, and how often it is kept."),
            Table(beside.correlations, "Spearman's correlation of both."),
            Table(beside.groups(), "Mean percentile of the scores among their kind; 0.5 is chance."),
        ]
        sections.append(Section("Beside the extractive scores", items))
    sections.append(Section("Make it again", [Replay(replay)]))
    summary = f"{_spans(evaluations)} {found.conclusion()}"
    write_report(path, title="The core of subnetworks", summary=summary, sections=sections)


def _by_layer(found: Core) -> pd.DataFrame:
    """List the components of the core, a row per layer that has a component in the core."""
    rows = []
    for layer in found.heads["layer"].values.tolist():
        heads, mlp = found.heads.sel(layer=layer), bool(found.mlp.sel(layer=layer))
        if heads.any() or mlp:
            numbers = ", ".join(map(str, heads["head"].values[heads.values]))
            rows.append({"layer": str(layer), "MLP": "yes" if mlp else "", "heads": numbers})
    return pd.DataFrame(rows, columns=["layer", "MLP", "heads"])


def _part(title: str, part: Any, figure_caption: str, table_caption: str) -> Section:
    """Show what was measured of the core, or the sentence that says why it was not."""
    if isinstance(part, str):
        return Section(title, [part])
    items = [part.conclusion(), Picture(part.figure, figure_caption), Table(part.table(), table_caption)]
    return Section(title, items)


def emergence_report(path: Path, emergence: Emergence, replay: str) -> None:
    """Write the report of a core through the checkpoints of a training."""
    caption = "{} at every checkpoint, with and without the core."
    pictures = [
        Picture(emergence.figure, caption.format("Mean rank of the answer")),
        Picture(emergence.accuracy_figure, caption.format("Accuracy")),
    ]
    table = Table(emergence.frame, caption.format("Mean rank and accuracy"))
    sections = [Section("Through training", [*pictures, table])]
    if len(sizes := emergence.sizes()):
        shown = (
            "A point per checkpoint: how much of the model is enough in-domain, and what the model knows."
        )
        own = [Picture(emergence.size_figure, shown), Table(sizes, "Effective size, and accuracy.")]
        chosen = (
            "How often the subnetworks of every checkpoint keep the components of the core, and of all."
        )
        of_chosen = Table(emergence.chosen.dropna(), chosen)
        sections.append(Section("Subnetworks of every checkpoint", [*own, of_chosen]))
    sections.append(Section("Make it again", [Replay(replay)]))
    write_report(path, title="Emergence of the core", summary=emergence.conclusion(), sections=sections)


def _spread(evaluations: Evaluations) -> Section:
    """Show what subnetworks can do in-domain and beyond."""
    groups = {
        prompts: {f"{float(name):.0%} ablated": found for name, found in by_sparsity.items()}
        for prompts, by_sparsity in evaluations.items()
    }
    figure = spread(groups["in-domain"], groups["generalization"])
    caption = "A point per subnetwork: its mean rank in-domain across, and on what follows from it up."
    accurate = spread(groups["in-domain"], groups["generalization"], measure="accuracy")
    lines = accuracy_lines(
        {
            prompts: {float(name): found for name, found in by_sparsity.items()}
            for prompts, by_sparsity in evaluations.items()
        }
    )
    against = "Accuracy against sparsity: the mean over subnetworks, from the lowest to the highest."
    items: list[Item] = [
        Picture(figure, caption),
        Picture(accurate, caption.replace("mean rank", "accuracy")),
        Picture(lines, against),
    ]
    return Section("In-domain and beyond", items)


def _templates(evaluations: Evaluations) -> list[Section]:
    """Show the accuracy on every template of those sets of prompts that have several."""
    items = []
    for prompts, by_sparsity in evaluations.items():
        tables = {f"{float(name):.0%} ablated": by_template(found) for name, found in by_sparsity.items()}
        if all(len(table) > 1 for table in tables.values()):
            caption = f"Accuracy on each template, {prompts}: of the full model, and of subnetworks."
            items.append(Picture(template_grid(tables), caption))
    return [Section("Template by template", items)] if items else []


def _spans(evaluations: Evaluations) -> str:
    """Say for each sparsity from which mean rank to which, on each set of prompts."""
    sentences = []
    for name in evaluations["in-domain"]:
        spans = []
        for prompts, by_sparsity in evaluations.items():
            ranks, full = by_sparsity[name]["mean_rank"], float(by_sparsity[name]["full_mean_rank"])
            low, high = float(ranks.min()), float(ranks.max())
            spans.append(f"{prompts} {low:.2f} to {high:.2f} (full model {full:.2f})")
        sentences.append(f"Mean ranks with {float(name):.0%} ablated: {', '.join(spans)}.")
    return " ".join(sentences)
