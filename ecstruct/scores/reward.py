"""The reward R of a prompt, which components raise (positive score) or lower (negative score).

* `"logit_diff"`: logit of the answer's first token minus the mean logit of the first tokens of all
  options, the answer's included, at the last prompt token. In logits.
* `"logprob"`: log-probability of the answer, in nats: of its first token (Feng et al. 2024, appendix
  B.1), or of all its tokens, teacher-forced, with `answer_tokens="all"`.
* a function of the logits at the last prompt token, [batch, d_vocab], and the `Batch`, that returns one
  differentiable number per prompt, [batch]. Prompts must not influence one another.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.facts.tokens import MISSING, Batch
from ecstruct.options import AnswerTokens, RewardName

RewardFunction = Callable[[Tensor, Batch], Tensor]
RewardLike = RewardName | RewardFunction


def logit_diff(logits: Float[Tensor, "batch d_vocab"], batch: Batch) -> Float[Tensor, " batch"]:
    """Return the answer's logit minus the mean logit of the options (first tokens), in logits."""
    answer = logits.gather(1, batch.answer_ids[:, :1])[:, 0]
    present = batch.option_ids != MISSING
    options = logits.gather(1, batch.option_ids.clamp(min=0)).where(present, 0.0)
    return answer - options.sum(1) / present.sum(1)


def logprob(logits: Float[Tensor, "batch read d_vocab"], batch: Batch) -> Float[Tensor, " batch"]:
    """Sum the log-probabilities, in nats, of as many answer tokens as there are positions read."""
    ids = batch.answer_ids[:, : logits.shape[1]]
    logprobs = logits.log_softmax(-1).gather(2, ids.clamp(min=0)[..., None])[..., 0]
    return logprobs.where(ids != MISSING, 0.0).sum(1)


@dataclass(frozen=True)
class Reward:
    """A reward function with its name, and whether it reads the first or all of the answer's tokens."""

    name: str
    function: RewardFunction
    answer_tokens: AnswerTokens

    @classmethod
    def of(cls, reward: RewardLike, answer_tokens: AnswerTokens = "first") -> "Reward":
        """Return the reward for a name or a function.

        Raises:
            InputError: `answer_tokens="all"` is used without `"logprob"`.
        """
        if answer_tokens == "all" and reward != "logprob":
            raise InputError("answer_tokens='all' goes with reward='logprob' only.")
        if reward == "logprob":
            return cls("logprob", logprob, answer_tokens)
        if reward == "logit_diff":
            return cls("logit_diff", logit_diff, answer_tokens)
        return cls(getattr(reward, "__name__", repr(reward)), reward, answer_tokens)

    @property
    def needs_options(self) -> bool:
        return self.function is not logprob

    def check_is_known_by_name(self) -> None:
        """Raise InputError for a user's function, before parts of a run that uses it are kept."""
        if self.function not in (logit_diff, logprob):
            raise InputError(
                f"parts of a run with the reward {self.name} cannot be told from those with another "
                "function of that name: leave out the folder, or choose a reward by its name."
            )

    def of_batch(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Return the reward as a function of logits alone."""
        return lambda logits: self(logits, batch)

    def __call__(
        self, logits: Float[Tensor, "batch read d_vocab"], batch: Batch
    ) -> Float[Tensor, " batch"]:
        """Compute R of every prompt. `read` is 1, or the number of answer tokens.

        Raises:
            InputError: a user's function does not return one number per prompt.
        """
        if self.function is logprob:
            return logprob(logits, batch)
        rewards = self.function(logits[:, 0], batch)
        if not isinstance(rewards, Tensor) or rewards.shape != logits.shape[:1]:
            shape = tuple(rewards.shape) if isinstance(rewards, Tensor) else type(rewards).__name__
            raise InputError(
                f"the reward {self.name} gave {shape} for {len(logits)} prompts: it must give one "
                "number per prompt, a tensor [batch]."
            )
        return rewards


def read_positions(batch: Batch, all_tokens: bool) -> Int[Tensor, "batch read"]:
    """Return the positions whose logits are read: where the answer is predicted and, for all
    answer tokens, also the answer's tokens but the last. A shorter answer repeats its last position."""
    if not all_tokens or batch.at_start:
        return batch.read[:, None]
    n_answer = (batch.answer_ids != MISSING).sum(1, keepdim=True)
    steps = torch.arange(batch.answer_ids.shape[1], device=batch.answer_ids.device)
    return batch.lengths[:, None] - n_answer + steps.minimum(n_answer - 1)
