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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from ecstruct.engine.plan import graph_bytes, rows_at_once
from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import Batch, TokenizedPrompt
from ecstruct.models.bridge import still
from ecstruct.models.hooked import Part
from ecstruct.models.names import layer_of
from ecstruct.models.sites import Weights
from ecstruct.options import KINDS, AnswerTokens, BaselineKind, CausalOptions
from ecstruct.scores.assemble import SCORES, labelled, numpy_dtype, rewards_by_state
from ecstruct.scores.baseline import Baseline
from ecstruct.scores.batching import Job, cut
from ecstruct.scores.components import Components, selected
from ecstruct.scores.interventions import Change, Replacements, Variant, rewards_of
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
    progress: bool = True,
) -> ExtractiveScores:
    """Compute `causal_scores` for models that are already loaded; `components` may differ by kind."""
    view, kinds, per_token = pair.view, [kind for kind in KINDS if kind in options.kinds], options.per_token
    reward = Reward.of(options.reward, options.answer_tokens)
    by_kind = components if isinstance(components, Mapping) else dict.fromkeys(kinds, components)
    chosen = [selected(by_kind[kind], view.n_layers, view.n_heads) for kind in kinds]
    mlps, heads = (np.stack(part) for part in zip(*chosen, strict=True))
    tokenized, lengths = pair.tokenize(prompts, reward)
    job, copies = _stacked(pair, tokenized, options.memory, reward.answer_tokens == "all")
    run = _Run(pair, job, copies, reward, options.baseline, kinds, mlps, heads, per_token)
    with still(view.model), torch.no_grad():
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
    return ExtractiveScores(labelled(variables, tokenized, lengths, kinds, sizes, attrs))


def _stacked(
    pair: Pair, tokenized: list[TokenizedPrompt], memory: int | None, every: bool
) -> tuple[Job, int]:
    """Return the prompts in batches, and how many copies of a batch are run at once."""
    check_memory(pair, tokenized, memory)
    longest = max(len(p.ids) for p in tokenized)
    rows = rows_at_once(pair.view, longest, memory=memory)
    batch_size = min(len(tokenized), rows, PROMPTS_PER_BATCH)
    return cut(tokenized, batch_size, pair.view.device, pair.pad_id, every), rows // batch_size


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
class _Ask:
    """One intervention: `change` of what a component writes (an MLP has no `head`), for one kind of
    score."""

    kind: str
    writer: str
    head: int | None
    token: int | None
    change: Change

    def under(self, weights: Weights) -> Variant:
        return Variant(weights, self.writer, self.change, self.token)


@dataclass
class _Run:
    """All interventions on a job's prompts, run block by block; they fill `mlp` and `heads` with scores."""

    pair: Pair
    job: Job
    copies: int
    reward_of: Reward
    baseline: BaselineKind
    kinds: Sequence[str]
    mlps: Bool[np.ndarray, "kind layer"]
    heads_of: Bool[np.ndarray, "kind layer head"]
    per_token: bool
    mlp: np.ndarray = field(init=False)
    heads: np.ndarray = field(init=False)
    reward: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        prompts, view = self.job.prompts, self.pair.view
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
        pair, job, view = self.pair, self.job, self.pair.view
        baseline = Baseline(self.baseline, job.prompts, job.rows, view.device)
        before, after = (Walk(view, weights, job.batches, False) for weights in (pair.before, pair.after))
        before.up(baseline.see)
        after.up()
        layers = np.flatnonzero((self.mlps | self.heads_of.any(2)).any(0)).tolist()
        total = len(layers) * len(job.batches)
        with tqdm(total=total, desc="interventions", unit="block", disable=not progress) as bar:
            for b, (rows, batch) in enumerate(zip(job.rows, job.batches, strict=True)):
                tails, plain = self._tails(b, batch, (before, after), min(layers, default=view.n_layers))
                self.reward[rows] = rewards_by_state([job.prompts[row] for row in rows], *plain)
                for layer in layers:
                    replacements = Replacements(pair, before, after, baseline, layer, b)
                    self._block(layer, b, replacements, plain[0], *tails)
                    bar.update()
        for i, prompt in enumerate(job.prompts if self.per_token else ()):
            self.mlp[:, i, :, len(prompt.ids) :] = np.nan
            self.heads[:, i, :, :, len(prompt.ids) :] = np.nan

    def _tails(
        self, b: int, batch: Batch, walks: tuple[Walk, Walk], first: int
    ) -> tuple[list[Tails], list[Float[Tensor, " batch"]]]:
        """Return the tails under W and W', packed if that shortens rows and does not change rewards, and
        the rewards under W and W' without any intervention. `first` is the first layer with one."""

        def under_both(packing: Packing | None = None) -> list[Tails]:
            read = self.job.positions[b], self.reward_of, packing
            return [Tails(self.pair.view, walk.weights, batch, *read) for walk in walks]

        tails, n_layers = under_both(), self.pair.view.n_layers
        pairs = zip(tails, walks, strict=True)
        rewards = [its.rewards(n_layers, walk.resid(n_layers, b))[0] for its, walk in pairs]
        # Within entities, each prompt has its own y*, even where entities begin with the same tokens.
        entities = [self.job.prompts[row].entity[0] for row in self.job.rows[b]]
        packing = Packing.of(batch, at_most=min(entities))
        if packing.ids.numel() < 0.9 * batch.ids.numel():
            packed = under_both(packing)
            # Whether an architecture masks packed rows as it should does not depend on its weights,
            # and layers below the first intervention are not run packed.
            again = packed[0].rewards(first, packing.pack(walks[0].resid(first, b)))[0]
            if torch.allclose(rewards[0], again, 1e-5, 1e-5):
                return packed, rewards
        return tails, rewards

    def _block(
        self,
        layer: int,
        b: int,
        replacements: Replacements,
        plain: Tensor,
        old: Tails,
        new: Tails,
    ) -> None:
        asks = [ask for kind in self.kinds for ask in self._asks(layer, kind, replacements)]
        if not asks:
            return
        variants = [ask.under(self.pair.before) for ask in asks]
        values = rewards_of(variants, old, replacements, self.copies) - plain
        for part, writer in WRITERS.items():
            late = [i for i, ask in enumerate(asks) if ask.kind == "upstream" and ask.writer == writer]
            if late:
                weights = self.pair.mixed(self.pair.view.late_in_block(layer, part))
                variants = [Variant(weights, writer), *(asks[i].under(weights) for i in late)]
                under_late = rewards_of(variants, new, replacements, self.copies)
                values[late] -= under_late[1:] - under_late[:1]
        rows = self.job.rows[b]
        for ask, value in zip(asks, values.cpu().numpy(), strict=True):
            place = [self.kinds.index(ask.kind), rows, layer, ask.head, ask.token]
            array = self.mlp if ask.head is None else self.heads
            array[tuple(index for index in place if index is not None)] = value

    def _asks(self, layer: int, kind: str, replacements: Replacements) -> Iterator[_Ask]:
        """Yield the interventions for one kind of score at a block, skipping those that have no effect."""
        mlp, heads = (of[self.kinds.index(kind), layer] for of in (self.mlps, self.heads_of))
        if not (mlp or heads.any()):
            return
        of_heads, of_mlp = getattr(replacements, kind)()
        chosen: dict[Part, list[tuple[int | None, Change]]] = {
            "attn": [(int(head), of_heads[head]) for head in np.flatnonzero(heads)],
            "mlp": [(None, of_mlp)] if mlp else [],
        }
        for part, changes in chosen.items():
            if kind == "upstream" and not self._late_changes(layer, part):
                continue
            for head, change in changes:
                for token in range(change.shape[1]) if self.per_token else [None]:
                    if (change if token is None else change[:, token]).any():
                        yield _Ask(kind, WRITERS[part], head, token, change)

    def _late_changes(self, layer: int, part: Part) -> bool:
        """Return whether any late weight of a component differs between W and W'."""
        view = self.pair.view
        late = set(view.late_in_block(layer, part))
        late |= {name for site in view.head_sites.values() for name in site.weights.values()}
        return any(name in late or (layer_of(name) or 0) > layer for name in self._changed)
