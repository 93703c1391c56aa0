"""How the cost of the three scores grows with prompts, layers and tokens, beside that of the bare passes.

The slope is that of log time against log size, by least squares: 1 is linear, and below 1 something is paid
once whatever the size. In tokens attention makes it grow faster than linearly, in the end.

    python -m benchmarks.scaling
"""

from collections.abc import Iterator

import numpy as np

from benchmarks import engine
from benchmarks.command import main
from benchmarks.models import LENGTH, Shape
from benchmarks.setup import Setup
from benchmarks.table import Measured, Row

SIZES = (8, 16, 32, 64)


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Of log time against log size.

    >>> round(slope([8, 16, 32], [0.2, 0.4, 0.8]), 6)
    1.0
    """
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def rows(setup: Setup) -> Iterator[Row]:
    sizes = [8, 16] if setup.small else [*SIZES]
    (wide,), (narrow,) = setup.shapes(("olmo", 8, 512)), setup.shapes(("olmo", 8, 128))
    for unit, cases in (
        ("prompt", [(n, wide, n, LENGTH) for n in sizes]),
        ("layer", [(n, Shape("olmo", n, narrow.d_model), setup.n_prompts, LENGTH) for n in sizes]),
        ("token", [(n, wide, 8, n) for n in sizes]),
    ):
        seconds: dict[str, list[float]] = {"ScoreEngine.score": [], "bare": []}
        for size, shape, n_prompts, length in cases:
            sides = engine.sides(setup, shape, n_prompts, length)
            found = setup.compared({name: sides[name] for name in seconds})
            for name, measured in found.items():
                seconds[name].append(measured.value)
            ours, bare = (found[name].per(size, unit) for name in seconds)
            yield Row(f"time per {unit}, {size} {unit}s", str(shape), ours, bare)
        ours, bare = (Measured(name, slope(sizes, values), "") for name, values in seconds.items())
        model = f"{cases[0][1]} to {cases[-1][1]}" if unit == "layer" else str(wide)
        yield Row(f"slope of log time over log {unit}s", model, ours, bare, "1: linear")


if __name__ == "__main__":
    main({"scaling": rows})
