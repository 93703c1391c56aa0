"""Sides of a comparison, measured in turn in one process."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.memory import peak_during

Side = Callable[[], object]
Clock = Literal["cpu", "wall"]


@dataclass(frozen=True)
class Cost:
    """Of one side: `cpu` time (of all threads; other processes disturb it least) and `wall` time, medians
    in seconds; `peak`, the most memory beyond what was in use before, in MB; `gflop` of matrix products."""

    cpu: float
    wall: float
    peak: float
    gflop: float

    def over(self, n: int) -> "Cost":
        """A share of the time and the products: what one of `n` costs that were measured together."""
        return Cost(self.cpu / n, self.wall / n, self.peak, self.gflop / n)


def alternate(sides: Mapping[str, Side], repeats: int, device: str) -> dict[str, Cost]:
    """Run all sides in turn `repeats` times, after a round that warms up and sees memory and products."""
    first = {name: _watched(side, device) for name, side in sides.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            times[name].append(_timed(side, device))
    costs = {}
    for name, seen in times.items():
        cpu, wall = (statistics.median(values) for values in zip(*seen, strict=True))
        costs[name] = Cost(cpu, wall, *first[name])
    return costs


class _Products(TorchDispatchMode):
    """Counts the floating point operations of matrix products. PyTorch's own `FlopCounterMode` also asks
    which module is at work, and fails at `autograd.grad`."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def _watched(side: Side, device: str) -> tuple[float, float]:
    with _Products() as products:
        before, most = peak_during(side, device)
    return most - before, products.total / 1e9


def _timed(side: Side, device: str) -> tuple[float, float]:
    _synchronise(device)
    cpu, wall = time.process_time(), time.perf_counter()
    side()
    _synchronise(device)
    return time.process_time() - cpu, time.perf_counter() - wall


def _synchronise(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
