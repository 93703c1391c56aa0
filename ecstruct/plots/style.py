"""What all figures have in common: fonts, colours, and how tokens, numbers and units are written.

Every figure carries its own template, so plotly's global state is neither read nor changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

INK, GREY, EMPTY = "#222222", "#8a8a8a", "#e4e4e4"
FONT_SIZE = 12
CHARACTER = 6.6
"""The mean width of a character at `FONT_SIZE`, in pixels, estimated on the wide side."""

_AXIS = {"showgrid": False, "zeroline": False, "ticks": "outside", "ticklen": 3, "title": {"standoff": 8}}

CELLS = go.layout.Template(
    layout={
        "font": {"family": "Helvetica, Arial, Liberation Sans, sans-serif", "size": FONT_SIZE},
        "font_color": INK,
        "paper_bgcolor": "white",
        "plot_bgcolor": EMPTY,  # shows where there is no value; zero is white
        "hoverlabel": {"align": "left"},
        "dragmode": False,  # a swipe over a figure scrolls
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    },
    data={"heatmap": [{"xgap": 1, "ygap": 1, "hoverongaps": False}]},
)
"""The template of figures whose panels are filled with coloured cells."""

_DRAWN_AXIS = {"showline": True, "linecolor": INK, "gridcolor": EMPTY}

LINES = go.layout.Template(CELLS).update(
    layout={"plot_bgcolor": "white", "xaxis": _DRAWN_AXIS, "yaxis": {**_DRAWN_AXIS, "showgrid": True}}
)
"""The template of figures with lines, points or bars on white, and a grid line at each value."""

# ColorBrewer's RdBu, reversed, is told apart with any colour vision; red raises the reward.
_DIVERGING = (
    *("#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0"),
    "#ffffff",
    *("#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f"),
)

LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""The colours of Okabe and Ito, which are told apart with any colour vision."""


def colour_scale(lowest: float = -1.0) -> list[tuple[float, str]]:
    """Return the diverging scale from `lowest` to 1 (in units of the maximum), white at zero.

    A value has the same colour whatever `lowest` is, so that clipped and full pictures compare.
    """
    values = np.linspace(-1.0, 1.0, len(_DIVERGING))
    # At the lower end the scale is cut between two of its colours, so that colour is mixed from both.
    stops = [lowest, *values[values > lowest + 1e-9]]
    return [((stop - lowest) / (1.0 - lowest), _mix(stop)) for stop in stops]


def _mix(value: float) -> str:
    """Return the colour of a value between -1 and 1, mixed from its neighbours on the diverging scale."""
    places = np.linspace(-1.0, 1.0, len(_DIVERGING))
    channels = zip(*map(hex_to_rgb, _DIVERGING), strict=True)
    return "#" + "".join(f"{round(np.interp(value, places, channel)):02x}" for channel in channels)


def number(value: float) -> str:
    """Write a number with its sign, a real minus, and two digits or all those before the point.

    >>> number(0.1234), number(-2.0), number(100.2), number(0.0)
    ('+0.12', '−2', '+100', '0')
    """
    digits = "+.0f" if 99.5 <= abs(value) < 1e5 else "+.2g"
    return (format(value, digits) if value else "0").replace("-", "−")


def plain_token(text: str) -> str:
    """Return a token without its tokenizer's mark for a leading space.

    >>> plain_token("Ġspeak"), plain_token("▁speak"), plain_token(" speak"), plain_token("a b")
    ('speak', 'speak', 'speak', 'a b')
    """
    return text.lstrip("Ġ▁ ") or text


def token_label(text: str, longest: int = 18) -> str:
    """Write a token for an axis, shortened and escaped, because plotly reads text as HTML.

    >>> token_label("Ġ<s>"), token_label("\\n"), token_label("ĊĊ"), token_label("  "), token_label("a" * 20)
    ('&lt;s&gt;', '\\\\n', '\\\\n\\\\n', '␣␣', 'aaaaaaaaaaaaaaaaa…')
    """
    if not text.strip("Ċ"):  # line breaks as byte-level tokenizers write them
        text = text.replace("Ċ", "\n")
    shown = plain_token(text).replace("\n", "\\n").replace("\t", "\\t")
    shown = shown if shown.strip() else "␣" * len(shown)
    return escape(shown if len(shown) <= longest else shown[: longest - 1] + "…", quote=False)


def reward_title(attrs: Mapping[str, Any]) -> str:
    """Return the title of a colour bar: the change of the reward, with the unit of the reward."""
    units = {"logit_diff": "logits", "logprob": "nats"}
    names = _reward_names(attrs)
    if len(names) > 1:
        return "Δ reward (" + " / ".join(sorted(names)) + ")"
    name = names.pop() if names else ""
    return f"Δ reward ({units.get(name, escape(name))})" if name else "Δ reward"


def _reward_names(attrs: Mapping[str, Any]) -> set[str]:
    """Return the names of the rewards in the options of scores, or of the parts of a difference or mean."""
    parts: Sequence[Mapping[str, Any]] = attrs.get("difference") or attrs.get("mean") or ()
    if parts:
        return set().union(*(_reward_names(part) for part in parts))
    options = attrs.get("options")
    name = (options if isinstance(options, Mapping) else attrs).get("reward")
    return {str(name)} if name else set()
