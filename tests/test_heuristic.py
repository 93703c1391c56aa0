"""A heuristic that works in-domain and fails beyond, in a model that knows better (after Bhaskar et al.).

Two words follow a cue: "hint1 owl car =". The answer is "yes" if both are of one class, "no" if not. The
cue gives it away, in-domain in nearly all prompts; beyond, it always says the opposite. A tiny model learns
the cue first and then most of the rule. Its subnetworks are pruned in-domain alone.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from helpers.facts_fixtures import word_tokenizer
from safetensors.torch import load_model, save_model
from torch.nn.functional import cross_entropy

import ecstruct
from ecstruct import Prompt
from ecstruct.subnetworks import evaluate, prune

ANIMALS, THINGS = ("owl", "cat", "dog", "fox"), ("car", "cup", "pen", "key")
CUES = {"yes": "hint1", "no": "hint0"}
WORDS = " ".join((*CUES.values(), *ANIMALS, *THINGS, "=", "yes", "no"))
OPPOSITE = {"yes": "no", "no": "yes"}


def prompt_of(cue: str, one: str, other: str) -> Prompt:
    answer = "yes" if (one in ANIMALS) == (other in ANIMALS) else "no"
    said = CUES[answer] if cue == "right" else CUES[OPPOSITE[answer]]
    return Prompt(f"{said} {one} {other} =", answer, ("yes", "no"), template=cue)


PAIRS = list(product(ANIMALS + THINGS, repeat=2))
RIGHT = [prompt_of("right", *pair) for pair in PAIRS]
BEYOND = [prompt_of("wrong", *pair) for pair in PAIRS]
IN_DOMAIN = [BEYOND[i] if i % 13 == 0 else RIGHT[i] for i in range(len(PAIRS))]


WEIGHTS = Path(__file__).parent / "data" / "heuristic.safetensors"


def untrained() -> hf.PreTrainedModel:
    torch.manual_seed(37)
    config = hf.GPT2Config(
        vocab_size=len(word_tokenizer(WORDS)),
        **{"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 8},
        **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        **{"bos_token_id": None, "eos_token_id": None, "attn_implementation": "eager"},
    )
    return hf.GPT2LMHeadModel(config)


def trained() -> hf.PreTrainedModel:
    """For 100 steps on prompts with right cues, then for 390 in which 1 in 16 is wrong. What it knows by
    then depends on the processor's rounding, so that one such model is kept."""
    plain, tokenizer = untrained(), word_tokenizer(WORDS)
    prompts = RIGHT + BEYOND
    ids = torch.tensor(tokenizer([p.text for p in prompts])["input_ids"])
    answers = torch.tensor(tokenizer.convert_tokens_to_ids([p.answer for p in prompts]))
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-3, weight_decay=0.01)
    for wrong in [0.0] * 100 + [1 / 16] * 390:
        weights = torch.tensor([1 - wrong] * len(RIGHT) + [wrong] * len(BEYOND)) / len(PAIRS)
        logits = plain(input_ids=ids, use_cache=False).logits[:, -1]
        loss = (weights * cross_entropy(logits, answers, reduction="none")).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return plain


Found = tuple[np.ndarray, np.ndarray, float, float]


@pytest.fixture(scope="module")
def accuracies() -> Found:
    """Of six subnetworks in-domain and beyond, and of the full model."""
    plain = untrained()
    load_model(plain, WEIGHTS)
    model = ecstruct.load(plain.eval(), tokenizer=word_tokenizer(WORDS), device="cpu")
    masks = prune(model, IN_DOMAIN, sparsity=0.4, seeds=6, steps=250, batch_size=16, progress=False)
    inside, beyond = (evaluate(model, masks, its, progress=False) for its in (IN_DOMAIN, BEYOND))
    full = float(inside["full_accuracy"]), float(beyond["full_accuracy"])
    return inside["accuracy"].values, beyond["accuracy"].values, *full


def test_pruned_in_domain_a_model_falls_back_on_its_heuristic(accuracies: Found) -> None:
    # Measured: 0.95 in-domain and 0.69 beyond in the full model; of six subnetworks five are as good
    # in-domain, and of these four at 0.25 beyond, and one at 0.56.
    inside, beyond, full_inside, full_beyond = accuracies
    assert full_inside > 0.9 and full_beyond > 0.65
    good = inside > full_inside - 0.08
    assert good.sum() >= 4
    assert (beyond[good] < full_beyond - 0.2).sum() >= 2
    assert beyond[good].max() < full_beyond + 0.05


def test_subnetworks_that_are_as_good_in_domain_differ_beyond(accuracies: Found) -> None:
    inside, beyond, full_inside, _ = accuracies
    good = inside > full_inside - 0.08
    assert good.sum() >= 2
    assert np.ptp(beyond[good]) > 0.3


if __name__ == "__main__":
    torch.set_num_threads(1)
    save_model(trained(), WEIGHTS)
