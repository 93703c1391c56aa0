"""Which layer, at which token: the paper's Fig. 5.

Rows are the three scores, columns MLPs and attention (the heads of a layer summed). A cell is the
mean over prompts of how much the component raised the reward, in the reward's unit; red raises,
blue lowers it, white is zero. With intervals (`ExtractiveScores.aggregate(ci=0.95)`), cells whose interval
excludes zero have a dot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Literal, TypeAlias

import numpy as np
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.intervals import dots_mean, intervals_of
from ecstruct.plots.panels import Column, Panel, Scale, panel_figure
from ecstruct.plots.paper import Width, paper_figure
from ecstruct.plots.style import GREY, number, reward_title, token_label
from ecstruct.scores.aggregate import prompt_slots
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.slots import SlotScores

ROWS = ("downstream", "informative", "upstream")
"""The scores from top to bottom, as in the paper."""

AnyScores: TypeAlias = ExtractiveScores | SlotScores

_STRONGEST = 3  # heads that a cell of the attention panel names
_PROMPT = 40  # characters of a prompt in a title, from its end
_SPECIAL = 21  # characters of a special token that are shown


def heatmap(
    scores: AnyScores | Sequence[AnyScores] | Mapping[str, AnyScores],
    *,
    titles: Sequence[str] | None = None,
    scale: Scale = "symmetric",
    prompt: int | None = None,
    template: str | None = None,
    style: Literal["screen", "paper"] = "screen",
    width: Width | None = None,
    fold: bool = True,
) -> go.Figure:
    """Layer by token, a row of panels per score; several sets of scores stand side by side.

    Scores of several prompts are averaged onto the slots of their template first
    (`ExtractiveScores.aggregate()`; aggregate them yourself for other settings); one prompt is
    shown by its own tokens. Slots that no prompt fills are left out. Hovering shows layer, token,
    value, its interval, the number of prompts and, for attention, the strongest heads.

    Args:
        scores: One set of scores, several, or several by title.
        titles: Titles of several sets.
        scale: Colours of each panel: "symmetric" about zero, or the "paper"'s, from -0.25 times
            the panel's maximum to its maximum, clipping what is below.
        prompt: Show this prompt only, counted from 0.
        template: Show the prompts of this template only.
        style: "screen", sized from what it shows; "paper", for print: vector cells, type of 7 to 8.5
            points, a minus sign on cells that are negative, no hovering (`ecstruct.plots.paper`).
        width: Of style="paper": "column" (3.25 inches, the default), "text" (6.75), or inches.
        fold: Sum the tokens of a chat template, which are the same in all prompts, into one column on
            either side of the text (the last token, where the answer is read, has its own).

    Raises:
        InputError: no scores, titles that do not fit, prompts of several templates and no choice; a
            style that is unknown, a width that is or that style="screen" does not take.
    """
    if style not in ("screen", "paper"):
        raise InputError(f"style={style!r} is unknown; it is 'screen' or 'paper'")
    if style == "screen" and width is not None:
        raise InputError(
            f"width={width!r} is for style='paper'; on screen, figures have the size they need"
        )
    sets, titles = _sets_and_titles(scores, titles)
    columns: list[Column] = []
    rows = [row for row in ROWS if any(row in one.dataset["score"].values for one in sets)]
    shown = [as_slots(one, prompt=prompt, template=template) for one in sets]
    if fold:
        shown = [slots.folded() for slots in shown]
    if not titles and style == "screen" and all("prompt" in slots.attrs for slots in shown):
        titles = [of_prompt(slots) for slots in shown]
    for slots in shown:
        if missing := [row for row in rows if row not in slots.dataset["score"].values]:
            raise InputError(f"only some of these sets of scores have {missing[0]!r} scores")
        for name, kind in (("MLP", "mlp"), ("attention (heads summed)", "heads")):
            panels = [_panel(slots, row, kind) for row in rows]
            columns.append(Column(name, panels, "token", first_of_group=kind == "mlp"))
    groups = [(escape(title, quote=False).replace("\n", "<br>"), 2) for title in titles]
    note = dots_mean(*shown)
    if style == "paper":
        width = "column" if width is None else width
        return paper_figure(columns, rows, scale=scale, groups=groups, note=note, width=width)
    return panel_figure(columns, rows, scale=scale, groups=groups, note=note)


def as_slots(scores: AnyScores, *, prompt: int | None = None, template: str | None = None) -> SlotScores:
    """Scores by slot: as they are, averaged over a template's prompts, or of one prompt."""
    if isinstance(scores, SlotScores):
        if prompt is not None or template is not None:
            raise InputError("aggregated scores have no prompt= or template= to choose from")
        return scores
    if prompt is None and scores.dataset.sizes["prompt"] == 1:
        prompt = 0
    if prompt is not None:
        if template is not None:
            raise InputError("prompt= is one prompt; leave template= out")
        return prompt_slots(scores.dataset, prompt)
    return scores.aggregate(template=template)


def of_prompt(slots: SlotScores) -> str:
    """What is shown of a single prompt: it, its answer, and what finetuning made of its reward and rank."""
    prompt = slots.attrs["prompt"]
    text = " ".join(prompt["text"].split())
    said = f"“{text if len(text) <= _PROMPT else '…' + text[1 - _PROMPT :]}” → “{prompt['answer']}”"
    if "reward" in slots.dataset:
        before, after = (float(slots.dataset["reward"].sel(state=s)) for s in ("before", "after"))
        said += f"\nreward {before:.3g} → {after:.3g}".replace("-", "−")
    if "rank" in prompt:
        before, after = prompt["rank"]
        said += f", rank {before:g} → {after:g}"
    return said


def slot_labels(slots: SlotScores) -> list[str]:
    """The slots' labels as HTML; those of averaged entities, which are no tokens, in italics, and those of
    a chat template in grey, at the length of its special tokens."""
    averaged = "aggregate" in slots.attrs
    parts = slots.dataset["part"].values
    labels = []
    for text, part, wrapped in zip(slots.slot_text, parts, slots.in_wrapper, strict=True):
        if wrapped:
            labels.append(f'<span style="color:{GREY}">{token_label(text, _SPECIAL)}</span>')
        elif averaged and part == "entity":
            labels.append(f"<i>{token_label(text)}</i>")
        else:
            labels.append(token_label(text))
    return labels


def _sets_and_titles(
    scores: AnyScores | Sequence[AnyScores] | Mapping[str, AnyScores],
    titles: Sequence[str] | None,
) -> tuple[list[AnyScores], list[str]]:
    if isinstance(scores, ExtractiveScores | SlotScores):
        sets: list[AnyScores] = [scores]
    elif isinstance(scores, Mapping):
        if titles is not None:
            raise InputError("these scores have titles already; leave titles= out or give a list")
        sets, titles = list(scores.values()), [str(title) for title in scores]
    else:
        sets = list(scores)
    if not sets:
        raise InputError("there are no scores to show; give at least one set")
    for one in sets:
        if not isinstance(one, ExtractiveScores | SlotScores):
            raise InputError(f"a heatmap shows ExtractiveScores, not {type(one).__name__}")
    if titles is not None and len(titles) != len(sets):
        raise InputError(f"{len(titles)} titles do not fit {len(sets)} sets of scores")
    return sets, list(titles or ())


def _panel(slots: SlotScores, score: str, kind: str) -> Panel:
    count = slots.count.values
    shown = np.flatnonzero(count > 0)
    all_labels = slot_labels(slots)
    labels = [all_labels[slot] for slot in shown]
    layers = [int(layer) for layer in slots.dataset["layer"].values]
    unit = reward_title(slots.attrs)
    if kind == "mlp":
        values = slots.mlp.sel(score=score).transpose("layer", "slot").values[:, shown]
        intervals = intervals_of(values, slots, "mlp", score=score, slot=shown)
        strongest = np.full(values.shape, "", dtype=object)
    else:
        heads = slots.heads.sel(score=score).transpose("layer", "slot", "head").values[:, shown]
        values = heads.sum(-1)
        intervals = intervals_of(values, slots, "attention", score=score, slot=shown)
        names = slots.dataset["head"].values
        strongest = np.array([[_strongest(cell, names) for cell in row] for row in heads])
    of = [f"<br>mean of {n} prompts" if n > 1 else "" for n in count[shown]]
    hover = np.array(
        [
            [
                f"layer {layer}, {label}<br>{unit}: {number(value)}{intervals.line(i, j)}{of[j]}{more}"
                for j, (label, value, more) in enumerate(zip(labels, row, extra, strict=True))
            ]
            for i, (layer, row, extra) in enumerate(zip(layers, values, strongest, strict=True))
        ]
    )
    return Panel(values, layers, labels, hover, unit, intervals.exclude_zero)


def _strongest(values: np.ndarray, names: np.ndarray) -> str:
    """The heads of largest absolute value at a cell, with their values."""
    order = np.argsort(-np.abs(values), kind="stable")[:_STRONGEST]
    listed = ", ".join(f"{names[head]} ({number(float(values[head]))})" for head in order)
    return f"<br>strongest heads: {listed}"
