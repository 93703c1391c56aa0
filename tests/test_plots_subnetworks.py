"""What subnetworks know in-domain and beyond: points keep off the axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

from ecstruct.plots.subnetworks import spread


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
