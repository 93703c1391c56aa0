"""The training loop: a world, a recipe and a seed determine a model.

The loss is the mean cross-entropy of a batch's answer tokens; prompts are read, never predicted. Half of
the sentences begin with the end-of-text token, so that the model works with and without one. Batches are
padded on the right and carry no attention mask: attention is causal, so no token that counts ever sees the
padding.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import OlmoConfig, OlmoForCausalLM, PreTrainedTokenizerFast

from ecstruct.errors import InputError
from ecstruct.organism.locality import local_attention, local_windows
from ecstruct.organism.sentences import MIXTURE, Sentence, held_out_sentences, training_sentences
from ecstruct.organism.tokenizer import EOS_ID, PAD_ID
from ecstruct.organism.world import World

CONTEXT = 64
"""The longest text that an organism reads, in tokens."""


@dataclass(frozen=True)
class Phase:
    """A part of the training, with its own optimiser and its own schedule of the learning rate.

    Attributes:
        share: the share of all steps.
        inventions: how many pairs of invented words this phase uses.
        categories: the categories of sentences to draw from; all of `MIXTURE` by default. Categories
            without sentences (as without inventions) are left out.
    """

    share: float
    inventions: int
    categories: tuple[str, ...] | None = None

    def steps_of(self, steps: int) -> int:
        """Return how many of all `steps` belong to this phase."""
        return round(self.share * steps)


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the weights, together with a world and a seed."""

    steps: int = 4950
    phases: tuple[Phase, ...] = (Phase(2 / 3, inventions=24), Phase(1 / 3, inventions=48))
    batch_size: int = 128
    lr: float = 1.3e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.3  # none on embedding and unembedding
    max_grad_norm: float = 1.0
    warmup_steps: int = 200
    decay_steps: int = 100  # the last steps of a phase
    final_lr: float = 0.2  # the rate at the end of these steps, as a fraction of lr
    begin_with_eos: float = 0.5  # share of sentences that begin with the end-of-text token
    local_batches: float = 0.5  # share of batches with local attention
    local_windows: tuple[int, ...] = local_windows(4)  # see ecstruct.organism.locality

    def lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0, in a phase of `steps` steps."""
        rise = min(1.0, (step + 1) / self.warmup_steps)
        left = min(1.0, (steps - step) / self.decay_steps)
        return self.lr * rise * (self.final_lr + (1 - self.final_lr) * left)


class _Encoded(NamedTuple):
    ids: list[int]
    n_prompt: int


def new_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> OlmoForCausalLM:
    """Return an untrained organism: 6 layers of 4 heads, 128 wide, with untied unembedding."""
    config = OlmoConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return OlmoForCausalLM(config)


def train(
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    recipe: Recipe,
    snapshots: Collection[int] = (),
    progress: bool = True,
) -> tuple[OlmoForCausalLM, dict[int, OlmoForCausalLM]]:
    """Return a new model trained on the sentences of `world`, in float32 on the CPU, in eval mode; and its
    copies after each of the numbers of steps in `snapshots`."""
    rng = random.Random(f"order {seed}")
    model = new_model(tokenizer, seed=seed).train()
    kept: dict[int, OlmoForCausalLM] = {}
    done = 0
    with tqdm(total=recipe.steps, desc="pretraining", disable=not progress) as bar:
        for phase in recipe.phases:
            sentences = training_sentences(world, phase.inventions)
            drawn = {
                name: _encode(tokenizer, sentences[name])
                for name in phase.categories or MIXTURE
                if sentences[name]
            }
            if not drawn:
                raise InputError(f"{phase} has no sentences; give it more categories or inventions.")
            for _ in _steps(model, drawn, phase.steps_of(recipe.steps), rng, recipe):
                bar.update()
                done += 1
                if done in snapshots:
                    kept[done] = copy.deepcopy(model)
    return model.eval(), kept


def _steps(
    model: OlmoForCausalLM,
    sentences: Mapping[str, Sequence[_Encoded]],
    steps: int,
    rng: random.Random,
    recipe: Recipe,
) -> Iterator[None]:
    """Take the steps of one phase, on `sentences` by category; yield after each."""
    categories, weights = list(sentences.values()), [MIXTURE[name] for name in sentences]
    optimizer = _optimizer(model, recipe)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step, steps)
        batch = [rng.choice(c) for c in rng.choices(categories, weights, k=recipe.batch_size)]
        batch = [
            _Encoded([EOS_ID, *s.ids], 1 + s.n_prompt) if rng.random() < recipe.begin_with_eos else s
            for s in batch
        ]
        local = rng.random() < recipe.local_batches
        with local_attention(model, recipe.local_windows) if local else nullcontext():
            _backward(model, batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield


def held_out_accuracy(
    model: OlmoForCausalLM, tokenizer: PreTrainedTokenizerFast, world: World
) -> dict[str, float]:
    """Return `first_token_accuracy` for each kind of implication that the training text left out."""
    return {
        name: first_token_accuracy(model, tokenizer, sentences)
        for name, sentences in held_out_sentences(world).items()
    }


@torch.no_grad()
def first_token_accuracy(
    model: OlmoForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    sentences: Sequence[Sentence],
) -> float:
    """Return the share of `sentences` whose answer's first token is the model's most likely next token."""
    right = 0
    for chunk in _chunks(sorted(_encode(tokenizer, sentences), key=lambda s: len(s.ids)), 256):
        ids = _pad([s.ids for s in chunk])
        hidden = model.model(input_ids=ids).last_hidden_state
        last = torch.tensor([s.n_prompt - 1 for s in chunk])
        logits = model.lm_head(hidden[torch.arange(len(chunk)), last])
        right += int((logits.argmax(-1) == ids[torch.arange(len(chunk)), last + 1]).sum())
    return right / len(sentences)


def _encode(tokenizer: PreTrainedTokenizerFast, sentences: Iterable[Sentence]) -> list[_Encoded]:
    sentences = list(sentences)
    prompts = tokenizer([s.prompt for s in sentences])["input_ids"]
    texts = tokenizer([f"{s.prompt} {s.answer}" for s in sentences])["input_ids"]
    return [_Encoded(ids, len(prompt)) for ids, prompt in zip(texts, prompts, strict=True)]


def _optimizer(model: OlmoForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    tables = [model.model.embed_tokens.weight, model.lm_head.weight]
    rest = [p for p in model.parameters() if all(p is not table for table in tables)]
    groups = [
        {"params": rest, "weight_decay": recipe.weight_decay},
        {"params": tables, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)


def _backward(model: OlmoForCausalLM, batch: Sequence[_Encoded]) -> None:
    """Add the gradient of the batch's mean answer-token loss, in two halves: short and long sentences."""
    batch = sorted(batch, key=lambda s: len(s.ids))
    n_answer_tokens = sum(len(s.ids) - s.n_prompt for s in batch)
    for half in _chunks(batch, (len(batch) + 1) // 2):
        hidden = model.model(input_ids=_pad([s.ids[:-1] for s in half])).last_hidden_state
        places = [
            (i, t, s.ids[t + 1]) for i, s in enumerate(half) for t in range(s.n_prompt - 1, len(s.ids) - 1)
        ]
        row, position, answer = torch.tensor(places).T
        loss = cross_entropy(model.lm_head(hidden[row, position]), answer, reduction="sum")
        (loss / n_answer_tokens).backward()


def _pad(rows: Sequence[Sequence[int]]) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD_ID)


def _chunks(items: Sequence[_Encoded], size: int) -> list[Sequence[_Encoded]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
