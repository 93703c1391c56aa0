"""Grouped bars hold the means, seeds and references they should, where they should."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from helpers.figures import titles_of

from ecstruct.errors import InputError
from ecstruct.plots import grouped_bars

NAN = float("nan")


BARS = {
    "None": {"facts": [1.0, 3.0], "impl <1>": [5.0]},
    "Early": {"impl <1>": [2.0, 4.0, 9.0]},
}


def test_bars_are_means_and_dots_are_seeds() -> None:
    figure = grouped_bars(BARS, y="mean rank")
    bars = {trace.name: trace for trace in figure.data if trace.type == "bar"}
    assert list(bars) == ["facts", "impl &lt;1&gt;"]
    facts, impl = bars.values()
    assert (list(facts.x), list(facts.y)) == ([-0.2], [2.0])
    assert list(impl.x) == pytest.approx([0.2, 1.2])
    assert list(impl.y) == [5.0, 5.0]
    assert facts.marker.color != impl.marker.color
    dots = {trace.name: trace for trace in figure.data if trace.type == "scatter"}
    assert list(dots["facts"].y) == [1.0, 3.0]
    assert list(dots["impl &lt;1&gt;"].y) == [2.0, 4.0, 9.0], "one seed alone is no dot"
    for name, trace in dots.items():
        places = np.asarray(bars[name].x)
        distance = np.abs(np.asarray(trace.x)[:, None] - places).min(1)
        assert (distance < bars[name].width / 2).all(), "a dot beside its bar"
        assert len(set(trace.x)) == len(trace.x)
        assert trace.showlegend is False and trace.legendgroup == bars[name].legendgroup
    assert list(figure.layout.xaxis.ticktext) == ["None", "Early"]
    assert list(figure.layout.xaxis.tickvals) == [0, 1]
    assert figure.layout.yaxis.title.text == "mean rank"
    assert figure.layout.yaxis.range[0] == 0 and figure.layout.yaxis.range[1] > 9
    assert not figure.layout.shapes and not titles_of(figure)


def test_bars_next_to_each_other_do_not_overlap() -> None:
    figure = grouped_bars({g: {s: [1.0] for s in "abcde"} for g in "xyz"}, y="y")
    bars = sorted((x, bar.width) for bar in figure.data for x in bar.x)
    ends = [(x - width / 2, x + width / 2) for x, width in bars]
    assert len(ends) == 15
    assert all(right < left for (_, right), (left, _) in pairwise(ends))


def test_references_stand_on_their_bars_with_one_legend_entry() -> None:
    reference = {"None": {"facts": 2.5}, "Early": {"facts": 12.0, "impl <1>": 4.0}}
    figure = grouped_bars(BARS, y="y", reference=reference)
    (diamonds,) = [trace for trace in figure.data if trace.name == "paper"]
    assert diamonds.marker.symbol == "diamond" and diamonds.marker.color == "white"
    assert list(diamonds.x) == pytest.approx([-0.2, 0.8, 1.2])
    assert list(diamonds.y) == [2.5, 12.0, 4.0]
    assert figure.layout.yaxis.range[1] > 12
    named = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert named == ["facts", "impl &lt;1&gt;", "paper"]
    nothing = grouped_bars(BARS, y="y", reference={"None": {"facts": NAN}})
    assert "paper" not in [trace.name for trace in nothing.data]


def test_chance_is_a_labelled_line_in_the_picture() -> None:
    figure = grouped_bars(BARS, y="y", chance=19.5)
    (line,) = figure.layout.shapes
    assert (line.y0, line.y1, line.line.dash) == (19.5, 19.5, "dash")
    (label,) = figure.layout.annotations
    assert (label.text, label.y) == ("chance", 19.5)
    low, high = figure.layout.yaxis.range
    assert low <= 0 and high > 19.5
    assert grouped_bars({"a": {"b": [-2.0]}}, y="y", chance=0.5).layout.yaxis.range[0] < -2


def test_labels_of_bars_are_escaped_and_wrapped_and_fit() -> None:
    label = "all of the weights <grafted> onto it"
    figure = grouped_bars({label: {"a": [1.0]}, "b": {"a": [1.0]}}, y="<y>")
    assert figure.layout.xaxis.ticktext[0] == "all of the<br>weights<br>&lt;grafted&gt; onto<br>it"
    assert figure.layout.yaxis.title.text == "&lt;y&gt;"
    assert figure.layout.margin.b >= 4 * 15
    few = grouped_bars({str(i): {"a": [1.0]} for i in range(5)}, y="y")
    many = grouped_bars({str(i): {s: [1.0] for s in "abcdefg"} for i in range(5)}, y="y")
    assert many.layout.width > few.layout.width + 5 * 50


def test_the_legend_is_above_the_bars_and_has_the_lines_that_it_needs() -> None:
    def legend(series: int, groups: int) -> tuple[float, float]:
        """The pixels above the bars and right of them."""
        values = {
            str(g): {f"a series of a long name {s}": [1.0] for s in range(series)} for g in range(groups)
        }
        layout = grouped_bars(values, y="y").layout
        assert (layout.legend.orientation, layout.legend.yanchor, layout.legend.y) == ("h", "bottom", 1)
        assert layout.width - layout.margin.l - layout.margin.r >= 24 * 6
        return layout.margin.t, layout.margin.r

    assert legend(1, 1)[0] >= 35
    assert legend(3, 9)[0] == legend(1, 1)[0]
    assert legend(3, 1)[0] == legend(1, 1)[0] + 2 * 20
    assert legend(3, 9)[1] < 30


def test_bars_of_nothing_and_references_to_nothing() -> None:
    for nothing in ({}, {"a": {}}, {"a": {"b": []}}, {"a": {"b": [NAN]}}):
        with pytest.raises(InputError, match="no bars to show"):
            grouped_bars(nothing, y="y")
    for group, series in (("Late", "facts"), ("None", "fact")):
        with pytest.raises(InputError, match=f"'{series}' of '{group}', which is not among the bars"):
            grouped_bars(BARS, y="y", reference={group: {series: 1.0}})
