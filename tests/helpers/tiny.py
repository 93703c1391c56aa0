"""Tiny random models of all families, plain and hooked.

The models are small, but nothing in them is trivial: every bias and norm gain is random, key and value
heads are shared, prompts are longer than the sliding window, soft-caps and clips take effect, and `perturb`
changes every tensor.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import ecstruct
from ecstruct import Prompt

FAMILIES = (
    *("olmo", "olmo-clip", "llama", "gemma2", "qwen2", "gpt2", "neox"),
    *("olmo2", "qwen3", "gemma3", "gptj"),
)
"""The families of every full suite. The last ones norm their queries and keys (OLMo-2 over all heads of a
token at once, and without pre-norms), or share the pre-norm between attention and MLP (GPT-J)."""

SHAPES = ("olmo-clip", "gpt2", "neox", "gptj", "gemma3", "olmo2")
"""One family of every structure, for what does not depend on a family's formulas: heads that share keys and
are clipped; fused projections; parallel blocks with two pre-norms and with one; norms of queries and keys,
with windows and post-norms; post-norms alone. Others change numbers, but not what is run when."""

OTHERS = ("cohere", "mixtral")
"""Families in suites of their special features: norms of queries and keys with weights for each head, and
mixtures of experts, which are no projections."""

UNHOOKED = ("olmo2", "cohere") if version("transformer-lens").startswith("3.") else ()
"""The families that the installed TransformerLens does not hook."""

POST_NORMED = ("gemma2", "gemma3", "olmo2")
SHARED_NORM = ("gptj", "phi")

N_LAYERS, N_HEADS, D_HEAD = 3, 4, 8

LANGUAGES = ("Dutch", "Old Norse", "Thai", "Zulu")
NAMES = ("Ada", "Bo Li", "Cy de Wit", "Di", "Ed Roy")
PROMPTS = [
    Prompt(f"people that {name} knows speak", answer, LANGUAGES)
    for name, answer in zip(NAMES, (*LANGUAGES, "Dutch"), strict=True)
]
"""One template, entities of one to three tokens, two prompts with the same answer, one with an answer of
two tokens. The longest prompt has 8 tokens, two windows of the sliding attention."""

N_LENGTHS = 3
"""So many of the prompts have entities of all lengths: slow oracles compute no more."""

_WORDS = dict.fromkeys(" ".join(f"{p.text} {p.answer}" for p in PROMPTS).split())


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token per word and a BOS before every text."""
    vocab = {word: i for i, word in enumerate(("<pad>", "<bos>", "<unk>", *_WORDS))}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")


_SHARED: dict[str, Any] = {
    "vocab_size": 3 + len(_WORDS),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_SIZES: dict[str, Any] = {
    "hidden_size": N_HEADS * D_HEAD,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": 32,
}
_GROUPED = _SIZES | {"num_key_value_heads": 2}
_GEMMA = _GROUPED | {"head_dim": D_HEAD, "query_pre_attn_scalar": D_HEAD, "sliding_window": 4}
_GPT2 = {"n_embd": N_HEADS * D_HEAD, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_positions": 32}
_ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
_CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "olmo": (hf.OlmoConfig, _SIZES),
    "olmo-clip": (hf.OlmoConfig, _GROUPED | {"clip_qkv": 1.0, "attention_bias": True}),
    "llama": (hf.LlamaConfig, _GROUPED),
    "gemma2": (
        hf.Gemma2Config,
        _GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        hf.Gemma3TextConfig,
        _GEMMA | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "qwen2": (hf.Qwen2Config, _GROUPED),
    "qwen3": (hf.Qwen3Config, _GROUPED | {"head_dim": D_HEAD}),
    "olmo2": (hf.Olmo2Config, _GROUPED),
    "cohere": (hf.CohereConfig, _GROUPED | {"use_qk_norm": True}),
    "mixtral": (hf.MixtralConfig, _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "phi": (hf.PhiConfig, _SIZES),
    "gptj": (hf.GPTJConfig, _GPT2 | {"n_inner": 48, "rotary_dim": 4}),
    "gpt2": (hf.GPT2Config, _GPT2),
    "neox": (hf.GPTNeoXConfig, _SIZES | {"rope_parameters": _ROTARY}),
}


def build(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Return a plain Hugging Face model."""
    kind, sizes = _CONFIGS[family]
    config = kind(**_SHARED, **sizes, tie_word_embeddings=family in ("gpt2", "gemma2", "gemma3"))
    if family == "mixtral":
        config._experts_implementation = "eager"  # the other implementations cannot run in float64
    plain: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return fill(plain.to(dtype).eval(), seed)


def fill(plain: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Set all weights to random values, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in plain.parameters():
            noise = 0.25 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
            # Norm gains stay around their neutral value: 1, or 0 where the model adds 1.
            p.copy_(p + noise if p.ndim == 1 else noise)
    return plain


def perturb(plain: PreTrainedModel, eps: float = 0.02, seed: int = 1) -> PreTrainedModel:
    """Return a "finetuned" model: a copy with noise of size `eps` added to every tensor."""
    moved = copy.deepcopy(plain)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(eps * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return moved


def mix(before: PreTrainedModel, after: PreTrainedModel, step: float) -> PreTrainedModel:
    """Return W + step dW as a plain model."""
    mixed = copy.deepcopy(before)
    with torch.no_grad():
        for p, a, b in zip(mixed.parameters(), before.parameters(), after.parameters(), strict=True):
            p.copy_(a + step * (b - a))
    return mixed


def hooked(plain: PreTrainedModel, dtype: torch.dtype = torch.float64) -> TransformerBridge:
    """Return a hooked copy of a plain model. It is a copy because loading takes a model over."""
    return ecstruct.load(copy.deepcopy(plain), tokenizer=tokenizer(), dtype=dtype, device="cpu")


@cache
def plain_pair(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return W and W' as plain models in float64."""
    before = build(family)
    return before, perturb(before)


@cache
def hooked_pair(family: str) -> tuple[TransformerBridge, TransformerBridge]:
    """Return W and W' hooked, in float64. No test may change this pair or the next one."""
    before, after = plain_pair(family)
    return hooked(before), hooked(after)


@cache
def single_pair(family: str) -> tuple[TransformerBridge, TransformerBridge]:
    """Return W and W' hooked, in float32, as checkpoints are scored."""
    before, after = plain_pair(family)
    return hooked(before, torch.float32), hooked(after, torch.float32)


@contextmanager
def double_throughout() -> Iterator[None]:
    """Lift the float32 islands of transformers and TransformerLens (norms, softmax, rotary tables): inside,
    a cast to float32 casts to float64, so that float64 models are computed in float64 throughout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


# --- Whether a model is what it was ---


def state_of(model: TransformerBridge) -> tuple:
    """Return everything in a model that scoring might change."""
    tensors = {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    flags = [(n, p.requires_grad, p.grad is None) for n, p in model.named_parameters()]
    hooks = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), m.training)
        for name, m in model.original_model.named_modules()
    ]
    return tensors, flags, hooks, [id(b) for b in model.blocks]


def assert_unchanged(model: TransformerBridge, state: tuple) -> None:
    tensors, *others = state_of(model)
    assert others == list(state[1:])
    assert tensors.keys() == state[0].keys()
    for name, t in tensors.items():
        assert torch.equal(t, state[0][name]), name
