"""Causal scores: the interventions that the linear scores approximate (Feng et al. 2024, eq. 1 to 4).

W are the original and W' the finetuned weights, y_C is what component C writes (before any post-norm), z_C
its input, f_C the component as a function, y*_C its baseline, and W_late the weights after it:

    I_C = R[W_C <- W'_C] - R
    D_C = R[y_C <- f_C(z'_C, W_C)] - R
    U_C = (R[W_late <- W'_late] - R[W_late <- W'_late, y_C <- y*_C]) - (R - R[y_C <- y*_C])

Positive raises the reward R; the unit is the reward's. All three replace y_C by a value that is computed
once (`ecstruct.scores.interventions`). Then only the rest of the model is run, from C on: under W, and for
U also with new late weights. Late weights are those of later layers, and within the same layer, for a head
the post-attention norm and the MLP with its norms, for an MLP its own post-norm. In a parallel block, MLP
and heads are not late for one another.

A fourth kind is `"patching"`, R[y_C <- y'_C] - R: it puts what C writes in the full run under W' into the
run under W, whatever made them differ. This is activation patching across models, for comparison. Per-token
scores replace y_C at that token alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm.auto import tqdm

from ecstruct.engine.plan import graph_bytes, rows_at_once
from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import TokenizedPrompt
from ecstruct.models.bridge import still
from ecstruct.models.hooked import Sublayer
from ecstruct.models.names import layer_of
from ecstruct.options import KINDS, AnswerTokens, BaselineKind, CausalOptions
from ecstruct.scores.ascent import Ascent
from ecstruct.scores.assemble import SCORES, labelled_dataset, numpy_dtype, rewards_by_state
from ecstruct.scores.baseline import Baseline
from ecstruct.scores.batching import cut
from ecstruct.scores.components import Components, selected
from ecstruct.scores.interventions import Replacements, Variant, rewards_of
from ecstruct.scores.late import WRITERS
from ecstruct.scores.packing import Packing
from ecstruct.scores.pair import ModelAfter, ModelBefore, Pair
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.reward import Reward, RewardLike
from ecstruct.scores.tails import Tails
from ecstruct.scores.walk import Walk

PROMPTS_PER_BATCH = 32
"""A limit on the length of packed rows, in which attention costs the square of all prompts' tokens."""


def causal_scores(
    before: ModelBefore,
    after: ModelAfter,
    prompts: PromptsLike,
    *,
    kinds: str | Sequence[str] = SCORES,
    components: Components = None,
    reward: RewardLike = "logit_diff",
    answer_tokens: AnswerTokens = "first",
    baseline: BaselineKind = "counterfactual",
    per_token: bool = False,
    memory: int | None = None,
    progress: bool = True,
) -> ExtractiveScores:
    """Compute informative, upstream and downstream scores of all MLPs and attention heads by intervention.

    The formulas are in `ecstruct.scores.causal` (Feng, Russell and Steinhardt 2024, arXiv 2412.04614,
    eq. 1 to 4). Positive raises the reward. Neither model is changed.

    Args:
        before, after, prompts: W, W' and prompts, as for `ecstruct.score`.
        kinds: any of `"informative"`, `"upstream"`, `"downstream"` and `"patching"`; the last is not among
            the default ones.
        components: names such as "MLP 4" and "head 5.2", or rows of `ExtractiveScores.top`; all by default.
        reward, answer_tokens: as for `ecstruct.score`.
        baseline: y*, as for `ecstruct.score`.
        per_token: intervene at each token separately; the cost is multiplied by the number of tokens.
        memory: bytes that the stacked interventions may take; by default a quarter of the free memory.
        progress: show a progress bar.

    Returns:
        `.mlp` (score, prompt, layer) and `.heads` (score, prompt, layer, head), with a last dimension token
        if `per_token`; NaN for components that were not asked for. `.reward` under both states.

    Raises:
        InputError: an option is unusable, a component is unknown, or `memory` is too small for one
            intervention; also as `ecstruct.score`.
    """
    kinds = [kinds] if isinstance(kinds, str) else kinds
    options = CausalOptions.given(locals())
    pair = Pair.of(before, after)
    return intervened(pair, prompts, options, components=components, progress=progress)


def intervened(
    pair: Pair,
    prompts: PromptsLike,
    options: CausalOptions,
    *,
    components: Components | Mapping[str, Components] = None,
    ascent: Ascent | None = None,
    progress: bool = True,
) -> ExtractiveScores:
    """Compute `causal_scores` for models that are already loaded; `components` may differ by kind. An
    `ascent` of the same prompts, with the same options, saves another one if its batches have a size that
    suits interventions."""
    view, kinds, per_token = pair.view, [kind for kind in KINDS if kind in options.kinds], options.per_token
    reward = Reward.of(options.reward, options.answer_tokens)
    by_kind = components if isinstance(components, Mapping) else dict.fromkeys(kinds, components)
    chosen = [selected(by_kind[kind], view.n_layers, view.n_heads) for kind in kinds]
    mlps, heads = (np.stack(part) for part in zip(*chosen, strict=True))
    tokenized, lengths = pair.tokenize(prompts, reward)
    rows, batch_size = at_once(pair, tokenized, options.memory)
    with still(view.model), torch.no_grad():
        if ascent is None or not batch_size / 2 <= ascent.largest <= batch_size:
            ascent = ascended(pair, tokenized, options, batch_size)
        run = _Interventions(pair, ascent, rows // ascent.largest, reward, kinds, mlps, heads, per_token)
        run.all(progress)
    described = vars(options) | {
        "kinds": kinds,
        "components": None if components is None else int(mlps.any(0).sum() + heads.any(0).sum()),
        "reward": reward.name,
    }
    last = ("token",) if per_token else ()
    dims = ("score", "prompt", "layer")
    variables = {
        "mlp": ((*dims, *last), run.mlp),
        "heads": ((*dims, "head", *last), run.heads),
        "reward": (("prompt", "state"), run.reward),
    }
    sizes = {"layer": view.n_layers, "head": view.n_heads}
    if per_token:
        sizes["token"] = run.mlp.shape[-1]
    attrs = {"method": "causal", **pair.attrs(described)}
    return ExtractiveScores(labelled_dataset(variables, tokenized, lengths, kinds, sizes, attrs))


def ascended(
    pair: Pair, tokenized: list[TokenizedPrompt], options: CausalOptions, batch_size: int
) -> Ascent:
    """Return the way up of prompts, which interventions begin with."""
    view = pair.view
    job = cut(tokenized, batch_size, view.device, pair.pad_id, options.answer_tokens == "all")
    baseline = Baseline(options.baseline, job.prompts, job.rows, view.device)
    walks = (Walk(view, weights, job.batches, False) for weights in (pair.before, pair.after))
    ascent = Ascent(job, baseline, *walks)
    ascent.up()
    return ascent


def at_once(pair: Pair, tokenized: list[TokenizedPrompt], memory: int | None) -> tuple[int, int]:
    """Return how many copies of prompts are run at once, and the largest batch of different ones."""
    check_memory(pair, tokenized, memory)
    longest = max(len(p.ids) for p in tokenized)
    rows = rows_at_once(pair.view, longest, memory=memory)
    return rows, min(len(tokenized), rows, PROMPTS_PER_BATCH)


def check_memory(pair: Pair, tokenized: Sequence[TokenizedPrompt], memory: int | None) -> None:
    """Raise `InputError` if `memory` bytes are too few for one intervention."""
    longest = max(len(p.ids) for p in tokenized)
    of_prompt = graph_bytes(pair.view, 1, longest)
    if memory is not None and memory < of_prompt:
        raise InputError(
            f"memory={memory} bytes are too few for one intervention on a prompt of {longest} tokens: give "
            f"at least {of_prompt}."
        )


@dataclass(frozen=True)
class _Target:
    """What one intervention is for and acts on: a kind of score, and what a component writes at one `token`
    or (None) at all of them. An MLP has no `head`."""

    kind: str
    layer: int
    head: int | None
    token: int | None

    @property
    def sublayer(self) -> Sublayer:
        return "mlp" if self.head is None else "attn"


_Found = tuple[_Target | None, Float[np.ndarray, " batch"]]
"""The rewards of an intervention with its target, or with None those of a run in which nothing is
changed."""


@dataclass
class _Interventions:
    """All interventions on the prompts of an ascent, run batch by batch.

    `mlps` and `heads_of` say which components are intervened on. The results are the scores, `mlp` [kind,
    prompt, layer] and `heads` [kind, prompt, layer, head], with `per_token` also [..., token], and the
    `reward` [prompt, state]. Scores of other components, and of padding, are NaN."""

    pair: Pair
    ascent: Ascent
    copies: int
    reward_of: Reward
    kinds: Sequence[str]
    mlps: Bool[np.ndarray, "kind layer"]
    heads_of: Bool[np.ndarray, "kind layer head"]
    per_token: bool
    mlp: np.ndarray = field(init=False)
    heads: np.ndarray = field(init=False)
    reward: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        prompts, view = self.ascent.job.prompts, self.pair.view
        dtype = numpy_dtype(view.dtype)
        last = (max(len(p.ids) for p in prompts),) if self.per_token else ()
        self.mlp = np.zeros((len(self.kinds), len(prompts), view.n_layers, *last), dtype)
        self.heads = np.zeros((len(self.kinds), len(prompts), view.n_layers, view.n_heads, *last), dtype)
        self.mlp.swapaxes(1, 2)[~self.mlps] = np.nan
        np.moveaxis(self.heads, 1, 3)[~self.heads_of] = np.nan
        self.reward = np.zeros((len(prompts), 2), dtype)
        self._changed = {
            name for name, old in self.pair.before.items() if not torch.equal(old, self.pair.after[name])
        }

    def all(self, progress: bool) -> None:
        """Run all interventions."""
        job = self.ascent.job
        layers = np.flatnonzero((self.mlps | self.heads_of.any(2)).any(0)).tolist()
        total = len(layers) * len(job.batches) * (1 + ("upstream" in self.kinds))
        with tqdm(total=total, desc="interventions", unit="block", disable=not progress) as bar:

            def replacements(b: int) -> Iterator[Replacements]:
                for layer in layers:
                    yield Replacements(self.pair, self.ascent, layer, b)
                    bar.update()

            for b in range(len(job.batches)):
                self._batch(b, partial(replacements, b))
        for i, prompt in enumerate(job.prompts if self.per_token else ()):
            self.mlp[:, i, :, len(prompt.ids) :] = np.nan
            self.heads[:, i, :, :, len(prompt.ids) :] = np.nan

    def _batch(self, b: int, replacements: Callable[[], Iterator[Replacements]]) -> None:
        """Run all interventions on a batch, packed if that shortens rows and does not change rewards."""
        job, before, n_layers = self.ascent.job, self.ascent.before, self.pair.view.n_layers
        batch, rows, walks = job.batches[b], job.rows[b], (before, self.ascent.after)

        def tails(packing: Packing | None = None) -> list[Tails]:
            of_batch = batch, job.positions[b], self.reward_of, packing
            return [Tails(self.pair.view, walk.weights, *of_batch) for walk in walks]

        def begun(packing: Packing | None) -> tuple[Iterator[_Found], Tails]:
            old, new = tails(packing)
            variants = self._under_before(replacements(), packing)
            return rewards_of(variants, old, before, b, self.copies), new

        pairs = zip(tails(), walks, strict=True)
        of_walks = [its.rewards({n_layers: walk.resid(n_layers, b)}.get)[0] for its, walk in pairs]
        self.reward[rows] = rewards_by_state([job.prompts[row] for row in rows], *of_walks)
        plain = self.reward[rows, 0]
        # Within entities, each prompt has its own y*, even where entities begin with the same tokens.
        packing = Packing.of(batch, at_most=min(job.prompts[row].entity[0] for row in rows))
        # In an encoder, later tokens change what is computed at the shared ones.
        shorter = not batch.at_start and packing.ids.numel() < 0.9 * batch.ids.numel()
        found, new = begun(packing if shorter else None)
        # Whether an architecture masks packed rows as it should does not depend on its weights, and layers
        # below the first intervention are not run packed.
        if shorter and not np.allclose(plain, next(found, (None, plain))[1], 1e-5, 1e-5):
            found, new = begun(None)
        self._add(rows, found, 1, plain)
        late = self._under_late(replacements())
        self._add(rows, rewards_of(late, new, before, b, self.copies), -1, plain)

    def _under_before(
        self, replacements: Iterable[Replacements], packing: Packing | None
    ) -> Iterator[tuple[_Target | None, Variant]]:
        """Yield the target and the run of every intervention under W. If runs are packed, one without a
        change comes first, with None as its target."""
        for of_layer in replacements:
            for kind in self.kinds:
                for target, variant in self._interventions(kind, of_layer):
                    if packing:
                        yield None, replace(variant, change=None)
                        packing = None
                    yield target, variant

    def _under_late(self, replacements: Iterable[Replacements]) -> Iterator[tuple[_Target | None, Variant]]:
        """Yield the target and the run of every intervention for upstream scores with the late weights of
        W'. Before those that share late weights comes a run without a change, with None as its target."""
        for of_layer in replacements if "upstream" in self.kinds else ():
            wanted = [*self._interventions("upstream", of_layer)]
            for sublayer in WRITERS:
                weights = self.pair.mixed(self.pair.view.late_in_block(of_layer.layer, sublayer))
                some = [
                    (target, replace(variant, weights=weights))
                    for target, variant in wanted
                    if target.sublayer == sublayer
                ]
                if some:
                    yield None, replace(some[0][1], change=None)
                    yield from some

    def _interventions(self, kind: str, replacements: Replacements) -> Iterator[tuple[_Target, Variant]]:
        """Yield target and run of the interventions for one kind of score at a block, under W, except for
        those that cannot have an effect."""
        layer = replacements.layer
        mlp, heads = (of[self.kinds.index(kind), layer] for of in (self.mlps, self.heads_of))
        if not (mlp or heads.any()):
            return
        of_heads, of_mlp = getattr(replacements, kind)()
        changes = [(int(head), of_heads[head]) for head in np.flatnonzero(heads)]
        changes += [(None, of_mlp)] if mlp else []
        for head, change in changes:
            for token in range(change.shape[1]) if self.per_token else [None]:
                target = _Target(kind, layer, head, token)
                if kind == "upstream" and not self._late_changes(layer, target.sublayer):
                    continue
                if (change if token is None else change[:, token]).any():
                    weights, written = self.pair.before, replacements.written
                    yield target, Variant(layer, weights, written, WRITERS[target.sublayer], change, token)

    def _add(
        self,
        rows: Sequence[int],
        found: Iterable[_Found],
        sign: int,
        unchanged: Float[np.ndarray, " batch"],
    ) -> None:
        """Add `sign` times the effect of every intervention, its rewards minus the `unchanged` ones, to the
        scores. Rewards without a target are the unchanged ones from there on."""
        for target, rewards in found:
            if target is None:
                unchanged = rewards
                continue
            place = [self.kinds.index(target.kind), rows, target.layer, target.head, target.token]
            array = self.mlp if target.head is None else self.heads
            array[tuple(index for index in place if index is not None)] += sign * (rewards - unchanged)

    def _late_changes(self, layer: int, sublayer: Sublayer) -> bool:
        """Return whether any late weight of a component differs between W and W'."""
        view = self.pair.view
        late = set(view.late_in_block(layer, sublayer))
        late |= {name for site in view.head_sites.values() for name in site.weights.values()}
        return any(name in late or (layer_of(name) or 0) > layer for name in self._changed)
