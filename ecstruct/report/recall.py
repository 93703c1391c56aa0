"""The page of `ecstruct recall`: how a model recalls facts, and whether finetuning changed it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from ecstruct.plots import recall, scatter
from ecstruct.recall.attention_knockout import LIKELY, telling
from ecstruct.recall.comparison import Comparison
from ecstruct.recall.dissection import Dissection
from ecstruct.recall.extraction_events import extracted, extracting_layers, first_extraction
from ecstruct.recall.layer_readings import LENS, READINGS
from ecstruct.report.page import write_page

AFTER, DIFFERENCE = "after", "after − before"

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
    n_layers = any_model.knockout.attrs["options"]["window"]
    effects = {title: effect for title, effect in _effects(models).items() if effect.notnull().any()}
    if {"before", AFTER} <= effects.keys():
        with xr.set_options(keep_attrs=False):
            effects[DIFFERENCE] = effects[AFTER] - effects["before"]
    compared = found if isinstance(found, Comparison) else None
    write_page(
        path,
        "recall.html",
        "Recall",
        _summary(models),
        replay,
        config,
        plots=recall,
        models=models,
        any_model=any_model,
        panels=panels,
        token=_token(models),
        window=f"{n_layers} layer{'s' * (n_layers != 1)}",
        probabilities=_probabilities(models),
        unlikely=any((model.knockout["probability"] < LIKELY).any() for model in models.values()),
        likely=f"{LIKELY:.0%}",
        effects=effects,
        strongest=_strongest(models) if effects else None,
        tokens=tokens,
        likely_tokens={title: one for title, one in tokens.items() if float(one["probability"]) >= LIKELY},
        text_of=lambda its: str(next(iter(its.values()))["text"].values),
        extracted=_extracted(models),
        unpatched=_unpatched,
        readings={title: model.readings for title, model in models.items()},
        first_tokens=_first_tokens,
        agreement=compared and compared.agreement(),
        joined=compared and _joined(compared),
    )


def _unpatched(events: xr.Dataset) -> xr.Dataset:
    """Return the events of the conditions in which nothing is patched."""
    patched = np.array([str(condition).startswith("patched") for condition in events["condition"].values])
    return events.sel(condition=~patched)


def _first_tokens(readings: xr.Dataset, text: str) -> pd.DataFrame:
    """List the first tokens of the prompt of this text, a row per layer and a column per reading."""
    readings = readings.isel(prompt=int((readings["text"].values == text).argmax()))
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


def _joined(found: Comparison) -> go.Figure:
    """Draw extractive scores against what recall finds in the same layers and heads."""
    unit = "logits" if found.scores.attrs["options"]["reward"] == "logit_diff" else "nats"
    return scatter(
        {question: frame for question, frame in found.joined.items() if len(frame.dropna())},
        x=f"score ({unit})",
        y="recall after finetuning (% or pp)",
        fit={
            row["question"]: f"ρ = {row['rho']:.2f}, n = {row['n']}"
            for row in found.agreement().dropna().to_dict("records")
        },
    )


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
    frames = []
    for title, model in models.items():
        events, layers = model.extraction, extracting_layers(model.extraction)
        first = 100 * (first_extraction(events) == "attention").mean("prompt").to_pandas()
        mean = layers.where(layers > 0).mean("prompt").to_pandas().T.add_prefix("layers, ")
        frame = extracted(events).to_pandas().T.assign(**{"attention first": first}).join(mean)
        frame.insert(0, "model", title)
        frames.append(frame.reset_index(names="intervention"))
    return _by_model(pd.concat(frames), models)


def _by_model(rows: Sequence[Mapping[str, Any]] | pd.DataFrame, models: Models) -> pd.DataFrame:
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
