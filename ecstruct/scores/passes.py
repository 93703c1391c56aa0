"""The passes of one scoring: two walks that meet at every block.

Under the original weights W and the finetuned weights W', one forward and one backward pass each. On the
way down everything about the components of a block is known: inputs, what they write, and the gradients of
the reward there. The formulas are in `ecstruct.scores.linear`.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ecstruct.scores import linear
from ecstruct.scores.assemble import AFTER, BEFORE, DOWNSTREAM, UPSTREAM, Assembly
from ecstruct.scores.baseline import Baseline, BaselineKind
from ecstruct.scores.batching import Job, fits_in_memory
from ecstruct.scores.informative import WRITERS, InformativeScores
from ecstruct.scores.late import late_gradients
from ecstruct.scores.pair import Pair
from ecstruct.scores.reward import Reward
from ecstruct.scores.tails import Tails
from ecstruct.scores.walk import Visit, Walk

Upstream = Literal["surrogate", "exact"]

Gradients = Mapping[str, Tensor]
"""At what a block's attention ("attn.o") and MLP ("mlp.out") write."""


@dataclass(frozen=True)
class Passes:
    """What a pair of weights is scored with; see `ecstruct.score`."""

    pair: Pair
    reward: Reward
    baseline: BaselineKind
    upstream: Upstream
    convention: linear.Convention
    path_steps: int
    progress: bool

    def run(self, job: Job) -> Assembly:
        """The scores of all prompts."""
        view, batches = self.pair.view, range(len(job.batches))
        keep = self.pair.resident and fits_in_memory(view, job.batches)
        before = Walk(view, self.pair.before, job.batches, keep)
        after = Walk(view, self.pair.after, job.batches, keep)
        baseline = Baseline(self.baseline, job.prompts, job.rows, view.device)
        out = Assembly(job.prompts, view.n_layers, view.n_heads, view.dtype)
        informative = InformativeScores(self.pair, self.convention, out)
        at_before = self.path_steps == 1  # informative scores are of the walk under W itself
        ways = 2 + (0 if at_before else 2 * self.path_steps)
        with tqdm(
            total=ways * view.n_layers, desc="scoring", unit="block", disable=not self.progress
        ) as bar:
            self._up(before, after, baseline, bar.update)
            read = self._read_out(before, after, job, out)
            if at_before:
                informative.outside(view.head_sites, read, job.rows)
            else:
                deque(read, maxlen=0)
            late = [self._late(before, b, job) for b in batches]
            for layer in reversed(range(view.n_layers)):
                sites = view.block_sites[layer]
                change = informative.change(sites) if at_before else {}
                for b in batches:
                    outputs = sites if at_before else WRITERS
                    old = before.down(layer, b, WRITERS, outputs, retain_graph=bool(change))
                    new = after.down(layer, b, ["attn.o"], WRITERS)
                    if at_before:
                        informative.block(layer, job.rows[b], old, self.pair.before, change)
                    g_late = late[b][layer] if self.upstream == "exact" else new.d_output
                    self._score_states(layer, b, job, before, after, old, new, g_late, baseline, out)
                bar.update()
            if at_before:
                embedded = (before.to_embedding(b) for b in batches)
                informative.outside(view.embed_sites, embedded, job.rows)
            else:
                informative.along_path(self.path_steps, job, self.reward, keep, bar.update)
        return out

    def _up(self, before: Walk, after: Walk, baseline: Baseline, tick: Callable[[], object]) -> None:
        """Both walks, a block of one after that of the other: so weights are read once for both."""
        before.embed()
        after.embed()
        for layer in range(self.pair.view.n_layers):
            before.climb(layer, baseline.see)
            after.climb(layer)
            tick()

    def _read_out(self, before: Walk, after: Walk, job: Job, out: Assembly) -> Iterator[Visit]:
        """Read both walks out; the visits are those under W, batch by batch."""
        for b, (rows, batch) in enumerate(zip(job.rows, job.batches, strict=True)):
            (r_before, visit), (r_after, _) = (
                walk.read_out(b, job.positions[b], self.reward.of_batch(batch)) for walk in (before, after)
            )
            out.put_rewards(rows, r_before, r_after)
            yield visit

    def _late(self, before: Walk, b: int, job: Job) -> list[dict[str, Tensor]]:
        if self.upstream != "exact":
            return []
        tails = Tails(self.pair.view, self.pair.after, job.batches[b], job.positions[b], self.reward)
        return late_gradients(self.pair, before, b, tails)

    def _score_states(
        self,
        layer: int,
        b: int,
        job: Job,
        before: Walk,
        after: Walk,
        old: Visit,
        new: Visit,
        g_late: Gradients,
        baseline: Baseline,
        out: Assembly,
    ) -> None:
        """Upstream and downstream scores of one block, and its attributions, on one batch."""
        view, rows, sites = self.pair.view, job.rows[b], self.pair.view.block_sites[layer]
        z_star = baseline.of(layer, "attn.o", b, old.input("attn.o"))
        y_star = baseline.of(layer, "mlp.out", b, old.output("mlp.out"))
        with torch.no_grad():
            z_at, hidden_at = self._at_new_inputs(layer, b, before, after, new)
            d = linear.downstream(view, old, z_at, hidden_at)
            d_written = linear.pulled_back(sites, old, new.d_output, self.pair.before)
            r = linear.attribution(view, old, new, d_written, z_star, y_star)
            if self.upstream == "exact":  # W_O is not among the later weights: one d_z in both conventions
                d_z = linear.pulled_back(sites, old, g_late, self.pair.before)
            elif self.convention == "definition":
                d_z = d_written
            else:
                d_z = new.d_input["attn.o"] - old.d_input["attn.o"]
            u = linear.upstream(view, old, g_late["mlp.out"], d_z, z_star, y_star)
        for name, which, (mlp, heads) in (
            ("", UPSTREAM, u),
            ("", DOWNSTREAM, d),
            ("attribution_", BEFORE, r[BEFORE]),
            ("attribution_", AFTER, r[AFTER]),
        ):
            out.add_mlp(f"{name}mlp", which, rows, layer, mlp)
            out.add_heads(f"{name}heads", which, rows, layer, heads)

    def _at_new_inputs(
        self, layer: int, b: int, before: Walk, after: Walk, new: Visit
    ) -> tuple[Tensor, Tensor]:
        """What the components of a block feed to their output projections when they run under W on the
        inputs seen under W'."""
        if self.convention == "definition":
            inputs = {"ln2": new.input("ln2")}
        else:
            inputs = {"attn": new.input("attn.q"), "mlp": new.input("mlp.in")}
        resid, call = after.resid(layer, b), before.call(layer, b)
        return self.pair.view.writer_inputs(layer, self.pair.before, call, resid, inputs)
