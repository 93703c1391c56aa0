"""Curves of ranks: a line each, and with several seeds their means in a band."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from helpers.figures import bands_of, extremes, lines_of

from ecstruct.errors import InputError
from ecstruct.plots import rank_curves

NAN = float("nan")


def test_rank_curves() -> None:
    ranks = {
        "first-hop facts": [9.5, 1.0, 0.0],
        "first-hop implications": [9.4, 5.0, 0.4],
        "second-hop facts": [9.6, 2.0, 0.1],
    }
    figure = rank_curves(ranks)
    lines = {trace.name: trace for trace in figure.data}
    assert {name: list(trace.y) for name, trace in lines.items()} == ranks
    assert list(lines["first-hop facts"].x) == [0, 1, 2]
    dashes = {name: trace.line.dash for name, trace in lines.items()}
    assert dashes == {
        "first-hop facts": "solid",
        "first-hop implications": "dash",
        "second-hop facts": "solid",
    }
    colours = [lines[name].line.color for name in ranks]
    assert colours[0] == colours[1] != colours[2]
    assert list(figure.layout.yaxis.range) == [-0.5, 11]
    assert figure.layout.xaxis.title.text == "epoch"
    assert rank_curves(SimpleNamespace(ranks=ranks)).to_json() == figure.to_json()


def test_rank_curves_of_many_options_and_of_nothing() -> None:
    assert rank_curves({"facts": [49.5, 3.0]}).layout.yaxis.range[1] > 49.5
    for nothing in ({}, {"facts": []}):
        with pytest.raises(InputError, match="no ranks to show"):
            rank_curves(nothing)


def test_rank_curves_are_means_with_a_band_of_all_seeds() -> None:
    ranks = {
        "first-hop facts": np.array([[9.0, 10.0, 8.0], [1.0, 2.0, 6.0]]),
        "first-hop implications": [[9.0], [5.0]],
        "second-hop facts": [9.5, 4.0],
    }
    figure = rank_curves(ranks)
    assert [list(line.y) for line in lines_of(figure)] == [[9.0, 3.0], [9.0, 5.0], [9.5, 4.0]]
    (band,) = bands_of(figure)
    assert extremes(band) == {0: (8.0, 10.0), 1: (1.0, 6.0)}
    assert band.name == lines_of(figure)[0].name
    assert (band.showlegend, band.hoverinfo) == (False, "skip")
    assert lines_of(figure)[0].line.color == "#0072b2"
    assert band.fillcolor == "rgba(0, 114, 178, 0.18)"
    assert list(lines_of(figure)[0].customdata[1]) == [1.0, 6.0]
    dashes = [line.line.dash for line in lines_of(figure)]
    assert dashes == ["solid", "dash", "solid"]


def test_the_highest_seed_is_in_the_picture() -> None:
    assert rank_curves({"facts": [[49.5, 0.0], [1.0, 1.0]]}).layout.yaxis.range[1] > 49.5


def test_a_missing_seed_leaves_a_gap() -> None:
    figure = rank_curves({"facts": [[9.0, 7.0], [8.0, 6.0], [5.0, NAN], [3.0, 1.0], [2.0, 0.0]]})
    assert [y for y in lines_of(figure)[0].y if y == y] == [8.0, 7.0, 2.0, 1.0]
    (band,) = bands_of(figure)
    assert extremes(band) == {0: (7.0, 9.0), 1: (6.0, 8.0), 3: (1.0, 3.0), 4: (0.0, 2.0)}
    between = [i for i, x in enumerate(band.x) if x is None]
    assert 3 in set(band.x[between[0] + 1 :]) and 3 not in set(band.x[: between[0]])


def test_ranks_that_are_not_known_leave_an_empty_picture() -> None:
    figure = rank_curves({"facts": [NAN, NAN]})
    assert list(figure.layout.yaxis.range) == [-0.5, 11]


def test_rank_curves_need_every_seed_at_every_epoch() -> None:
    with pytest.raises(InputError, match="'facts' does not have a number for each seed"):
        rank_curves({"facts": [[1.0, 2.0], [1.0]]})
    with pytest.raises(InputError, match="'facts' is no curve"):
        rank_curves({"facts": [[], []]})
    with pytest.raises(InputError, match="'facts' is no curve"):
        rank_curves({"facts": np.zeros((2, 2, 2))})
