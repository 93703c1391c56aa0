"""What finetuning returns."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.models.delta import WeightDelta


@dataclass(frozen=True)
class History:
    """The losses and mean ranks of a finetuning.

    `loss` has the loss of every step, before its update, in nats per answer token. `ranks` has, for every
    set in `evaluate`, the mean rank before training and after each epoch.
    """

    loss: list[float]
    ranks: dict[str, list[float]]
    steps_per_epoch: int

    def to_dict(self) -> dict[str, Any]:
        """Return the history as JSON types."""
        return {
            "loss": list(self.loss),
            "ranks": {name: list(values) for name, values in self.ranks.items()},
            "steps_per_epoch": self.steps_per_epoch,
        }

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per epoch, 0 being before training: its mean `loss` (NaN in epoch 0), and for
        each evaluated set the mean rank after it, as `rank: {name}`."""
        by_epoch = np.reshape(self.loss, (-1, self.steps_per_epoch)).mean(axis=1)
        columns = {"loss": [math.nan, *by_epoch]}
        columns |= {f"rank: {name}": values for name, values in self.ranks.items()}
        return pd.DataFrame(columns, index=pd.RangeIndex(len(by_epoch) + 1, name="epoch"))


@dataclass(frozen=True)
class Finetuned:
    """The result of finetuning: `model` is the trained copy, `delta` its weights minus the original's.
    `config` has all arguments as JSON types: `finetune(before, **config)` repeats the run. With `lora`,
    `adapter` is peft's model, whose `save_pretrained(folder)` writes only the adapter."""

    model: TransformerBridge
    delta: WeightDelta
    history: History
    config: dict[str, Any]
    adapter: Any = None
