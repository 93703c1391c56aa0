"""Heatmaps for print: their size, type and lines, the numbers in them, and that their files are vector."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from helpers.chromium import CHROMIUM
from helpers.figures import axis_of
from helpers.synthetic_scores import ENTITIES, make_scores, prompts_of

from ecstruct.errors import InputError
from ecstruct.plots import heatmap, save_figure
from ecstruct.plots.style import colour_scale
from ecstruct.scores.slots import SlotScores

ROWS = ("downstream", "informative", "upstream")
POINT = 96 / 72


def cells(figure: go.Figure) -> list[go.Bar]:
    return [trace for trace in figure.data if trace.type == "bar"]


def signs(figure: go.Figure, panel: go.Bar, symbol: str) -> set[tuple[int, int]]:
    """Cells (layer, column) of a panel that have a sign."""
    return {
        (int(y), int(x))
        for trace in figure.data
        if trace.type == "scatter" and trace.xaxis == panel.xaxis and trace.marker.symbol == symbol
        for x, y in zip(trace.x, trace.y, strict=True)
    }


@pytest.mark.parametrize(("width", "pixels"), [(None, 312), ("column", 312), ("text", 648), (5.5, 528)])
def test_it_has_the_width_that_is_asked_for(width: str | float | None, pixels: int) -> None:
    figure = make_scores().heatmap(style="paper", width=width)
    assert figure.layout.width == pixels
    assert figure.layout.height < 96 * 9
    assert figure.layout.title.text is None
    for trace in cells(figure):
        for kind in "xy":
            name = getattr(trace, f"{kind}axis")
            low, high = figure.layout[f"{kind}axis{name[1:]}"].domain
            assert 0 <= low < high <= 1


def test_type_is_of_7_to_9_points_and_lines_are_thin() -> None:
    figure = heatmap({"a": make_scores(), "b": make_scores(seed=1)}, style="paper", width="text")
    sizes, lines = [], []

    def collect(part: object) -> None:
        if isinstance(part, dict):
            for key, value in part.items():
                if key in ("font", "tickfont") and "size" in value:
                    sizes.append(value["size"])
                if key in ("tickwidth", "linewidth"):
                    lines.append(value)
                collect(value)
        elif isinstance(part, list | tuple):
            for one in part:
                collect(one)

    layout = figure.to_plotly_json()["layout"]
    layout.pop("template")
    collect(layout)
    collect([trace.to_plotly_json() for trace in figure.data])
    assert len(sizes) > 20 and 6.99 < min(sizes) / POINT < max(sizes) / POINT <= 9
    assert lines and max(lines) / POINT < 0.51


@pytest.mark.parametrize("scale", ["symmetric", "paper"])
def test_cells_have_the_numbers_and_the_colours_of_the_screen(scale: str) -> None:
    scores = make_scores(n_layers=4)
    paper = heatmap(scores, style="paper", scale=scale)  # pyright: ignore[reportArgumentType]
    screen = heatmap(scores, scale=scale)  # pyright: ignore[reportArgumentType]
    shown = [trace for trace in screen.data if trace.type == "heatmap"]
    for bar, grid in zip(cells(paper), shown, strict=True):
        values = np.full(np.shape(grid.z), np.nan)
        for x, base, value in zip(bar.x, bar.base, bar.marker.color, strict=True):
            values[round(base + 0.5), x] = value
        np.testing.assert_array_equal(values, grid.z)
        assert (bar.marker.cmin, bar.marker.cmax) == (grid.zmin, grid.zmax)
        assert bar.marker.colorscale == grid.colorscale
        assert set(bar.y) == {1} and bar.width == 1


def test_what_is_negative_has_a_sign() -> None:
    """In grey, red and blue of one strength are the same."""
    light = dict(colour_scale())
    assert light[0.0] != light[1.0]
    scores = make_scores(n_layers=4)
    figure = scores.heatmap(style="paper")
    mean = scores.aggregate()
    for i, panel in enumerate(cells(figure)):
        score = ROWS[i % 3]
        values = (
            (mean.mlp if i < 3 else mean.heads.sum("head"))
            .sel(score=score)
            .transpose("layer", "slot")
            .values
        )
        strong = {(int(y), int(x)) for y, x in np.argwhere(values < -0.1 * np.abs(values).max())}
        assert strong and signs(figure, panel, "line-ew") == strong
    assert any("− negative" in str(note.text) for note in figure.layout.annotations)
    none = make_scores()
    none.dataset["mlp"], none.dataset["heads"] = np.abs(none.mlp), np.abs(none.heads)
    assert not any("negative" in str(note.text) for note in none.heatmap(style="paper").layout.annotations)


# How dichromats see linear RGB (Machado, Oliveira & Fernandes 2009, at full severity).
DICHROMATS = {
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def seen(colour: str, matrix: object) -> np.ndarray:
    """A colour as a dichromat sees it, in CIELAB, where 1 is about the least difference that is noticed."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(matrix) @ linear, 0, 1) / (TO_XYZ @ np.ones(3))
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eyes", DICHROMATS)
def test_colours_are_told_apart_with_any_colour_vision(eyes: str) -> None:
    matrix = DICHROMATS[eyes]
    colours = [seen(colour, matrix) for _, colour in colour_scale()]
    for low, high in zip(colours[:4], colours[:-5:-1], strict=True):  # from the ends to 0.4
        assert np.linalg.norm(low - high) > 25
    lightness = [colour[0] for colour in colours]
    assert np.all(np.diff(lightness[:6]) > 2) and np.all(np.diff(lightness[5:]) < -2)
    red_green = [seen(colour, DICHROMATS["deutan"]) for colour in ("#c0504d", "#6b8e23")]
    assert np.linalg.norm(red_green[0] - red_green[1]) < 25  # the measure can fail


def test_dots_are_those_of_the_screen() -> None:
    averaged = make_scores(prompts_of([["a"], ["b"], ["c"]])).aggregate(ci=0.5)
    paper, screen = heatmap(averaged, style="paper"), heatmap(averaged)
    on_screen = sum(len(t.x) for t in screen.data if t.type == "scatter")
    assert on_screen == sum(len(signs(paper, panel, "circle")) for panel in cells(paper)) > 0
    assert any("50% interval excludes zero" in str(note.text) for note in paper.layout.annotations)


def test_many_layers_stay_readable() -> None:
    """Up to a page high; what would lie over its neighbours is left out, and so is its legend."""
    averaged = make_scores(prompts_of([["a"], ["b"], ["c"]]), n_layers=80).aggregate(ci=0.5)
    figure = averaged.heatmap(style="paper")
    low, high = figure.layout.yaxis.domain
    height = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    assert figure.layout.height <= 96 * 9 and (high - low) * height / 80 > 2 * POINT
    assert not [trace for trace in figure.data if trace.type == "scatter"]
    said = " ".join(str(note.text) for note in figure.layout.annotations)
    assert "negative" not in said and "●" not in said
    assert all(panel.marker.line.width <= 0.101 * (high - low) * height / 80 for panel in cells(figure))
    assert [
        trace for trace in make_scores(n_layers=32).heatmap(style="paper").data if trace.type == "scatter"
    ]


def test_labels_for_which_there_is_no_room_are_left_out() -> None:
    long = make_scores(prompts_of(ENTITIES, prefix=[f"w{i}" for i in range(40)]))
    narrow, wide = (long.heatmap(style="paper", width=width) for width in ("column", 20))
    assert len(wide.layout.xaxis.ticktext) == 45
    step = narrow.layout.xaxis.tickvals[1] - narrow.layout.xaxis.tickvals[0]
    assert narrow.layout.xaxis.ticktext[-1] == "speak"  # where the answer is read
    assert step > 1 and len(narrow.layout.xaxis.ticktext) == len(range(0, 45, step))
    low, high = ends_of(narrow, cells(narrow)[0])
    assert (high - low) / 45 * step >= 7 * POINT


def of_length(words: int, word: str = "w") -> SlotScores:
    return make_scores(prompts_of([["a"], ["b"]], prefix=[word] * words, suffix=[])).aggregate()


def ends_of(figure: go.Figure, panel: go.Bar) -> tuple[float, float]:
    """Where a panel begins and ends, in pixels from the left edge of the figure."""
    margin = figure.layout.margin
    inner = figure.layout.width - margin.l - margin.r
    low, high = figure.layout[f"xaxis{panel.xaxis[1:]}"].domain
    return margin.l + low * inner, margin.l + high * inner


def lowest_axes(figure: go.Figure) -> list[Any]:
    """The x axes below the lowest panels, which have the labels of tokens."""
    return [axis for axis in figure.select_xaxes() if axis.showticklabels]


@pytest.mark.parametrize("width", ["column", "text", 5.5])
def test_headings_are_as_wide_as_their_panels_at_most(width: Any) -> None:
    sets = {"long": of_length(30), "short": of_length(3)}
    figure = heatmap(sets, style="paper", width=width)
    notes = [note.text for note in figure.layout.annotations]
    assert notes.count("attention") == 2 and "attention (heads summed)" not in notes
    # 8 points of Helvetica: half an em a letter.
    ends = [ends_of(figure, panel) for panel in cells(figure)]
    assert min(high - low for low, high in ends) > 9 * 0.5 * 8 * POINT
    assert ends[-1][1] == pytest.approx(figure.layout.width - 4, abs=1)
    wide = heatmap(sets["short"], style="paper", width="text")
    assert "attention (heads summed)" in [note.text for note in wide.layout.annotations]


def test_labels_are_turned_only_where_they_do_not_fit() -> None:
    level, turned = (of_length(4, word).heatmap(style="paper") for word in ("word", "Colleagues"))
    assert [lowest_axes(figure)[0].tickangle for figure in (level, turned)] == [0, -90]
    assert turned.layout.margin.b > level.layout.margin.b + 25
    wide = of_length(4, "Colleagues").heatmap(style="paper", width="text")
    assert lowest_axes(wide)[0].tickangle == 0
    assert len(lowest_axes(wide)[0].ticktext) == 5
    # One long label among short ones has its neighbours' room; two of them have not.
    prompts = prompts_of([["a"], ["b"]], prefix=["w", "Colleagues", "w"], suffix=["w"])
    assert lowest_axes(make_scores(prompts).heatmap(style="paper", width=4))[0].tickangle == 0
    prompts = prompts_of([["a"], ["b"]], prefix=["Colleagues", "Colleagues", "w"], suffix=["w"])
    assert lowest_axes(make_scores(prompts).heatmap(style="paper", width=4))[0].tickangle == -90
    # The figure is all of one kind.
    both = heatmap({"a": of_length(2, "Colleagues"), "b": of_length(2, "word")}, style="paper")
    assert [axis.tickangle for axis in lowest_axes(both)] == [-90] * 4


def test_layers_from_0_at_the_bottom() -> None:
    figure = make_scores(n_layers=32).heatmap(style="paper")
    assert list(figure.layout.yaxis.range) == [-0.5, 31.5]
    assert figure.layout.yaxis.title.text == "<b>downstream</b><br>layer"
    assert (
        axis_of(figure, cells(figure)[0], "y").domain[1] > axis_of(figure, cells(figure)[2], "y").domain[1]
    )


def test_what_cannot_be() -> None:
    scores = make_scores()
    with pytest.raises(InputError, match="style='print' is unknown; it is 'screen' or 'paper'"):
        scores.heatmap(style="print")
    with pytest.raises(InputError, match="width='column' is for style='paper'"):
        scores.heatmap(width="column")
    for width in ("page", 0, 1.9, 300, float("nan")):
        with pytest.raises(InputError, match=r"'column' \(3.25 inches\) or 'text' \(6.75 inches\)"):
            scores.heatmap(style="paper", width=width)
    with pytest.raises(InputError, match="scale='log' is unknown"):
        scores.heatmap(style="paper", scale="log")
    many = make_scores(prompts_of([["a"], ["b"]], prefix=["w"] * 200))
    with pytest.raises(
        InputError, match="no room for 408 cells side by side; give more inches, or show less"
    ):
        many.heatmap(style="paper")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_files_are_vector_at_their_size(tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    figure = make_scores(n_layers=3).heatmap(style="paper")
    save_figure(figure, tmp_path / "figure.svg")
    save_figure(figure, tmp_path / "figure.pdf")
    svg = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert "<image" not in svg
    assert re.search(r'<svg[^>]* width="312"', svg)
    for text in ("informative", "speak", "Δ reward (logits)"):
        assert text in svg
    assert svg.count('class="point"') >= 6 * 3 * 7  # cells

    pdf = (tmp_path / "figure.pdf").read_bytes()
    size = re.search(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)", pdf)
    assert size is not None
    width, height = (float(side) for side in size.groups())
    assert width == pytest.approx(3.25 * 72, abs=0.5)
    assert height == pytest.approx(figure.layout.height / POINT, abs=1)
    assert b"/FontFile" in pdf and b"/Subtype /Image" not in pdf and b"/Subtype/Image" not in pdf
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    assert b"".join(_inflated(stream) for stream in streams).count(b" Tf") > 20  # text is set as text


def _inflated(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return b""
