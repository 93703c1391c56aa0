"""Finetuning on facts, as in the paper: Adam on the answers' tokens, embeddings frozen.

The loss of a step is the mean cross-entropy, in nats, of all answer tokens of its batch; prompts
are read, never predicted. The model that is given is never changed: its copy is trained. Dropout
stays off, so that the seed, which shuffles the facts anew in every epoch, decides about everything:
two runs on one CPU give the same bits. On a GPU activations are bfloat16 (autocast) and the weights
that Adam changes float32.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.evaluate import ranks_of_tokenized
from ecstruct.facts.prompt import Prompt, PromptsLike, as_prompts
from ecstruct.facts.tokens import TokenizedPrompt, pad_id_of, padded, tokenize
from ecstruct.models.delta import WeightDelta
from ecstruct.models.hooked import copy_of, named_weights
from ecstruct.models.names import SelectionLike, WeightSelection, kind_of
from ecstruct.models.provenance import derived, source_of, tokenizer_of

SCHEDULES = ("constant", "linear")

_IGNORED = -100  # what cross_entropy leaves out


@dataclass(frozen=True)
class History:
    """What happened during finetuning.

    `loss`: of every step, in nats per answer token, before the step. `ranks`: for every set that
    `evaluate` names its mean rank before training and after each epoch.
    """

    loss: list[float]
    ranks: dict[str, list[float]]
    steps_per_epoch: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "loss": list(self.loss),
            "ranks": {name: list(values) for name, values in self.ranks.items()},
            "steps_per_epoch": self.steps_per_epoch,
        }

    def to_dataframe(self) -> pd.DataFrame:
        """One row per epoch, 0 being before training: its mean `loss` (NaN in epoch 0), and for
        each evaluated set the mean rank after it, as `rank: {name}`."""
        by_epoch = np.reshape(self.loss, (-1, self.steps_per_epoch)).mean(axis=1)
        columns = {"loss": [math.nan, *by_epoch]}
        columns |= {f"rank: {name}": values for name, values in self.ranks.items()}
        return pd.DataFrame(columns, index=pd.RangeIndex(len(by_epoch) + 1, name="epoch"))


@dataclass(frozen=True)
class Finetuned:
    """`model` is the trained copy, `delta` its weights minus those it started from; `config` has
    all arguments in JSON types: `finetune(before, **config)` does it again."""

    model: TransformerBridge
    delta: WeightDelta
    history: History
    config: dict[str, Any]


def finetune(
    model: TransformerBridge,
    facts: PromptsLike,
    *,
    lr: float | None = None,
    epochs: int = 8,
    batch_size: int = 8,
    schedule: str = "constant",
    seed: int = 0,
    freeze: SelectionLike | None = None,
    train_embeddings: bool = False,
    evaluate: Mapping[str, PromptsLike] | None = None,
    accumulate: int = 1,
    progress: bool = True,
) -> Finetuned:
    """Train a copy of a model on the answers of facts, with Adam(0.9, 0.999).

    Args:
        model: a float32 or float64 model; it is not changed.
        facts: prompts with their answers; options are not needed.
        lr: learning rate. The organism has a documented one (`ecstruct.organism.LEARNING_RATE`),
            for any other model it must be given.
        epochs: passes through the facts.
        batch_size: facts per step; the last batch of an epoch may be smaller.
        schedule: `"constant"`, or `"linear"`: up from 0 over the first 10% of the steps, then down
            to 0 (as `transformers.get_linear_schedule_with_warmup`).
        seed: shuffles the facts, anew in every epoch.
        freeze: weights to keep as they are: a `WeightSelection`, or layers.
        train_embeddings: train token and position embeddings and the unembedding too.
        evaluate: prompts by name whose mean rank is measured before training and after each epoch.
        accumulate: in how many parts, one after the other, a batch is run; saves memory, and
            changes the gradient by rounding only.
        progress: show a progress bar.

    Raises:
        InputError: a value out of range, facts or prompts that cannot be used, no `lr`, nothing
            left to train, or a loss that is no longer finite.

    Source: Feng, Russell & Steinhardt, "Extractive Structures Learned in Pretraining Enable
    Generalization on Finetuned Facts" (ICML 2025), appendix B.
    """
    _check_counts(epochs=epochs, batch_size=batch_size, accumulate=accumulate)
    if schedule not in SCHEDULES:
        raise InputError(f"unknown schedule {schedule!r}: choose among {', '.join(SCHEDULES)}.")
    if seed < 0:
        raise InputError(f"seed={seed} is negative: use 0 or more.")
    _check_precision(model)
    lr = _learning_rate(model, lr)
    frozen = None if freeze is None else WeightSelection.of(freeze, model.cfg.n_layers)
    facts, asked = as_prompts(facts), _named_prompts(evaluate)
    tokenizer, n_ctx = tokenizer_of(model), model.cfg.n_ctx
    lessons = tokenize(facts, tokenizer, n_ctx=n_ctx, with_options=False)
    questions = {name: tokenize(prompts, tokenizer, n_ctx=n_ctx) for name, prompts in asked.items()}

    tuned = copy_of(model)
    tuned.eval()
    weights = _trained(tuned, frozen, train_embeddings)
    optimizer = torch.optim.Adam(weights, lr=lr, betas=(0.9, 0.999))
    batches = _shuffled_batches(len(lessons), batch_size, epochs, seed)
    steps_per_epoch = len(batches) // epochs
    loss: list[float] = []
    ranks: dict[str, list[float]] = {name: [] for name in questions}
    bar = tqdm(total=len(batches), desc="finetune", unit="step", disable=not progress)
    with bar, _requiring_grad_only(weights, of=tuned):
        _append_mean_ranks(ranks, tuned, questions)
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = lr * _schedule_factor(schedule, step, len(batches))
            parts = [[lessons[i] for i in part] for part in _split_evenly(batch, accumulate)]
            loss.append(_accumulate_gradients(tuned, parts, pad_id_of(tokenizer)))
            if not math.isfinite(loss[-1]):
                raise InputError(
                    f"the loss became {loss[-1]} in step {step} with lr={lr:g}: use a smaller lr=."
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if (step + 1) % steps_per_epoch == 0:
                _append_mean_ranks(ranks, tuned, questions)
            bar.update()
            shown = {name: f"{values[-1]:.2f}" for name, values in ranks.items()}
            bar.set_postfix({"loss": f"{loss[-1]:.3f}", **shown}, refresh=False)
    derived(tuned, model, "finetuned")
    config = {
        "facts": _records(facts),
        "lr": lr,
        "epochs": epochs,
        "batch_size": batch_size,
        "schedule": schedule,
        "seed": seed,
        "freeze": None if frozen is None else frozen.to_dict(),
        "train_embeddings": train_embeddings,
        "evaluate": {name: _records(prompts) for name, prompts in asked.items()} or None,
        "accumulate": accumulate,
    }
    history = History(loss, ranks, steps_per_epoch)
    return Finetuned(tuned, WeightDelta.between(model, tuned), history, config)


def _accumulate_gradients(
    model: TransformerBridge, parts: Sequence[Sequence[TokenizedPrompt]], pad_id: int
) -> float:
    """Add the gradient of a batch's loss to the weights' `.grad`, and return the loss."""
    device = next(model.parameters()).device
    n_tokens = sum(len(t.answer_ids) for part in parts for t in part)
    total = 0.0
    for part in parts:
        ids, mask, labels = _teacher_forced(part, pad_id, device)
        with torch.enable_grad():
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(ids, attention_mask=mask, return_type="logits", use_cache=False)
            predicted = labels != _IGNORED
            logits = logits[predicted]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            # Divided by the batch's tokens, not the part's: an answer token weighs the same in all.
            loss = cross_entropy(logits, labels[predicted], reduction="sum") / n_tokens
            loss.backward()
        total += loss.item()
    return total


def _teacher_forced(
    part: Sequence[TokenizedPrompt], pad_id: int, device: torch.device
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Ids, attention mask and labels: the prompt and all but the last answer token go in, and each
    answer token is the label of the position before it."""
    ids = [[*t.ids, *t.answer_ids[:-1]] for t in part]
    labels = [[*[_IGNORED] * (len(t.ids) - 1), *t.answer_ids] for t in part]
    mask = [[1] * len(row) for row in ids]
    return (
        padded(ids, pad_id, device),
        padded(mask, 0, device),
        padded(labels, _IGNORED, device),
    )


def _append_mean_ranks(
    ranks: dict[str, list[float]],
    model: TransformerBridge,
    questions: Mapping[str, Sequence[TokenizedPrompt]],
) -> None:
    for name, tokenized in questions.items():
        ranks[name].append(float(ranks_of_tokenized(model, tokenized).mean()))


def _shuffled_batches(n: int, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """The batches of all epochs as indices of facts."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(n).tolist() for _ in range(epochs)]
    return [o[start : start + batch_size] for o in orders for start in range(0, n, batch_size)]


def _split_evenly(batch: Sequence[int], n_parts: int) -> list[Sequence[int]]:
    size = math.ceil(len(batch) / n_parts)
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def _schedule_factor(schedule: str, step: int, n_steps: int) -> float:
    """The share of the learning rate in a step, counted from 0."""
    if schedule == "constant":
        return 1.0
    n_warmup = n_steps // 10
    if step < n_warmup:
        return step / n_warmup
    return (n_steps - step) / (n_steps - n_warmup)


def _trained(
    model: TransformerBridge, frozen: WeightSelection | None, train_embeddings: bool
) -> list[nn.Parameter]:
    """The weights to train. A tied weight has two names, and is frozen when either is."""

    def is_frozen(name: str) -> bool:
        if not train_embeddings and kind_of(name) in ("embed", "unembed"):
            return True
        return frozen is not None and frozen.matches(name)

    weights = named_weights(model)
    kept = {id(p) for name, p in weights.items() if is_frozen(name)}
    trained = {id(p): p for p in weights.values() if id(p) not in kept}
    if not trained:
        raise InputError(f"freeze={frozen} leaves nothing to train: freeze less.")
    return list(trained.values())


@contextmanager
def _requiring_grad_only(weights: Sequence[nn.Parameter], of: TransformerBridge) -> Iterator[None]:
    """Only these weights require a gradient; afterwards all require one that did before."""
    everything = {id(p): p for p in (*of.parameters(), *named_weights(of).values())}.values()
    before = [(p, p.requires_grad) for p in everything]
    for p in everything:
        p.requires_grad_(False)
    for p in weights:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p, required in before:
            p.requires_grad_(required)


def _learning_rate(model: TransformerBridge, lr: float | None) -> float:
    if lr is not None:
        if not (math.isfinite(lr) and lr > 0):
            raise InputError(f"lr={lr} is no learning rate: use a positive number such as 1e-5.")
        return float(lr)
    source = source_of(model)
    if source.split(" (")[0] == "organism":  # "organism (finetuned)" is one too
        from ecstruct.organism import LEARNING_RATE  # the organism's package builds on this one

        return LEARNING_RATE
    n_weights = sum(p.numel() for p in {id(p): p for p in named_weights(model).values()}.values())
    raise InputError(
        f"no learning rate is known for {source}: pass lr=, for example "
        f"{starting_learning_rate(n_weights):g}, a starting value for its {n_weights:,} weights."
    )


def starting_learning_rate(n_weights: int) -> float:
    """A learning rate to try first, by the size of the model: a rule of thumb that ends in the
    paper's 3e-6 for OLMo-7B. The right one is the largest at which the facts are learned and other
    prompts keep their answers.

    >>> [starting_learning_rate(n) for n in (25_000_000, 124_000_000, 1_200_000_000, 7_000_000_000)]
    [0.0001, 3e-05, 1e-05, 3e-06]
    """
    for at_most, lr in ((50_000_000, 1e-4), (500_000_000, 3e-5), (3_000_000_000, 1e-5)):
        if n_weights <= at_most:
            return lr
    return 3e-6


def _check_counts(epochs: int, batch_size: int, accumulate: int) -> None:
    counts = {"epochs": epochs, "batch_size": batch_size, "accumulate": accumulate}
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name}={value} is too few: use 1 or more.")
    if accumulate > batch_size:
        raise InputError(
            f"accumulate={accumulate} parts cannot be made of batch_size={batch_size} prompts: use "
            f"at most {batch_size}."
        )


def _check_precision(model: TransformerBridge) -> None:
    for name, p in named_weights(model).items():
        if p.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"{name} is {p.dtype}, in which small steps are rounded away: load the model with "
                "dtype=torch.float32 (on a GPU its activations are bfloat16 all the same)."
            )


def _named_prompts(
    evaluate: Mapping[str, PromptsLike] | None,
) -> dict[str, tuple[Prompt, ...]]:
    if evaluate is not None and not isinstance(evaluate, Mapping):
        raise InputError(
            f"evaluate is a {type(evaluate).__name__}: pass a mapping of names to prompts, as in "
            'evaluate={"implications": data.implications}.'
        )
    return {name: as_prompts(prompts) for name, prompts in (evaluate or {}).items()}


def _records(prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    return [prompt.to_record() for prompt in prompts]
