"""Pruning: which components a model can do without on some prompts (Bhaskar, Friedman and Chen 2024).

Every head and every MLP gets a hard-concrete gate, and the gates of one subnetwork minimise

    KL(full || gated) + l1 (t - s) + l2 (t - s)^2

with the model's weights frozen. KL, in nats, is between the distributions over the whole vocabulary after a
prompt's last token, averaged over prompts; s is the expected share of gates that are zero; t is the
sparsity asked for, ramped up from 0 and then held. AdamW descends on log alpha, and ascends at rate 1 on l1
and l2, which begin at 0. In the end the gates with the smallest log alpha are set to zero, in each kind as
many as are expected to be, and all others to one.

s is 1 - mean(z) with P(z = 0) in place of a draw of z, as in Louizos et al.: at log alpha = 10, where gates
begin, only one draw in 4,600 has a gradient. If the expected number of zeros differs from the number asked
for, the gates with the next log alpha make up the difference. This may be at most a tenth of all gates;
otherwise the seed has not *converged*, and its masks say so (`Masks.converged`).

Log alpha moves by about the learning rate per step, from 10 to 0 and below. At 0.1, nothing is therefore
ablated in the first steps, and the sparsity settles after about 150. With the default of 500 steps, gates
can change sides while the target grows.

Seeds differ in their draws (and, if there are more prompts than `batch_size`, in their batches). They are
optimised together as rows of one batch, but do not influence one another.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecstruct.cost import Bar
from ecstruct.engine.forward import Embedded
from ecstruct.engine.plan import affordable, each_piece
from ecstruct.engine.session import Model, Session
from ecstruct.errors import InputError
from ecstruct.evaluate import ranks_of_tokenized
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.facts.tokens import TokenizedPrompt, collate
from ecstruct.io import interruption
from ecstruct.io.values import bounded, check_numbers
from ecstruct.models.bridge import still
from ecstruct.options import PruneOptions
from ecstruct.subnetworks.gates import EDGE, hard_concrete, probability_of_zero
from ecstruct.subnetworks.masks import Masks
from ecstruct.subnetworks.progress import INITIAL, Progress, described
from ecstruct.subnetworks.reference import Ablation, reference_values
from ecstruct.subnetworks.running import GatedModel, Gates, Kind

RATE = 1.0
"""The learning rate of the multipliers."""

RAMP = 0.9
"""The share of the steps in which the target grows."""

SETTLED = 1.5
"""The steps until the sparsity settles, as a multiple of those that log alpha takes to reach 0."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Schedule(PruneOptions):
    """The options of `prune`, and what follows from them for each step."""

    @property
    def settled(self) -> int:
        """The number of steps after which the sparsity has reached what was asked for."""
        return math.ceil(SETTLED * INITIAL / self.lr)

    def target(self, step: int) -> float:
        return self.sparsity * min(1.0, (step + 1) / (RAMP * self.steps))


@bounded
def prune(
    model: Model,
    prompts: PromptsLike,
    *,
    sparsity: float = 0.5,
    seeds: int | Iterable[int] = 12,
    steps: int = 500,
    kinds: Kind | Sequence[Kind] = ("heads", "mlp"),
    ablation: Ablation = "mean",
    reference: PromptsLike | None = None,
    lr: float = 0.1,
    batch_size: int = 32,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Masks:
    """Find subnetworks that predict what the model predicts after some prompts, one for each seed.

    Args:
        model: From `ecstruct.load` or `ecstruct.finetune`, for example; it is not changed.
        prompts: Subnetworks imitate the model on these. Answers and options only tell if it solves them.
        sparsity: The share of components that is ablated, among all of `kinds` together; it is reached to
            within one component.
        seeds: The number of seeds, or the seeds themselves.
        steps: The number of optimisation steps; each runs `batch_size` prompts (or all, if there are fewer)
            for every seed. Fewer than about 15 / lr do not converge; 500 is ample at the default rate.
        kinds: The kinds that may be ablated; all components of another kind are kept.
        ablation: Whether an ablated component writes its mean over `reference` (by default the prompts
            themselves) or zero.
        lr: The learning rate of log alpha, for AdamW with torch's defaults except a weight decay of 0.
        checkpoint: A file to resume from, and to write about every half minute. With it, a SIGTERM lets the
            step finish and be saved, if a handler listens for it.

    Raises:
        InputError: an option out of its range, an empty reference set, no seeds, another run's checkpoint,
            prompts that cannot be ranked, or a loss that is not finite.
        Terminated: after a SIGTERM.
    """
    kinds = (kinds,) if isinstance(kinds, str) else tuple(dict.fromkeys(kinds))
    seeds = chosen = chosen_seeds(seeds)
    options = Schedule.given(locals())
    prompts = as_prompts(prompts)
    session = Session.of(model)
    tokenized = session.tokenize(prompts)
    reference = prompts if reference is None else reference
    values = reference_values(session, reference, ablation=ablation)
    about = described(
        session,
        {name: value for name, value in vars(options).items() if name != "seeds"},
        {"prompts": prompts, "reference": as_prompts(reference)},
    )
    with still(session.view.model):
        gated = GatedModel(session, values)
        _warn_if_unsolved(session, tokenized)
        if steps < options.settled:
            _log.warning(
                "%d steps at lr=%g will hardly converge: gates begin at log alpha %g and move by about lr "
                "in a step, so that about %d are needed, and 500 are ample at lr=0.1.",
                *(steps, lr, INITIAL, options.settled),
            )
        pruning = Pruning(gated, tokenized, options)
        state = Progress.begin(chosen, pruning.n_gates, checkpoint, about)
        shown = Bar(len(chosen) * steps, "pruning", unit="step", done=sum(state.done), disable=not progress)
        with shown as bar, interruption.finishing() if checkpoint else nullcontext():
            pruning.run_all(state, bar)
    masks = {kind: np.ones((len(chosen), *shape), bool) for kind, shape in gated.shapes.items()}
    expected = probability_of_zero(state.tensors["log_alpha"]).mean(1)
    for row, log_alpha in enumerate(state.tensors["log_alpha"]):
        for kind, kept in zip(options.kinds, binary(pruning.by_kind(log_alpha), sparsity), strict=True):
            masks[kind][row] = kept.numpy()
    return Masks.of(**masks, seeds=chosen, reference=values, expected=expected.numpy(), attrs=about)


def chosen_seeds(seeds: int | Iterable[int]) -> list[int]:
    """Return seeds as a list, from their number or from the seeds themselves; check that they are valid."""
    if isinstance(seeds, bool):
        raise InputError(f"seeds={seeds} is neither a number of seeds nor a list of them.")
    chosen = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not chosen:
        raise InputError(f"seeds={seeds!r} are no seeds: give a number of 1 or more, or a list.")
    if min(chosen) < 0:
        raise InputError(f"the seed {min(chosen)} is negative: use 0 or more.")
    check_numbers({"seed": max(chosen)})
    if len(set(chosen)) < len(chosen):
        twice = next(seed for seed in chosen if chosen.count(seed) > 1)
        raise InputError(f"the seed {twice} is there twice: give each once.")
    return chosen


def binary(log_alpha: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Return which gates of each kind are kept; see the module's docstring."""
    expected = [float(probability_of_zero(of_kind).sum()) for of_kind in log_alpha]
    flat = [of_kind.flatten() for of_kind in log_alpha]
    kept = []
    for of_kind, n in zip(flat, expected, strict=True):
        keep = torch.ones(len(of_kind), dtype=torch.bool)
        keep[of_kind.argsort(stable=True)[: round(n)]] = False
        kept.append(keep)
    together, keep = torch.cat(flat), torch.cat(kept)
    missing = round(sparsity * len(keep)) - int((~keep).sum())
    # Ablate more from the smallest log alpha up, or fewer from the largest down.
    order = together.argsort(stable=True, descending=missing < 0)
    keep[order[keep[order] == (missing > 0)][: abs(missing)]] = missing < 0
    parts = keep.split([len(of_kind) for of_kind in flat])
    return [part.reshape(of_kind.shape) for part, of_kind in zip(parts, log_alpha, strict=True)]


class Pruning:
    """The optimisation of any number of seeds."""

    def __init__(self, gated: GatedModel, prompts: list[TokenizedPrompt], options: Schedule) -> None:
        self.gated, self.prompts, self.options = gated, prompts, options
        self._per_seed = min(options.batch_size, len(prompts))
        logits: list[Tensor] = []
        with torch.no_grad():
            each_piece(
                prompts, options.batch_size, lambda some: logits.append(gated.logits(self._embed(some)))
            )
        self._full = torch.cat(logits).log_softmax(-1)
        self._everything: tuple[int, Embedded] | None = None

    @property
    def n_gates(self) -> int:
        return sum(math.prod(self.gated.shapes[kind]) for kind in self.options.kinds)

    def by_kind(self, gates: Tensor) -> list[Tensor]:
        """Split values of all gates [..., gate] by kind: [..., layer, head] or [..., layer]."""
        shapes = [self.gated.shapes[kind] for kind in self.options.kinds]
        parts = gates.split([math.prod(shape) for shape in shapes], dim=-1)
        return [p.unflatten(-1, shape) for p, shape in zip(parts, shapes, strict=True)]

    def run_all(self, state: Progress, bar: Any) -> None:
        """Optimise all seeds to the end: those at the same step together, as many as memory allows."""
        view, kept = self.gated.view, 4 * self._full.shape[1] * self._full.element_size()
        length = max(len(p.ids) for p in self.prompts)
        at_once = affordable(view, length, graphs=view.n_layers, kept=kept) // self._per_seed
        for done in sorted({n for n in state.done if n < self.options.steps}):
            rows = [row for row, n in enumerate(state.done) if n == done]
            # Seeds run in their order, so that those at the same step stand side by side.
            each_piece(rows, at_once, lambda some: self.run(state, slice(some[0], some[-1] + 1), bar))

    def run(self, state: Progress, rows: slice, bar: Any) -> None:
        """Optimise these seeds from where they are to the end."""
        options, seeds, of = self.options, state.seeds[rows], state.parameters(rows)
        optimizer = torch.optim.AdamW(
            [
                {"params": [of["log_alpha"]], "lr": options.lr},
                {"params": [of["multipliers"]], "lr": RATE, "maximize": True},
            ],
            weight_decay=0.0,
        )
        state.resume(optimizer, of, rows)
        for step in range(state.done[rows][0], options.steps):
            kl, sparsity = self.losses(of["log_alpha"], seeds, step)
            gap = options.target(step) - sparsity
            losses = kl + (of["multipliers"] * torch.stack([gap, gap**2], dim=1)).sum(1)
            self._check(losses, seeds, step)
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
            state.tensors["done"][rows] = step + 1
            bar.update(len(seeds))
            bar.set_postfix(sparsity=f"{sparsity.mean():.2f}", KL=f"{kl.mean():.3f}", refresh=False)
            stopped = interruption.arrived()
            if state.due() or stopped or step + 1 == options.steps:
                state.save()
            if stopped:
                raise interruption.Terminated

    def losses(self, log_alpha: Tensor, seeds: list[int], step: int) -> tuple[Tensor, Tensor]:
        """Return the KL of every seed's draw of gates, and the share of them expected to be zero [seed]."""
        # Each seed and step has its own generator, so no generator state needs to be saved.
        draws = [np.random.default_rng((seed, step + 1)) for seed in seeds]
        u = torch.from_numpy(np.stack([draw.uniform(EDGE, 1 - EDGE, log_alpha.shape[1]) for draw in draws]))
        z = hard_concrete(log_alpha, u).to(self.gated.view.device, self.gated.view.dtype)
        shown = dict(zip(self.options.kinds, self.by_kind(z), strict=True))
        every = {kind: z.new_ones(len(z), *shape) for kind, shape in self.gated.shapes.items()}
        gates = Gates(**(every | shown))
        embedded, indices = self._batch(draws)
        logp = self.gated.logits(embedded, gates.each(self._per_seed)).log_softmax(-1)
        full = self._full[indices]
        kl = (full.exp() * (full - logp)).sum(-1).unflatten(0, (len(seeds), -1)).mean(1)
        return kl.to(log_alpha), probability_of_zero(log_alpha).mean(1)

    def _batch(self, draws: list[np.random.Generator]) -> tuple[Embedded, Tensor]:
        """Return prompts for every seed, and their indices [seed * prompt]."""
        n, device = len(self.prompts), self.gated.view.device
        every = self._per_seed == n
        drawn = [np.arange(n) if every else np.sort(d.choice(n, self._per_seed, False)) for d in draws]
        indices = np.concatenate(drawn)
        if not (every and self._everything and self._everything[0] == len(draws)):
            self._everything = len(draws), self._embed([self.prompts[i] for i in indices])
        return self._everything[1], torch.from_numpy(indices).to(device)

    def _embed(self, prompts: Sequence[TokenizedPrompt]) -> Embedded:
        return self.gated.embed(collate(prompts, self.gated.view.device, self.gated.session.pad_id))

    def _check(self, losses: Tensor, seeds: list[int], step: int) -> None:
        if bad := [
            seed for seed, loss in zip(seeds, losses.tolist(), strict=True) if not math.isfinite(loss)
        ]:
            raise InputError(
                f"the loss of seed {bad[0]} is not finite in step {step}: the model's logits "
                f"are NaN or infinite when components are ablated, or lr={self.options.lr:g} is too large; "
                "load the model in float32, or use a smaller lr=."
            )


def _warn_if_unsolved(session: Session, prompts: Sequence[TokenizedPrompt]) -> None:
    ranks = ranks_of_tokenized(session.view.model, prompts)
    if (solved := float((ranks == 0).mean())) < 0.5:
        _log.warning(
            "the full model solves %.0f%% of %d prompts (mean rank %.2f): what is pruned on them imitates "
            "a model that does not know the answers.",
            100 * solved,
            len(prompts),
            ranks.mean(),
        )
