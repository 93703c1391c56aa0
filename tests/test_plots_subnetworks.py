"""Points of subnetworks keep off the axes, and components of a graph off one another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from ecstruct.plots import curve_panels
from ecstruct.plots.role_graph import role_graph
from ecstruct.plots.subnetworks import spread
from ecstruct.subnetworks import Emergence


def evaluation(ranks: list[float], full: float) -> xr.Dataset:
    return xr.Dataset(
        {"mean_rank": ("seed", ranks), "full_mean_rank": full}, {"seed": np.arange(len(ranks))}
    )


@pytest.mark.parametrize(
    ("in_domain", "full", "largest"), [([0.0, 0.0], 0.0, 1.0), ([0.0, 8.0], 2.0, 8.0), ([1.0], 9.0, 9.0)]
)
def test_no_point_lies_on_an_axis(in_domain: list[float], full: float, largest: float) -> None:
    drawn: Any = spread(evaluation(in_domain, full), evaluation([0.5] * len(in_domain), 0.0))
    low, high = drawn.layout.xaxis.range
    width = drawn.layout.width - drawn.layout.margin.l - drawn.layout.margin.r
    star = drawn.data[-1].marker.size
    assert low < 0 and -low / (high - low) * width > star / 2
    assert high > largest and (high - largest) / (high - low) * width > star / 2
    low, high = drawn.layout.yaxis.range
    assert low < 0 and high > 0.5


def test_a_subnetwork_as_good_as_the_full_model_is_seen() -> None:
    drawn: Any = spread(evaluation([1.0, 1.0], 1.0), evaluation([2.0, 2.0], 2.0))
    points, star = drawn.data
    assert (points.x[0], points.y[0]) == (star.x[0], star.y[0])
    assert star.marker.symbol == "star-open" and star.marker.size > points.marker.size


def test_checkpoints_have_labels_that_do_not_meet() -> None:
    rows = [
        {"checkpoint": f"a run/epochs/{epoch}.safetensors", "network": network, "prompts": prompts}
        for epoch in (1, 10, "<b>")
        for network in ("full model", "without the core")
        for prompts in ("in-domain", "generalization")
    ]
    frame = pd.DataFrame(rows).assign(rank=1.0, accuracy=0.5)
    for figure in (Emergence(frame, frame).figure, Emergence(frame, frame).accuracy_figure):
        for axis in figure.select_xaxes():
            assert axis.ticktext == ("1", "10", "&lt;b&gt;")


def test_a_figure_without_titles_has_room_for_the_button_of_a_page_alone() -> None:
    curves = {"facts": [1.0, 0.0]}
    plain, titled = (curve_panels({title: curves}, x="epoch", y="rank") for title in ("", "a panel"))
    assert plain.layout.margin.t == 26
    assert titled.layout.margin.t - plain.layout.margin.t == titled.layout.height - plain.layout.height > 5


def test_components_of_a_role_do_not_overlap_and_the_legend_has_what_is_drawn() -> None:
    names = [
        *(f"MLP {layer}" for layer in range(30)),
        *(f"head {layer}.{i}" for layer in range(4) for i in range(3)),
    ]
    nodes = pd.DataFrame({"role": "upstream", "component": names, "score": 1.0})
    edge = {"from": "MLP 0", "from_role": "upstream", "to": "MLP 1", "to_role": "upstream", "share": 0.5}
    for effect, meanings in ((1.0, ["raises the reward"]), (-1.0, ["lowers the reward"])):
        figure: Any = role_graph(
            nodes, pd.DataFrame([edge | {"effect": effect}]), n_layers=30, unit="logits"
        )
        assert [trace.name for trace in figure.data if trace.showlegend] == meanings
    layout, drawn = figure.layout, figure.data[-1]
    low, high = layout.yaxis.range
    up = np.array(drawn.y) * (layout.height - layout.margin.t - layout.margin.b) / (high - low)
    places = np.column_stack([drawn.x, up])
    apart = np.abs(places[:, None] - places).max(-1) + 100 * np.eye(len(places))
    assert apart.min() >= drawn.marker.size
