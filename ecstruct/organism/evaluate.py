"""What an organism can do: `python -m ecstruct.organism.evaluate [--checkpoint DIR]`.

Prints the accuracy on held-out implications, then for both hops of the paper's facts the mean rank
(0-indexed, among 20 options: chance is 9.5) of facts and implications: before finetuning, after it,
and with the early or the late layers put back to their old weights afterwards ("reverted") or kept
at them all along ("frozen"). Each cell is the mean over several finetunings, in brackets the lowest
and the highest: seed s draws the pairing of people and cities and the order of the facts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, OlmoForCausalLM

from ecstruct.evaluate import mean_rank
from ecstruct.facts import FactSet, first_hop, second_hop
from ecstruct.finetuning import finetune
from ecstruct.models.load import load
from ecstruct.organism import LEARNING_RATE, checkpoint
from ecstruct.organism.sentences import held_out_sentences
from ecstruct.organism.training import first_token_accuracy
from ecstruct.organism.world import World

EARLY, LATE = range(4), range(4, 6)
"""The first two thirds of the layers and the rest, as in the paper's freezing experiment."""


def held_out_accuracy(folder: Path) -> dict[str, float]:
    """Share of the held-out implications whose first answer token is the model's first choice."""
    model = OlmoForCausalLM.from_pretrained(folder).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    report = json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))
    return {
        name: first_token_accuracy(model, tokenizer, sentences)
        for name, sentences in held_out_sentences(World.build(report["seed"])).items()
    }


def freezing_ranks(
    model: TransformerBridge, data: FactSet, *, seed: int, lr: float
) -> list[dict[str, str | float]]:
    """Mean ranks of the facts and the implications of `data`, one row per kind of finetuning."""

    def tuned(frozen: Sequence[int] | None = None):
        return finetune(model, data.facts, lr=lr, seed=seed, freeze=frozen, progress=False)

    after = tuned()
    models = {
        "before": model,
        "after": after.model,
        "early reverted": after.delta.restrict(layers=LATE).apply_to(model),
        "late reverted": after.delta.restrict(layers=EARLY).apply_to(model),
        "early frozen": tuned(EARLY).model,
        "late frozen": tuned(LATE).model,
    }
    return [
        {
            "layers": name,
            f"{data.name} facts": mean_rank(tuned_model, data.facts),
            f"{data.name} implications": mean_rank(tuned_model, data.implications),
        }
        for name, tuned_model in models.items()
    ]


def freezing_table(model: TransformerBridge, *, n_seeds: int, lr: float) -> pd.DataFrame:
    """Mean [lowest, highest] of `freezing_ranks` over seeds 0 to n_seeds - 1, for both hops."""

    def summary(ranks: pd.Series) -> str:
        return f"{ranks.mean():.2f} [{ranks.min():.2f}, {ranks.max():.2f}]"

    hops = []
    for facts in (first_hop, second_hop):
        rows = [freezing_ranks(model, facts(seed), seed=seed, lr=lr) for seed in range(n_seeds)]
        frame = pd.DataFrame(row for seed_rows in rows for row in seed_rows)
        hops.append(frame.groupby("layers", sort=False).agg(summary))
    return pd.concat(hops, axis=1)


def main() -> None:
    """Print everything for one organism."""
    parser = argparse.ArgumentParser(description="Measure what an organism can do.")
    parser.add_argument("--checkpoint", type=Path, default=checkpoint(), metavar="DIR")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="finetunings per cell")
    parser.add_argument("--lr", type=float, default=LEARNING_RATE, metavar="X")
    options = parser.parse_args()
    accuracy = held_out_accuracy(options.checkpoint)
    print("held-out accuracy:", ", ".join(f"{name} {x:.3f}" for name, x in accuracy.items()))
    print(f"mean ranks over {options.seeds} finetunings at learning rate {options.lr:g}:")
    table = freezing_table(load(str(options.checkpoint)), n_seeds=options.seeds, lr=options.lr)
    print(table.to_string())


if __name__ == "__main__":
    main()
