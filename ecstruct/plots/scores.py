"""Which layer, at which token, and which head, at one token: the paper's Fig. 5, and what is behind it.

In a heatmap, rows are the three scores, columns MLPs and attention (the heads of a layer summed). A cell is
the mean over prompts of how much the component raised the reward, in the reward's unit; red raises,
blue lowers it, white is zero. With intervals (`ExtractiveScores.aggregate(ci=0.95)`), cells whose interval
excludes zero have a dot. Each cell is judged by itself: of many cells without any effect, some have a dot
by chance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from ecstruct.errors import InputError
from ecstruct.plots.panels import Column, Panel, Scale
from ecstruct.plots.paper import Width, paper_figure
from ecstruct.plots.screen import panel_figure
from ecstruct.plots.style import GREY, number, plain_token, reward_title, token_label

ROWS = ("downstream", "informative", "upstream")
"""The scores from top to bottom, as in the paper."""

_STRONGEST = 3  # heads that a cell of the attention panel names
_PROMPT = 40  # characters of a prompt in a title, from its end
_SPECIAL = 21  # characters of a special token that are shown


class Slots(Protocol):
    """What a figure reads of `ecstruct.scores.slots.SlotScores`, which documents it."""

    @property
    def dataset(self) -> xr.Dataset: ...
    @property
    def mlp(self) -> xr.DataArray: ...
    @property
    def heads(self) -> xr.DataArray: ...
    @property
    def count(self) -> xr.DataArray: ...
    @property
    def ci(self) -> float | None: ...
    @property
    def low(self) -> xr.Dataset: ...
    @property
    def high(self) -> xr.Dataset: ...
    @property
    def slot_text(self) -> list[str]: ...
    @property
    def in_wrapper(self) -> list[bool]: ...
    @property
    def attrs(self) -> dict[str, Any]: ...
    def folded(self) -> Slots: ...
    def verdicts(self, score: str) -> dict[tuple[int, int | None], str]: ...


@runtime_checkable
class AnyScores(Protocol):
    """Scores that can be drawn: `ExtractiveScores` and `SlotScores`."""

    @property
    def dataset(self) -> xr.Dataset: ...
    def slots(self, prompt: int | None = None, template: str | None = None) -> Slots: ...


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
    """Draw scores by layer and token, a row of panels per score, and several sets side by side.

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
        InputError: There are no scores, the titles do not fit them, the prompts are of several templates
            and none is chosen, the style or the width is unknown, or a width is given with style="screen".
    """
    if style not in ("screen", "paper"):
        raise InputError(f"style={style!r} is unknown; it is 'screen' or 'paper'")
    if style == "screen" and width is not None:
        raise InputError(
            f"width={width!r} is for style='paper'; on screen, figures have the size they need"
        )
    sets, titles = _sets_and_titles(scores, titles)
    rows = [row for row in ROWS if any(row in one.dataset["score"].values for one in sets)]
    shown = [one.slots(prompt=prompt, template=template) for one in sets]
    if fold:
        shown = [slots.folded() for slots in shown]
    if not titles and style == "screen" and all("prompt" in slots.attrs for slots in shown):
        titles = [_prompt_title(slots) for slots in shown]
    columns: list[Column] = []
    for slots in shown:
        if missing := [row for row in rows if row not in slots.dataset["score"].values]:
            raise InputError(f"only some of these sets of scores have {missing[0]!r} scores")
        mlps, attention = zip(*(_token_panels(slots, row) for row in rows), strict=True)
        columns.append(Column("MLP", mlps, "token", first_of_group=True))
        columns.append(Column("attention (heads summed)", attention, "token"))
    groups = [(escape(title, quote=False).replace("\n", "<br>"), 2) for title in titles]
    meaning = _meaning_of_dots(shown)
    if style == "paper":
        width = "column" if width is None else width
        return paper_figure(columns, rows, scale=scale, groups=groups, meaning=meaning, width=width)
    return panel_figure(columns, rows, scale=scale, groups=groups, meaning=meaning)


def head_map(
    scores: AnyScores,
    slot: int | str = -1,
    *,
    scale: Scale = "symmetric",
    prompt: int | None = None,
    template: str | None = None,
) -> go.Figure:
    """Draw scores by layer and head at one token or slot, a panel per score; layer 0 is at the bottom.

    A cell is how much a head raised the reward by what it writes at this token, the mean over
    prompts, in the reward's unit; red raises, blue lowers it, white is zero. With intervals, cells whose
    interval excludes zero have a dot, as in `heatmap`.

    Args:
        scores: Scores as `heatmap` takes them; several prompts are averaged onto their template.
        slot: The token: its position (-1 is the last) or its text, if that occurs once.
        scale, prompt, template: As in `heatmap`.

    Raises:
        InputError: The slot is not there, no prompt fills it, or its text occurs twice.
    """
    slots = scores.slots(prompt=prompt, template=template)
    position = _position(slots, slot)
    label = slot_labels(slots)[position]
    heads = [str(head) for head in slots.dataset["head"].values]
    columns: list[Column] = []
    for score in (row for row in ROWS if row in slots.dataset["score"].values):
        verified = _verified(slots, score)
        panel = _panel(
            slots,
            slots.heads,
            {"score": score, "slot": slots.dataset["slot"].values[position]},
            heads,
            lambda layer, head: f"head {layer}.{head}, {label}",
            lambda i, j, verified=verified: verified.get((i, j), ""),
        )
        columns.append(Column(f"<b>{score}</b>", [panel], "head", numbered=True))
    groups = [(f"heads at token {position}, “{label}”", len(columns))]
    return panel_figure(columns, [""], scale=scale, groups=groups, meaning=_meaning_of_dots([slots]))


def _prompt_title(slots: Slots) -> str:
    """Return a title with a prompt, its answer, and what finetuning did to its reward and rank."""
    prompt = slots.attrs["prompt"]
    text = " ".join(prompt["text"].split())
    title = f"“{text if len(text) <= _PROMPT else '…' + text[1 - _PROMPT :]}” → “{prompt['answer']}”"
    if "reward" in slots.dataset:
        before, after = (float(slots.dataset["reward"].sel(state=s)) for s in ("before", "after"))
        title += f"\nreward {before:.3g} → {after:.3g}".replace("-", "−")
    if "rank" in prompt:
        before, after = prompt["rank"]
        title += f", rank {before:g} → {after:g}"
    return title


def slot_labels(slots: Slots) -> list[str]:
    """Return the labels of the slots as HTML.

    Averaged entities, which are no tokens, are in italics; tokens of a chat template are in grey, and so
    long that its special tokens are whole.
    """
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
    """Return the sets of scores, and their titles if there are any."""
    if isinstance(scores, AnyScores):
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
        if not isinstance(one, AnyScores):
            raise InputError(f"a heatmap shows ExtractiveScores, not {type(one).__name__}")
    if titles is not None and len(titles) != len(sets):
        raise InputError(f"{len(titles)} titles do not fit {len(sets)} sets of scores")
    return sets, list(titles or ())


def _position(slots: Slots, slot: int | str) -> int:
    """Return the position of a slot that is given as a position or as a text."""
    texts = [plain_token(text) for text in slots.slot_text]
    if isinstance(slot, str):
        found = [i for i, text in enumerate(texts) if text == plain_token(slot)]
        if len(found) != 1:
            count = "not" if not found else f"{len(found)} times, at {found},"
            raise InputError(f"slot={slot!r} occurs {count} among the tokens {texts}")
        position = found[0]
    elif -len(texts) <= slot < len(texts):
        position = slot % len(texts)
    else:
        raise InputError(f"slot={slot} is not there; the {len(texts)} tokens are {texts}")
    if slots.count.values[position] == 0:
        raise InputError(f"no prompt has a token at slot {texts[position]!r}; choose another")
    return position


def _token_panels(slots: Slots, score: str) -> tuple[Panel, Panel]:
    """Return the panels of a score, layer by slot, of the MLPs and of the heads of each layer summed, at
    the slots that some prompt fills. The hover text of the latter names the strongest heads."""
    shown = np.flatnonzero(slots.count.values > 0)
    counts, labels = slots.count.values[shown], [slot_labels(slots)[slot] for slot in shown]
    at = {"score": score, "slot": slots.dataset["slot"].values[shown]}
    names = slots.dataset["head"].values
    heads, verified = slots.heads.sel(at).transpose("layer", "slot", "head"), _verified(slots, score)
    of_heads: dict[int, str] = defaultdict(str)
    for (layer, head), line in verified.items():
        of_heads[layer] += "" if head is None else line

    def place(layer: int, label: str) -> str:
        return f"layer {layer}, {label}"

    def mean(j: int) -> str:
        return f"<br>mean of {counts[j]} prompts" if counts[j] > 1 else ""

    def strongest(i: int, j: int) -> str:
        values = heads.values[i, j]
        order = np.argsort(-np.abs(values), kind="stable")[:_STRONGEST]
        listed = ", ".join(f"{names[head]} ({number(float(values[head]))})" for head in order)
        return f"{mean(j)}<br>strongest heads: {listed}{of_heads[i]}"

    summed = slots.heads.sum("head", skipna=False).rename("attention")
    mlps = _panel(slots, slots.mlp, at, labels, place, lambda i, j: mean(j) + verified.get((i, None), ""))
    return mlps, _panel(slots, summed, at, labels, place, strongest)


def _verified(slots: Slots, score: str) -> dict[tuple[int, int | None], str]:
    """Return lines below a hover text on the interventions on components, by the places of the latter."""
    return {place: f"<br>{line}" for place, line in slots.verdicts(score).items()}


def _panel(
    slots: Slots,
    scores: xr.DataArray,
    at: Mapping[str, Any],
    columns: Sequence[str],
    place: Callable[[int, str], str],
    after: Callable[[int, int], str],
) -> Panel:
    """Return a panel of the `scores` of `slots` that are `at` a score and slots, layer by column.

    Args:
        scores: Named as their intervals in `slots.low` and `slots.high`, if there are any.
        place: What hovering calls a cell, from its layer and its column's label.
        after: What hovering says below the value and its interval, from the cell's two indices.
    """
    values = scores.sel(at).transpose("layer", ...).values
    unit, marked = reward_title(slots.attrs), None
    low = high = np.full(values.shape, np.nan)
    if slots.ci is not None:
        low, high = (
            ends[str(scores.name)].sel(at).transpose("layer", ...).values
            for ends in (slots.low, slots.high)
        )
        marked = (low > 0) | (high < 0)

    def describe(layer: int, label: str, value: float, i: int, j: int) -> str:
        text = f"{place(layer, label)}<br>{unit}: {number(value)}"
        if not np.isnan(low[i, j]):
            text += f"<br>{_percent(slots.ci)} interval: {number(low[i, j])} to {number(high[i, j])}"
        return text + after(i, j)

    return Panel(values, slots.dataset["layer"].values.tolist(), columns, unit, describe, marked)


def _meaning_of_dots(sets: Sequence[Slots]) -> str:
    """Say what the dots of a figure mean, or nothing if none of its sets of scores has intervals."""
    levels = sorted({slots.ci for slots in sets if slots.ci is not None})
    if not levels:
        return ""
    some = " (not all of these have intervals)" if any(slots.ci is None for slots in sets) else ""
    return f"{' / '.join(map(_percent, levels))} interval excludes zero{some}"


def _percent(level: float | None) -> str:
    """Write a level of confidence in percent."""
    return f"{100 * (level or 0):.4g}%"
