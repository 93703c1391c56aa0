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
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.facts.tokens import TokenizedPrompt
from ecstruct.io.distributed import Ranks
from ecstruct.models.hooked import Trace
from ecstruct.options import BaselineKind

Sums = dict[tuple[int, str], Tensor]
"""By layer and site, "attn.o" (the heads' z) or "mlp.out" (what the MLP writes): sums over prompts,
[group * slot, d] in float64."""


@dataclass(frozen=True)
class SlotIndex:
    """Which token of which prompt is in which slot; slots are numbered over all templates.

    For prompt i, `slots[i]` are the slots of its template, `positions[i]` the positions in the prompt that
    fill them, and `slot_of[i]` [pos] is the slot of each of its positions.
    """

    n_slots: int
    slots: list[np.ndarray]
    positions: list[np.ndarray]
    slot_of: list[np.ndarray]


def slot_index(prompts: Sequence[TokenizedPrompt]) -> SlotIndex:
    """Align the prompts of each template. Positions after the prompt (answer tokens that are read) align
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
    return SlotIndex(n_slots, slots, positions, slot_of)


class Baseline:
    """The y* of every component of a model: `see` (or `add`) all prompts first, then call `of`.

    A head's y* is kept as z*, the baseline of its z, as what it writes is linear in z."""

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
        self._slot_index = slot_index(prompts)
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
        # Group 0 of the sums has all prompts; each set of prompts that is left out together is another
        # group. A prompt that leaves out only itself needs none: `of` is given its own value.
        groups = dict.fromkeys(out for out in left_out if len(out) > 1)
        index_of = {members: group for group, members in enumerate(groups, start=1)}
        self._n_groups = 1 + len(groups)
        groups_of = {i: [0] for i in range(len(prompts))}
        for members, group in index_of.items():
            for j in members:
                groups_of[j].append(group)
        left_out_group = [index_of.get(out, 0) for out in left_out]
        itself = np.array([len(out) == 1 for out in left_out])
        self._plans = [
            self._plan(batch, groups_of, [left_out_group[i] for i in batch], itself[list(batch)])
            for batch in batches
        ]
        self.sums: Sums = {}

    def take(self, batches: Sequence[int]) -> "Baseline":
        """Return a baseline for these batches only, renumbered, which shares the sums with this one."""
        taken = copy.copy(self)
        taken._plans = [self._plans[b] for b in batches]
        return taken

    def reduce(self, ranks: Ranks) -> None:
        """Replace the sums by their totals over all ranks. If any rank has sums, the first must have
        some."""
        for key, width in ranks.broadcast({key: t.shape[-1] for key, t in self.sums.items()}).items():
            ranks.all_reduce(self._sum_of(key, width))

    def _plan(
        self,
        batch: Sequence[int],
        groups_of: Mapping[int, list[int]],
        left_out_group: list[int],
        itself: np.ndarray,
    ) -> "_Plan":
        a = self._slot_index
        rows, positions, targets = [], [], []
        for row, i in enumerate(batch):
            for group in groups_of[i]:
                rows.append(np.full(len(a.slots[i]), row))
                positions.append(a.positions[i])
                targets.append(group * a.n_slots + a.slots[i])
        longest = max(len(a.slot_of[i]) for i in batch)
        slot = np.zeros((len(batch), longest), dtype=np.int64)
        for row, i in enumerate(batch):
            slot[row, : len(a.slot_of[i])] = a.slot_of[i]
        group = np.array(left_out_group)[:, None]
        arrays = (
            np.concatenate(rows),
            np.concatenate(positions),
            np.concatenate(targets),
            slot,
            slot + group * a.n_slots,
            (group > 0)[..., None],
            itself[:, None, None],
            self._counts[list(batch), None, None],
        )
        return _Plan(*(torch.as_tensor(array, device=self._device) for array in arrays))

    def see(self, layer: int, batch: int, trace: Trace) -> None:
        """Add the heads' z and what the MLP wrote in a run of a block on one batch to the sums."""
        self.add(layer, "attn.o", batch, trace.taps["attn.o"].input)
        self.add(layer, "mlp.out", batch, trace.taps["mlp.out"].output)

    def add(self, layer: int, name: str, batch: int, written: Float[Tensor, "batch pos d"]) -> None:
        """Add the values of one site, `name` ("attn.o": the heads' z; "mlp.out": what the MLP wrote), on
        one batch to its sums."""
        if self.kind == "zero":
            return
        plan = self._plans[batch]
        values = written.detach()[plan.rows, plan.positions].double()
        self._sum_of((layer, name), written.shape[-1]).index_add_(0, plan.targets, values)

    def of(
        self, layer: int, name: str, batch: int, written: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "batch pos d"]:
        """Return the baseline of a site's values at every token of the batch (z* for "attn.o", y* for
        "mlp.out"), in the dtype of `written`: what `add` was given for this batch."""
        if self.kind == "zero":
            return torch.zeros_like(written)
        plan, sums = self._plans[batch], self.sums[layer, name]
        total = sums[plan.slot]  # a copy, in float64
        total -= plan.itself * written
        if self._n_groups > 1:
            total -= plan.in_group * sums[plan.left_out]
        return total.div_(plan.counts).to(written.dtype)

    def _sum_of(self, key: tuple[int, str], width: int) -> Tensor:
        if key not in self.sums:
            shape = self._n_groups * self._slot_index.n_slots, width
            self.sums[key] = torch.zeros(shape, dtype=torch.float64, device=self._device)
        return self.sums[key]


@dataclass(frozen=True)
class _Plan:
    """Indices by which one batch enters the sums, and by which its baseline is read from them.

    Values at `rows` and `positions` of the batch are added to the rows `targets` of the sums. The baseline
    is (sums[slot] - in_group sums[left_out] - itself value) / counts: `left_out` is the slot in the group
    of the prompts that are left out, if `in_group`; `itself` says that only the prompt itself is left
    out."""

    rows: Int[Tensor, " entry"]
    positions: Int[Tensor, " entry"]
    targets: Int[Tensor, " entry"]
    slot: Int[Tensor, "batch pos"]
    left_out: Int[Tensor, "batch pos"]
    in_group: Bool[Tensor, "batch 1 1"]
    itself: Bool[Tensor, "batch 1 1"]
    counts: Int[Tensor, "batch 1 1"]


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
