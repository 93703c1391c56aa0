"""Ranks and scores through a training by transformers' Trainer, and all trainers that are made of it (TRL,
axolotl, Unsloth)."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate.utils import extract_model_from_parallel
from transformer_lens.model_bridge import TransformerBridge
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from ecstruct.errors import InputError
from ecstruct.evaluate import mean_rank
from ecstruct.facts.fact_set import FactSet
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.io.files import from_json, write_text
from ecstruct.models.adapters import is_peft_model
from ecstruct.models.bridge import named_weights
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.loading import load
from ecstruct.options import ScoreOptions
from ecstruct.scores.engine import ScoreEngine
from ecstruct.scores.result import ExtractiveScores


class ScoreCallback(TrainerCallback):
    """Measures ranks of facts and implications, and scores, while a Trainer trains.

    W are the weights that the trainer's model has when the callback is made: make it before `train()`, also
    before one that goes on from a checkpoint. W' are those of the step; a low-rank adapter is merged into a
    copy. Training is the same with and without the callback.

        trainer = Trainer(model, args, train_dataset=..., processing_class=tokenizer)
        trainer.add_callback(ScoreCallback(trainer, facts, implications, out="runs/scored"))

    Every measurement is logged by the trainer, to wherever it reports, under names that begin with
    `ecstruct/`:

    * `rank_facts` and `rank_implications`, mean ranks of the answers among their options (0 is best);
    * `reward_before` and `reward_after`, means under W and W' over the prompts that are scored;
    * of each of the three scores its mass, as `informative`: the sum over components of positive scores,
      each the mean over prompts of the sum over tokens, in the unit of the reward; `informative_mlps`, the
      share of it that MLPs have; and `informative_layer`, the mean of the layers weighted by it, from 0.

    The folder gets the same numbers as `training.csv`, all scores as `scores-STEP.nc`, and what was asked
    as `config.json`. A training that goes on from a checkpoint goes on in the same folder. Of several
    processes the first measures, while the others wait for it.
    """

    def __init__(
        self,
        trainer: Trainer,
        facts: FactSet | PromptsLike,
        implications: PromptsLike | None = None,
        *,
        out: str | Path,
        every: int = 100,
        at_most: float | None = 0.05,
        **options: Any,
    ) -> None:
        """Keep a hooked copy of the trainer's model, on its device and in float32.

        Args:
            trainer: the trainer; its `processing_class` is the tokenizer that reads the prompts.
            facts: what is taught, as for `ecstruct.finetune`; or a `FactSet`, which has implications.
            implications: what follows, as for `ecstruct.score`. These are scored; facts are if there are
                none.
            out: the folder to write to.
            every: steps from one measurement to the next. The weights before the first step and after the
                last one are always measured.
            at_most: the share of the time of the training that measurements may take. One that is due too
                early for that is left out. `None` for no limit.
            options: options of `ecstruct.score`, such as `reward`.

        Raises:
            InputError: prompts or options cannot be used, the model cannot be scored, its weights are split
                over processes, or `out` is of another training.
        """
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise InputError(
                "this trainer splits the weights over processes (FSDP, DeepSpeed), and no process has the "
                "model: score the checkpoints that it saves, as ecstruct.score(BEFORE, 'folder@step', ...)."
            )
        if trainer.processing_class is None:
            raise InputError("this trainer has no tokenizer: pass processing_class=tokenizer to it.")
        if every < 1:
            raise InputError(f"every={every} measures at no step: use 1 or more.")
        if at_most is not None and not 0 < at_most < 1:
            raise InputError(f"at_most={at_most} is no share of the time: use a number such as 0.05.")
        if not isinstance(facts, FactSet):
            facts = FactSet(as_prompts(facts), ())
        if implications is not None:
            facts = FactSet(facts.facts, as_prompts(implications), facts.name)
        self.asked = {"facts": facts.facts, "implications": facts.implications}
        self.options = ScoreOptions(**options)
        self.every, self.at_most, self.out = every, at_most, Path(out)
        self._trainer = trainer
        self._rows: list[dict[str, float]] = []
        self._spent = self._last = 0.0
        if trainer.is_world_process_zero():
            self._before = self._hooked()
            self._ranks(self._before)  # refuses prompts that cannot be used
            self._check_folder()

    @property
    def history(self) -> pd.DataFrame:
        """What was measured so far, a row per step."""
        return pd.DataFrame(self._rows)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        written = pd.read_csv(self._table).to_dict("records") if self._table.exists() else []
        self._rows = [{**row} for row in written if state.global_step and row["step"] <= state.global_step]
        self._started = time.monotonic()
        self._spent = 0.0
        if not self._rows:
            self._measure(state)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        ends = control.should_training_stop or state.global_step >= state.max_steps
        if ends or (state.global_step % self.every == 0 and self._affordable()):
            self._measure(state)

    def _affordable(self) -> bool:
        """Return whether another measurement as long as the last one stays within the share of time."""
        if self.at_most is None:
            return True
        return self._spent + self._last <= self.at_most * (time.monotonic() - self._started)

    def _measure(self, state: TrainerState) -> None:
        begun = time.monotonic()
        after = self._hooked()
        row = self._ranks(after)
        if state.global_step:  # before the first step no weight has changed
            prompts = self.asked["implications"] or self.asked["facts"]
            scores = ScoreEngine(self._before, after, self.options, progress=False).score(prompts)
            scores.save(self.out / f"scores-{state.global_step}.nc")
            for at in ("before", "after"):
                row[f"reward_{at}"] = float(scores.reward.sel(state=at).mean())
            row |= _masses(scores)
        self._rows.append({"step": state.global_step, **row})
        write_text(self._table, self.history.to_csv(index=False))
        due = self._trainer.control.should_log
        self._trainer.log({f"ecstruct/{name}": value for name, value in row.items()})
        self._trainer.control.should_log = due  # the trainer still has its own values of this step to log
        self._last = time.monotonic() - begun
        self._spent += self._last

    def _ranks(self, model: TransformerBridge) -> dict[str, float]:
        how = self.options.answer_tokens
        return {
            f"rank_{name}": mean_rank(model, prompts, answer_tokens=how)
            for name, prompts in self.asked.items()
            if prompts
        }

    def _hooked(self) -> TransformerBridge:
        """Return a hooked copy of the trainer's model as it is now. Making one draws random numbers, which
        training must not miss."""
        trainer: Any = self._trainer
        model = trainer.accelerator.unwrap_model(trainer.model)
        if not is_peft_model(model):
            # Only of the copy may the wrappers of mixed precision be taken off.
            model = extract_model_from_parallel(copy.deepcopy(model), keep_fp32_wrapper=False)
        device = trainer.args.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return load(model, tokenizer=trainer.processing_class, device=device)

    @property
    def _table(self) -> Path:
        return self.out / "training.csv"

    def _check_folder(self) -> None:
        """Write `config.json`, or check that the one that is there asks for the same."""
        records = {name: [p.to_record() for p in prompts] for name, prompts in self.asked.items()}
        weights = fingerprint(named_weights(self._before))
        config = {**records, "options": self.options.identity(), "weights": weights}
        path = self.out / "config.json"
        if path.exists():
            try:
                found = from_json(path.read_text(encoding="utf-8"))
                other = [name for name in config if found[name] != config[name]]
            except (OSError, ValueError, KeyError, TypeError):
                other = ["configuration"]
            if other:
                raise InputError(
                    f"{self.out} has measurements of another training (its {other[0]} are others): choose "
                    "another folder."
                )
        write_text(path, json.dumps(config, indent=1, ensure_ascii=False))


def _masses(scores: ExtractiveScores) -> dict[str, float]:
    """Return the mass of each score, and if there is any, the share of MLPs and the mean layer."""
    found = {}
    for score in map(str, scores.dataset["score"].values):
        frame: Any = scores.components(score)
        positive = frame["value"].clip(lower=0)
        found[score] = mass = float(positive.sum())
        if mass:
            found[f"{score}_mlps"] = float(positive[frame["kind"] == "mlp"].sum()) / mass
            found[f"{score}_layer"] = float((positive * frame["layer"]).sum()) / mass
    return found
