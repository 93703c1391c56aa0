"""Cutting prompts into batches, and batches into rounds, for scoring. Nothing here changes a score."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ecstruct.engine.plan import TOKENS_PER_BATCH, by_length, free_bytes, graph_bytes
from ecstruct.facts.tokens import Batch, TokenizedPrompt, collate
from ecstruct.models.hooked import HookedView
from ecstruct.scores.reward import read_positions

BATCHES = 8
LEAST_TOKENS = 256
"""Small prompt sets are still cut into `BATCHES` batches, so that processes can share them, but not into
batches of fewer than `LEAST_TOKENS` tokens, where the overhead of calls would dominate."""

TOKENS_PER_ROUND = 8 * TOKENS_PER_BATCH
"""Tokens that are walked together. A run that dies loses at most these, and computes them again."""


@dataclass(frozen=True)
class Job:
    """Prompts in batches: `rows` are the indices of the prompts in each batch, `positions` [batch, read]
    the token positions whose logits are read."""

    prompts: list[TokenizedPrompt]
    rows: list[list[int]]
    batches: list[Batch]
    positions: list[Tensor]

    def take(self, batches: Sequence[int]) -> "Job":
        """Return a job with these batches only, of the same prompts."""
        return Job(
            self.prompts,
            [self.rows[b] for b in batches],
            [self.batches[b] for b in batches],
            [self.positions[b] for b in batches],
        )


def prompts_per_batch(prompts: Sequence[TokenizedPrompt]) -> int:
    """Return the default number of prompts per batch. It depends on the prompts alone, not on the number of
    processes, so that results do not depend on that number either."""
    lengths = [len(p.ids) for p in prompts]
    tokens = min(max(sum(lengths) // BATCHES, LEAST_TOKENS), TOKENS_PER_BATCH)
    return max(1, tokens // max(lengths))


def cut(
    prompts: list[TokenizedPrompt],
    batch_size: int,
    device: torch.device,
    pad_id: int,
    every_answer_token: bool,
) -> Job:
    """Cut prompts into batches of at most `batch_size`, the shortest prompts first."""
    order = by_length(prompts)
    rows = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    batches = [collate([prompts[i] for i in some], device, pad_id) for some in rows]
    positions = [read_positions(batch, every_answer_token) for batch in batches]
    return Job(prompts, rows, batches, positions)


def with_answer(prompt: TokenizedPrompt, tokenizer: Any) -> TokenizedPrompt:
    """Append all of the answer's tokens but the last, which are the input for scoring the whole answer."""
    extra = prompt.answer_ids[:-1]
    tokens = tuple(tokenizer.convert_ids_to_tokens(list(extra)))
    return replace(prompt, ids=prompt.ids + extra, tokens=prompt.tokens + tokens)


def fits_in_memory(view: HookedView, batches: Sequence[Batch]) -> bool:
    """Return whether the graphs of all blocks, under W and W', can be kept until the way down."""
    saved = sum(graph_bytes(view, *batch.ids.shape) for batch in batches)
    return 2 * view.n_layers * saved < free_bytes(view.device) / 2


def rounds(view: HookedView, batches: Sequence[Batch], indices: Sequence[int]) -> list[list[int]]:
    """Group the batches `indices` into rounds, which are walked together. Their residual streams, under W
    and W', are kept and take at most a quarter of the free memory."""
    of_token = 2 * (view.n_layers + 1) * view.model.cfg.d_model * torch.finfo(view.dtype).bits // 8
    limit = min(TOKENS_PER_ROUND, free_bytes(view.device) // 4 // of_token)
    found: list[list[int]] = []
    tokens = limit
    for b in indices:
        tokens += batches[b].ids.numel()
        if tokens > limit:
            found.append([])
            tokens = batches[b].ids.numel()
        found[-1].append(b)
    return found
