"""The page of `ecstruct recall`: how a model recalls facts, and whether finetuning changed it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import xarray as xr

from ecstruct.plots import scatter
from ecstruct.plots.recall import (
    attributes_rate_lines,
    extraction_falls,
    extraction_head_map,
    extraction_lines,
    knockout_heatmap,
    knockout_lines,
    patched_lines,
    rank_lines,
    sublayer_lines,
)
from ecstruct.recall.attention_knockout import LIKELY, telling
from ecstruct.recall.comparison import Comparison
from ecstruct.recall.dissection import Dissection
from ecstruct.recall.extraction_events import extracted, extracting_layers, first_extraction
from ecstruct.recall.layer_readings import LENS, READINGS
from ecstruct.report.page import Item, Picture, Replay, Section, Table, write_report

AFTER, DIFFERENCE = "after", "after − before"
_BANDS = "Mean over prompts; bands are 95% intervals of bootstrap draws of prompts."

Models: TypeAlias = Mapping[str, Dissection]
"""What was found of each model, by its title: before and after finetuning, or "" for a model alone."""


def recall_report(
    path: Path,
    found: Dissection | Comparison,
    tokens: Mapping[str, xr.DataArray],
    replay: str,
    config: Mapping[str, Any],
) -> None:
    """Write the report of one model, or of two; `tokens` are knockouts of the first prompt's tokens."""
    if isinstance(found, Comparison):
        models, differences = {"before": found.before, AFTER: found.after}, found.difference()
    else:
        models, differences = {"": found}, {}

    def panels(name: str) -> dict[str, Any]:
        """Return one part of what was found, by model, and its difference."""
        parts = {title: getattr(model, name) for title, model in models.items()}
        return {**parts, DIFFERENCE: differences[name]} if differences else parts

    any_model = next(iter(models.values()))
    sections = [_knockout(models, tokens)]
    if any_model.rate is not None:
        sections.append(_enrichment(any_model, panels))
    sections += [_extraction(models, panels), _readings(models, tokens)]
    if any_model.heads is not None:
        caption = (
            "Share of prompts for which a head's weights map the subject's last token to an attribute."
        )
        figure = extraction_head_map(panels("heads"))
        sections.append(Section("Extraction heads", [Picture(figure, caption)]))
    if isinstance(found, Comparison):
        sections.append(_joined(found))
    sections.append(Section("Make it again", [Replay(replay, config)]))
    write_report(path, title="Recall", summary=_summary(models), sections=sections)


def _knockout(models: Models, tokens: Mapping[str, xr.DataArray]) -> Section:
    """Show what blocking attention to groups of tokens, and to single tokens, changes."""
    n_layers = next(iter(models.values())).knockout.attrs["options"]["window"]
    window, token = f"{n_layers} layer{'s' * (n_layers != 1)}", _token(models)
    items: list[Item] = [Table(_probabilities(models), f"How likely the {token} is when all is seen.")]
    if any((model.knockout["probability"] < LIKELY).any() for model in models.values()):
        items.append(
            f"What blocking makes of a probability below {LIKELY:.0%} is noise: such prompts are left out, "
            "and a model that has no others."
        )
    panels = {title: effect for title, effect in _effects(models).items() if effect.notnull().any()}
    if panels:
        if {"before", AFTER} <= panels.keys():
            with xr.set_options(keep_attrs=False):
                panels[DIFFERENCE] = panels[AFTER] - panels["before"]
        caption = (
            f"Change of the probability of the {token} when the last token does not see a group of tokens, "
            f"in {window} around each. {_BANDS} The scale ends at 100% either way."
        )
        strongest = "Where blocking a group changes the probability most."
        items += [Picture(knockout_lines(panels), caption), Table(_strongest(models), strongest)]
    likely = {title: one for title, one in tokens.items() if float(one["probability"]) >= LIKELY}
    if likely:
        text = str(next(iter(likely.values()))["text"].values)
        caption = f"Single tokens of “{text}”, {window} around each. On the right: the logit lens."
        items.append(Picture(knockout_heatmap(likely), caption))
    return Section("Attention knockout", items)


def _enrichment(model: Dissection, panels: Callable[[str], dict[str, Any]]) -> Section:
    """Show how many attributes hidden states have, and how many without single layers."""
    assert model.sublayers is not None  # it is there with the rate
    at = model.sublayers.attrs["options"]["at_layer"]
    rate = (
        "How many of the first tokens of a hidden state's projection on the vocabulary are attributes of "
        "the subject, and how many of that of the mean embedding of the subject's tokens (embedding). "
        f"{_BANDS}"
    )
    without = (
        f"How the rate at the subject's last token after layer {at} changes without the attention or the "
        f"MLP of one layer. {_BANDS}"
    )
    items = [
        Picture(attributes_rate_lines(panels("rate")), rate),
        Picture(sublayer_lines(panels("sublayers")), without),
    ]
    return Section("Subject enrichment", items)


def _extraction(models: Models, panels: Callable[[str], dict[str, Any]]) -> Section:
    """Show in which layers the prediction is written, and how interventions change that."""
    caption = (
        f"Share of prompts in which a layer's attention, or MLP, writes the {_token(models)} more than any "
        f"other token at the last position. {_BANDS}"
    )
    listed = (
        "Share of prompts with such an event in any layer, and with attention having the first, %; and how "
        "many layers have one, in prompts that have any."
    )
    items: list[Item] = [
        Picture(extraction_lines(panels("extraction")), caption),
        Table(_extracted(models), listed),
    ]
    for title, model in models.items():
        events, start = model.extraction, f"{title.capitalize()} finetuning: t" if title else "T"
        conditions = [str(condition) for condition in events["condition"].values]
        patched = np.array([condition.startswith("patched") for condition in conditions])
        caption = f"{start}he same, some tokens not seen."
        items.append(Picture(extraction_falls(events.sel(condition=~patched)), caption))
        caption = (
            f"{start}he share with an event in any layer, groups of tokens staying as they enter a layer."
        )
        items.append(Picture(patched_lines(events), caption))
    return Section("Attribute extraction", items)


def _readings(models: Models, tokens: Mapping[str, xr.DataArray]) -> Section:
    """Show how far up the token is in what layers write, in the subject's state and in the logit lens."""
    caption = (
        f"Rank of the {_token(models)} in what attention and MLPs add at the last position, in the state "
        f"of the subject's last token, and under the logit lens at the last one; 0 is first. {_BANDS}"
    )
    found = {title: model.readings for title, model in models.items()}
    items: list[Item] = [Picture(rank_lines(found), caption)]
    text = str(next(iter(tokens.values()))["text"].values)
    for title, one in found.items():
        of_prompt = one.isel(prompt=int((one["text"].values == text).argmax()))
        listed = f"{title.capitalize()} finetuning: f" if title else "F"
        listed += f"irst tokens of “{text}”; in brackets, the rank of the {_token(models)}."
        items.append(Table(_first_tokens(of_prompt), listed))
    return Section("What layers say", items)


def _first_tokens(readings: xr.Dataset) -> pd.DataFrame:
    """List the first tokens of one prompt, a row per layer and a column per reading."""
    names = {
        LENS: "logit lens",
        "attention": "attention adds",
        "mlp": "MLP adds",
        "subject": "subject's state",
    }
    columns: dict[str, Any] = {"layer": readings["layer"].values}
    for reading in sorted({*readings["reading"].values}, key=(LENS, *READINGS).index):
        its = readings.sel(reading=reading)
        firsts = [", ".join(map(repr, map(str, its_tokens[:3]))) for its_tokens in its["top_tokens"].values]
        ranks = its["rank"].values
        columns[names[reading]] = [f"{text} ({n})" for text, n in zip(firsts, ranks, strict=True)]
    return pd.DataFrame(columns)


def _joined(found: Comparison) -> Section:
    """Show extractive scores beside what recall finds in the same layers and heads."""
    agreement = found.agreement()
    unit = "logits" if found.scores.attrs["options"]["reward"] == "logit_diff" else "nats"
    figure = scatter(
        {question: frame for question, frame in found.joined.items() if len(frame.dropna())},
        x=f"score ({unit})",
        y="recall after finetuning (% or pp)",
        fit={
            row["question"]: f"ρ = {row['rho']:.2f}, n = {row['n']}"
            for row in agreement.dropna().to_dict("records")
        },
    )
    meaning = (
        "Spearman's rank correlation over layers or heads, and the share of random pairings that agree at "
        "least as much, either way."
    )
    caption = (
        "A point per layer or head, mean over prompts. Across: informative scores of MLPs, summed over the "
        "subject's tokens, and downstream scores of attention at the last token. Up: the rise of the "
        "attributes rate in the layer and its fall without the layer's MLP, at the subject's last token; "
        "the extraction rate of the layer's attention; the share of prompts whose subject the head maps to "
        "an attribute."
    )
    items = [Table(agreement.round(3), meaning), Picture(figure, caption)]
    return Section("Extractive scores and recall", items)


def _effects(models: Models) -> dict[str, xr.DataArray]:
    """Return the effects of knockout, by model, in prompts whose token is likely."""
    return {title: telling(model.knockout) for title, model in models.items()}


def _probabilities(models: Models) -> pd.DataFrame:
    """List how likely the token is over prompts, a row per model."""
    rows = []
    for title, model in models.items():
        p = model.knockout["probability"].values
        row = {"model": title, "mean p": float(p.mean()), "median p": float(np.median(p))}
        row |= {"lowest p": float(p.min()), "highest p": float(p.max()), "prompts": len(p)}
        rows.append(row | {f"of which p ≥ {LIKELY:g}": int((p >= LIKELY).sum())})
    return _by_model(rows, models)


def _strongest(models: Models) -> pd.DataFrame:
    """List around which layer blocking changes most, a row per model, group of tokens and place of the
    subject: a model may treat its first token unlike all others."""
    rows = []
    for title, effect in _effects(models).items():
        told = effect.dropna("prompt", how="all")
        starts = told["subject_at"] == 0
        split = {"all": told, "at position 0": told[starts], "later": told[~starts]}
        for place, its in split.items() if 0 < starts.sum() < len(starts) else [("all", told)]:
            mean = its.mean("prompt")
            for group in mean["group"].values if its.sizes["prompt"] else ():
                layer = int(abs(mean.sel(group=group)).argmax("layer"))
                at = mean.sel(group=group).isel(layer=layer)
                window = f"{int(mean['first_layer'][layer])} to {int(mean['last_layer'][layer])}"
                row = {
                    "group": str(group),
                    "model": title,
                    "subject": place,
                    "prompts": its.sizes["prompt"],
                }
                rows.append(row | {"layer": layer, "window": window, "change, %": float(at)})
    return _by_model(rows, models)


def _extracted(models: Models) -> pd.DataFrame:
    """List in which share of prompts the prediction is extracted, a row per model and intervention."""
    rows = []
    for title, model in models.items():
        shares, first = extracted(model.extraction), first_extraction(model.extraction)
        layers = extracting_layers(model.extraction)
        layers = layers.where(layers > 0).mean("prompt")
        for condition in shares["condition"].values:
            by_part = shares.sel(condition=condition).to_series().to_dict()
            attention = 100 * float((first.sel(condition=condition) == "attention").mean())
            row = {"intervention": str(condition), "model": title, **by_part}
            row |= {"attention first": attention}
            by_part = layers.sel(condition=condition).to_series().to_dict()
            rows.append(row | {f"layers, {part}": n for part, n in by_part.items()})
    return _by_model(rows, models)


def _by_model(rows: Sequence[Mapping[str, Any]], models: Models) -> pd.DataFrame:
    """Return a table of rows, without the column of models if there is only one."""
    frame = pd.DataFrame(rows)
    return frame if len(models) > 1 else frame.drop(columns="model")


def _summary(models: Models) -> str:
    """Say of each model to which tokens attention matters most, and how much."""
    sentences = []
    for title, effect in _effects(models).items():
        mean = effect.mean("prompt")
        when = f"{title} finetuning, " if title else ""
        p = float(models[title].knockout["probability"].mean())
        if mean.isnull().all():
            sentence = (
                f"{when}the {_token(models)} has a probability of {p:.1g} on average: what blocking "
                "attention changes of it is noise."
            )
        else:
            group, layer = (int(i) for i in divmod(int(mean.values.argmin()), mean.sizes["layer"]))
            low = f"{float(mean[group, layer]):.0f}".replace("-", "−")
            sentence = (
                f"{when}blocking attention from the {mean['group'].values[group]} tokens to the last one "
                f"around layer {layer} changes the token's probability ({p:.2g} on average) by {low}%."
            )
        sentences.append(sentence[0].upper() + sentence[1:])
    return " ".join(sentences)


def _token(models: Models) -> str:
    """Return what the report calls the token whose probability is looked at."""
    token = next(iter(models.values())).knockout.attrs["options"]["token"]
    return "predicted token" if token == "predicted" else "answer's first token"
