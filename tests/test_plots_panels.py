"""Scatters, curves and grids of values, side by side: figures hold what they should, where they should."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from helpers.figures import bands_of, extremes, lines_of, titles_of

from ecstruct.errors import InputError
from ecstruct.plots import curve_panels, scatter, value_grids
from ecstruct.plots.grids import COLOURS
from ecstruct.plots.layout import PAGE_WIDTH
from ecstruct.plots.style import INK

NAN = float("nan")


# --- scatter


def points(x: list[float], y: list[float]) -> pd.DataFrame:
    layers = range(2, 2 + len(x))
    return pd.DataFrame({"x": x, "y": y, "name": [f"MLP <{i}>" for i in layers], "layer": layers})


def test_scatter_shows_points_by_layer_and_the_least_squares_line() -> None:
    frames = {"A & B": points([0.0, 1.0, 2.0], [1.0, 2.0, 6.0]), "C": points([5.0, -1.0], [0.0, 3.0])}
    fit = {"A & B": "r < 1, n = 3"}
    figure = scatter(frames, x="score (logits)", y="change <rank>", fit=fit)
    dots = [trace for trace in figure.data if trace.mode == "markers"]
    assert [(list(t.x), list(t.y)) for t in dots] == [
        ([0.0, 1.0, 2.0], [1.0, 2.0, 6.0]),
        ([5.0, -1.0], [0.0, 3.0]),
    ]
    assert list(dots[0].text) == ["MLP &lt;2&gt;", "MLP &lt;3&gt;", "MLP &lt;4&gt;"]
    assert "%{x" in dots[0].hovertemplate and "change &lt;rank&gt;: %{y" in dots[0].hovertemplate
    assert list(dots[0].marker.color) == [2, 3, 4]
    assert {t.marker.coloraxis for t in dots} == {"coloraxis"}
    colours = figure.layout.coloraxis
    assert (colours.cmin, colours.cmax, colours.colorbar.title.text) == (2, 4, "layer")
    first, second = [trace for trace in figure.data if trace.mode == "lines"]
    # By hand: y = 0.5 + 2.5 x, and through both points where there are two.
    assert list(first.x) == [0.0, 2.0] and list(first.y) == pytest.approx([0.5, 5.5])
    assert list(second.x) == [-1.0, 5.0] and list(second.y) == pytest.approx([3.0, 0.0])
    assert [trace.xaxis for trace in (first, dots[0], second, dots[1])] == ["x", "x", "x2", "x2"]
    assert titles_of(figure) == ["<b>A &amp; B</b><br>r &lt; 1, n = 3", "<b>C</b><br>&nbsp;"]
    layout = figure.layout
    assert layout.xaxis.title.text == layout.xaxis2.title.text == "score (logits)"
    assert layout.yaxis.title.text == "change &lt;rank&gt;"
    assert layout.xaxis.zeroline and layout.yaxis2.zeroline
    assert layout.xaxis.domain[1] < layout.xaxis2.domain[0]


def test_a_fit_stands_below_the_title_of_its_panel() -> None:
    frame = points([0.0, 1.0], [1.0, 2.0])
    figure = scatter({"one": frame, "two": frame}, x="x", y="y", fit={"two": "r = 1"})
    notes = {note.text: note for note in figure.layout.annotations}
    title = notes["<b>two</b><br>r = 1"]
    assert figure.layout.xaxis2.domain[0] < title.x < figure.layout.xaxis2.domain[1]
    assert (title.y, title.yanchor) == (1, "bottom") and title.yshift + 2 * 18 < figure.layout.margin.t + 5


def test_points_without_a_place_are_left_out_and_so_is_a_line_of_nothing() -> None:
    figure = scatter({"a": points([1.0, NAN, 1.0], [1.0, 2.0, 5.0])}, x="x", y="y")
    (dots,) = figure.data
    assert list(dots.y) == [1.0, 5.0] and list(dots.marker.color) == [2, 4]
    alone = scatter({"a": points([1.0], [1.0])}, x="x", y="y").layout.coloraxis
    assert alone.cmin < alone.cmax


@pytest.mark.parametrize(
    ("n", "rows"), [(1, [1]), (2, [2]), (3, [3]), (4, [2, 2]), (5, [3, 2]), (7, [3, 3, 1])]
)
def test_rows_of_scatters_fit_a_screen(n: int, rows: list[int]) -> None:
    frame = points([0.0, 1.0], [1.0, 2.0])
    titles = [f"upstream, {i}" for i in range(n)]
    layout = scatter({title: frame for title in titles}, x="x", y="y", fit={titles[-1]: "r = 1"}).layout
    places = [
        (layout[f"xaxis{i}"].domain, layout[f"yaxis{i}"].domain, layout[f"yaxis{i}"].title.text)
        for i in range(1, n + 1)
    ]
    tops = sorted({y[1] for _, y, _ in places}, reverse=True)
    assert [sum(y[1] == top for _, y, _ in places) for top in tops] == rows and tops[0] == 1
    assert layout.width < 1068  # 1100 without the margins of a page
    assert [title for *_, title in places] == [None if i % rows[0] else "y" for i in range(n)]
    across = layout.width - layout.margin.l - layout.margin.r
    inner = layout.height - layout.margin.t - layout.margin.b
    for (_, above, _), (_, below, _) in pairwise(places[:: rows[0]]):
        assert (above[0] - below[1]) * inner > 56 + 2 * 20  # numbers and title below, two lines above
    sizes = {(round((x[1] - x[0]) * across), round((y[1] - y[0]) * inner)) for x, y, _ in places}
    assert sizes == {(250, 250)}
    notes = {note.text: note for note in layout.annotations}
    last = notes[f"<b>{titles[-1]}</b><br>r = 1"]
    assert last.y == places[-1][1][1]
    assert places[-1][0][0] < last.x < places[-1][0][1]


def test_mlps_are_squares_and_heads_circles() -> None:
    mixed = points([0.0, 1.0, 2.0], [1.0, 2.0, 6.0]).assign(name=["MLP 0", "head 0.1", "MLP 12 (core)"])
    figure = scatter({"a": mixed, "b": points([0.0, 1.0], [1.0, 2.0])}, x="x", y="y")
    first, second = [trace for trace in figure.data if trace.text is not None]
    assert list(first.marker.symbol) == ["square", "circle", "square"]
    assert set(second.marker.symbol) == {"square"}
    (key,) = [note for note in figure.layout.annotations if "MLPs" in note.text]
    assert key.text == "■ MLPs &nbsp; ● heads"
    titles = [note for note in figure.layout.annotations if note is not key]
    assert all(note.yshift + 18 <= key.yshift <= figure.layout.margin.t - 18 for note in titles)
    alone = scatter({"b": points([0.0, 1.0], [1.0, 2.0])}, x="x", y="y")
    assert titles_of(alone) == ["<b>b</b>"]
    assert figure.layout.margin.t >= alone.layout.margin.t + 20


def test_bad_scatters() -> None:
    frame = points([0.0, 1.0], [1.0, 2.0])
    with pytest.raises(InputError, match="no panels to show"):
        scatter({}, x="x", y="y")
    with pytest.raises(InputError, match="frame of 'a' has no column 'layer'"):
        scatter({"a": frame.drop(columns="layer")}, x="x", y="y")
    with pytest.raises(InputError, match="frame of 'a' has no points"):
        scatter({"a": points([NAN], [1.0])}, x="x", y="y")
    with pytest.raises(InputError, match=r"fit= names 'b', but the panels are \['a'\]"):
        scatter({"a": frame}, x="x", y="y", fit={"b": "r = 1"})


# --- curves side by side


CURVES = {
    "joint": {"<A> facts": [[4.0, 2.0], [1.0, 3.0]], "<A> implications": [[6.0], [5.0]]},
    "A then B": {"other": [[8.0, 8.0], [2.0, 0.0], [-3.0, 1.0]], "<A> facts": [[1.0], [7.0]]},
}


def test_curve_panels_draw_means_with_bands_in_their_panels() -> None:
    figure = curve_panels(CURVES, x="epoch", y="mean rank")
    drawn = {(line.xaxis, line.name): line for line in lines_of(figure)}
    assert {key: list(line.y) for key, line in drawn.items()} == {
        ("x", "&lt;A&gt; facts"): [3.0, 2.0],
        ("x", "&lt;A&gt; implications"): [6.0, 5.0],
        ("x2", "other"): [8.0, 1.0, -1.0],
        ("x2", "&lt;A&gt; facts"): [1.0, 7.0],
    }
    assert all(list(line.x) == list(range(len(line.y))) for line in drawn.values())
    assert [line.line.dash for line in drawn.values()] == ["solid", "dash", "solid", "solid"]
    first, second = bands_of(figure)
    assert (first.xaxis, extremes(first)) == ("x", {0: (2.0, 4.0), 1: (1.0, 3.0)})
    assert (second.xaxis, extremes(second)) == ("x2", {0: (8.0, 8.0), 1: (0.0, 2.0), 2: (-3.0, 1.0)})
    assert [trace.yaxis for trace in figure.data] == [t.xaxis.replace("x", "y") for t in figure.data]


def test_a_name_looks_the_same_in_all_panels_and_is_named_once() -> None:
    figure = curve_panels(CURVES, x="epoch", y="mean rank")
    facts, implications, other, again = lines_of(figure)
    assert facts.line.color == again.line.color == implications.line.color != other.line.color
    named = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert named == ["&lt;A&gt; facts", "&lt;A&gt; implications", "other"]
    assert facts.legendgroup == again.legendgroup == bands_of(figure)[0].legendgroup


def test_curve_panels_share_y_and_have_titles() -> None:
    figure = curve_panels(CURVES, x="<epoch>", y="<rank>")
    layout = figure.layout
    assert layout.yaxis.range == layout.yaxis2.range
    assert layout.yaxis.range[0] < -3 and layout.yaxis.range[1] > 8
    assert layout.xaxis.title.text == layout.xaxis2.title.text == "&lt;epoch&gt;"
    assert layout.yaxis.title.text == "&lt;rank&gt;"
    assert titles_of(figure) == ["<b>joint</b>", "<b>A then B</b>"]
    assert layout.xaxis.range[1] == 1.2 and layout.xaxis2.range[1] == 2.2


def test_boundaries_are_dotted_lines_in_their_panel() -> None:
    figure = curve_panels(CURVES, x="epoch", y="rank", boundaries={"joint": [1], "A then B": [1.5]})
    drawn = [(line.x0, line.x1, line.xref, line.yref, line.line.dash) for line in figure.layout.shapes]
    assert drawn == [(1, 1, "x", "y domain", "dot"), (1.5, 1.5, "x2", "y2 domain", "dot")]


def test_an_order_of_training_is_no_set_of_implications() -> None:
    panels = {"a": {"facts first": [[1.0]], "implications first": [[2.0]]}}
    first, second = lines_of(curve_panels(panels, x="epoch", y="rank"))
    assert first.line.color != second.line.color and first.line.dash == second.line.dash == "solid"


def test_bad_curve_panels() -> None:
    for nothing in ({}, {"a": {}}, {"a": {"b": [[NAN]]}}):
        with pytest.raises(InputError, match="no curves to show"):
            curve_panels(nothing, x="x", y="y")
    with pytest.raises(InputError, match="'b' is no curve"):
        curve_panels({"a": {"b": []}}, x="x", y="y")
    with pytest.raises(InputError, match="boundaries= names 'B then A'"):
        curve_panels(CURVES, x="x", y="y", boundaries={"B then A": [1]})


# --- grids of values


def grids() -> dict[str, pd.DataFrame]:
    first = pd.DataFrame([[1.5, 0.25], [NAN, -2.0]], index=[1e-5, 3e-4], columns=[1, 8])
    second = pd.DataFrame([[8.0]], index=["<low>"], columns=["x & y"])
    return {"A": first, "<B>": second}


def test_grids_print_each_number_on_one_scale() -> None:
    figure = value_grids(grids(), x="epochs", y="learning rate", value="<rank>")
    first, second = figure.data
    np.testing.assert_array_equal(first.z, [[1.5, 0.25], [NAN, -2.0]])
    np.testing.assert_array_equal(second.z, [[8.0]])
    assert [list(row) for row in first.text] == [["1.50", "0.25"], ["", "−2.00"]]
    assert first.texttemplate == "%{text}"
    assert first.coloraxis == second.coloraxis == "coloraxis"
    colours = figure.layout.coloraxis
    assert (colours.cmin, colours.cmax, colours.reversescale) == (0, 8.0, False)
    assert colours.colorbar.title.text == "&lt;rank&gt;"
    assert value_grids(grids(), x="x", y="y", value="v", reversed_scale=True).layout.coloraxis.reversescale


def test_rows_and_columns_of_grids_are_named_first_row_on_top() -> None:
    layout = value_grids(grids(), x="epochs", y="learning rate", value="rank").layout
    assert list(layout.xaxis.ticktext) == ["1", "8"]
    assert list(layout.yaxis.ticktext) == ["1e-05", "0.0003"]
    assert list(layout.yaxis.tickvals) == [0, 1]
    assert layout.yaxis.range[0] > layout.yaxis.range[1]
    assert (layout.xaxis2.ticktext, layout.yaxis2.ticktext) == (("x &amp; y",), ("&lt;low&gt;",))
    assert layout.xaxis.title.text == layout.xaxis2.title.text == "epochs"
    assert layout.yaxis.title.text == "learning rate"
    assert [note.text for note in layout.annotations] == ["<b>A</b>", "<b>&lt;B&gt;</b>"]


@pytest.mark.parametrize(
    ("largest", "text"), [(0.0123, "0.0123"), (0.5, "0.500"), (12.345, "12.35"), (4321, "4321")]
)
def test_grids_have_the_decimals_that_their_values_need(largest: float, text: str) -> None:
    figure = value_grids({"a": pd.DataFrame([[largest, 0.0]])}, x="x", y="y", value="v")
    assert figure.data[0].text[0][0] == text


def test_numbers_are_read_on_every_colour() -> None:
    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    figure = value_grids(grids(), x="x", y="y", value="v")
    assert {trace.textfont.color for trace in figure.data} == {INK}
    assert [colour for _, colour in figure.layout.coloraxis.colorscale] == list(COLOURS)
    # 4.5 is what WCAG asks of text.
    assert min((luminance(colour) + 0.05) / (luminance(INK) + 0.05) for colour in COLOURS) > 4.5


def test_grids_of_nothing_and_of_zeros() -> None:
    for nothing in ({}, {"a": pd.DataFrame()}, {"a": pd.DataFrame([[NAN]])}):
        with pytest.raises(InputError, match="no values to show"):
            value_grids(nothing, x="x", y="y", value="v")
    assert value_grids({"a": pd.DataFrame([[0.0]])}, x="x", y="y", value="v").layout.coloraxis.cmax == 1


# --- all of them


def test_panels_are_as_wide_as_their_titles() -> None:
    long = "a title that is much longer than the panel below it would have to be on its own account"
    frame = points([0.0, 1.0], [1.0, 2.0])
    for figure in (
        scatter({long: frame, "b": frame}, x="x", y="y"),
        scatter({"a": frame, "b": frame}, x="x", y="y", fit={"a": long}),
        curve_panels({long: {"a": [1.0, 2.0]}, "b": {"a": [1.0]}}, x="x", y="y"),
        value_grids({long: grids()["A"], "b": grids()["A"]}, x="x", y="y", value="v"),
    ):
        layout = figure.layout
        inner = layout.width - layout.margin.l - layout.margin.r
        assert (layout.xaxis.domain[1] - layout.xaxis.domain[0]) * inner > 6 * len(long)
        assert layout.xaxis2.domain[0] > layout.xaxis.domain[1]
        assert layout.xaxis2.domain[1] <= 1


def test_figures_that_are_wider_than_a_page_have_several_rows() -> None:
    long = "test finetuning, test implications, of all seeds {}"
    curves = {long.format(i): {"a": [1.0, 2.0]} for i in range(4)}
    marks = {long.format(3): [1.0]}
    wide = curve_panels(curves, x="x", y="y", boundaries=marks).layout
    assert wide.width <= PAGE_WIDTH + 1
    assert wide.xaxis3.domain == wide.xaxis.domain and wide.yaxis3.domain[1] < wide.yaxis.domain[0]
    axes = [wide.yaxis, wide.yaxis2, wide.yaxis3, wide.yaxis4]
    assert [axis.showticklabels for axis in axes] == [True, False, True, False]
    assert [axis.title.text for axis in axes] == ["y", None, "y", None]
    (mark,) = wide.shapes
    assert (mark.x0, mark.x1, mark.xref, mark.yref) == (1, 1, "x4", "y4 domain")
    columns = [f"second-hop implications {i}" for i in range(4)]
    grid = value_grids(
        {str(i): pd.DataFrame([[1.0] * 4], columns=columns) for i in range(3)}, x="x", y="y", value="v"
    )
    assert grid.layout.width <= PAGE_WIDTH + 1
    assert curve_panels({"a": {"a": [1.0]}, "b": {"a": [1.0]}}, x="x", y="y").layout.yaxis2.domain == (0, 1)


def test_minus_signs_are_no_hyphens_and_zero_has_none() -> None:
    figure = scatter(
        {"a": points([0.0, 1.0], [1.0, 2.0])}, x="x", y="y", fit={"a": "r = -0.37, by-product"}
    )
    assert titles_of(figure)[0] == "<b>a</b><br>r = −0.37, by-product"
    grid = value_grids({"a": pd.DataFrame([[1.0, -1e-5, -0.25]])}, x="x", y="y", value="v")
    assert list(grid.data[0].text[0]) == ["1.00", "0.00", "−0.25"]
