"""Tiny tokenizers and random models for the tests of facts, ranks and finetuning."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CITIES = ("Tokyo", "Paris", "Rome", "Addis Ababa", "Sao Paulo", "Cairo")
NAMES = ("Grace Miller", "Ethan Parker", "Mia", "Noah Clark", "Zoe de la Cruz", "Grace Parker")
FACTS = [(f"{name} lives in", city) for name, city in zip(NAMES, CITIES, strict=True)]
"""Prompts of three to six words, with answers of one or two words."""

N_CTX = 24


def word_tokenizer(text: str = "", **special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token per word of the facts and of `text`; `special` may set bos_token."""
    words = " ".join([text, *(f"{prompt} {answer}" for prompt, answer in FACTS)]).split()
    vocab = ["<pad>", "<eos>", "<unk>", *special.values(), *dict.fromkeys(words)]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocab)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        **special,
    )


def byte_tokenizer(text: str, vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on `text`, like GPT-2's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )


def with_ends(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer put special tokens around every text, as in "<bos> $A <eos>"."""
    ids = [(word, tokenizer.convert_tokens_to_ids(word)) for word in template.split() if word != "$A"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=ids
    )
    return tokenizer


def save_tiny(folder: Path, family: str = "llama", *, tied: bool = False) -> Path:
    """Save a random two-layer model with `word_tokenizer`; biases and norm gains are random too."""
    tokenizer = word_tokenizer()
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        "tie_word_embeddings": tied,
    }
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": N_CTX,
    }
    hf: PreTrainedModel
    if family == "llama":
        hf = LlamaForCausalLM(LlamaConfig(**shared, **sizes, num_key_value_heads=2))
    elif family == "neox":
        hf = GPTNeoXForCausalLM(GPTNeoXConfig(**shared, **sizes))
    else:  # GPT-2 has dropout, and fuses query, key and value
        hf = GPT2LMHeadModel(
            GPT2Config(**shared, n_embd=32, n_layer=2, n_head=4, n_positions=N_CTX, resid_pdrop=0.5)
        )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in hf.parameters():
            p.copy_(p + 0.2 * torch.randn(p.shape, generator=generator))
            # Matrices are overwritten, so that the state of the global generator has no effect.
            if p.dim() > 1:
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def hugging_face(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load the plain Hugging Face model, the oracle of these tests."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
