"""The page of `ecstruct recall`: how a model recalls facts, and whether finetuning changed it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    sublayer_lines,
)
from ecstruct.recall.comparison import Comparison
from ecstruct.recall.dissection import Dissection
from ecstruct.recall.extraction import extracted, first_extraction
from ecstruct.recall.knockout import LIKELY, telling
from ecstruct.report.page import Item, Picture, Replay, Section, Table, write_report

Found = Dissection | Comparison

AFTER, DIFFERENCE = "after", "after − before"
_BANDS = "Mean over prompts; bands are 95% intervals of bootstrap draws of prompts."


def recall_report(
    path: Path,
    found: Found,
    tokens: Mapping[str, xr.DataArray],
    replay: str,
    config: Mapping[str, Any],
) -> None:
    """Write the report of one model, or of two; `tokens` are knockouts of the first prompt's tokens."""
    models = _models(found)
    sections = [
        _knockout(found, models, tokens),
        *_enrichment(found, models),
        _extraction(found, models),
        *_heads(found, models),
    ]
    if isinstance(found, Comparison):
        sections.append(_joined(found))
    sections.append(Section("Make it again", [Replay(replay, config)]))
    write_report(path, title="Recall", summary=_summary(models), sections=sections)


def _models(found: Found) -> dict[str, Dissection]:
    if isinstance(found, Comparison):
        return {"before": found.before, AFTER: found.after}
    return {"": found}


def _knockout(
    found: Found, models: Mapping[str, Dissection], tokens: Mapping[str, xr.DataArray]
) -> Section:
    first = next(iter(models.values())).knockout
    options = first.attrs["options"]
    window = f"{options['window']} layer{'s' * (options['window'] != 1)}"
    caption = (
        f"Change of the probability of the {_token(options['token'])} when the last token does not see "
        f"a group of tokens, in {window} around each. {_BANDS}"
    )
    items: list[Item] = [
        Table(_probabilities(models), f"How likely the {_token(options['token'])} is when all is seen."),
    ]
    panels = {title: effect for title, effect in _effects(models).items() if effect.notnull().any()}
    if any((model.knockout["probability"] < LIKELY).any() for model in models.values()):
        items.append(
            f"What blocking makes of a probability below {LIKELY:.0%} is noise: such prompts are left out, "
            "and a model that has no others."
        )
    if panels:
        if isinstance(found, Comparison) and len(panels) == len(models):
            with xr.set_options(keep_attrs=False):
                panels[DIFFERENCE] = panels[AFTER] - panels["before"]
        items += [
            Picture(knockout_lines(panels), caption),
            Table(_strongest(models), "Where blocking a group changes the probability most."),
        ]
    likely = {title: its for title, its in tokens.items() if float(its["probability"]) >= LIKELY}
    if likely:
        text = str(next(iter(likely.values()))["text"].values)
        items.append(Picture(knockout_heatmap(likely), f"Single tokens of “{text}”, {window} around each."))
    return Section("Attention knockout", items)


def _effects(models: Mapping[str, Dissection]) -> dict[str, xr.DataArray]:
    """Of tokens that are likely, by model."""
    return {title: telling(model.knockout) for title, model in models.items()}


def _probabilities(models: Mapping[str, Dissection]) -> pd.DataFrame:
    rows = []
    for title, model in models.items():
        p = model.knockout["probability"].values
        row = {"model": title, "mean p": float(p.mean()), "median p": float(np.median(p))}
        row |= {"lowest p": float(p.min()), "highest p": float(p.max()), "prompts": len(p)}
        rows.append(row | {f"of which p ≥ {LIKELY:g}": int((p >= LIKELY).sum())})
    frame = pd.DataFrame(rows)
    return frame if len(models) > 1 else frame.drop(columns="model")


def _enrichment(found: Found, models: Mapping[str, Dissection]) -> list[Section]:
    if next(iter(models.values())).rate is None:
        return []
    sublayers = next(iter(models.values())).sublayers
    assert sublayers is not None
    at = sublayers.attrs["options"]["at_layer"]
    rate = (
        "How many of the first tokens of a hidden state's projection on the vocabulary are attributes of "
        f"the subject. {_BANDS}"
    )
    without = (
        f"How the rate at the subject's last token after layer {at} changes without the attention or the "
        f"MLP of one layer. {_BANDS}"
    )
    items: list[Item] = [
        Picture(attributes_rate_lines(_panels(found, models, "rate")), rate),
        Picture(sublayer_lines(_panels(found, models, "sublayers")), without),
    ]
    return [Section("Subject enrichment", items)]


def _extraction(found: Found, models: Mapping[str, Dissection]) -> Section:
    events = {title: model.extraction for title, model in models.items()}
    items: list[Item] = [
        Picture(
            extraction_lines(_panels(found, models, "extraction")),
            f"Share of prompts in which a layer's attention, or MLP, writes the "
            f"{_token(_option(models))} more than any other token at the last position. {_BANDS}",
        ),
        Table(
            _extracted(events),
            "Share of prompts with such an event in any layer, and with attention having the first, %.",
        ),
    ]
    for title, its in events.items():
        name = f"{title.capitalize()} finetuning: t" if title else "T"
        patched = np.array([str(condition).startswith("patched") for condition in its["condition"].values])
        items.append(
            Picture(extraction_falls(its.sel(condition=~patched)), f"{name}he same, some tokens not seen.")
        )
        caption = f"{name}he same, the subject's tokens staying what they are when they enter a layer."
        patched[0] = True  # beside what happens without
        items.append(Picture(extraction_falls(its.sel(condition=patched)), caption))
    return Section("Attribute extraction", items)


def _heads(found: Found, models: Mapping[str, Dissection]) -> list[Section]:
    if next(iter(models.values())).heads is None:
        return []
    caption = "Share of prompts for which a head's weights map the subject's last token to an attribute."
    figure = extraction_head_map(_panels(found, models, "heads"))
    return [Section("Extraction heads", [Picture(figure, caption)])]


def _joined(found: Comparison) -> Section:
    agreement = found.agreement()
    fits = {
        row["question"]: f"ρ = {row['rho']:.2f}, n = {row['n']}"
        for row in agreement.dropna().to_dict("records")
    }
    shown = {question: frame for question, frame in found.joined.items() if len(frame.dropna())}
    figure = scatter(
        shown,
        x="score (" + ("logits" if _reward(found) == "logit_diff" else "nats") + ")",
        y="recall after finetuning (% or pp)",
        fit=fits,
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


def _panels(found: Found, models: Mapping[str, Dissection], name: str) -> Any:
    panels = {title: getattr(model, name) for title, model in models.items()}
    if not isinstance(found, Comparison):
        return panels[""]
    return {**panels, DIFFERENCE: found.difference()[name]}


def _strongest(models: Mapping[str, Dissection]) -> pd.DataFrame:
    rows = []
    for title, effect in _effects(models).items():
        mean = effect.mean("prompt")
        if mean.isnull().all():
            continue
        for group in mean["group"].values:
            of_group = mean.sel(group=group).values
            layer = int(np.abs(of_group).argmax())
            rows.append(
                {
                    "group": str(group),
                    "model": title,
                    "layer": layer,
                    "window": f"{int(mean['first_layer'][layer])} to {int(mean['last_layer'][layer])}",
                    "change, %": float(of_group[layer]),
                }
            )
    frame = pd.DataFrame(rows)
    return frame if len(models) > 1 else frame.drop(columns="model")


def _extracted(events: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    rows = []
    for title, its in events.items():
        shares, its_first = extracted(its), first_extraction(its)
        for condition in shares["condition"].values:
            of_parts = shares.sel(condition=condition).to_series().to_dict()
            first = (its_first.sel(condition=condition) == "attention").mean()
            shown = {**of_parts, "attention first": 100 * float(first)}
            rows.append({"intervention": str(condition), "model": title, **shown})
    frame = pd.DataFrame(rows)
    return frame if len(events) > 1 else frame.drop(columns="model")


def _summary(models: Mapping[str, Dissection]) -> str:
    sentences = []
    for title, effect in _effects(models).items():
        mean = effect.mean("prompt")
        when = f"{title.capitalize()} finetuning, " if title else ""
        p = float(models[title].knockout["probability"].mean())
        if mean.isnull().all():
            what = f"{when}the {_token(_option(models))} has a probability of {p:.1g} on average: what "
            sentences.append(f"{what[0].upper()}{what[1:]}blocking attention changes of it is noise.")
            continue
        group, layer = (int(i) for i in divmod(int(mean.values.argmin()), mean.sizes["layer"]))
        low = f"{float(mean[group, layer]):.0f}".replace("-", "−")
        sentences.append(
            f"{when + 'b' if when else 'B'}locking attention from the {mean['group'].values[group]} tokens "
            f"to the last one around layer {layer} changes the token's probability ({p:.2g} on average) by "
            f"{low}%."
        )
    return " ".join(sentences)


def _option(models: Mapping[str, Dissection]) -> str:
    return next(iter(models.values())).knockout.attrs["options"]["token"]


def _token(token: str) -> str:
    return "predicted token" if token == "predicted" else "answer's first token"


def _reward(found: Comparison) -> str:
    return found.scores.attrs["options"]["reward"]
