"""What finetuning returns."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.models.bridge import named_weights
from ecstruct.models.delta import WeightDelta
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.provenance import source_of


@dataclass(frozen=True)
class History:
    """What happened during finetuning.

    `loss`: of every step, in nats per answer token, before the step. `ranks`: for every set that
    `evaluate` names its mean rank before training and after each epoch.
    """

    loss: list[float]
    ranks: dict[str, list[float]]
    steps_per_epoch: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "loss": list(self.loss),
            "ranks": {name: list(values) for name, values in self.ranks.items()},
            "steps_per_epoch": self.steps_per_epoch,
        }

    def to_dataframe(self) -> pd.DataFrame:
        """One row per epoch, 0 being before training: its mean `loss` (NaN in epoch 0), and for
        each evaluated set the mean rank after it, as `rank: {name}`."""
        by_epoch = np.reshape(self.loss, (-1, self.steps_per_epoch)).mean(axis=1)
        columns = {"loss": [math.nan, *by_epoch]}
        columns |= {f"rank: {name}": values for name, values in self.ranks.items()}
        return pd.DataFrame(columns, index=pd.RangeIndex(len(by_epoch) + 1, name="epoch"))


def delta_of(
    changes: Mapping[str, Tensor], before: str, before_fingerprint: str, after: TransformerBridge
) -> WeightDelta:
    """What `WeightDelta.between` makes of two models, where they are not both at hand."""
    metadata = {
        "before": before,
        "after": source_of(after),
        "before_fingerprint": before_fingerprint,
        "after_fingerprint": fingerprint(named_weights(after)),
    }
    return WeightDelta({name: change for name, change in changes.items() if change.any()}, metadata)


@dataclass(frozen=True)
class Finetuned:
    """`model` is the trained copy, `delta` its weights minus those it started from; `config` has
    all arguments in JSON types: `finetune(before, **config)` does it again. With `lora`, `adapter` is
    peft's model, whose `save_pretrained(folder)` writes the adapter alone."""

    model: TransformerBridge
    delta: WeightDelta
    history: History
    config: dict[str, Any]
    adapter: Any = None
