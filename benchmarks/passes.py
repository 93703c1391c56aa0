"""Many interventions run at once, against one whole forward pass for each."""

from collections.abc import Iterator, Mapping

from benchmarks.models import Shape
from benchmarks.setup import Setup
from benchmarks.table import Measured, Row
from benchmarks.timing import Cost

SAMPLE = 4
"""How many passes of the slow way are timed: they are all alike."""


def against_passes(
    setup: Setup,
    shape: Shape,
    ours: str,
    costs: Mapping[str, Cost],
    what: str,
    n: int,
    of: str,
    held_to: str,
) -> Iterator[Row]:
    """A row per way that takes `n` passes, of which `SAMPLE` were timed, and one of matrix products.

    Args:
        ours: The side among `costs` that takes none; the first other one counts for the products.
        what, of: What is computed, and what a pass is for.
    """
    fast = setup.measured(ours, costs[ours])
    slow = {name: cost.over(SAMPLE) for name, cost in costs.items() if name != ours}
    for name, cost in slow.items():
        yield Row(f"{what}, {n} {of}", str(shape), setup.measured(name, cost, n), fast, held_to)
    yield Row(
        f"{what}, matrix products",
        str(shape),
        Measured("plain", n * next(iter(slow.values())).gflop, "GFLOP"),
        Measured(ours, costs[ours].gflop, "GFLOP"),
    )
