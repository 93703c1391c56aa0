"""The bootstrap: how far a mean over prompts may be off because of the choice of prompts.

Each draw takes as many prompts as there are, with replacement. Draw b takes prompt p w_bp times, and
gives one mean of the values v_p,

    mean_b = sum_p w_bp v_p / sum_p w_bp

over the prompts that have a value. The interval goes from the (1 - ci) / 2 to the (1 + ci) / 2
quantile of mean_b over b. All components, slots and scores share the draws, as they share prompts.

Only the choice of prompts varies: not the seed of a finetuning, nor the baselines, which are always
computed from all prompts. With few prompts, intervals are too narrow. For normal values, intervals with
ci=0.95 contain the true mean in 84% of cases for 5 prompts, 90% for 10, 93% for 20 and 94% for 50.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ecstruct.errors import InputError

_AT_ONCE = 2**22
"""The number of means held in memory at a time: 32 MiB, however large the model."""


class Bootstrap:
    """Draws of `n_prompts` prompts, which all calls of `interval` share."""

    weights: Int64[np.ndarray, "draw prompt"]

    def __init__(self, n_prompts: int, *, ci: float, resamples: int, seed: int) -> None:
        """
        Args:
            n_prompts: How many prompts there are, and how many a draw takes.
            ci: The share of draws whose mean lies in the interval, between 0 and 1.
            resamples: The number of draws.
            seed: The same seed gives the same draws.

        Raises:
            InputError: `ci` outside of (0, 1), no draws, or fewer than two prompts.
        """
        if not 0 < ci < 1:
            raise InputError(f"ci={ci} is no share of the draws; give one between 0 and 1, as in ci=0.95")
        if resamples < 1:
            raise InputError(f"resamples={resamples} gives no interval; draw 1 or more times, as in 1000")
        if n_prompts < 2:
            raise InputError(
                f"{n_prompts} prompt gives no interval over prompts; leave ci= out, or score 2 or more"
            )
        self.ci = ci
        draws = np.random.default_rng(seed)
        self.weights = draws.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=resamples)

    def interval(
        self,
        values: Float64[np.ndarray, "prompt ..."],
        counted: Bool[np.ndarray, " prompt"] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the lower and the upper end of the interval about the mean over prompts, both (...).

        Args:
            values: One array of numbers per prompt.
            counted: The prompts that have values; None for all. For fewer than two, both ends are NaN.
        """
        cells = values.shape[1:]
        if counted is None:
            counted = np.ones(len(values), dtype=bool)
        if counted.sum() < 2:
            return np.full(cells, np.nan), np.full(cells, np.nan)
        weights = self.weights[:, counted]
        weights = weights[weights.any(axis=1)]  # a draw without any of these prompts has no mean
        shares = weights / weights.sum(axis=1, keepdims=True)

        # One matrix product. scipy.stats.bootstrap gathers the values of each draw, which is 3 times slower
        # for 20 prompts and 12 times for 100, and does not support prompts without a value.
        columns = values[counted].reshape(shares.shape[1], -1)
        ends = np.empty((2, columns.shape[1]))
        step = max(1, _AT_ONCE // len(shares))
        levels = [(1 - self.ci) / 2, (1 + self.ci) / 2]
        with np.errstate(invalid="ignore"):  # an infinite score gives NaN
            for start in range(0, columns.shape[1], step):
                part = slice(start, start + step)
                means = columns[:, part].T @ shares.T
                ends[:, part] = np.quantile(means, levels, axis=1, overwrite_input=True)
        return ends[0].reshape(cells), ends[1].reshape(cells)
