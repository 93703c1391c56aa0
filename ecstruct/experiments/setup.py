"""What an experiment runs on: a model, how it is finetuned, and how many seeds and repeats there are.

`Setup()` is the organism as it was measured; `Setup("allenai/OLMo-7B-0424-hf@step477000-tokens2000B")` is
the paper's own model. A setup consists of JSON types, so that it can be replayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from ecstruct.errors import InputError
from ecstruct.io.values import FASTEST, Count, Number, Rate, Text, Whole, check, check_numbers

Facts = Literal["paper", "people"]
"""Whom the facts are about: the paper's people, or invented ones with unusual names."""

PAPER_MODEL = "allenai/OLMo-7B-0424-hf"
"""The model of the paper's main text, which takes it at step 477000 of its pretraining."""


@dataclass(frozen=True)
class Rates:
    """Learning rates, one for each thing that is learnt, each chosen on people whom no experiment uses.

    Attributes:
        first_hop, second_hop: the 20 two-hop facts.
        continued: the 80 fictitious facts and implications, in continued pretraining.
        test: the 20 fictitious test facts, after that.
    """

    first_hop: float
    second_hop: float
    continued: float
    test: float

    @classmethod
    def same(cls, lr: float) -> Rates:
        """Use one rate for everything, as in the paper."""
        return cls(lr, lr, lr, lr)


RATES: Mapping[str, Rates] = {
    "organism": Rates(first_hop=2.3e-4, second_hop=4e-4, continued=2e-3, test=1e-3),
    "smollm2": Rates(first_hop=7e-5, second_hop=1.4e-4, continued=1e-4, test=1e-4),
    PAPER_MODEL: Rates.same(3e-6),
    "meta-llama/Meta-Llama-3-8B": Rates.same(1e-5),
    "google/gemma-2-9b": Rates.same(1e-5),
    "Qwen/Qwen2-7B": Rates.same(1e-5),
    "meta-llama/Llama-3.2-1B": Rates.same(1e-5),
}
"""Known learning rates by model, for 8 epochs, those of SmolLM2 for 16. docs/reproduce.md says how each was
chosen."""


@dataclass(frozen=True)
class Words:
    """Templates of the fictitious prompts, with `{name}` in place of the person."""

    fact: str
    implication: str


NOVEL = Words("{name} dax", "{name} zong is the")
"""The paper's words: both relations are new to the model."""


_DEPENDS_ON_MODEL: Any = None
"""Marks a default that depends on the model and is filled in when a setup is made."""

_IN_FILES: Mapping[str, Any] = {"rates": dict[str, Rate], "known": dict[str, Text]}
"""The types of values that a setup has in another form when it comes from a file."""


@dataclass(frozen=True)
class Setup:
    """A model and how the experiments treat it.

    Attributes:
        model: any text that `ecstruct.load` takes. With `"organism"`, every seed is an organism of its own:
            seed 0 is the shipped one, the others are pretrained when they are first needed.
        seeds: a number for seeds 0 to `seeds` - 1, or the seeds themselves. A seed fixes who is paired
            with what, and the order of the data.
        repeats: pairings per seed. A result first averages over the pairings of a seed.
        rates: learning rates; those of `RATES` by default.
        own_rates: whether an organism other than the shipped one gets rates that are chosen for it
            (`ecstruct.experiments.choice`), on a grid around `rates`; true unless `rates` are given.
        epochs: how often every document is seen.
        batch_size: documents per step.
        early: share of the layers that count as early; 2/3, for the paper's model 3/4.
        known: prompts whose fact relation the model knows from pretraining; the relation of the
            implication is new.
        facts: whom the facts are about: `"paper"` for the paper's people, or `"people"` for invented ones
            with unusual names (`ecstruct.facts.people`), by default if the model is SmolLM2, which does not
            learn implications about common names.
        device: the model's device; a GPU if there is one.

    Raises:
        InputError: a value out of range, or no learning rate is known for the model.
    """

    model: Text = "organism"
    seeds: Count | Sequence[Whole] = 1
    repeats: Count = 5
    rates: Rates = _DEPENDS_ON_MODEL
    own_rates: bool = _DEPENDS_ON_MODEL
    epochs: Count = 8
    batch_size: Whole = 8
    early: Number = _DEPENDS_ON_MODEL
    known: Words = Words("{name} lives in", "{name} zong is the")
    facts: Facts = _DEPENDS_ON_MODEL
    device: Text | None = None

    def __post_init__(self) -> None:
        source = self.model.split("@")[0]
        organism = source == "organism"
        defaults = {
            "own_rates": organism and self.rates is None,
            "rates": RATES.get(source),
            "early": 3 / 4 if source == PAPER_MODEL else 2 / 3,
            "facts": "people" if source == "smollm2" else "paper",
        }
        given = {name: default for name, default in defaults.items() if getattr(self, name) is None}
        if isinstance(self.seeds, Sequence):
            given["seeds"] = _checked_seeds(self.seeds)
        for name, value in given.items():
            object.__setattr__(self, name, value)
        counts = ("repeats", "epochs", "batch_size", "seeds")
        check_numbers({name: getattr(self, name) for name in counts}, "the setup")
        for name in counts:
            value = getattr(self, name)
            if not isinstance(value, tuple) and value < 1:
                raise InputError(f"{name}={value} runs nothing: use 1 or more.")
        if self.own_rates and not organism:
            raise InputError(
                f"own_rates is for organisms, which differ by seed, and {self.model} does not: give its "
                "rates, such as the experiment `rates` chooses."
            )
        if self.rates is None:
            raise InputError(
                f"no learning rates are known for {self.model}: pass rates=, for example "
                "Rates.same(1e-5), or --lr 1e-5."
            )
        for lr in asdict(self.rates).values():
            if not 0 < lr <= FASTEST:
                raise InputError(f"lr={lr} is no learning rate: use a positive number such as 1e-5.")
        if self.facts not in get_args(Facts):
            raise InputError(f"facts={self.facts!r} is unknown: choose among {', '.join(get_args(Facts))}.")
        if not 0 < self.early < 1:
            raise InputError(
                f"early={self.early} leaves no early or no late layers: use a share such as 0.67."
            )

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds that are run, as a tuple."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else tuple(self.seeds)

    def early_and_late(self, n_layers: int) -> tuple[range, range]:
        """Return the early layers (the share `early`, at least one layer and not all) and the late ones.

        Raises:
            InputError: the model has a single layer, which cannot be both early and late.
        """
        if n_layers < 2:
            raise InputError(f"{self.model} has {n_layers} layer: early and late ones need 2 or more.")
        boundary = min(max(1, round(self.early * n_layers)), n_layers - 1)
        return range(boundary), range(boundary, n_layers)

    def scaled(self, factor: float) -> Setup:
        """Return the setup with all learning rates multiplied by `factor`."""
        return replace(self, rates=Rates(*(factor * lr for lr in asdict(self.rates).values())))

    def to_dict(self) -> dict[str, Any]:
        """Return the setup as JSON types, which `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Setup:
        """Build a setup from what `to_dict` returns.

        Raises:
            InputError: an unknown key, or a value of the wrong type or out of range.
        """
        defaults = {field.name: field.default for field in fields(cls)}
        if unknown := sorted(set(given) - set(defaults)):
            raise InputError(f"{unknown[0]!r} is no part of a setup: leave it out.")
        # Where a default depends on the model, None stands for it.
        parts = {name: value for name, value in given.items() if (value, defaults[name]) != (None, None)}
        types = {**get_type_hints(cls, include_extras=True), **_IN_FILES}
        check(parts, types, "this is no setup: it")
        try:
            for name, form in {"rates": Rates, "known": Words}.items():
                if name in parts:
                    parts[name] = form(**parts[name])
            return cls(**parts)
        except (TypeError, AttributeError) as error:
            raise InputError(f"this is no setup ({error}): write one as to_dict does.") from error


def organisms_only(setup: Setup | None, name: str) -> Setup:
    """Return the setup, or the default one, of an experiment that pretrains its models.

    Raises:
        InputError: the setup is not about organisms, the only models that can be pretrained here.
    """
    setup = setup or Setup()
    if setup.model != "organism":
        raise InputError(
            f"{name} pretrains its models, and {setup.model!r} is pretrained already: use "
            'Setup("organism").'
        )
    return setup


def _checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    if not all(isinstance(seed, int) for seed in seeds):
        raise TypeError(f"seeds are numbers, not {seeds!r}")
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds={list(seeds)} cannot be run: name different seeds, from 0 on.")
    check_numbers({"seed": max(seeds)}, "the setup")
    return tuple(seeds)
