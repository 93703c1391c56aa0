"""What finetuning costs, against a plain loop of the same steps on the same model by Hugging Face.

Both train a copy of the model on facts, all weights but the embeddings, with Adam, in padded batches, and
run the implications before training and after every epoch. The plain loop does nothing else: it checks
nothing, and keeps no difference of the weights.

    python -m benchmarks.finetuning
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import ecstruct
from benchmarks.command import main
from benchmarks.models import Shape, hooked_pair, make_prompts
from benchmarks.setup import Setup
from benchmarks.table import Row
from benchmarks.timing import Side
from ecstruct.facts import Prompt
from ecstruct.facts.invented_people import people
from ecstruct.models.export import to_hugging_face
from ecstruct.models.provenance import tokenizer_of

BATCH, EPOCHS, RATE, IGNORED = 8, 2, 1e-4, -100


def padded(tokenizer: Any, prompts: Sequence[Prompt], device: str) -> dict[str, torch.Tensor]:
    """Ids of prompts with their answers, padded at the end, and labels for the tokens of the answers."""
    starts = [len(tokenizer(p.text)["input_ids"]) for p in prompts]
    ids = [tokenizer(f"{p.text} {p.answer}")["input_ids"] for p in prompts]
    labels = [[*[IGNORED] * start, *row[start:]] for start, row in zip(starts, ids, strict=True)]
    rows = {
        "input_ids": (ids, 0),
        "attention_mask": ([[1] * len(row) for row in ids], 0),
        "labels": (labels, IGNORED),
    }
    longest = max(map(len, ids))
    return {
        name: torch.tensor([[*row, *[pad] * (longest - len(row))] for row in of_all], device=device)
        for name, (of_all, pad) in rows.items()
    }


def plain_loop(
    model: Any, tokenizer: Any, facts: Sequence[Prompt], asked: Sequence[Prompt], device: str
) -> None:
    model = copy.deepcopy(model)
    model.requires_grad_(True)
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        embedding.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=RATE)

    def loss(prompts: Sequence[Prompt]) -> torch.Tensor:
        batch = padded(tokenizer, prompts, device)
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch, use_cache=False).logits[:, :-1]
        return cross_entropy(logits[labels != IGNORED], labels[labels != IGNORED])

    for epoch in range(EPOCHS + 1):
        with torch.no_grad():
            loss(asked)
        for start in range(0, len(facts) if epoch < EPOCHS else 0, BATCH):
            optimizer.zero_grad()
            loss(facts[start : start + BATCH]).backward()
            optimizer.step()


def sides(setup: Setup) -> dict[str, Side]:
    if setup.small:
        model, _ = hooked_pair(Shape("llama", 2, 64), setup.device)
        facts = asked = make_prompts(16)
    else:
        model, data = ecstruct.load("smollm2", device=setup.device), people()
        facts, asked = data.facts, data.implications
    plain, tokenizer = to_hugging_face(model), tokenizer_of(model)
    options: dict[str, Any] = {"lr": RATE, "epochs": EPOCHS, "batch_size": BATCH, "progress": False}
    return {
        "plain loop": lambda: plain_loop(plain, tokenizer, facts, asked, setup.device),
        "ecstruct.finetune": lambda: ecstruct.finetune(model, facts, evaluate={"asked": asked}, **options),
    }


def rows(setup: Setup) -> Iterator[Row]:
    found = setup.compared(sides(setup))
    model = "llama 2x64" if setup.small else "SmolLM2"
    plain, ours = found.values()
    yield Row(f"finetuning on 16 facts, {EPOCHS} epochs", model, ours, plain, "<= 1.2")


if __name__ == "__main__":
    main({"finetuning": rows})
