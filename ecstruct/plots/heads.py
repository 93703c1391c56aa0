"""Which head, in which layer, at one token."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.plots.heatmap import ROWS, AnyScores, as_slots, slot_labels
from ecstruct.plots.intervals import dots_mean, intervals_of
from ecstruct.plots.panels import Column, Panel, Scale, panel_figure
from ecstruct.plots.style import number, reward_title
from ecstruct.scores.slots import SlotScores, plain_token


def head_map(
    scores: AnyScores,
    slot: int | str = -1,
    *,
    scale: Scale = "symmetric",
    prompt: int | None = None,
    template: str | None = None,
) -> go.Figure:
    """Layer by head at one token or slot, a panel per score; layer 0 is at the bottom.

    A cell is how much a head raised the reward by what it writes at this token, the mean over
    prompts, in the reward's unit; red raises, blue lowers it, white is zero. With intervals, cells whose
    interval excludes zero have a dot, as in `heatmap`.

    Args:
        scores: Scores as `heatmap` takes them; several prompts are averaged onto their template.
        slot: The token: its position (-1 is the last) or its text, if that occurs once.
        scale, prompt, template: As in `heatmap`.

    Raises:
        InputError: a slot that is not there, that no prompt fills, or whose text occurs twice.
    """
    slots = as_slots(scores, prompt=prompt, template=template)
    position = _position(slots, slot)
    layers = [int(layer) for layer in slots.dataset["layer"].values]
    heads = [str(head) for head in slots.dataset["head"].values]
    unit = reward_title(slots.attrs)
    label = slot_labels(slots)[position]
    columns: list[Column] = []
    for score in (row for row in ROWS if row in slots.dataset["score"].values):
        at_slot = slots.heads.sel(score=score).isel(slot=position)
        values = at_slot.transpose("layer", "head").values
        intervals = intervals_of(values, slots, "heads", score=score, slot=position)
        hover = np.array(
            [
                [
                    f"head {layer}.{head}, {label}<br>{unit}: {number(value)}{intervals.line(i, j)}"
                    for j, (head, value) in enumerate(zip(heads, row, strict=True))
                ]
                for i, (layer, row) in enumerate(zip(layers, values, strict=True))
            ]
        )
        panel = Panel(values, layers, heads, hover, unit, intervals.exclude_zero)
        columns.append(Column(f"<b>{score}</b>", [panel], "head", numbered=True))
    place = f"heads at token {position}, “{label}”"
    return panel_figure(columns, [""], scale=scale, groups=[(place, len(columns))], note=dots_mean(slots))


def _position(slots: SlotScores, slot: int | str) -> int:
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
