"""The passes that compute scores: walks under W and W', which advance block by block together.

Under the original weights W and the finetuned weights W' there are forward and backward passes. At each
block on the way down, the inputs of its components, what they write, and the gradients of the reward there
are all known. The formulas are in `ecstruct.scores.linear`.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ecstruct.io.distributed import Ranks
from ecstruct.models.sites import Site, entries
from ecstruct.options import ScoreOptions
from ecstruct.scores import linear
from ecstruct.scores.ascent import Ascent
from ecstruct.scores.assemble import AFTER, BEFORE, DOWNSTREAM, UPSTREAM, Assembly, PromptScores
from ecstruct.scores.baseline import Baseline
from ecstruct.scores.batching import Job, fits_in_memory, rounds
from ecstruct.scores.informative import InformativeScores
from ecstruct.scores.late import WRITERS, late_gradients
from ecstruct.scores.pair import Pair
from ecstruct.scores.relevance import Relevance
from ecstruct.scores.reward import Reward
from ecstruct.scores.shards import Shards
from ecstruct.scores.tails import Tails
from ecstruct.scores.walk import Descent, Visit, Walk

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passes:
    """The computation of fast scores with a pair of weights. `ranks` share the prompts, and `shards` keep
    finished scores."""

    pair: Pair
    reward: Reward
    options: ScoreOptions
    progress: bool
    ranks: Ranks = field(default_factory=Ranks)
    shards: Shards | None = None

    def run(self, job: Job) -> tuple[Assembly | None, Ascent | None]:
        """Return the scores of all prompts on the first rank, `None` on the others; and the ascent of all
        prompts, from which interventions can go on, or `None` if they took several rounds.

        Ranks share the batches, and walk theirs in rounds: a run that dies loses only its last round, and
        only one round has its residual streams in memory. The baseline has to see all prompts before any is
        scored: on the way up if there is a single round, otherwise in a forward pass beforehand.
        """
        view, ranks = self.pair.view, self.ranks
        out = self._assembly(job) if ranks.first else None
        baseline = Baseline(self.options.baseline, job.prompts, job.rows, view.device)
        done, known = ranks.broadcast(self._resume(out, baseline))
        todo = [b for b, rows in enumerate(job.rows) if not done.issuperset(rows)]
        if ranks.first and len(todo) < ranks.size and todo:
            _logger.warning(
                "%d of %d ranks have nothing to do (batches: %d): a smaller batch size makes more",
                *(ranks.size - len(todo), ranks.size, len(todo)),
            )
        walks = rounds(view, job.batches, todo[ranks.rank :: ranks.size])
        every = range(len(job.batches))[ranks.rank :: ranks.size]
        known = known or not todo
        beforehand = [] if known else rounds(view, job.batches, every) if done else walks
        at_once = not known and not done and len(walks) == 1
        keep = self.shards if ranks.size > 1 or len(walks) > 1 else None
        total = view.n_layers * (self._passes_per_round * len(walks) + len(beforehand) * (not at_once))
        unsent: list[PromptScores] = []
        ascent = None
        with tqdm(total=total, desc="scoring", unit="block", disable=not self.progress) as bar:

            def all_seen() -> None:
                baseline.reduce(ranks)
                if keep and ranks.first and not known:
                    keep.keep_sums(baseline.sums)

            if not at_once:
                for some in beforehand:
                    batches = job.take(some).batches
                    Walk(view, self.pair.before, batches, False).up(baseline.take(some).see, bar.update)
                all_seen()
            for some in walks:
                ascent = self._ascent(job.take(some), baseline.take(some))
                ascent.up(at_once, bar.update)
                if at_once:
                    all_seen()
                scores = self._score(ascent, bar.update).prompt_scores()
                if keep:
                    keep.keep_scores(scores)
                if out:
                    out.put(scores)
                else:
                    unsent.append(scores)
        for scores in chain.from_iterable(ranks.gather(unsent) or []):
            if out:
                out.put(scores)
        return out, ascent if ascent and len(ascent.job.rows) == len(job.rows) else None

    def _resume(self, out: Assembly | None, baseline: Baseline) -> tuple[set[int], bool]:
        """Put the scores that earlier runs finished into `out`; return the indices of their prompts, and
        whether the sums of the baseline are known."""
        done: set[int] = set()
        known = self.options.baseline == "zero"
        if out and self.shards:
            for scores in self.shards.finished():
                out.put(scores)
                done |= set(scores.rows)
            if sums := self.shards.sums():
                baseline.sums |= {key: t.to(self.pair.view.device) for key, t in sums.items()}
                known = True
        return done, known

    def _assembly(self, job: Job, rows: Sequence[int] | None = None) -> Assembly:
        view = self.pair.view
        projections = view.projections if self.options.projections else ()
        return Assembly(job.prompts, view.n_layers, view.n_heads, view.dtype, rows, projections)

    @property
    def _passes_per_round(self) -> int:
        """The number of passes through all blocks, up or down, that a round takes, for the progress bar."""
        return 2 if self.options.path_steps == 1 else 2 + 2 * self.options.path_steps

    def _ascent(self, job: Job, baseline: Baseline) -> Ascent:
        """Return the ascent of some batches, before its walks are run."""
        view = self.pair.view
        graphs = self.pair.resident and fits_in_memory(view, job.batches)
        rules = Relevance() if self.options.propagation == "relevance" else None
        before = Walk(view, self.pair.before, job.batches, graphs, rules)
        after = Walk(
            view, self.pair.after, job.batches, graphs, rules if self._descends else None, self._descends
        )
        return Ascent(job, baseline, before, after)

    @property
    def _descends(self) -> bool:
        """Whether a backward pass on the graphs of the walk under W' is needed."""
        return self.options.upstream == "surrogate"

    def _score(self, ascent: Ascent, tick: Callable[[], object]) -> Assembly:
        """Return the scores of some batches, given their ascent after its walks were run."""
        view, job, before, after = self.pair.view, ascent.job, ascent.before, ascent.after
        batches, rules = range(len(job.batches)), before.rules
        out = self._assembly(job, list(chain.from_iterable(job.rows)))
        informative = InformativeScores(self.pair, self.options.convention, out)
        at_before = self.options.path_steps == 1  # informative scores come from the walk under W itself
        ways = self._descents(before, after, rules)
        read = self._read_out(ways, job, out)
        if at_before:
            informative.outside(view.head_sites, read, job.rows)
        else:
            deque(read, maxlen=0)
        late = [self._late(before, b, job, rules) for b in batches if self.options.upstream == "exact"]
        writers = list(WRITERS.values())
        for layer in reversed(range(view.n_layers)):
            sites = view.block_sites[layer]
            change = informative.change(sites) if at_before else {}
            for b in batches:
                new = Visit(after.run(layer, b).trace.taps)
                visits = {
                    way: descent.down(layer, b, writers, writers, retain_graph=True)
                    for way, descent in ways.items()
                    if way != "before" and (way != "after" or self._descends)
                }
                outputs = sites if at_before else writers
                old = ways["before"].down(layer, b, writers, outputs, retain_graph=bool(change))
                if at_before:
                    informative.block(layer, job.rows[b], old, self.pair.before, change)
                early, new = visits.get("early", old), visits.get("after", new)
                g_late = Visit({}, {}, late[b][layer]) if late else visits.get("late", new)
                self._score_states(layer, b, ascent, old, new, early, g_late, out)
                del old, new, early, g_late, visits  # their graphs hold the weights of this block
                before.free(layer, b)
                after.free(layer, b)
            tick()
        if at_before:
            embedded = (ways["before"].to_embedding(b) for b in batches)
            informative.outside(view.embed_sites, embedded, job.rows)
        else:
            informative.along_path(self.options.path_steps, job, self.reward, before.keep_graphs, tick)
        return out

    def _descents(self, before: Walk, after: Walk, rules: Relevance | None) -> dict[str, Descent]:
        """Return the descents by name. "before" and "after" follow gradients; "early" (under W) and "late"
        (under W') give the slopes of upstream scores where these differ."""
        ways = {"before": Descent(before), "after": Descent(after)}
        if rules:
            ways["early"] = Descent(before, rules=rules)
        if self.options.upstream == "local":
            ways["late"] = Descent(before, self.pair.after, rules)
        elif self.options.upstream == "surrogate" and rules:
            ways["late"] = Descent(after, rules=rules)
        return ways

    def _read_out(self, ways: Mapping[str, Descent], job: Job, out: Assembly) -> Iterator[Visit]:
        """Begin all descents and set the rewards; yield the visit of the head under W for every batch."""
        for b, (rows, batch) in enumerate(zip(job.rows, job.batches, strict=True)):
            reward = self.reward.of_batch(batch)
            read = {way: descent.read_out(b, job.positions[b], reward) for way, descent in ways.items()}
            out.put_rewards(rows, read["before"][0], read["after"][0])
            yield read["before"][1]

    def _late(self, before: Walk, b: int, job: Job, rules: Relevance | None) -> list[dict[str, Tensor]]:
        tails = Tails(self.pair.view, self.pair.after, job.batches[b], job.positions[b], self.reward)
        return late_gradients(self.pair, before, b, tails, rules)

    def _score_states(
        self,
        layer: int,
        b: int,
        ascent: Ascent,
        old: Visit,
        new: Visit,
        early: Visit,
        late: Visit,
        out: Assembly,
    ) -> None:
        """Add upstream and downstream scores of one block, and its attributions, on one batch to `out`.

        The visits are those of the block under W (`old`) and W' (`new`), and those whose gradients are the
        slopes g (`early`) and g' (`late`) of upstream scores."""
        view, rows, sites = self.pair.view, ascent.job.rows[b], self.pair.view.block_sites[layer]
        baseline = ascent.baseline
        z_star = baseline.of(layer, "attn.o", b, old.input("attn.o"))
        y_star = baseline.of(layer, "mlp.out", b, old.output("mlp.out"))
        with torch.no_grad():
            z_at, hidden_at = self._at_new_inputs(layer, b, ascent, new)
            d_written, d_z = self._change_of_slope(sites, early, late)
            found = [
                ("", UPSTREAM, linear.upstream(view, old, d_written, d_z, z_star, y_star)),
                ("", DOWNSTREAM, linear.downstream(view, old, z_at, hidden_at)),
                ("attribution_", BEFORE, linear.attribution(view, old, z_star, y_star)),
            ]
            if new.d_output:
                known = self.options.convention == "definition" and early is old and late is new
                if not known:
                    d_z = linear.pulled_back(sites, old, new, self.pair.before)
                r = linear.attribution_after(view, old, new, d_z, z_star, y_star)
                found.append(("attribution_", AFTER, r))
        for name, which, (mlp, heads) in found:
            out.add(f"{name}mlp", which, rows, layer, mlp)
            out.add(f"{name}heads", which, rows, layer, heads)

    def _change_of_slope(
        self, sites: Mapping[str, Site], early: Visit, late: Visit
    ) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos width"]]:
        """Return g' - g at what the MLP writes, and at the heads' concatenated z."""
        d_written = late.d_output["mlp.out"] - early.d_output["mlp.out"]
        options = self.options
        if options.convention == "definition" or options.upstream == "exact":
            # W_O is not among later weights.
            return d_written, linear.pulled_back(sites, early, late, self.pair.before)
        return d_written, late.d_input["attn.o"] - early.d_input["attn.o"]

    def _at_new_inputs(self, layer: int, b: int, ascent: Ascent, new: Visit) -> tuple[Tensor, Tensor]:
        """Return the inputs of a block's output projections `attn.o` and `mlp.out` when its components run
        under W on their inputs from the walk under W'."""
        if self.options.convention == "definition":
            inputs = self.pair.view.given_to_mlp(layer, new.taps)
        else:
            module = self.pair.view.mlp_module(layer)
            entry = entries(self.pair.view.block_sites[layer])[0]
            inputs = {"attn": new.input(entry), module: new.input("mlp.in")}
        resid, call = ascent.after.resid(layer, b), ascent.before.call(layer, b)
        return self.pair.view.writer_inputs(layer, self.pair.before, call, resid, inputs)
