"""The one training loop: for one process, for many that share a model, and for adapters."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from ecstruct.errors import InputError
from ecstruct.evaluate import ranks_by
from ecstruct.facts.tokens import TokenizedPrompt
from ecstruct.finetuning.batches import IGNORED, micro_batches, shuffled_batches, teacher_forced
from ecstruct.finetuning.checkpoint import Checkpoint
from ecstruct.finetuning.learner import Learner
from ecstruct.finetuning.options import Options
from ecstruct.finetuning.rates import schedule_factor
from ecstruct.finetuning.result import History
from ecstruct.io import interruption
from ecstruct.io.distributed import Ranks


def train(
    learner: Learner,
    facts: Sequence[TokenizedPrompt],
    evaluated: Mapping[str, Sequence[TokenizedPrompt]],
    options: Options,
    lr: float,
    pad_id: int,
    *,
    across: Ranks,
    checkpoint: Checkpoint | None = None,
    after_epoch: Callable[[int], None] | None = None,
    progress: bool = True,
) -> History:
    """Train the learner's weights in place on `facts`; all ranks call this. The mean ranks of the prompts
    in `evaluated`, by name, are measured before training and after every epoch. `after_epoch` is called
    with the number of epochs that are done.

    With a checkpoint, training resumes where it was written, and a SIGTERM lets the step finish and be
    saved, if a handler listens for it.

    Raises:
        InputError: the loss is no longer finite, or the checkpoint belongs to another run.
        Terminated: after a SIGTERM.
    """
    optimizer = torch.optim.Adam(learner.weights.values(), lr=lr, betas=(0.9, 0.999))
    batches = shuffled_batches(len(facts), options.batch_size, options.epochs, options.seed)
    steps_per_epoch = len(batches) // options.epochs
    history = History([], {name: [] for name in evaluated}, steps_per_epoch)
    evaluate = partial(_append_mean_ranks, history, learner, evaluated, pad_id, across)
    bar = tqdm(total=len(batches), desc="finetune", unit="step", disable=not (progress and across.first))
    with bar, interruption.finishing() if checkpoint else nullcontext():
        if checkpoint is None or not checkpoint.load(learner.weights, optimizer, history):
            evaluate()
        bar.update(len(history.loss))
        for step in range(len(history.loss), len(batches)):
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule_factor(options.schedule, step, len(batches))
            micro = micro_batches(batches[step], options.accumulate, across.rank, across.size)
            n_tokens = sum(len(facts[i].answer_ids) for i in batches[step])
            share = 0.0
            for indices in micro:
                share += add_gradient(
                    learner,
                    [facts[i] for i in indices] or facts[:1],
                    pad_id,
                    n_tokens,
                    across.size,
                    idle=not indices,
                )
            # All ranks must decide the same, so an event on one rank counts for all.
            ends = [
                interruption.arrived(),
                checkpoint is not None and checkpoint.due(len(history.loss) + 1),
            ]
            told = across.all_reduce(torch.tensor([share, *ends], dtype=torch.float64)).tolist()
            history.loss.append(told[0])
            if not math.isfinite(told[0]):
                raise InputError(
                    f"the loss became {told[0]} in step {step} with lr={lr:g}: use a smaller lr=."
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if (step + 1) % steps_per_epoch == 0:
                evaluate()
                if after_epoch:
                    after_epoch((step + 1) // steps_per_epoch)
            if checkpoint and (told[1] or told[2]):
                checkpoint.save(learner.weights, optimizer, history)
                if told[1]:
                    raise interruption.Terminated
            bar.update()
            shown = {name: f"{values[-1]:.2f}" for name, values in history.ranks.items()}
            bar.set_postfix({"loss": f"{told[0]:.3f}", **shown}, refresh=False)
    return history


def add_gradient(
    learner: Learner,
    facts: Sequence[TokenizedPrompt],
    pad_id: int,
    n_tokens: int,
    size: int = 1,
    *,
    idle: bool = False,
) -> float:
    """Add the gradient of the loss of a micro-batch to the weights' `.grad`; return its share of the loss
    of the batch, in nats.

    `n_tokens` is the number of answer tokens in the whole batch, so that all tokens have the same weight.
    Gradients are averaged over `size` ranks afterwards. An `idle` micro-batch runs along with those of
    other ranks and adds nothing.
    """
    ids, mask, labels = teacher_forced(facts, pad_id, learner.device)
    device = learner.device.type
    predicted = labels != IGNORED
    with torch.enable_grad():
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = learner.logits(predicted, ids, mask)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = cross_entropy(logits, labels[predicted], reduction="sum") / n_tokens
        (loss * (0 if idle else size)).backward()
    return 0.0 if idle else loss.item()


def _append_mean_ranks(
    history: History,
    learner: Learner,
    evaluated: Mapping[str, Sequence[TokenizedPrompt]],
    pad_id: int,
    across: Ranks,
) -> None:
    """Append the mean rank of each set in `evaluated` to the history. All ranks run the same number of
    prompts, because they run the blocks together."""
    for name, prompts in evaluated.items():
        each = math.ceil(len(prompts) / across.size)
        share = [prompts[i % len(prompts)] for i in range(across.rank, each * across.size, across.size)]
        own = np.zeros(each * across.size)
        own[across.rank :: across.size] = ranks_by(learner.logits, share, pad_id, learner.device)
        ranks = across.all_reduce(torch.from_numpy(own))[: len(prompts)]
        history.ranks[name].append(float(ranks.numpy().mean()))
