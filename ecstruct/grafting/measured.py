"""What prompts give under grafts: the reward, the rank of the answer, and its probability."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from ecstruct.engine.forward import embed, logits_of
from ecstruct.evaluate import rank_of
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import Batch, TokenizedPrompt
from ecstruct.grafting.grafted_runs import Graft, GraftedModel
from ecstruct.scores.pair import Pair
from ecstruct.scores.reward import Reward, RewardLike

MEASURES = ("reward", "rank", "probability")
STATES = ("before", "after")

Logits = Float[Tensor, "batch d_vocab"]
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class GraftRuns:
    """Runs of prompts under two models, and under grafts of one onto the other.

    Results are (measure, prompt), with the measures in `MEASURES`: the reward, the rank of the answer among
    its options (NaN without options), and the probability of the answer's first token."""

    pair: Pair
    prompts: list[TokenizedPrompt]
    reward: Reward

    @classmethod
    def of(cls, pair: Pair, prompts: PromptsLike, reward: RewardLike) -> GraftRuns:
        """Tokenise prompts, as the reward needs them.

        Raises:
            InputError: a prompt that cannot be used.
        """
        of_reward = Reward.of(reward)
        return cls(pair, pair.tokenize(prompts, of_reward)[0], of_reward)

    def ends(self) -> xr.DataArray:
        """Return the measures of both models without grafts, (state, measure, prompt)."""
        found = [self._empty() for _ in STATES]

        def run(rows: list[int], batch: Batch) -> None:
            for its, session in zip(found, self.pair.sessions, strict=True):
                its[:, rows] = self._measure(rows, batch, logits_of(session, embed(session, batch)))

        self.pair.sessions[0].each_batch(self.prompts, run)
        return xr.concat([_labelled(its) for its in found], xr.Variable("state", list(STATES)))

    def measured(
        self,
        grafts: Mapping[Name, Graft],
        *,
        complement: bool = False,
        tick: Callable[[int], object] = lambda _: None,
    ) -> dict[Name, xr.DataArray]:
        """Return the measures under each graft: the model before finetuning with weights of W' or, with
        `complement`, the model after finetuning with weights of W. `tick` is called with the number of runs
        that are done."""
        base, other = (self.pair.before, self.pair.after)[:: -1 if complement else 1]
        change = {name: other[name] - w for name, w in base.items() if not torch.equal(w, other[name])}
        model = GraftedModel(self.pair.sessions[int(complement)], change)
        found = {name: self._empty() for name in grafts}

        def run(rows: list[int], batch: Batch) -> None:
            def see(name: Name, logits: Logits) -> None:
                found[name][:, rows] = self._measure(rows, batch, logits)
                tick(len(rows))

            model.each(rows, batch, grafts, see)

        self.pair.sessions[0].each_batch(self.prompts, run)
        return {name: _labelled(its) for name, its in found.items()}

    def _empty(self) -> Float[np.ndarray, "measure prompt"]:
        return np.empty((len(MEASURES), len(self.prompts)))

    def _measure(
        self, rows: Sequence[int], batch: Batch, logits: Logits
    ) -> Float[np.ndarray, "measure batch"]:
        rewards = self.reward(logits[:, None], batch)
        probabilities = logits.softmax(-1).gather(1, batch.answer_ids[:, :1])[:, 0]
        ranks = [
            rank_of(self.prompts[row], its) if self.prompts[row].option_ids else np.nan
            for row, its in zip(rows, logits.cpu(), strict=True)
        ]
        return np.stack([rewards.double().cpu(), np.array(ranks), probabilities.double().cpu()])


def _labelled(values: Float[np.ndarray, "measure prompt"]) -> xr.DataArray:
    return xr.DataArray(values, {"measure": list(MEASURES)}, ("measure", "prompt"))
