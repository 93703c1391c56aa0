"""Tiny random classifiers, plain and hooked: encoders and decoders, in float64.

The oracle runs them with transformers alone, prompt by prompt and without padding.
"""

import copy
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

import ecstruct
from ecstruct import Prompt
from helpers import tiny
from helpers.tiny import D_HEAD, N_HEADS, N_LAYERS, fill, perturb

ENCODERS, DECODERS = ("bert", "roberta"), ("gpt2", "llama")
OTHERS = ("qwen2", "qwen3", "gemma2", "gemma3", "neox", "gptj", "phi", "olmo", "olmo2")
"""Further decoders."""

LABELS = ("yes", "no", "maybe")
_WORDS = ("ada", "bo", "cy", "knows", "likes", "sees", "nobody", "often", "not", *LABELS)
_SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")

PROMPTS = [
    Prompt("ada knows bo", "yes", second="ada sees bo often"),
    Prompt("cy likes nobody", "no", second="cy likes ada"),
    Prompt("bo often likes cy", "maybe", second="not bo"),
    Prompt("ada not often sees cy bo", "no", second="cy knows ada not"),
]
"""Pairs of different lengths."""

_SIZES: dict[str, Any] = {
    **{"hidden_size": N_HEADS * D_HEAD, "intermediate_size": 48, "num_hidden_layers": N_LAYERS},
    **{"num_attention_heads": N_HEADS, "max_position_embeddings": 34},
}
_CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bert": (hf.BertConfig, _SIZES | {"type_vocab_size": 2}),
    "roberta": (hf.RobertaConfig, _SIZES | {"type_vocab_size": 1}),
    "gpt2": (
        hf.GPT2Config,
        {"n_embd": N_HEADS * D_HEAD, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_positions": 34},
    ),
    "llama": (hf.LlamaConfig, _SIZES | {"num_key_value_heads": 2}),
}


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token per word that reads pairs as BERT's does, or as a decoder's."""
    vocab = {word: i for i, word in enumerate((*_SPECIAL, *_WORDS))}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind in ENCODERS:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(word, vocab[word]) for word in ("[CLS]", "[SEP]")],
        )
    types = ["token_type_ids"] if kind == "bert" else []
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", *types, "attention_mask"],
    )


def config(kind: str, labels: tuple[str, ...] = LABELS, **changes: Any) -> Any:
    of, sizes = _CONFIGS.get(kind) or tiny._CONFIGS[kind]
    named = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    size = {"vocab_size": len(_SPECIAL) + len(_WORDS), "pad_token_id": 0}
    ends = {"bos_token_id": None, "eos_token_id": None}
    return of(**sizes, **size, **ends, **named, **changes)


def build(kind: str, auto: Any = hf.AutoModelForSequenceClassification, **changes: Any) -> Any:
    """Return a plain model in float64, by default the classifier."""
    plain = auto.from_config(config(kind, **changes), attn_implementation="eager")
    return fill(plain.double().eval())


@cache
def plain_pair(kind: str) -> tuple[Any, Any]:
    before = build(kind)
    return before, perturb(before)


@cache
def hooked_pair(kind: str) -> tuple[TransformerBridge, TransformerBridge]:
    """Return W and W' hooked. No test may change them."""
    return hooked(plain_pair(kind)[0], kind), hooked(plain_pair(kind)[1], kind)


def hooked(plain: Any, kind: str, dtype: torch.dtype = torch.float64) -> TransformerBridge:
    """Return a hooked copy of a plain classifier."""
    return ecstruct.load(copy.deepcopy(plain), tokenizer=tokenizer(kind), dtype=dtype, device="cpu")


def save(plain: Any, kind: str, folder: Path) -> Path:
    """Save a plain model in float32, with its tokenizer."""
    copy.deepcopy(plain).float().save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return folder


def inputs(prompt: Prompt, kind: str) -> Any:
    """Return what transformers reads of a prompt."""
    return tokenizer(kind)(prompt.text, prompt.second, return_tensors="pt")


def logits(plain: Any, prompt: Prompt, kind: str) -> Tensor:
    return plain(**inputs(prompt, kind)).logits[0]


def reward(plain: Any, prompt: Prompt, kind: str) -> Tensor:
    """Return the logit of the right label minus the mean logit of all."""
    of = logits(plain, prompt, kind)
    return of[LABELS.index(prompt.answer)] - of.mean()


def writers(plain: Any) -> list[tuple[nn.Module, nn.Module]]:
    """Return, for each block, the output projections of its attention and of its MLP."""
    if hasattr(plain, "transformer"):
        return [(b.attn.c_proj, b.mlp.c_proj) for b in plain.transformer.h]
    if hasattr(plain, "model"):
        return [(b.self_attn.o_proj, b.mlp.down_proj) for b in plain.model.layers]
    return [(b.attention.output.dense, b.output.dense) for b in plain.base_model.encoder.layer]


def run_with(
    plain: Any,
    run: Callable[[], Tensor],
    z: Mapping[int, Callable[[Tensor], Tensor]],
    written: Mapping[int, Callable[[Tensor], Tensor]],
) -> Tensor:
    """Run with functions of the heads' z, and of what MLPs write, by layer; plain hooks of torch."""
    handles = []
    for layer, (o, out) in enumerate(writers(plain)):
        if layer in z:
            edit = z[layer]
            handles.append(o.register_forward_pre_hook(lambda _, args, edit=edit: (edit(args[0]),)))
        if layer in written:
            change = written[layer]
            handles.append(out.register_forward_hook(lambda _m, _a, y, change=change: change(y)))
    try:
        return run()
    finally:
        for handle in handles:
            handle.remove()
