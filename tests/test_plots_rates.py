"""Numbers by learning rate."""

from __future__ import annotations

from typing import Any

import pytest

from ecstruct.errors import InputError
from ecstruct.plots import number_by_rate


def test_lines_go_through_the_means_in_the_order_of_the_rates() -> None:
    drawn: Any = number_by_rate({"a fact": {1e-3: [1.0, 3.0], 1e-4: [5.0]}, "a implication": {1e-4: [2.0]}})
    lines = [trace for trace in drawn.data if trace.mode == "lines+markers"]
    assert [(trace.x, trace.y) for trace in lines] == [((1e-4, 1e-3), (5.0, 2.0)), ((1e-4,), (2.0,))]
    assert [trace.line.dash for trace in lines] == ["solid", "dash"]
    assert lines[0].line.color == lines[1].line.color
    (dots,) = [trace for trace in drawn.data if trace.mode == "markers"]
    assert (dots.x, dots.y) == ((1e-3, 1e-3), (1.0, 3.0))
    assert drawn.layout.xaxis.type == "log" and drawn.layout.xaxis.title.text == "learning rate"


def test_names_are_text() -> None:
    drawn: Any = number_by_rate({"<b>x": {1.0: [1.0]}})
    assert drawn.data[0].name == "&lt;b&gt;x"


@pytest.mark.parametrize(("series", "message"), [({}, "no series"), ({"a": {0.0: [1.0]}}, "lr=0.0 has no")])
def test_what_cannot_be_drawn(series: dict[str, dict[float, list[float]]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        number_by_rate(series)
