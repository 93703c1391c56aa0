"""The two-hop facts as the experiments use them: one pairing of people and cities per seed and repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from ecstruct.evaluate import check_rankable
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.training import pairing, train
from ecstruct.facts import PAPER_NAMES, FactSet, Prompt, first_hop, mayors, people, second_hop
from ecstruct.finetuning import Finetuned

HOPS: Mapping[str, str] = MappingProxyType({"first-hop": "first_hop", "second-hop": "second_hop"})
"""The hops, with their names in `Rates` and `results.json`."""

KINDS = ("fact", "implication")

OTHERS = slice(20, 40)
"""Those of the paper's people about whom no experiment teaches facts that it reports on."""

_OTHER_DRAWS = 500
"""The invented people whom no experiment reports on are those of other draws, so many further on."""

_PAPER = MappingProxyType({"first-hop": first_hop, "second-hop": second_hop})
_PEOPLE = MappingProxyType({"first-hop": people, "second-hop": mayors})


def two_hop(
    model: TransformerBridge, setup: Setup, hop: str, seed: int, repeat: int, *, others: bool = False
) -> FactSet:
    """Return the facts and implications of one pairing of people and cities; with `others`, about people
    whom no experiment reports on.

    Raises:
        InputError: the model's tokenizer cannot tell their options apart.
    """
    draw = pairing(seed, repeat)
    if setup.facts == "people":
        data = _PEOPLE[hop](draw + others * _OTHER_DRAWS)
    else:
        data = _PAPER[hop](draw, names=OTHERS if others else PAPER_NAMES)
    check_rankable(model, (*data.facts, *data.implications))
    return data


def by_kind(data: FactSet) -> dict[str, Sequence[Prompt]]:
    """Return the prompts of each of `KINDS`."""
    return {"fact": data.facts, "implication": data.implications}


def rate(setup: Setup, hop: str) -> float:
    """Return the learning rate of a hop's facts."""
    return getattr(setup.rates, HOPS[hop])


def learn_facts(
    model: TransformerBridge, setup: Setup, data: FactSet, hop: str, **options: Any
) -> Finetuned:
    """Finetune on the facts of a hop, at its learning rate; see `train` for options."""
    return train(model, setup, data.facts, lr=rate(setup, hop), **options)
