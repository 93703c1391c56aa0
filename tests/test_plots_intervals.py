"""Dots on the cells of heatmaps and head maps whose confidence interval excludes zero."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest
from helpers.figures import grid_of_cells, titles_of
from helpers.synthetic_scores import make_scores, prompts_of

from ecstruct.plots import head_map, heatmap
from ecstruct.plots.style import number
from ecstruct.scores.result import ExtractiveScores

UNIT = "Δ reward (logits)"


def dots(figure: go.Figure, cells: go.Heatmap) -> np.ndarray:
    """Which cells of a panel have a dot, (layer, column)."""
    found = np.zeros(np.shape(cells.z), dtype=bool)
    for trace in figure.data:
        if trace.type == "scatter" and (trace.xaxis, trace.yaxis) == (cells.xaxis, cells.yaxis):
            assert (trace.mode, trace.hoverinfo, trace.showlegend) == ("markers", "skip", False)
            found[np.searchsorted(cells.y, trace.y), trace.x] = True
            assert found.sum() == len(trace.x)
    return found


@pytest.fixture
def clear() -> ExtractiveScores:
    """20 prompts; only MLP 1 raises the reward, and only head 2.3 lowers it, at "The"."""
    scores = make_scores(prompts_of([["a", "b"]] * 20), n_layers=3, n_heads=4)
    centred = scores.dataset - scores.dataset.mean("prompt")
    centred["mlp"].loc[{"layer": 1, "token": 0}] += 2
    centred["heads"].loc[{"layer": 2, "head": 3, "token": 0}] -= 9
    return ExtractiveScores(centred.assign_attrs(scores.attrs))


def test_cells_whose_interval_excludes_zero_have_a_dot(clear: ExtractiveScores) -> None:
    averaged = clear.aggregate(ci=0.99)
    figure = heatmap(averaged)
    cells = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(cells) == 6
    for trace, layer in zip(cells, (1, 1, 1, 2, 2, 2), strict=True):
        assert np.argwhere(dots(figure, trace)).tolist() == [[layer, 0]]
    assert titles_of(figure)[-1] == f"{UNIT} &nbsp; ● 99% interval excludes zero"
    low, high = (
        ends["mlp"].sel(score="upstream", layer=1, slot=0) for ends in (averaged.low, averaged.high)
    )
    line = f"<br>99% interval: {number(low.item())} to {number(high.item())}<br>mean of 20 prompts"
    assert line in cells[2].text[1][0]
    low, high = (ends["attention"].sel(score="upstream") for ends in (averaged.low, averaged.high))
    line = f"<br>99% interval: {number(low[0, 4].item())} to {number(high[0, 4].item())}<br>mean of 20"
    assert line in cells[5].text[0][4]


def test_a_head_map_has_dots(clear: ExtractiveScores) -> None:
    averaged = clear.aggregate(ci=0.99)
    figure = head_map(averaged, 0)
    for trace in figure.data:
        if trace.type == "heatmap":
            assert np.argwhere(dots(figure, trace)).tolist() == [[2, 3]]
    low, high = (
        ends["heads"].sel(score="informative", layer=2, head=3, slot=0).item()
        for ends in (averaged.low, averaged.high)
    )
    assert figure.data[2].text[2][3].endswith(f"<br>99% interval: {number(low)} to {number(high)}")
    assert titles_of(figure)[-1] == f"{UNIT} &nbsp; ● 99% interval excludes zero"


def test_without_intervals_there_is_no_word_of_them(clear: ExtractiveScores) -> None:
    for figure in (heatmap(clear), head_map(clear), heatmap(clear, prompt=0)):
        assert {trace.type for trace in figure.data} == {"heatmap"}
        assert "interval" not in figure.to_json()
        assert titles_of(figure)[-1] == UNIT


def test_intervals_of_some_of_the_sets(clear: ExtractiveScores) -> None:
    some = heatmap([clear, clear.aggregate(ci=0.95)])
    meaning = "● 95% interval excludes zero (not all of these have intervals)"
    assert titles_of(some)[-1] == f"{UNIT} &nbsp; {meaning}"
    assert "interval" not in grid_of_cells(some)[0][0].text[1][0]
    both = heatmap([clear.aggregate(ci=0.999), clear.aggregate(ci=0.95)])
    assert titles_of(both)[-1] == f"{UNIT} &nbsp; ● 95% / 99.9% interval excludes zero"


def test_a_mean_of_one_prompt_has_no_interval_to_show() -> None:
    scores = make_scores(prompts_of([["a", "b"], ["c"], ["d"]]))
    shifted = ExtractiveScores((scores.dataset + 100).assign_attrs(scores.attrs))
    figure = heatmap(shifted.aggregate(ci=0.95))
    for row in grid_of_cells(figure):
        for trace in row:
            assert dots(figure, trace).sum(0).tolist() == [2, 2, 0, 2, 2, 2, 2]
            assert "interval" not in trace.text[0][2] and "interval" in trace.text[0][3]
