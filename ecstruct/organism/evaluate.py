"""What an organism knows before finetuning: `python -m ecstruct.organism.evaluate [--checkpoint DIR]`.

Prints, for each kind of implication that the training text left out, the share that the organism gets
right. `ecstruct reproduce` measures the effect of finetuning.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from transformers import AutoTokenizer, OlmoForCausalLM

from ecstruct.errors import InputError
from ecstruct.organism import checkpoint
from ecstruct.organism.training import held_out_accuracy
from ecstruct.organism.world import World


def evaluate(folder: Path) -> dict[str, float]:
    """Return the held-out accuracies of the organism in a folder that `ecstruct.organism.pretrain` made.

    Raises:
        InputError: the folder does not say which world its model was trained on.
    """
    report = folder / "pretraining.json"
    if not report.is_file():
        raise InputError(
            f"{folder} has no pretraining.json, which says whose world it is: "
            "name a folder that `ecstruct organism pretrain` made."
        )
    world = World.build(json.loads(report.read_text(encoding="utf-8"))["seed"])
    model = OlmoForCausalLM.from_pretrained(folder).float().eval()
    return held_out_accuracy(model, AutoTokenizer.from_pretrained(folder), world)


def main() -> None:
    """Print the accuracies of one organism."""
    parser = argparse.ArgumentParser(description="Measure what an organism knows.")
    parser.add_argument("--checkpoint", type=Path, default=checkpoint(), metavar="DIR")
    try:
        accuracy = evaluate(parser.parse_args().checkpoint)
    except InputError as error:
        parser.error(str(error))
    print("held-out accuracy:", ", ".join(f"{name} {x:.3f}" for name, x in accuracy.items()))


if __name__ == "__main__":
    main()
