"""Random models of known size, their prompts, and the pass that any method needs."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OlmoConfig,
    OlmoeConfig,
    OlmoeForCausalLM,
    OlmoForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ecstruct.facts import Prompt
from ecstruct.models.loading import load

N_WORDS, N_HEADS, LENGTH = 2000, 8, 11
PAPER: dict[str, Any] = {"upstream": "surrogate", "propagation": "gradient"}
"""Upstream scores of two backward passes by gradients."""

FAMILIES: dict[str, tuple[Any, Any, dict[str, int]]] = {
    "olmo": (OlmoConfig, OlmoForCausalLM, {}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "olmoe": (OlmoeConfig, OlmoeForCausalLM, {"num_experts": 64, "num_experts_per_tok": 8}),
}
"""Configuration, model and further sizes; the experts of a mixture are each a fourth of a dense MLP."""


@dataclass(frozen=True)
class Shape:
    """What tells one model from another: family, layers and d_model."""

    family: str
    n_layers: int
    d_model: int

    @property
    def d_mlp(self) -> int:
        dense = 256 * max(1, round(self.d_model / 96))
        return dense // 4 if self.n_experts > 1 else dense

    @property
    def n_experts(self) -> int:
        return FAMILIES[self.family][2].get("num_experts", 1)

    @property
    def n_parameters(self) -> int:
        """Without the gains of norms."""
        block = 4 * self.d_model**2 + 3 * self.n_experts * self.d_model * self.d_mlp
        return self.n_layers * block + 2 * N_WORDS * self.d_model

    def __str__(self) -> str:
        return f"{self.family} {self.n_layers}x{self.d_model} ({self.n_parameters / 1e6:.1f}M)"


@cache
def tokenizer(n_words: int = N_WORDS) -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, n_words)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<eos>", eos_token="<eos>"
    )


def make_prompts(n: int, length: int = LENGTH) -> list[Prompt]:
    """As "The people in the city X Y is from speak", of eleven tokens or another number of at least 8."""
    end = " ".join(f"w{7 + i}" for i in range(length - 7))
    return [Prompt(f"w2 w3 w4 w5 w6 w{100 + i} w{300 + i} {end}", f"w{500 + i}") for i in range(n)]


def ids_of(prompts: list[Prompt], device: str) -> tuple[Tensor, Tensor]:
    """The prompts [prompt, pos], all of one length, and their answers [prompt]."""
    ids = torch.tensor([tokenizer()(p.text)["input_ids"] for p in prompts], device=device)
    return ids, torch.tensor([tokenizer()(p.answer)["input_ids"][0] for p in prompts], device=device)


def plain_pair(shape: Shape, device: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """W and W' = W + dW, a small change of every weight, as Hugging Face models with frozen parameters."""
    config_class, model_class, sizes = FAMILIES[shape.family]
    torch.manual_seed(0)
    config = config_class(
        vocab_size=N_WORDS,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=N_HEADS,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        **sizes,
        attn_implementation="sdpa",
    )
    before = model_class(config)
    after = change_a_little(copy.deepcopy(before))
    for model in (before, after):
        model.eval().requires_grad_(False).to(device)
    return before, after


@torch.no_grad()
def change_a_little(model: Any) -> Any:
    """Add noise to every weight, as large as 0.003 of its spread."""
    for p in model.parameters():
        p.add_(3e-3 * p.std().nan_to_num(0.0) * torch.randn_like(p))
    return model


def hooked_pair(shape: Shape, device: str) -> tuple[TransformerBridge, TransformerBridge]:
    """The same two as TransformerLens hooks them, unprocessed."""
    before, after = (load(m, tokenizer=tokenizer(), device=device) for m in plain_pair(shape, device))
    for model in (before, after):
        model.original_model.requires_grad_(False)
    return before, after


def smollm2_pair(device: str) -> tuple[TransformerBridge, TransformerBridge]:
    """SmolLM2, fetched where it is not yet, and the same with a small change of every weight."""
    before, after = (load("smollm2", device=device) for _ in range(2))
    torch.manual_seed(0)
    change_a_little(after.original_model)
    for model in (before, after):
        model.original_model.requires_grad_(False)
    return before, after


def padded_ids(prompts: Sequence[Prompt], tokenizer: Any, device: str) -> tuple[Tensor, Tensor]:
    """The prompts [prompt, pos], padded at the beginning to one length, and the first tokens of their
    answers [prompt]."""
    ids = [tokenizer(p.text)["input_ids"] for p in prompts]
    longest = max(map(len, ids))
    answers = [tokenizer(f" {p.answer}")["input_ids"][0] for p in prompts]
    rows = [[row[0]] * (longest - len(row)) + row for row in ids]
    return torch.tensor(rows, device=device), torch.tensor(answers, device=device)


def logit_diff(logits: Tensor, answers: Tensor, options: Tensor) -> Tensor:
    """The reward [prompt] from logits [prompt, d_vocab] at the last token."""
    return logits.gather(1, answers[:, None])[:, 0] - logits[:, options].mean(1)


def bare_pass(plain: Any, ids: Tensor, answers: Tensor) -> None:
    """One forward and one backward pass with respect to activations; logits at the last token only."""
    embedded = plain.get_input_embeddings()(ids).requires_grad_()
    hidden = plain.model(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, -1]
    reward = logit_diff(plain.lm_head(hidden), answers, answers).sum()
    torch.autograd.grad(reward, embedded)
