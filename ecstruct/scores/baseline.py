"""The baseline y*: what a component writes on other prompts, token by token.

Prompts of one template are aligned: the shared prefix and suffix one to one, the entity between them
from its right end. The aligned positions are the template's *slots*: the prefix, as many entity slots as
the longest entity has tokens, and the suffix. A prompt with a shorter entity fills the surplus leading
slots with its first entity token. Then, for every component and slot,

* `"counterfactual"`: y* is the mean over the template's prompts whose text and answer both differ. The
  score is linear in y*, so this equals averaging the scores of all of them (the published code draws 10);
* `"mean"`: the mean over all prompts of the template (Feng et al. 2024, appendix B.4);
* `"zero"`: 0.

Only sums per slot are kept, over all prompts and over each group that is left out together, so y* depends
neither on the batches nor on the order of prompts, and is never held for all prompts at once. If several
processes share the prompts, their sums are added up.
"""

import copy
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.facts.tokens import TokenizedPrompt
from ecstruct.io.distributed import Ranks
from ecstruct.models.hooked import Trace
from ecstruct.options import BaselineKind

Sums = dict[tuple[int, str], Tensor]
"""By layer and writer ("attn.o" or "mlp.out"): the sums of its values, [part * slot, d] in float64."""


@dataclass(frozen=True)
class Alignment:
    """The slots of all prompts, numbered over all templates.

    `slots[i]` are the slots of prompt i's template, `positions[i]` the positions in prompt i that fill
    them, and `slot_of[i]` the slots of all positions in prompt i.
    """

    n_slots: int
    slots: list[np.ndarray]
    positions: list[np.ndarray]
    slot_of: list[np.ndarray]


def align(prompts: Sequence[TokenizedPrompt]) -> Alignment:
    """Align prompts within their templates. Positions after the prompt (answer tokens that are read) align
    one to one; a prompt that has fewer of them repeats its last one."""
    members = defaultdict(list)
    for i, prompt in enumerate(prompts):
        members[prompt.template].append(i)
    slots: list[np.ndarray] = [np.empty(0)] * len(prompts)
    positions, slot_of = list(slots), list(slots)
    n_slots = 0
    for indices in members.values():
        group = [prompts[i] for i in indices]
        prefix = group[0].entity[0]
        longest = max(p.entity[1] - p.entity[0] for p in group)
        tail = max(len(p.ids) - p.entity[1] for p in group)
        here = np.arange(prefix + longest + tail)
        for i, p in zip(indices, group, strict=True):
            start, end = p.entity
            shift = prefix + longest - end  # from a position to its slot, at and after the entity
            filled = np.minimum(np.maximum(here - shift, start), len(p.ids) - 1)
            positions[i] = np.where(here < prefix, here, filled)
            own = np.arange(len(p.ids))
            slot_of[i] = n_slots + np.where(own < prefix, own, own + shift)
            slots[i] = n_slots + here
        n_slots += len(here)
    return Alignment(n_slots, slots, positions, slot_of)


class Baseline:
    """The y* of every component of a model: first `add` what they write on all prompts, then call `of`."""

    def __init__(
        self,
        kind: BaselineKind,
        prompts: Sequence[TokenizedPrompt],
        batches: Sequence[Sequence[int]],
        device: torch.device,
    ) -> None:
        """Prepare sums for prompts; `batches` are the indices of the prompts in each batch.

        Raises:
            InputError: a prompt has no eligible counterfactual.
        """
        self.kind, self._device = kind, device
        self._alignment = align(prompts)
        left_out = _left_out(prompts) if kind == "counterfactual" else [frozenset()] * len(prompts)
        of_template = Counter(p.template for p in prompts)
        sizes = np.array([of_template[p.template] for p in prompts])
        self._counts = sizes - np.array([len(out) for out in left_out])
        if kind == "counterfactual" and (self._counts == 0).any():
            text = prompts[int(np.argmin(self._counts))].prompt.text
            raise InputError(
                f"the prompt {text!r} has no counterfactual, a prompt of its template with another text "
                "and another answer: add prompts, or choose baseline='mean' or baseline='zero'."
            )
        # Part 0 of the sums is over all prompts; each group that is left out together adds a part. A
        # prompt that leaves out only itself needs none: `of` is given what it writes.
        groups = dict.fromkeys(out for out in left_out if len(out) > 1)
        part_of = {group: part for part, group in enumerate(groups, start=1)}
        self._n_parts = 1 + len(groups)
        parts_of = {i: [0] for i in range(len(prompts))}
        for group, part in part_of.items():
            for j in group:
                parts_of[j].append(part)
        part_left_out = [part_of.get(out, 0) for out in left_out]
        itself = np.array([len(out) == 1 for out in left_out])
        self._plans = [
            self._plan(batch, parts_of, [part_left_out[i] for i in batch], itself[list(batch)])
            for batch in batches
        ]
        self.sums: Sums = {}

    def take(self, batches: Sequence[int]) -> "Baseline":
        """Return a baseline for these batches only, renumbered, which shares the sums with this one."""
        taken = copy.copy(self)
        taken._plans = [self._plans[b] for b in batches]
        return taken

    def reduce(self, ranks: Ranks) -> None:
        """Add up the sums of all ranks. The first rank must have counted something if any rank has."""
        for key, width in ranks.broadcast({key: t.shape[-1] for key, t in self.sums.items()}).items():
            ranks.all_reduce(self._sum_of(key, width))

    def _plan(
        self,
        batch: Sequence[int],
        parts_of: Mapping[int, list[int]],
        part_left_out: list[int],
        itself: np.ndarray,
    ) -> "_Plan":
        a = self._alignment
        rows, positions, targets = [], [], []
        for row, i in enumerate(batch):
            for part in parts_of[i]:
                rows.append(np.full(len(a.slots[i]), row))
                positions.append(a.positions[i])
                targets.append(part * a.n_slots + a.slots[i])
        longest = max(len(a.slot_of[i]) for i in batch)
        slot = np.zeros((len(batch), longest), dtype=np.int64)
        for row, i in enumerate(batch):
            slot[row, : len(a.slot_of[i])] = a.slot_of[i]
        part = np.array(part_left_out)[:, None]
        arrays = (
            np.concatenate(rows),
            np.concatenate(positions),
            np.concatenate(targets),
            slot,
            slot + part * a.n_slots,
            (part > 0)[..., None],
            itself[:, None, None],
            self._counts[list(batch), None, None],
        )
        return _Plan(*(torch.as_tensor(array, device=self._device) for array in arrays))

    def see(self, layer: int, batch: int, trace: Trace) -> None:
        """Add what attention and MLP of a block wrote on one batch."""
        self.add(layer, "attn.o", batch, trace.taps["attn.o"].input)
        self.add(layer, "mlp.out", batch, trace.taps["mlp.out"].output)

    def add(self, layer: int, name: str, batch: int, written: Float[Tensor, "batch pos d"]) -> None:
        """Add what a component wrote on one batch to its sums."""
        if self.kind == "zero":
            return
        plan = self._plans[batch]
        values = written.detach()[plan.rows, plan.positions].double()
        self._sum_of((layer, name), written.shape[-1]).index_add_(0, plan.targets, values)

    def of(
        self, layer: int, name: str, batch: int, written: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "batch pos d"]:
        """Return y* at every token of the batch; `written` is what the component itself wrote there."""
        if self.kind == "zero":
            return torch.zeros_like(written)
        plan, sums = self._plans[batch], self.sums[layer, name]
        total = sums[plan.slot] - plan.itself * written.double()
        if self._n_parts > 1:
            total = total - plan.in_group * sums[plan.left_out]
        return (total / plan.counts).to(written.dtype)

    def _sum_of(self, key: tuple[int, str], width: int) -> Tensor:
        if key not in self.sums:
            shape = self._n_parts * self._alignment.n_slots, width
            self.sums[key] = torch.zeros(shape, dtype=torch.float64, device=self._device)
        return self.sums[key]


@dataclass(frozen=True)
class _Plan:
    """Indices by which one batch enters the sums (`rows` and `positions` of the batch, added to the rows
    `targets` of the sums), and by which its y* is read from them."""

    rows: Tensor
    positions: Tensor
    targets: Tensor
    slot: Tensor
    left_out: Tensor
    in_group: Tensor
    itself: Tensor
    counts: Tensor


def _left_out(prompts: Sequence[TokenizedPrompt]) -> list[frozenset[int]]:
    """Return for every prompt the prompts of its template that share its text or its answer, including
    itself."""
    sharing: dict[tuple[str, str, object], set[int]] = defaultdict(set)
    for i, p in enumerate(prompts):
        sharing[p.template, "text", p.prompt.texts].add(i)
        sharing[p.template, "answer", p.prompt.answer].add(i)
    return [
        frozenset(
            sharing[p.template, "text", p.prompt.texts] | sharing[p.template, "answer", p.prompt.answer]
        )
        for p in prompts
    ]
