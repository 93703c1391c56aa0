"""Finetuning on facts, as in the paper: Adam on the answers' tokens, embeddings frozen.

The loss of a step is the mean cross-entropy, in nats, of all answer tokens in its batch; the tokens of
prompts are read, but not predicted. The model that is given is not changed: a copy is trained. Dropout
stays off, so the result depends only on the seed, which shuffles the facts anew in every epoch: two runs on
one CPU give the same bits. On a GPU, activations are bfloat16 (autocast), and the weights that Adam changes
are float32.

    options, rates, batches, result      what is trained, how fast, on what, and what is returned
    learner                              weights and a function to logits: what the loop trains
    loop, checkpoint                     the one training loop, and resuming it
    sharded, lora                        one model on many ranks; adapters
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.facts.prompt import Prompt, PromptsLike, as_prompts
from ecstruct.facts.tokens import pad_id_of, tokenize
from ecstruct.finetuning.checkpoint import Checkpoint, discard
from ecstruct.finetuning.learner import Learner, learner_of, recomputing, requiring_grad_only
from ecstruct.finetuning.loop import train
from ecstruct.finetuning.lora import Adapted
from ecstruct.finetuning.options import Lora, LoraLike, Options
from ecstruct.finetuning.rates import learning_rate, starting_learning_rate
from ecstruct.finetuning.result import Finetuned, History
from ecstruct.finetuning.sharded import Blueprint, Sharded
from ecstruct.io.distributed import Ranks
from ecstruct.io.values import bounded
from ecstruct.models.bridge import copy_of, named_weights
from ecstruct.models.classifiers import is_classifier
from ecstruct.models.delta import WeightDelta
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.names import SelectionLike
from ecstruct.models.provenance import derived

AfterEpoch = Callable[[int, WeightDelta], None]

__all__ = [
    "Finetuned",
    "History",
    "discard",
    "finetune",
    "finetune_across",
    "starting_learning_rate",
]


@bounded
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
    lora: LoraLike | None = None,
    recompute: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    after_epoch: AfterEpoch | None = None,
    progress: bool = True,
) -> Finetuned:
    """Train a copy of a model on the answers of facts, with Adam(0.9, 0.999).

    Args:
        model: a float32 or float64 model; it is not changed.
        facts: prompts with their answers; options are not needed.
        lr: learning rate. One is known for the organism and for SmolLM2 (`ecstruct.named_models`);
            for any other model it must be given.
        epochs: passes through the facts.
        batch_size: facts per step; the last batch of an epoch may be smaller.
        schedule: `"constant"`, or `"linear"`: up from 0 over the first 10% of the steps, then down
            to 0 (as `transformers.get_linear_schedule_with_warmup`).
        seed: shuffles the facts, anew in every epoch.
        freeze: weights to keep as they are: a `WeightSelection`, or layers.
        train_embeddings: also train token and position embeddings and the unembedding.
        evaluate: prompts by name whose mean rank is measured before training and after each epoch.
        accumulate: into how many micro-batches a batch is split, which run one after the other (gradient
            accumulation). This saves memory, and changes the gradient by rounding only.
        lora: train low-rank adapters instead of the weights: their rank, or a mapping with `r` and
            optionally `alpha` (by default 2 r), `targets` (names of the checkpoint's modules; by default
            all projections of the blocks), `rslora` and `dora`. They are merged into the returned model.
        recompute: run each block again in the backward pass instead of keeping its activations.
        checkpoint: a folder to save the state of training to, and to resume from if it has one. What was
            saved is removed at the end.
        checkpoint_every: steps between two checkpoints; by default one is written every ten minutes.
        after_epoch: is called after every epoch with the number of epochs that are done, and with the
            weights now minus the original ones. It goes with neither `lora` nor several processes.
        progress: show a progress bar.

    Raises:
        InputError: a value out of range, facts or prompts that cannot be used, no `lr`, nothing
            left to train, another run's checkpoint, or a loss that is no longer finite.

    Source: Feng, Russell & Steinhardt, "Extractive Structures Learned in Pretraining Enable
    Generalization on Finetuned Facts" (ICML 2025), appendix B.
    """
    tuned = finetune_across(Ranks(), **locals())
    assert tuned is not None
    if checkpoint is not None:
        discard(checkpoint)
    return tuned


def finetune_across(
    across: Ranks,
    model: TransformerBridge | None,
    facts: PromptsLike,
    *,
    lr: float | None = None,
    evaluate: Mapping[str, PromptsLike] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    after_epoch: AfterEpoch | None = None,
    progress: bool = True,
    **options: Any,
) -> Finetuned | None:
    """Run `finetune` on all ranks of a command, which share one model (see `ecstruct.finetuning.sharded`).

    All ranks pass the same arguments, but only the first passes a model, in main memory, and only it gets a
    result. With several ranks, the result is the given model, changed. The checkpoint remains until the
    caller has written the results and calls `discard`.
    """
    chosen = Options(**options)
    if chosen.lora and across.size > 1:
        raise InputError("lora is the way for one process: start it without torchrun, or leave lora away.")
    if after_epoch and (chosen.lora or across.size > 1):
        raise InputError(
            "the weights after each epoch are kept by one process and without lora: leave the other away."
        )
    facts, asked = as_prompts(facts), _named_prompts(evaluate)

    def known() -> tuple[Blueprint, float, int, str | None]:
        assert model is not None
        _check_precision(model)
        if chosen.lora and is_classifier(model.original_model.config):
            raise InputError(
                "lora trains the projections of the blocks alone, and a classifier is trained with its "
                "head: leave lora away."
            )
        print_of = fingerprint(named_weights(model)) if checkpoint is not None else None
        return Blueprint.of(model), learning_rate(model, lr), model.cfg.n_ctx, print_of

    blueprint, rate, n_ctx, print_of = across.on_first(known)
    tokenizer, n_layers = blueprint.tokenizer, blueprint.n_layers
    frozen = chosen.frozen(n_layers)
    taught = tokenize(facts, tokenizer, n_ctx=n_ctx, with_options=False)
    evaluated = {name: tokenize(prompts, tokenizer, n_ctx=n_ctx) for name, prompts in asked.items()}
    config = {
        "facts": _records(facts),
        "lr": rate,
        **chosen.to_dict(n_layers),
        "evaluate": {name: _records(prompts) for name, prompts in asked.items()} or None,
    }
    kept = None
    if checkpoint is not None:
        kept = Checkpoint(Path(checkpoint), checkpoint_every, config | {"weights": print_of}, across)

    def run(learner: Learner, done: Callable[[int], None] | None = None) -> History:
        pad_id = pad_id_of(tokenizer)
        course = (taught, evaluated, chosen, rate, pad_id)
        return train(learner, *course, across=across, checkpoint=kept, after_epoch=done, progress=progress)

    if across.size > 1:
        sharded = Sharded(across, blueprint, model, frozen, chosen.train_embeddings)
        with recomputing(sharded.blocks, chosen.recompute):
            history = run(sharded.learner)
        collected = sharded.collect()
        return collected and Finetuned(*collected, history, config)
    assert model is not None
    if isinstance(chosen.lora, Lora):
        adapted = Adapted(model, chosen.lora, frozen, chosen.seed)
        with recomputing(adapted.blocks, chosen.recompute):
            history = run(adapted.learner)
        return Finetuned(*adapted.collect(), history, config, adapted.adapter)
    tuned = copy_of(model)
    tuned.eval()
    learner = learner_of(tuned, frozen, chosen.train_embeddings)
    of_epoch = after_epoch and (lambda epoch: after_epoch(epoch, WeightDelta.between(model, tuned)))
    with (
        requiring_grad_only(list(learner.weights.values()), of=tuned),
        recomputing(list(tuned.blocks), chosen.recompute),
    ):
        history = run(learner, of_epoch)
    derived(tuned, model, "finetuned")
    return Finetuned(tuned, WeightDelta.between(model, tuned), history, config)


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
