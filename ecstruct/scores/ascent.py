"""The ways up under W and under W' on the same prompts, which scores and interventions both begin with."""

from collections.abc import Callable
from dataclasses import dataclass

from ecstruct.scores.baseline import Baseline
from ecstruct.scores.batching import Job
from ecstruct.scores.walk import Walk


@dataclass(frozen=True)
class Ascent:
    """Walks of a job's batches under W (`before`) and under W' (`after`), and the `baseline` y* of what
    components write under W."""

    job: Job
    baseline: Baseline
    before: Walk
    after: Walk

    @property
    def largest(self) -> int:
        """The number of prompts in the largest batch."""
        return max(map(len, self.job.rows))

    def up(self, see: bool = True, tick: Callable[[], object] | None = None) -> None:
        """Run both walks up in step, block by block, so that weights are read once for both; `tick` is
        called after every block. With `see`, the baseline sees what components write on these batches."""
        self.before.embed()
        self.after.embed()
        for layer in range(self.before.view.n_layers):
            self.before.climb(layer, self.baseline.see if see else None)
            self.after.climb(layer)
            if tick:
                tick()
