"""How benchmarks are run."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.models import Shape
from benchmarks.table import Measured
from benchmarks.timing import Clock, Cost, Side, alternate


@dataclass(frozen=True)
class Setup:
    """`small` runs everything, on models too small for the numbers to mean anything."""

    repeats: int = 3
    threads: int = 1
    device: str = "cpu"
    small: bool = False

    def prepare(self) -> None:
        """In every process: float32 in full, as many threads, no progress bars but our own."""
        disable_progress_bar()
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False

    @property
    def clock(self) -> Clock:
        """CPU time where it is the time of the one thread at work."""
        return "cpu" if self.device == "cpu" and self.threads == 1 else "wall"

    @property
    def unit(self) -> str:
        return "s CPU" if self.clock == "cpu" else "s"

    def measured(self, name: str, cost: Cost, times: float = 1) -> Measured:
        """A side's time, `times` over, and its peak memory."""
        return Measured(name, times * getattr(cost, self.clock), self.unit, cost.peak)

    def compared(self, sides: Mapping[str, Side]) -> dict[str, Measured]:
        costs = alternate(sides, self.repeats, self.device)
        return {name: self.measured(name, cost) for name, cost in costs.items()}

    def shapes(self, *sizes: tuple[str, int, int]) -> list[Shape]:
        return [Shape(sizes[0][0], 2, 64)] if self.small else [Shape(*size) for size in sizes]

    @property
    def n_prompts(self) -> int:
        return 11 if self.small else 20

    def describe(self) -> dict[str, Any]:
        packages = ("ecstruct", "torch", "transformers", "transformer-lens")
        cuda = torch.device(self.device).type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else _cpu_name(),
            "threads": self.threads,
            "repeats": self.repeats,
            "small": self.small,
            "python": platform.python_version(),
            "versions": {name: version(name) for name in packages},
        }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
