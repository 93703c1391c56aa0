"""What subnetworks can do: their ranks, their accuracy, and how far they are from the full model.

Ranks are those of `ecstruct.ranks`, by first tokens. Accuracy is the share of prompts with rank 0. KL, in
nats, is KL(full || subnetwork) between the distributions over the whole vocabulary after a prompt's last
token. The two models agree on a prompt if these distributions have the same maximum.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.cost import Bar
from ecstruct.errors import InputError
from ecstruct.evaluate import rank_of
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.facts.tokens import Batch, TokenizedPrompt, collate, pad_id_of, tokenize
from ecstruct.io.store import Steps
from ecstruct.models.bridge import eval_mode, named_weights
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.provenance import tokenizer_of
from ecstruct.subnetworks.masks import Masks
from ecstruct.subnetworks.running import GatedModel, Gates

_TOKENS = 4096
"""The number of tokens in a batch of prompts under several masks."""

_log = logging.getLogger(__name__)


def evaluate(
    model: TransformerBridge, masks: Masks, prompts: PromptsLike, *, progress: bool = True
) -> xr.Dataset:
    """Run prompts under every mask, and in the full model for comparison.

    Returns:
        `rank`, `kl` and `agrees` (seed, prompt); their means `mean_rank`, `accuracy`, `mean_kl` and
        `agreement` (seed); and the full model's `full_rank` (prompt), `full_mean_rank` and `full_accuracy`.
        Prompts have the coordinates `text`, `answer` and `template`, seeds have `sparsity`.

    Raises:
        InputError: prompts that cannot be ranked (see `ecstruct.ranks`), masks of another model, masks
            that did not converge, or masks without reference values.
    """
    n_runs = len(masks) * len(prompts := as_prompts(prompts))
    with Bar(n_runs, "evaluate", unit="run", disable=not progress) as bar:
        return evaluated(model, masks, prompts, Steps(bar))


def evaluated(
    model: TransformerBridge, masks: Masks, prompts: PromptsLike, steps: Steps, name: str = "evaluation"
) -> xr.Dataset:
    """Run `evaluate` in steps, whose names begin with `name`; the cost is one per prompt and mask."""
    masks.check_converged()
    reference = masks.reference
    if reference is None:
        raise InputError(
            "these masks do not say what takes the place of ablated components: give "
            "Masks.of(..., reference=reference_values(model, prompts))."
        )
    gated = GatedModel(model, reference)
    pruned = masks.attrs.get("model", {}).get("fingerprint")
    if pruned is not None and pruned != fingerprint(named_weights(model)):
        _log.warning("this is not the model that was pruned: its weights differ.")
    tokenizer = tokenizer_of(model)
    tokenized = tokenize(prompts, tokenizer, n_ctx=model.cfg.n_ctx)
    shape, dims = (len(masks), len(tokenized)), ("seed", "prompt")
    rank, kl, agrees = np.empty(shape), np.empty(shape), np.empty(shape, dtype=bool)
    full_rank = np.empty(len(tokenized))
    pad_id = pad_id_of(tokenizer)
    heads, mlp = (
        torch.from_numpy(part.values).to(gated.view.device, gated.view.dtype)
        for part in (masks.heads, masks.mlp)
    )
    with torch.no_grad(), eval_mode(model):
        for c, (rows, seeds) in enumerate(_chunks(tokenized, len(masks))):
            chunk = _Chunk(gated, [tokenized[i] for i in rows], pad_id)
            for some in seeds:
                gates = Gates(heads[some], mlp[some])
                found = steps.take(
                    f"{name} {c} {some[0]}", partial(chunk.measured, gates), len(some) * len(rows)
                )
                here = np.ix_(some, rows)
                for part, of_all in (("rank", rank), ("kl", kl), ("agrees", agrees)):
                    of_all[here] = found[part].values
                full_rank[rows] = found["full_rank"].values
    variables = {
        "rank": (dims, rank),
        "kl": (dims, kl),
        "agrees": (dims, agrees),
        "mean_rank": ("seed", rank.mean(1)),
        "accuracy": ("seed", (rank == 0).mean(1)),
        "mean_kl": ("seed", kl.mean(1)),
        "agreement": ("seed", agrees.mean(1)),
        "full_rank": ("prompt", full_rank),
        "full_mean_rank": ((), full_rank.mean()),
        "full_accuracy": ((), (full_rank == 0).mean()),
    }
    coordinates = {
        "seed": masks.seeds,
        "sparsity": ("seed", masks.sparsity.values),
        "prompt": np.arange(len(tokenized)),
        "text": ("prompt", [t.prompt.text for t in tokenized]),
        "answer": ("prompt", [t.prompt.answer for t in tokenized]),
        "template": ("prompt", [t.template for t in tokenized]),
    }
    return xr.Dataset(variables, coordinates, {"masks": masks.attrs})


@dataclass(frozen=True)
class _Chunk:
    """Prompts that run together, under some masks at a time."""

    gated: GatedModel
    prompts: list[TokenizedPrompt]
    pad_id: int

    @cached_property
    def _batch(self) -> Batch:
        return collate(self.prompts, self.gated.view.device, self.pad_id)

    @cached_property
    def _full(self) -> tuple[Float[np.ndarray, " prompt"], Float[Tensor, "prompt d_vocab"]]:
        """The ranks and log-probabilities of the full model."""
        logits = self.gated.logits(self.gated.embed(self._batch))
        return _ranks(logits, self.prompts), logits.double().log_softmax(-1)

    def measured(self, masks: Gates) -> xr.Dataset:
        """Return `rank`, `kl` and `agrees` (seed, prompt), and `full_rank` (prompt)."""
        n = len(masks.heads)
        gates = masks.each(len(self.prompts))
        logits = self.gated.logits(self.gated.embed(self._batch.repeat(n)), gates)
        its = logits.double().log_softmax(-1).unflatten(0, (n, -1))
        full_rank, log_full = self._full
        kl, agrees = (log_full.exp() * (log_full - its)).sum(-1), its.argmax(-1) == log_full.argmax(-1)
        dims = ("seed", "prompt")
        return xr.Dataset(
            {
                "rank": (dims, _ranks(logits, self.prompts * n).reshape(n, -1)),
                "kl": (dims, kl.cpu().numpy()),
                "agrees": (dims, agrees.cpu().numpy()),
                "full_rank": ("prompt", full_rank),
            }
        )


def effective_size(evaluations: Mapping[float, xr.Dataset], *, within: float = 0.03) -> float:
    """Return 100 minus the largest sparsity, in percent, at which the mean accuracy over seeds is at most
    `within` below the full model's; 100 if there is none.

    `evaluations` are what `evaluate` returns on the same prompts, by sparsity (a share such as 0.5).

    Raises:
        InputError: there are no evaluations, or a sparsity is not between 0 and 1.
    """
    if not evaluations:
        raise InputError("there are no evaluations: give at least one, by its sparsity.")
    if wrong := [sparsity for sparsity in evaluations if not 0 < sparsity < 1]:
        raise InputError(f"the sparsity {wrong[0]} is no share of components: use one between 0 and 1.")
    kept = [
        sparsity
        for sparsity, measured in evaluations.items()
        # Accuracies are shares of a few prompts, so a difference may be exactly 0.03 up to rounding.
        if float(measured["accuracy"].mean()) >= float(measured["full_accuracy"]) - within - 1e-9
    ]
    return 100 * (1 - max(kept, default=0.0))


def _chunks(
    prompts: Sequence[TokenizedPrompt], n_masks: int
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Yield prompts of similar length, and the masks to run them under, some at a time."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    longest = len(prompts[order[-1]].ids)
    at_once = max(1, _TOKENS // longest)
    for start in range(0, len(order), at_once):
        rows = order[start : start + at_once]
        masks = max(1, at_once // len(rows))
        yield rows, [list(range(i, min(i + masks, n_masks))) for i in range(0, n_masks, masks)]


def _ranks(
    logits: Float[Tensor, "row d_vocab"], prompts: Sequence[TokenizedPrompt]
) -> Float[np.ndarray, " row"]:
    return np.array([rank_of(t, of_row) for t, of_row in zip(prompts, logits.cpu(), strict=True)])
