"""Edges between components, by path patching: what upstream components query of informative ones, and
what downstream components read of these.

Let W be the original and W' the finetuned weights, z_C the input of component C in the run under W, f_C the
component as a function, and y_C = f_C(z_C, W_C) what it writes, before any post-norm. Every run has the
weights W, but for those that are named.

* **u to i**, from an upstream to an informative component. Let z_i[u] be the input of i when u writes its
  baseline y*_u:

      I_i = R[y_i <- f_i(z_i, W'_i)] - R
      E(u, i) = I_i - (R[y_i <- f_i(z_i[u], W'_i)] - R[y_i <- f_i(z_i[u], W_i)])

  It is the part of the informative score I_i that goes when i is not asked through u; i alone sees that.
  It is also the upstream score of u if, of all late weights, those of i alone were new, and if i alone read
  what u writes.

* **i to d**, from an informative to a downstream component. Let z_d[i] be the input of d when i alone has
  new weights, y_i <- f_i(z_i, W'_i):

      E(i, d) = R[y_d <- f_d(z_d[i], W_d)] - R

  It is the part of the downstream score D_d = R[y_d <- f_d(z'_d, W_d)] - R that comes of the change of i:
  z'_d is the input of d when all weights are new.

A path leads from the first component to the second through everything between them, and from the second
through everything after it. The unit is that of the reward R, logits if it is the logit difference;
positive raises it. To first order in the change of the weights, the edges into d, of all components i and
of the weights that belong to none, sum to D_d. The edges from u sum to the part of U_u that comes of what
is queried; the rest is what u changes of how later components read that. Edges into i need not sum to I_i:
two queries that are both needed have all of it each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ecstruct.engine.forward import Resid, Step, traces
from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike
from ecstruct.models.bridge import still
from ecstruct.models.hooked import Trace
from ecstruct.options import (
    KINDS,
    AnswerTokens,
    BaselineKind,
    CausalOptions,
    EdgeOptions,
    ScoreOptions,
)
from ecstruct.scores.ascent import Ascent
from ecstruct.scores.assemble import SCORES, STATES
from ecstruct.scores.causal import ascended, at_once, intervened
from ecstruct.scores.components import Component, component_names, located
from ecstruct.scores.edges import LINKS, Edges, Link, variable
from ecstruct.scores.engine import ScoreEngine
from ecstruct.scores.interventions import Replacements, Variant, of_new_weights, rewards_of
from ecstruct.scores.late import WRITERS
from ecstruct.scores.pair import ModelAfter, ModelBefore, Pair
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.reward import Reward, RewardLike
from ecstruct.scores.tails import Tails

Roles = ExtractiveScores | Mapping[str, Sequence[str]] | None
"""Scores, whose strongest components have the roles, or the names of the components of each role."""

_Term = tuple[Link, int, int, int]
"""A link of two roles, the number of the component in either, and the sign of a reward in their edge."""


def edges(
    before: ModelBefore,
    after: ModelAfter,
    prompts: PromptsLike,
    roles: Roles = None,
    *,
    top: int = 5,
    reward: RewardLike = "logit_diff",
    answer_tokens: AnswerTokens = "first",
    baseline: BaselineKind = "counterfactual",
    progress: bool = True,
) -> Edges:
    """Measure how much of the informative scores is queried through which upstream component, and how much
    of the downstream scores passes through which informative one, see `ecstruct.scores.path_patching`.

    Args:
        before, after, prompts: W, W' and prompts, as for `ecstruct.score`. Neither model is changed.
        roles: scores of these models, whose strongest components are taken, or a mapping from
            "informative", "upstream" and "downstream" to names of components. By default, the prompts are
            scored.
        top: how many components of scores have each role, those that raise the reward most.
        reward, answer_tokens, baseline: R and y*, as for `ecstruct.score`.
        progress: show a progress bar.

    Raises:
        InputError: no component is informative, a role or a component is unknown, the scores are of another
            model, or an option is unusable; also as `ecstruct.score`.
    """
    options = EdgeOptions.given(locals())
    return edges_of(Pair.of(before, after), prompts, options, roles, progress=progress)


def edges_of(
    pair: Pair, prompts: PromptsLike, options: EdgeOptions, roles: Roles = None, *, progress: bool = True
) -> Edges:
    """Compute `edges` for models that are already loaded."""
    view, reward = pair.view, Reward.of(options.reward, options.answer_tokens)
    measured = {name: getattr(options, name) for name in ("reward", "answer_tokens", "baseline")}
    if roles is None:
        roles = ScoreEngine(pair, None, ScoreOptions(**measured), progress=progress).score(prompts)
    chosen = _chosen(roles, pair, options.top)
    tokenized, _ = pair.tokenize(prompts, reward)
    asked = {kind: [*components] for kind, components in chosen.items() if components}
    of_causal = CausalOptions(kinds=[kind for kind in KINDS if kind in asked], **measured)
    rows, batch_size = at_once(pair, tokenized, None)
    found = {
        link: np.full((len(chosen[link[0]]), len(chosen[link[1]]), len(tokenized)), np.nan)
        for link in LINKS
    }
    with still(view.model), torch.no_grad():
        ascent = ascended(pair, tokenized, of_causal, batch_size)
        own = intervened(pair, prompts, of_causal, components=asked, ascent=ascent, progress=progress)
        plain = own.reward.sel(state="before").values
        for b, of_batch in enumerate(ascent.job.rows):
            tails = Tails(view, pair.before, ascent.job.batches[b], ascent.job.positions[b], reward)
            variants = sorted(_Paths(pair, ascent, b, chosen).variants(), key=_place)
            patched = rewards_of(variants, tails, ascent.before, b, rows // ascent.largest)
            for (link, sender, receiver, sign), rewards in patched:
                edge = found[link][sender, receiver]
                edge[of_batch] = np.nan_to_num(edge[of_batch]) + sign * (rewards - plain[of_batch])
    scores = {kind: _scores(own, kind, components.values()) for kind, components in chosen.items()}
    found[LINKS[0]] += scores["informative"]
    variables: dict[str, Any] = {
        variable(link): ((*link, "prompt"), values) for link, values in found.items()
    }
    variables |= {f"{kind}_score": ((kind, "prompt"), its) for kind, its in scores.items()}
    variables["reward"] = (("prompt", "state"), own.reward.values)
    names = {kind: np.array([*components], dtype=str) for kind, components in chosen.items()}
    prompt = {name: own.dataset.coords[name] for name in ("text", "answer", "template")}
    described = vars(options) | {"reward": reward.name, "components": {k: [*v] for k, v in chosen.items()}}
    attrs = {**pair.attrs(described), "n_layers": view.n_layers}
    return Edges(xr.Dataset(variables, {**names, "state": list(STATES), **prompt}, attrs))


def _chosen(roles: Roles, pair: Pair, top: int) -> dict[str, dict[str, Component]]:
    """Return the components of every role by name.

    Raises:
        InputError: no component is informative, or a role or a component is unknown.
    """
    view = pair.view
    if isinstance(roles, ExtractiveScores):
        roles.check_of(view.n_layers, view.n_heads)
        scored = [kind for kind in SCORES if kind in roles.dataset["score"]]
        names = {kind: component_names(roles.top(top, kind).query("value > 0")) for kind in scored}
    else:
        names = dict(roles or {})
        if unknown := sorted({*names} - {*SCORES}):
            raise InputError(f"there is no role {unknown[0]!r}: use {', '.join(SCORES)}.")
    found = {kind: dict(located(names.get(kind, ()), view.n_layers, view.n_heads)) for kind in SCORES}
    if not found["informative"]:
        raise InputError(
            "no component is informative, so that there is nothing to connect: name some, as in "
            "roles={'informative': ['MLP 4']}, or give scores that have one above 0."
        )
    return found


def _scores(own: ExtractiveScores, kind: str, components: Iterable[Component]) -> np.ndarray:
    """Return the scores of one kind of some components, [component, prompt]."""
    arrays = [
        (own.mlp if head is None else own.heads.sel(head=head)).sel(score=kind, layer=layer).values
        for layer, head in components
    ]
    return np.array(arrays, dtype=float).reshape(len(arrays), own.dataset.sizes["prompt"])


def _place(of: tuple[_Term, Variant]) -> tuple[int, str]:
    """Return by what variants are sorted for `rewards_of`."""
    return of[1].layer, of[1].writer


@dataclass(frozen=True)
class _Paths:
    """The paths between chosen components on one batch."""

    pair: Pair
    ascent: Ascent
    batch: int
    chosen: Mapping[str, Mapping[str, Component]]
    _known: dict[int, Replacements] = field(default_factory=dict, init=False)

    def variants(self) -> Iterator[tuple[_Term, Variant]]:
        """Yield the runs from the second component of every path on: under W, with what it writes
        replaced."""
        for link in LINKS:
            receivers = [*enumerate(self.chosen[link[1]].values())]
            for i, sender in enumerate(self.chosen[link[0]].values()):
                after = [(j, each) for j, each in receivers if self._comes_after(each, sender)]
                last = max((layer for _, (layer, _) in after), default=-1)
                for layer, resid, run in self._run(link[0], sender, last):
                    its = [(j, head) for j, (at, head) in after if at == layer]
                    for sign, changes in self._changes(link, layer, resid, run) if its else ():
                        for j, head in its:
                            written = self._at(layer).written, _writer(head)
                            variant = Variant(layer, self.pair.before, *written, _of(changes, head))
                            yield (link, i, j, sign), variant

    def _changes(
        self, link: Link, layer: int, resid: Tensor, run: Trace
    ) -> Iterator[tuple[int, tuple[Tensor, Resid]]]:
        """Yield, each with a sign, how what the components of a block write changes in a run in which what
        a sender writes is replaced; if they are queried, under their old and under their new weights."""
        heads, mlp = self._at(layer).as_in(run, self.pair.before)
        yield 1, (heads, mlp)
        if link[0] == "upstream":
            call = self.ascent.before.call(layer, self.batch)
            of_heads, of_mlp = of_new_weights(self.pair, layer, call, resid, run)
            yield -1, (heads + of_heads, mlp + of_mlp)

    def _run(self, kind: str, sender: Component, last: int) -> Iterator[tuple[int, Tensor, Trace]]:
        """Run the blocks from a sender's to the last one under W, with what the sender writes replaced as
        for its score; yield layer, the residual stream that enters it, and its trace."""
        layer, head = sender
        walk, change = self.ascent.before, _of(getattr(self._at(layer), kind)(), head)

        def replacing(step: Step) -> Step:
            if step.layer != layer:
                return step
            return replace(step, outputs={_writer(head): lambda y: y + change})

        calls = [walk.call(at, self.batch) for at in range(last + 1)]
        resid = walk.resid(layer, self.batch)
        for at, trace in enumerate(traces(self.pair.sessions[0], calls, resid, replacing, layer), layer):
            yield at, resid, trace
            resid = trace.output

    def _at(self, layer: int) -> Replacements:
        if layer not in self._known:
            self._known[layer] = Replacements(self.pair, self.ascent, layer, self.batch)
        return self._known[layer]

    def _comes_after(self, receiver: Component, sender: Component) -> bool:
        (layer, head), (its_layer, its_head) = receiver, sender
        in_block = head is None and its_head is not None and not self.pair.view.parallel
        return layer > its_layer or (layer == its_layer and in_block)


def _writer(head: int | None) -> str:
    return WRITERS["mlp" if head is None else "attn"]


def _of(changes: tuple[Tensor, Resid], head: int | None) -> Resid:
    """Return the change of a head, without those of the others in memory, or of the MLP."""
    return changes[1] if head is None else changes[0][head].clone()
