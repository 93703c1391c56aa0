"""What a long computation costs, said before most of it is done, and one bar over all of its phases."""

import sys
import time
from typing import Any

from tqdm.auto import tqdm

MEASURED = 5.0
"""Seconds after which the cost can be told."""

WORTH_SAYING = 60.0
"""Seconds that are still to come; of less, the bar says enough."""


class Bar(tqdm):
    """A bar over all of a computation: `phase` names what it is at. What an earlier run has `done` counts
    as done, but not as fast."""

    def __init__(
        self, total: int, phase: str, *, unit: str, done: int = 0, disable: bool = False, **options: Any
    ) -> None:
        super().__init__(total=total, desc=phase, unit=unit, initial=done, disable=disable, **options)
        self._begun, self._said = time.monotonic(), False

    def phase(self, name: str) -> None:
        """What the computation is at."""
        self.set_description(name)

    def step(self, n: int, *, new: bool) -> None:
        """So much is finished, now or by an earlier run."""
        if not (new or self.disable):
            self.initial += n
        self.update(n)

    def update(self, n: float | None = 1) -> bool | None:
        shown = super().update(n)
        spent = time.monotonic() - self._begun
        if not (self.disable or self._said) and spent > MEASURED and self.n > self.initial:
            self._said = True
            left = spent / (self.n - self.initial) * (self.total - self.n)
            if left > WORTH_SAYING:
                each = spent / (self.n - self.initial)
                more = f"{self.total - self.n:,.0f} more {self.unit}s at {_said(each)} each"
                self.write(f"{more} will take about {_said(left)}", file=sys.stderr)
        return shown


def _said(seconds: float) -> str:
    """A time in words.

    >>> [_said(seconds) for seconds in (0.0123, 4.2, 250, 19500)]
    ['12 ms', '4.2 s', '4 min', '5 h 25 min']
    """
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2g} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
