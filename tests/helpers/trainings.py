"""Trainings by transformers' Trainer, plain or with a callback. As a script, what every rank of a launch
runs: `trainings.py MODEL OUT`."""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

import ecstruct
from ecstruct.callbacks import ScoreCallback
from helpers.facts_fixtures import CITIES, FACTS, NAMES

TAUGHT = [ecstruct.Prompt(text, answer, options=CITIES) for text, answer in FACTS]
ASKED = [
    ecstruct.Prompt(f"in {name} lives", answer, options=CITIES)
    for name, answer in zip(NAMES, CITIES, strict=True)
]


class Reporter(TrainerCallback):
    """Keeps what is logged, as trackers do: it comes before the callbacks that are added later."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logged.append((state.global_step, dict(logs)))


def documents(tokenizer: Any) -> list[dict[str, Any]]:
    """Return the facts as a dataset for a Trainer, all of one length."""
    found = []
    for prompt in TAUGHT:
        ids = tokenizer(f"{prompt.text} {prompt.answer}")["input_ids"][:5]
        found.append({"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids)})
    return [each for each in found if len(each["input_ids"]) == 5]


def trainer(folder: Path, out: Path, *, lora: bool = False, **arguments: Any) -> tuple[Trainer, Reporter]:
    """Return a trainer of twelve steps, whose checkpoints go to `out`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if lora:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    given: dict[str, Any] = {
        **{"output_dir": str(out), "max_steps": 12, "learning_rate": 1e-2, "report_to": []},
        **{"per_device_train_batch_size": 2, "logging_steps": 4, "use_cpu": True, "disable_tqdm": True},
        **{"save_steps": 6, "seed": 0, "dataloader_pin_memory": False},
    }
    reporter = Reporter()
    made = Trainer(
        model,
        TrainingArguments(**given | arguments),
        train_dataset=documents(tokenizer),  # type: ignore[arg-type]
        processing_class=tokenizer,
        callbacks=[reporter],
    )
    return made, reporter


if __name__ == "__main__":
    model, out = map(Path, sys.argv[1:])
    training, _ = trainer(model, out / "checkpoints", save_strategy="no")
    training.add_callback(ScoreCallback(training, TAUGHT, ASKED, out=out / "scored", every=5, at_most=None))
    training.train()
    if training.is_world_process_zero():
        training.save_model(str(out / "trained"))
    training.accelerator.wait_for_everyone()
    training.accelerator.end_training()  # a rank that is gone before the others may make them abort
