"""How facts are recalled: means over prompts by layer, tokens of one prompt by layer, heads by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import TypeVar

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from ecstruct.bootstrap import Bootstrap
from ecstruct.errors import InputError
from ecstruct.plots.lines import Line, line_panels
from ecstruct.plots.panels import Column, Panel
from ecstruct.plots.screen import panel_figure
from ecstruct.plots.style import INK, token_label

CHANGE = "change of the probability (%)"
MOST = 100.0
"""Where scales of changes in percent end: at -100 a token is lost, and what more than doubles is cut off,
since unlikely tokens become many times as likely."""
LEVEL, RESAMPLES, SEED = 0.95, 1000, 0

_EXTRACTION_RATE = "extraction rate (% of prompts)"
_PARTS = ("attention", "mlp")

_Labelled = TypeVar("_Labelled", xr.DataArray, xr.Dataset)


def layer_lines(
    arrays: xr.DataArray | Mapping[str, xr.DataArray],
    *,
    lines: str,
    y: str,
    own_scales: bool = False,
    at_most: float = math.inf,
) -> go.Figure:
    """Draw means over prompts by layer, a line for each entry of the dimension `lines`; several arrays
    stand side by side.

    The band is the 95% interval about the mean, of bootstrap draws of prompts; one prompt has none. Prompts
    without a value (NaN) do not count.

    Args:
        arrays: One array (prompt, layer, `lines`), its dimensions in any order, or several by title.
        lines: The dimension whose entries are lines, as "group"; these have one colour in all panels.
        y: The title of the y axis, with its unit.
        own_scales: Give each array a scale of its own, rather than all of them one.
        at_most: The furthest from 0 that a scale goes; what is beyond is cut off.

    Raises:
        InputError: There is nothing to show, or an array lacks one of these dimensions.
    """
    panels = _by_title(arrays)
    for title, array in panels.items():
        if missing := {"prompt", "layer", lines} - {*array.dims}:
            raise InputError(f"{title or 'this array'} has no dimension {sorted(missing)[0]!r} to show")
    figure = line_panels(
        {
            title: {str(entry): _mean_line(array.sel({lines: entry})) for entry in array[lines].values}
            for title, array in panels.items()
        },
        x="layer",
        y=y,
        hover=f"layer %{{x}}<br>{escape(y, quote=False)}: %{{y:.3~g}}",
        between=f"{LEVEL:.0%} interval",
        own_scales=own_scales,
        at_most=at_most,
        include=(0.0,),
    )
    return figure.update_yaxes(zeroline=True, zerolinecolor=INK, zerolinewidth=1)


def knockout_lines(arrays: xr.DataArray | Mapping[str, xr.DataArray]) -> go.Figure:
    """Draw the effect of attention knockout by layer, a line per group of source tokens, as Fig. 2 of Geva
    et al. (2023). Each array has a scale of its own, which ends at plus and minus `MOST`. `arrays` is what
    `ecstruct.recall.knockout` returns, or several by title; `layer_lines` says what is refused."""
    return layer_lines(arrays, lines="group", y=CHANGE, own_scales=True, at_most=MOST)


def attributes_rate_lines(rates: xr.DataArray | Mapping[str, xr.DataArray]) -> go.Figure:
    """Draw the attributes rate of hidden states by layer, a line per position, and that of the mean
    embedding of the subject's tokens, which has no layer. `rates` is what `ecstruct.recall.attributes_rate`
    returns, or several by title; `layer_lines` says what is refused."""
    return layer_lines(
        {title: _with_embedding(one) for title, one in _by_title(rates).items()},
        lines="position",
        y="attributes rate (%)",
    )


def sublayer_lines(changes: xr.DataArray | Mapping[str, xr.DataArray]) -> go.Figure:
    """Draw how the attributes rate changes without the attention or the MLPs of a window of layers, by the
    first layer of the window. `changes` is what `ecstruct.recall.sublayer_knockout` returns, or several by
    title; `layer_lines` says what is refused."""
    figure = layer_lines(changes, lines="part", y="change of the attributes rate (pp)")
    return figure.update_xaxes(title_text="first layer cancelled")


def extraction_lines(events: xr.Dataset | Mapping[str, xr.Dataset]) -> go.Figure:
    """Draw the extraction rate by layer without interventions, for attention and for the MLPs. `events` is
    what `ecstruct.recall.extraction` returns, or several by title; `layer_lines` says what is refused."""
    rates = {title: _percent(one).isel(condition=0, drop=True) for title, one in _by_title(events).items()}
    return layer_lines(rates, lines="part", y=_EXTRACTION_RATE)


def extraction_falls(events: xr.Dataset) -> go.Figure:
    """Draw the extraction rate by layer under every intervention, a line each: by attention on the left, by
    the MLPs on the right. `events` is what `ecstruct.recall.extraction` returns; `layer_lines` says what is
    refused."""
    rates = _percent(events)
    return layer_lines(
        {part: rates.sel(part=part) for part in _PARTS}, lines="condition", y=_EXTRACTION_RATE
    )


def patched_lines(events: xr.Dataset) -> go.Figure:
    """Draw the share of prompts with an event in any layer, by the layer from which groups of tokens stay
    what they are: by attention on the left, by the MLPs on the right.

    Args:
        events: What `ecstruct.recall.extraction` returns, with patched groups.

    Raises:
        InputError: Nothing is patched.
    """
    groups, layers = (events.attrs["options"][name] for name in ("patched_groups", "patched"))
    if not groups or not layers:
        raise InputError("nothing is patched in these events: give recall.extraction patched=")
    in_any = 100 * events[list(_PARTS)].to_dataarray("part").any("layer").astype(float)

    def by_layer(conditions: list[str]) -> xr.DataArray:
        chosen = in_any.sel(condition=conditions).rename(condition="layer")
        return chosen.assign_coords(layer=list(layers))

    lines = {"not patched": ["none"] * len(layers)}
    lines |= {group: [f"patched {group} from {layer}" for layer in layers] for group in groups}
    found = xr.concat([by_layer(its) for its in lines.values()], "group").assign_coords(group=list(lines))
    panels = {part: found.sel(part=part) for part in _PARTS}
    figure = layer_lines(panels, lines="group", y="prompts with an event (%)")
    return figure.update_xaxes(title_text="layer patched from")


def rank_lines(readings: xr.Dataset | Mapping[str, xr.Dataset]) -> go.Figure:
    """Draw the rank of the token by layer, a line per reading, as the mean of log10(1 + rank). `readings`
    is what `ecstruct.recall.readings` returns, or several by title; `layer_lines` says what is refused."""
    ranks = {title: xr.apply_ufunc(np.log10, 1 + one["rank"]) for title, one in _by_title(readings).items()}
    return layer_lines(ranks, lines="reading", y="log10(1 + rank)")


def extraction_head_map(heads: xr.Dataset | Mapping[str, xr.Dataset]) -> go.Figure:
    """Draw for which share of the prompts a head's weights map the subject to an attribute, layer by head;
    layer 0 is at the bottom. Hovering shows what the head makes of the first prompt's subject.

    Args:
        heads: What `ecstruct.recall.extraction_heads` returns, or several by title.

    Raises:
        InputError: There is nothing to show.
    """
    columns = []
    for title, one in _by_title(heads, "heads").items():
        tokens = one["top_tokens"].isel(prompt=0).transpose("layer", "head", "place").values
        subject = token_label(str(one["subject"].values[0]))
        panel = Panel(
            one["share"].transpose("layer", "head").values,
            one["layer"].values.tolist(),
            [str(head) for head in one["head"].values],
            "prompts with an attribute (%)",
            lambda layer, head, value, i, j, tokens=tokens, subject=subject: (
                f"head {layer}.{head}: {value:.3g}% of prompts<br>{subject}: "
                + ", ".join(token_label(str(token)) for token in tokens[i, j])
            ),
        )
        columns.append(Column(escape(title, quote=False), [panel], "head", numbered=True))
    return panel_figure(columns, [""], scale="symmetric")


def knockout_heatmap(arrays: xr.DataArray | Mapping[str, xr.DataArray]) -> go.Figure:
    """Draw the effect of attention knockout of single tokens of one prompt, layer by token; layer 0 is at
    the bottom, and cells are blue where the probability falls. On the right of each layer is what the logit
    lens makes of the last token, with its probability. The scale ends at plus and minus `MOST`.

    Args:
        arrays: What `ecstruct.recall.knockout_tokens` returns, or several by title.

    Raises:
        InputError: There is nothing to show, or an array is not of single tokens.
    """
    columns = []
    for title, array in _by_title(arrays).items():
        if {*array.dims} != {"token", "layer"}:
            raise InputError(
                f"{title or 'this array'} has the dimensions {array.dims}, not token and layer: give what "
                "recall.knockout_tokens returns"
            )
        panel = Panel(
            array.transpose("layer", "token").values,
            array["layer"].values.tolist(),
            [token_label(str(text)) for text in array["token_text"].values],
            CHANGE,
            lambda layer, label, value, *_: f"layer {layer}, {label}<br>{value:+.3g}%",
            most=MOST,
        )
        read = token_label(str(array["read"].values))
        asked = f"p(“{read}”) = {float(array['probability']):.2g}"
        heading = f"{escape(title, quote=False)}: {asked}" if title else asked
        lens = zip(array["lens"].values, array["lens_probability"].values, strict=True)
        texts = [f"{token_label(str(token), 12)} {100 * p:.0f}%" for token, p in lens]
        columns.append(Column(heading, [panel], "token not seen", texts=texts))
    return panel_figure(columns, [""], scale="symmetric")


def _with_embedding(rates: xr.DataArray) -> xr.DataArray:
    """Return rates with those of the embedding, if they are there, as one more position."""
    if "embedding" not in rates.coords:
        return rates
    bare = rates.reset_coords(drop=True)
    alone = (
        rates["embedding"].reset_coords(drop=True).expand_dims(position=["embedding"], layer=bare["layer"])
    )
    return xr.concat([bare, alone], "position")


def _by_title(found: _Labelled | Mapping[str, _Labelled], what: str = "arrays") -> dict[str, _Labelled]:
    """Return one or several labelled results by title; the title of one alone is empty."""
    panels = {"": found} if isinstance(found, xr.DataArray | xr.Dataset) else dict(found)
    if not panels:
        raise InputError(f"there are no {what} to show; give at least one{' array' * (what != 'arrays')}")
    return panels


def _percent(events: xr.Dataset) -> xr.DataArray:
    """Return events of extraction (part, condition, prompt, layer) in percent: 100 or 0."""
    return 100 * events[list(_PARTS)].to_dataarray("part").astype(float)


def _mean_line(array: xr.DataArray) -> Line:
    """Return the mean by layer over the prompts that have a value, and the interval about it."""
    values = array.transpose("prompt", "layer").values
    mean, low, high = np.full((3, values.shape[1]), np.nan)
    several = len(values) > 1
    bootstrap = Bootstrap(len(values), ci=LEVEL, resamples=RESAMPLES, seed=SEED) if several else None
    for layer, of_layer in enumerate(values.T):
        known = np.asarray(np.isfinite(of_layer))
        if known.any():
            mean[layer] = of_layer[known].mean()
        if bootstrap:
            low[layer], high[layer] = bootstrap.interval(of_layer, known)
    return Line(array["layer"].values, mean, (low, high) if np.isfinite(low).any() else None)
