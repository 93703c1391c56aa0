"""The two sets of two-hop facts as the experiments use them: one pairing per seed and repeat."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from ecstruct.evaluate import check_rankable
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.training import pairing, train
from ecstruct.facts import PAPER_NAMES, FactSet, first_hop, second_hop
from ecstruct.finetuning import Finetuned

HOPS: Mapping[str, str] = MappingProxyType({"first-hop": "first_hop", "second-hop": "second_hop"})
"""The hops, with their names in `Rates` and `results.json`."""

KINDS = ("fact", "implication")

OTHERS = slice(20, 40)
"""Those of the paper's people about whom no experiment teaches facts that it reports on."""

_MAKE = MappingProxyType({"first-hop": first_hop, "second-hop": second_hop})


def two_hop(
    model: TransformerBridge, hop: str, seed: int, repeat: int, names: slice = PAPER_NAMES
) -> FactSet:
    """Return the facts and implications of one pairing of people and cities.

    Raises:
        InputError: the model's tokenizer cannot tell their options apart.
    """
    data = _MAKE[hop](pairing(seed, repeat), names=names)
    check_rankable(model, (*data.facts, *data.implications))
    return data


def rate(setup: Setup, hop: str) -> float:
    """Return the learning rate of a hop's facts."""
    return getattr(setup.rates, HOPS[hop])


def learn_facts(
    model: TransformerBridge, setup: Setup, data: FactSet, hop: str, **options: Any
) -> Finetuned:
    """Finetune on the facts of a hop, at its learning rate; see `train` for options."""
    return train(model, setup, data.facts, lr=rate(setup, hop), **options)
