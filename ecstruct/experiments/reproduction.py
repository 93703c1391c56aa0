"""All experiments by name, and a function that runs several of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ecstruct.errors import InputError
from ecstruct.experiments.beyond import built_in, domains, editing, origin, prompts, shortcut, spurious
from ecstruct.experiments.beyond.facts_that_generalise import generalisation
from ecstruct.experiments.data_ordering import ordering
from ecstruct.experiments.extractive_scores import scores
from ecstruct.experiments.graft_localization import localization
from ecstruct.experiments.layer_freezing import freezing
from ecstruct.experiments.learning_rates import rates
from ecstruct.experiments.out_of_context import ocr
from ecstruct.experiments.rate_sensitivity import sensitivity
from ecstruct.experiments.result import Result, option_types
from ecstruct.experiments.setup import Setup
from ecstruct.experiments.sweep import Folder, Sweep
from ecstruct.experiments.weight_grafting import grafting
from ecstruct.io.values import check

Experiments = Mapping[str, Callable[..., Result]]


def _by_name(*experiments: Callable[..., Result]) -> Experiments:
    return MappingProxyType({run.__name__: run for run in experiments})


EXPERIMENTS = _by_name(ocr, scores, freezing, ordering, grafting, localization, sensitivity)
"""The paper's experiments, in its order."""

BEYOND = _by_name(built_in, origin, shortcut, domains, prompts, editing, spurious)
"""The experiments that go beyond the paper; see `ecstruct.experiments.beyond`."""

PRETRAINED = _by_name(generalisation)
"""The experiments that need a model that was pretrained on real text; no set of others has them."""

_SETS = {"all": [*EXPERIMENTS], "beyond": [*BEYOND]}


def reproduce(
    names: Sequence[str],
    setup: Setup | None = None,
    options: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    *,
    out: Folder = None,
    progress: bool = True,
) -> Iterator[Result]:
    """Run experiments one after the other, and yield each result as soon as it is finished.

    Names and folder are checked at once; an experiment runs when its result is requested.

    Args:
        names: names from `EXPERIMENTS`, `BEYOND` or `PRETRAINED`, `"rates"`, or `"all"` and `"beyond"` for
            all of a kind.
        options: further arguments by experiment, as `option_types` lists them.
        setup, out, progress: as for the experiments.

    Raises:
        InputError: an unknown experiment, an option that is unknown or has the wrong type, a model or
            folder that cannot be used.
    """
    chosen = named(names, options)
    Sweep(setup or Setup(), out, progress)
    return (run(setup, **options.get(name, {}), out=out, progress=progress) for name, run in chosen.items())


def named(
    names: Sequence[str], options: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> dict[str, Callable[..., Result]]:
    """Return the experiments that `reproduce` runs for these names, in their order.

    Raises:
        InputError: an unknown experiment, an option that is unknown or has the wrong type.
    """
    runs = {**EXPERIMENTS, **BEYOND, **PRETRAINED, "rates": rates}
    known = ", ".join([*runs, *_SETS])
    chosen = list(dict.fromkeys(each for name in names for each in _SETS.get(name, [name])))
    for name in chosen:
        if name not in runs:
            raise InputError(f"there is no experiment {name!r}: choose among {known}.")
    if not chosen:
        raise InputError(f"no experiment is named: choose among {known}.")
    for name, arguments in options.items():
        types = option_types(runs[name]) if name in chosen else {}
        if unknown := sorted(arguments.keys() - types.keys(), key=str):
            raise InputError(f"{name} does not run with the option {unknown[0]!r}: leave it out.")
        check(arguments, types, name)
    return {name: runs[name] for name in chosen}
