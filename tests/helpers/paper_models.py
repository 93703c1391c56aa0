"""Folders of tiny random models that read the paper's prompts, and ranks computed by plain models."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ecstruct.experiments import EXPERIMENTS, Rates, Result, Setup, reproduce
from ecstruct.experiments.setup import NOVEL, Words
from ecstruct.facts import Prompt, fictitious, first_hop, second_hop
from helpers import tiny

TINY = ("--lr", 1e-3, "--repeats", 1, "--epochs", 1, "--batch-size", 80, "--device", "cpu", "--quiet")
"""Words of a command that do what `small` does."""

KNOWN = Words("{name} lives in", "{name} zong is the")


@cache
def paper_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with merges until every word of the paper's prompts and options is one
    token, up to 2000 tokens. Qwen2's tokenizer class takes no other kind."""
    sets = [first_hop(), second_hop()]
    for words in (KNOWN, NOVEL):
        told = fictitious(fact=words.fact, implication=words.implication)
        sets += [told.train, told.counterfactual, told.test]
    prompts = [prompt for data in sets for prompt in (*data.facts, *data.implications)]
    texts = sorted({f"{p.text} {option}" for p in prompts for option in p.options or ()})
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")


def save_paper_model(folder: Path, family: str, seed: int = 0) -> Path:
    """Save a random model of three layers with a vocabulary of the paper's words, in float32."""
    plain: Any = tiny.build(family, seed=seed, dtype=torch.float32)
    tokenizer = paper_tokenizer()
    plain.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    plain.config.bos_token_id = plain.generation_config.bos_token_id = None
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for module in (plain.get_input_embeddings(), plain.get_output_embeddings()):
            module.weight.copy_(0.25 * torch.randn(module.weight.shape, generator=generator))
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def small(folder: Path, **options: Any) -> Setup:
    """Return a setup with one pairing, seen once, at a rate that moves the weights."""
    return Setup(
        **{"model": str(folder), "rates": Rates.same(1e-3), "repeats": 1, "epochs": 1, "device": "cpu"}
        | {"batch_size": 80, **options}
    )


@cache
def finished(family: str) -> tuple[Path, dict[str, Result]]:
    """Run all experiments but sensitivity on the model in the returned folder; return results by name."""
    folder = Path(tempfile.mkdtemp(prefix=f"{family}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    setup = small(save_paper_model(folder / "model", family))
    names = [name for name in EXPERIMENTS if name != "sensitivity"]
    results = reproduce(names, setup, out=folder / "out", progress=False)
    return folder, {result.name: result for result in results}


def plain_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def plain_mean_rank(plain: Any, folder: Path, prompts: tuple[Prompt, ...]) -> float:
    """Compute the mean rank with transformers alone, prompt by prompt."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    total = 0.0
    for prompt in prompts:
        ids = tokenizer(prompt.text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = plain(input_ids=ids, use_cache=False).logits[0, -1]
        options = tokenizer([f"{prompt.text} {option}" for option in prompt.options or ()])["input_ids"]
        first = logits[[option[ids.shape[1]] for option in options]]
        total += (first > first[(prompt.options or ()).index(prompt.answer)]).sum().item()
    return total / len(prompts)
