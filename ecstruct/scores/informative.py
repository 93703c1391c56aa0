"""Informative scores of a whole model, from one walk under W or from several along the path from W to W'.

At W alone, I_C = <dR/dW_C, dW_C> with dW = W' - W, the paper's linear score. Along the path,

    I_C = sum_i w_i <dR/dW_C (W + a_i dW), dW_C>

with the nodes a_i and weights w_i of Gauss-Legendre quadrature on [0, 1]. Summed over all components and
`rest` this is the integral of dR/da, which is R(W') - R(W); the error falls with the number of nodes k as
fast as polynomials of degree 2k - 1 approach dR/da.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ecstruct.models.sites import Site, Weights
from ecstruct.options import Convention
from ecstruct.scores import linear
from ecstruct.scores.assemble import INFORMATIVE, Assembly
from ecstruct.scores.batching import Job
from ecstruct.scores.pair import Pair
from ecstruct.scores.reward import Reward
from ecstruct.scores.walk import Descent, Visit, Walk


def path_nodes(k: int) -> list[tuple[float, float]]:
    """Return (a_i, w_i) of k-point Gauss-Legendre quadrature on [0, 1].

    >>> path_nodes(1)
    [(0.5, 1.0)]
    """
    nodes, weights = np.polynomial.legendre.leggauss(k)
    return [(float(a) / 2 + 0.5, float(w) / 2) for a, w in zip(nodes, weights, strict=True)]


@dataclass
class InformativeScores:
    """Adds informative scores to `out`, site by site, from the visits of walks."""

    pair: Pair
    convention: Convention
    out: Assembly
    _buffers: dict[str, Tensor] = field(default_factory=dict)

    def change(self, sites: Mapping[str, Site]) -> dict[str, Tensor]:
        """Return dW of these sites; the next call overwrites it."""
        return linear.weight_change(self.pair.before, self.pair.after, sites, self._buffers)

    def outside(
        self,
        sites: Mapping[str, Site],
        visits: Iterator[Visit],
        rows: Sequence[Sequence[int]],
        share: float = 1.0,
    ) -> None:
        """Add the contributions of weights outside the blocks (`sites` of the head or of the embedding),
        summed over tokens and times `share`, to what the scores have as `rest`. `visits` and `rows` are of
        all batches."""
        states = self.pair.before, self.pair.after
        change: dict[str, Weights] = {}
        for of_batch, visit in zip(rows, visits, strict=True):
            for name, site in sites.items():
                if isinstance(site.module, nn.Embedding):
                    value = linear.contribution_of_rows(site, visit, *states)
                elif (outputs := linear.few_outputs(site, visit)) is not None:
                    value = linear.contribution_of_outputs(site, visit, outputs, *states)
                else:
                    if name not in change:
                        change[name] = self.change({name: site})
                    value = linear.contribution(site, visit, change[name])
                total = torch.zeros(len(of_batch)) if value is None else share * value.sum(1)
                self.out.add_rest(name, of_batch, total)

    def block(
        self,
        layer: int,
        rows: Sequence[int],
        visit: Visit,
        weights: Weights,
        change: Weights,
        share: float = 1.0,
    ) -> None:
        """Add the scores of one block, times `share`, from the visit of one batch under `weights`."""
        view, sites = self.pair.view, self.pair.view.block_sites[layer]
        for projection, part in self._parts(sites, change):
            with torch.no_grad():
                i = linear.informative(view, sites, visit, weights, part, self.convention)
            for name, value in {"mlp": share * i.mlp, "heads": share * i.heads}.items():
                self.out.add(name, INFORMATIVE, rows, layer, value)
                if projection is not None:
                    self.out.add_projection(name, projection, rows, layer, value)
            for group, value in i.rest.items():
                self.out.add_rest(group, rows, share * value.sum(1))

    def _parts(
        self, sites: Mapping[str, Site], change: Weights
    ) -> Iterator[tuple[str | None, dict[str, Tensor]]]:
        """Yield the change in one part or, if scores are split by projection, the change in each
        projection. As I is linear in dW, its parts sum to the whole."""
        asked = self.out.projections
        for projection in (*asked, None) if asked else [None]:
            names = {
                name
                for site in sites.values()
                for name in site.weights.values()
                if not asked or site.projection == projection
            }
            part = {name: t for name, t in change.items() if name in names}
            if part or not asked:
                yield projection, part

    def along_path(
        self, k: int, job: Job, reward: Reward, keep_graphs: bool, tick: Callable[[], object]
    ) -> None:
        """Add the scores of all prompts from `k` walks between W and W'; call `tick` after every layer."""
        view = self.pair.view
        for a, share in path_nodes(k):
            weights = self.pair.between(a)
            walk = Walk(view, weights, job.batches, keep_graphs)
            walk.up(tick=tick)
            descent = Descent(walk)
            read = (
                descent.read_out(b, job.positions[b], reward.of_batch(x))[1]
                for b, x in enumerate(job.batches)
            )
            self.outside(view.head_sites, read, job.rows, share)
            for layer in reversed(range(view.n_layers)):
                change = self.change(view.block_sites[layer])
                for b, rows in enumerate(job.rows):
                    outputs = list(view.block_sites[layer])
                    visit = descent.down(layer, b, ["attn.o"], outputs, retain_graph=bool(change))
                    self.block(layer, rows, visit, weights, change, share)
                    walk.free(layer, b)
                tick()
            embedded = (descent.to_embedding(b) for b in range(len(job.batches)))
            self.outside(view.embed_sites, embedded, job.rows, share)
