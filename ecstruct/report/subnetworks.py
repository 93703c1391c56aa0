"""The pages of `ecstruct subnetworks`: masks, what subnetworks can do, and what they share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from ecstruct.errors import InputError
from ecstruct.plots.subnetworks import accuracy_lines, frequencies, spread, template_grid
from ecstruct.report.page import write_page
from ecstruct.subnetworks import Core, Emergence, Masks, by_template, core

Evaluations = Mapping[str, Mapping[str, xr.Dataset]]


def pruning_report(path: Path, masks: Masks, replay: str) -> None:
    """Write the report of pruning."""
    sizes = {"heads": masks.heads.sum(["layer", "head"]), "MLPs": masks.mlp.sum("layer")}
    kept = {name: size.values for name, size in sizes.items()}
    table = pd.DataFrame({"seed": masks.seeds, "ablated": masks.sparsity.values, **kept})
    if "expected_sparsity" in masks.dataset:
        table.insert(2, "expected", masks.dataset["expected_sparsity"].values)
    summary = repr(masks).strip("<>") + "."
    try:
        masks.check_converged()
    except InputError as error:
        summary += f" {str(error)[0].upper()}{str(error)[1:]}"
    write_page(
        path,
        "pruning.html",
        "Subnetworks",
        summary,
        replay,
        masks.attrs,
        sizes=table,
        frequencies=frequencies(core(masks)) if len(masks) > 1 and masks.converged.all() else None,
    )


def evaluation_report(
    path: Path, evaluations: Evaluations, table: pd.DataFrame, effective_size: float, replay: str
) -> None:
    """Write the report of what subnetworks can do; `table` has a row for each of them."""
    write_page(
        path,
        "evaluation.html",
        "What subnetworks know",
        f"{_spans(evaluations)} The effective size is {effective_size:.0f}%: 100% minus the largest "
        "sparsity whose accuracy is within 0.03 of the full model's.",
        replay,
        networks=table.rename(columns={"kl": "KL"}),
        **_in_domain(evaluations),
    )


def core_report(path: Path, evaluations: Evaluations, parts: Mapping[str, Any], replay: str) -> None:
    """Write the report of the core.

    `parts` has the core itself and what was measured of it; a part that could not be measured is the
    sentence that says why.
    """
    frame = parts["generalising"].frame.sort_values("difference", key=abs, ascending=False)
    frame = frame[frame["difference"] != 0].rename(columns={"p_adjusted": "adjusted p"})
    marks = {name: frame[name].map({True: "yes", False: ""}) for name in ("core", "added")}
    write_page(
        path,
        "core.html",
        "The core of subnetworks",
        f"{_spans(evaluations)} {parts['core'].conclusion()}",
        replay,
        by_layer=_by_layer(parts["core"]),
        differences=frame.assign(**marks).head(10),
        **{"scores": None, **parts},
        **_in_domain(evaluations),
    )


def emergence_report(path: Path, emergence: Emergence, replay: str) -> None:
    """Write the report of a core through the checkpoints of a training."""
    write_page(
        path, "emergence.html", "Emergence of the core", emergence.conclusion(), replay, emergence=emergence
    )


def _by_layer(found: Core) -> pd.DataFrame:
    """List the components of the core, a row per layer that has a component in the core."""
    rows = []
    for layer in found.heads["layer"].values.tolist():
        heads, mlp = found.heads.sel(layer=layer), bool(found.mlp.sel(layer=layer))
        if heads.any() or mlp:
            numbers = ", ".join(map(str, heads["head"].values[heads.values]))
            rows.append({"layer": str(layer), "MLP": "yes" if mlp else "", "heads": numbers})
    return pd.DataFrame(rows, columns=["layer", "MLP", "heads"])


def _in_domain(evaluations: Evaluations) -> dict[str, Any]:
    """Draw what subnetworks can do in-domain and beyond, and on every template where there are several."""
    ablated = {
        prompts: {f"{float(name):.0%} ablated": found for name, found in by_sparsity.items()}
        for prompts, by_sparsity in evaluations.items()
    }
    by_number = {
        prompts: {float(name): found for name, found in by_sparsity.items()}
        for prompts, by_sparsity in evaluations.items()
    }
    tables = {
        prompts: {title: by_template(found) for title, found in its.items()}
        for prompts, its in ablated.items()
    }
    both = (ablated["in-domain"], ablated["generalization"])
    return {
        "spreads": {"mean rank": spread(*both), "accuracy": spread(*both, measure="accuracy")},
        "accuracies": accuracy_lines(by_number),
        "templates": {
            prompts: template_grid(its)
            for prompts, its in tables.items()
            if all(len(table) > 1 for table in its.values())
        },
    }


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
