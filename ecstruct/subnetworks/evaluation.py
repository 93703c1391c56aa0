"""What subnetworks can do: their ranks, their accuracy, and how far they are from the full model.

Ranks are those of `ecstruct.ranks`, by first tokens. Accuracy is the share of prompts with rank 0. KL, in
nats, is KL(full || subnetwork) between the distributions over the whole vocabulary after a prompt's last
token. The two models agree on a prompt if these distributions have the same maximum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from ecstruct.engine.plan import each_piece, rows_at_once
from ecstruct.engine.session import Model
from ecstruct.errors import InputError
from ecstruct.evaluate import rank_of
from ecstruct.facts.prompt import Prompt, PromptsLike, as_prompts
from ecstruct.facts.tokens import Batch, TokenizedPrompt
from ecstruct.io.store import Steps, stepping
from ecstruct.subnetworks.masks import Masks
from ecstruct.subnetworks.running import GatedModel, Gates


def evaluate(
    model: Model, masks: Masks, prompts: PromptsLike, *, progress: bool | Steps = True
) -> xr.Dataset:
    """Run prompts under every mask, and in the full model for comparison. The cost of its steps is one per
    prompt and mask.

    Returns:
        `rank`, `kl` and `agrees` (seed, prompt); their means `mean_rank`, `accuracy`, `mean_kl` and
        `agreement` (seed); and the full model's `full_rank` (prompt), `full_mean_rank` and `full_accuracy`.
        Prompts have the coordinates `text`, `answer` and `template`, seeds have `sparsity`.

    Raises:
        InputError: prompts that cannot be ranked (see `ecstruct.ranks`), masks of another model, masks
            that did not converge, or masks without reference values.
    """
    gated = GatedModel.of(model, masks)
    session, gates = gated.session, gated.gates(masks.heads.values, masks.mlp.values)
    tokenized = session.tokenize(prompts)
    shape, dims = (len(masks), len(tokenized)), ("seed", "prompt")
    rank, kl, agrees = np.empty(shape), np.empty(shape), np.empty(shape, dtype=bool)
    full_rank = np.empty(len(tokenized))
    at_once = rows_at_once(gated.view, max(len(t.ids) for t in tokenized))

    def run(rows: list[int], batch: Batch) -> None:
        chunk = _Chunk(gated, [tokenized[i] for i in rows], batch)

        def under(seeds: Sequence[int]) -> None:
            some = Gates(gates.heads[list(seeds)], gates.mlp[list(seeds)])
            step = f"{rows[0]} {len(rows)} {seeds[0]} {len(seeds)}"
            found = steps.take(step, partial(chunk.measured, some), len(seeds) * len(rows))
            for part, of_all in (("rank", rank), ("kl", kl), ("agrees", agrees)):
                of_all[np.ix_(seeds, rows)] = found[part].values
            full_rank[rows] = found["full_rank"].values

        each_piece(range(len(masks)), at_once // len(rows), under)

    with stepping(progress, len(masks) * len(tokenized), "evaluate") as steps:
        session.each_batch(tokenized, run, at_once)
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
    batch: Batch

    @cached_property
    def _full(self) -> tuple[Float[np.ndarray, " prompt"], Float[Tensor, "prompt d_vocab"]]:
        """The ranks and log-probabilities of the full model."""
        logits = self.gated.logits(self.gated.embed(self.batch))
        return _ranks(logits, self.prompts), logits.double().log_softmax(-1)

    def measured(self, masks: Gates) -> xr.Dataset:
        """Return `rank`, `kl` and `agrees` (seed, prompt), and `full_rank` (prompt)."""
        n = len(masks.heads)
        gates = masks.each(len(self.prompts))
        logits = self.gated.logits(self.gated.embed(self.batch.repeat(n)), gates)
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


def by_template(evaluation: xr.Dataset) -> pd.DataFrame:
    """Return the accuracy on every template of the prompts, such as the cases of a diagnostic set.

    `evaluation` is what `evaluate` returns. There is a row per template, in the order of the prompts: the
    number of its `prompts`, the accuracy of the `full model`, and the `lowest`, the `mean` and the
    `highest` accuracy of the subnetworks. Accuracies are shares of prompts with rank 0.
    """
    found = evaluation[["rank", "full_rank"]] == 0
    grouped = found.assign_coords(template=evaluation["template"]).groupby("template").mean()
    grouped = grouped.sel(template=list(dict.fromkeys(evaluation["template"].values.tolist())))
    accuracies, labels = grouped["rank"], grouped["template"].values
    return pd.DataFrame(
        {
            "template": labels,
            "prompts": [int((evaluation["template"] == label).sum()) for label in labels],
            "full model": grouped["full_rank"].values,
            "lowest": accuracies.min("seed").values,
            "mean": accuracies.mean("seed").values,
            "highest": accuracies.max("seed").values,
        }
    )


def mean_ranks(
    model: Model,
    masks: Masks,
    labels: Sequence[Mapping[str, Any]],
    prompts_by_name: Mapping[str, PromptsLike],
    steps: Steps,
    name: str = "evaluation",
) -> list[dict[str, Any]]:
    """Return a row per set of prompts and mask: the mask's `labels`, the name of the `prompts`, the mean
    `rank` and the `accuracy`. The bar shows `name`."""
    rows = []
    for of_prompts, prompts in prompts_by_name.items():
        steps.bar.phase(f"{name}, {of_prompts}")
        found = evaluate(model, masks, prompts, progress=steps.of(f"{name} {of_prompts}"))
        measured = (found[what].values.tolist() for what in ("mean_rank", "accuracy"))
        for label, rank, accuracy in zip(labels, *measured, strict=True):
            rows.append({**label, "prompts": of_prompts, "rank": rank, "accuracy": accuracy})
    return rows


def both_sets(prompts: PromptsLike, generalization: PromptsLike | None) -> dict[str, Sequence[Prompt]]:
    """Return the prompts by the name of their set: "in-domain" and, if given, "generalization"."""
    given = {"in-domain": prompts, "generalization": generalization}
    return {name: as_prompts(its) for name, its in given.items() if its is not None}


def _ranks(
    logits: Float[Tensor, "row d_vocab"], prompts: Sequence[TokenizedPrompt]
) -> Float[np.ndarray, " row"]:
    return np.array([rank_of(t, of_row) for t, of_row in zip(prompts, logits.cpu(), strict=True)])
