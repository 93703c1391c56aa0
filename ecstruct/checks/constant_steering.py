"""A constant steering vector: does adding one vector to every prompt do what the finetuning did?

Finetuning may teach no facts, but shift the answers to all prompts alike, as a vector that is added to the
residual stream does (Wang et al. 2025, arXiv 2507.08218). Let h_q be what leaves layer l at one position of
prompt q before finetuning, and h'_q the same after it. The vector of prompt p is the mean

    v_p = mean over q of (h'_q - h_q)

over the other prompts q of its template that have another answer, so that nothing of p's own answer is in
it. It is added to h_p in the model before finetuning, and the layers after l are run. The share of the
change of the reward that is regained is

    sum over p of (R_p[h_p + v_p] - R_p) / sum over p of (R'_p - R_p)

1 means that the vector does all that finetuning did, 0 nothing; below 0 it does the opposite. There are two
*positions*, which every prompt has, however long its entity is: the last token of the entity, from which a
fact is recalled, and the last token of the prompt, which predicts the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from ecstruct.engine.forward import embed, run_blocks, traces
from ecstruct.engine.plan import rows_at_once
from ecstruct.engine.session import Session
from ecstruct.errors import InputError
from ecstruct.evaluate import rank_of
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.facts.tokens import Batch, TokenizedPrompt
from ecstruct.io.values import shortened
from ecstruct.plots.lines import Line, line_panels
from ecstruct.scores.pair import Pair
from ecstruct.scores.ranks import rankable
from ecstruct.scores.reward import Reward, read_positions

POSITIONS = ("entity", "last")
"""The last token of a prompt's entity, and the last token of the prompt."""


@dataclass(frozen=True, eq=False)
class Steering:
    """What steering by a constant vector regains. `dataset` has the `reward` and the `rank` of every prompt
    with its vector added (position, layer, prompt), ranks being NaN for prompts without options.
    `unsteered` has the reward before and after finetuning (prompt, state)."""

    dataset: xr.Dataset
    unsteered: xr.DataArray

    @property
    def share(self) -> xr.DataArray:
        """The share of the change of the reward that is regained (position, layer), between 0 and 1 or
        beyond; NaN if the finetuning did not change the mean reward."""
        means = self.unsteered.astype("float64").mean("prompt")
        before, after = (float(means.sel(state=state)) for state in ("before", "after"))
        gained = self.dataset["reward"].astype("float64").mean("prompt") - before
        return gained / ((after - before) or np.nan)

    def frame(self) -> pd.DataFrame:
        """Return a row per position and layer: the share, and the mean reward and rank with the vector."""
        means = self.dataset[["reward", "rank"]].astype("float64").mean("prompt", skipna=False)
        return means.assign(share=self.share).to_dataframe().reset_index()

    def best(self) -> pd.DataFrame:
        """Return, for each position, the row of `frame` with the largest share; the first row if no share
        is known."""
        rows = self.frame()
        largest = rows["share"].fillna(-np.inf).groupby(rows["position"], sort=False).idxmax()
        return rows.loc[largest].reset_index(drop=True)

    @property
    def figure(self) -> go.Figure:
        """The share regained by layer, a line per position."""
        names = {"entity": "at the entity's last token", "last": "at the last token"}
        layers = self.dataset["layer"].values
        lines = {
            names[str(position)]: Line(layers, self.share.sel(position=position).values)
            for position in self.dataset["position"].values
        }
        return line_panels(
            {"": lines},
            x="layer that the vector is added after",
            y="share of the change regained",
            hover="layer %{x}: %{y:.3~g}",
            between="",
            include=(0.0, 1.0),
        )


def check_steerable(prompts: PromptsLike) -> None:
    """Check that every prompt has another one to take its vector from.

    Raises:
        InputError: a prompt is the only one of its template, or all of its template have its answer.
    """
    read = as_prompts(prompts)
    for prompt in read:
        if not any(q.template == prompt.template and q.answer != prompt.answer for q in read):
            of = "" if prompt.template is None else f" of template {shortened(prompt.template)!r}"
            raise InputError(
                f"all prompts{of} have the answer {shortened(prompt.answer)!r}, but a steering vector "
                "comes from prompts of the template with other answers: add some, or leave steering out."
            )


def steering_of(pair: Pair, prompts: PromptsLike, reward: Reward) -> xr.Dataset:
    """Run every prompt with a constant vector added after each layer, at each of `POSITIONS`; return the
    `dataset` of `Steering`.

    Raises:
        InputError: prompts have none to take a vector from (see `check_steerable`) or cannot be used.
    """
    prompts = as_prompts(prompts)
    check_steerable(prompts)
    tokenized, lengths = pair.tokenize(prompts, reward)
    ranked = rankable(pair, prompts)
    before, after = pair.sessions
    if tokenized[0].at_start:
        raise InputError(
            "constant steering is at the last token, where a decoder reads the answer, and this is an "
            "encoder, which reads it at the first one: score it without steering."
        )
    places = [(t.entity[1] - 1, n - 1) for t, n in zip(tokenized, lengths, strict=True)]
    change = _states(after, tokenized, places) - _states(before, tokenized, places)
    vectors = torch.einsum("pq,lqkd->lkpd", _others(tokenized).to(change), change)
    shape = (pair.view.n_layers, len(POSITIONS), len(prompts))
    found = {name: np.full(shape, np.nan) for name in ("reward", "rank")}

    def steer(rows: list[int], batch: Batch) -> None:
        copies = batch.repeat(len(POSITIONS))
        embedded = embed(before, copies)
        every = torch.arange(len(copies.ids), device=copies.ids.device)
        at = _places(places, rows, copies.ids.device).T.flatten()
        read = read_positions(copies, reward.answer_tokens == "all")
        resid = embedded.resid
        for layer in range(pair.view.n_layers):
            resid = run_blocks(before, embedded.calls[: layer + 1], resid, start=layer)
            steered = resid.clone()
            steered[every, at] += vectors[layer][:, rows].flatten(0, 1)
            last = run_blocks(before, embedded.calls, steered, start=layer + 1)
            logits = pair.view.head(before.weights, last[every[:, None], read]).output
            found["reward"][layer][:, rows] = reward(logits, copies).view(len(POSITIONS), -1).cpu()
            if ranked is not None:
                of_each = zip(logits[:, 0].cpu(), rows * len(POSITIONS), strict=True)
                ranks = [rank_of(ranked[row], of_row) for of_row, row in of_each]
                found["rank"][layer][:, rows] = np.reshape(ranks, (len(POSITIONS), -1))

    size = rows_at_once(pair.view, max(len(t.ids) for t in tokenized)) // len(POSITIONS)
    before.each_batch(tokenized, steer, max(1, size))
    return xr.Dataset(
        {name: (("layer", "position", "prompt"), values) for name, values in found.items()},
        {"layer": np.arange(shape[0]), "position": list(POSITIONS), "prompt": np.arange(len(prompts))},
    ).transpose("position", "layer", "prompt")


def _others(tokenized: Sequence[TokenizedPrompt]) -> Float[Tensor, "prompt prompt"]:
    """Return the share of each prompt (column) in the vector of each prompt (row)."""
    of = [(t.template, t.prompt.answer) for t in tokenized]
    rows = [[float(p == q and a != b) for q, b in of] for p, a in of]
    counted = torch.tensor(rows, dtype=torch.float64)
    return counted / counted.sum(1, keepdim=True)


def _states(
    session: Session, tokenized: Sequence[TokenizedPrompt], places: Sequence[tuple[int, ...]]
) -> Float[Tensor, "layer prompt position d_model"]:
    """Return what leaves every layer at the places of each prompt."""
    by_prompt: dict[int, Tensor] = {}

    def record(rows: list[int], batch: Batch) -> None:
        embedded, at = embed(session, batch), _places(places, rows, batch.ids.device)
        every = torch.arange(len(rows), device=at.device)[:, None]
        outputs = (trace.output[every, at] for trace in traces(session, embedded.calls, embedded.resid))
        by_prompt.update(zip(rows, torch.stack([*outputs], 1), strict=True))

    session.each_batch(tokenized, record)
    return torch.stack([by_prompt[i] for i in range(len(tokenized))], 1)


def _places(
    places: Sequence[tuple[int, ...]], rows: Sequence[int], device: torch.device
) -> Int[Tensor, "row position"]:
    return torch.tensor([places[row] for row in rows], device=device)
