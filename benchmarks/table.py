"""The table that all benchmarks fill."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pandas as pd


@dataclass(frozen=True)
class Measured:
    """One side of a comparison: what was measured of it and, in MB, the most memory it took beyond what was
    in use before, such as the models."""

    side: str
    value: float
    unit: str
    peak: float | None = None

    def per(self, n: float, one: str) -> "Measured":
        """A share of the value, of one of `n`."""
        return replace(self, value=self.value / n, unit=f"{self.unit}/{one}")

    def __str__(self) -> str:
        return f"{self.side}: {self.value:.4g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Row:
    """A comparison of `a` with `b`; `ratio` is a / b."""

    what: str
    model: str
    a: Measured
    b: Measured
    held_to: str = ""

    @property
    def ratio(self) -> float:
        return self.a.value / self.b.value

    def cells(self) -> dict[str, str]:
        peaks = ["-" if m.peak is None else f"{m.peak:.0f}" for m in (self.a, self.b)]
        return {
            "what": self.what,
            "model": self.model,
            "side A": str(self.a),
            "side B": str(self.b),
            "A / B": f"{self.ratio:.3g}",
            "held to": self.held_to,
            "peak memory, MB": " / ".join(peaks),
        }


def as_text(rows: Iterable[Row]) -> str:
    return pd.DataFrame([row.cells() for row in rows]).to_string(index=False, justify="left")
