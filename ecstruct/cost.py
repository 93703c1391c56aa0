"""A progress bar over all phases of a long computation, which estimates the remaining time early."""

import sys
import time
from typing import Any

from tqdm.auto import tqdm

MEASURED = 5.0
"""Seconds after which the remaining time can be estimated."""

WORTH_SAYING = 60.0
"""Remaining seconds from which an estimate is printed; for less, the bar is enough."""


class Bar(tqdm):
    """A bar over a whole computation, with the name of the current phase. Steps `done` by an earlier run
    count as progress, but not towards the speed."""

    def __init__(
        self, total: int, phase: str, *, unit: str, done: int = 0, disable: bool = False, **options: Any
    ) -> None:
        super().__init__(total=total, desc=phase, unit=unit, initial=done, disable=disable, **options)
        self._begun, self._said = time.monotonic(), False

    def phase(self, name: str) -> None:
        """Set the name of the current phase."""
        self.set_description(name)

    def step(self, n: int, *, new: bool) -> None:
        """Advance by `n`; `new` says that this run did the work, not an earlier one."""
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
    """Return a time in words.

    >>> [_said(seconds) for seconds in (0.0123, 4.2, 250, 19500)]
    ['12 ms', '4.2 s', '4 min', '5 h 25 min']
    """
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2g} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
