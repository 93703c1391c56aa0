"""Validation of named values by type, and comparison with earlier values."""

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from inspect import signature
from numbers import Integral
from typing import Annotated, Any, ParamSpec, TypeVar

import xxhash
from annotated_types import Ge, Le, Lt, MinLen

from ecstruct.errors import InputError

Text = Annotated[str, MinLen(1)]
Whole = Annotated[int, Ge(-(2**63)), Lt(2**63)]
Count = Annotated[int, Le(10**6)]
"""A number of repetitions. It has no lower bound, as the code that uses it raises a better message."""
Number = Annotated[float, Ge(-1e300), Le(1e300)]
"""Neither NaN nor infinite."""
FASTEST = 1e30
"""The largest learning rate: with a larger one, the optimiser's steps overflow float32."""
Rate = Annotated[float, Ge(-FASTEST), Le(FASTEST)]
Natural = Annotated[int, Ge(0), Lt(2**63)]
Seed = Natural
Threads = Annotated[int, Lt(2**10)]
"""A number of threads. With far more than the bound, a process dies."""

NUMBERS: Mapping[str, Any] = {
    "accumulate": Whole,
    "batch_size": Whole,
    "checkpoint_every": Whole,
    "draws": Count,
    "epochs": Count,
    "memory": Whole,
    "path_steps": Annotated[int, Le(1000)],
    "permutations": Count,
    "random_seeds": Count,
    "repeats": Count,
    "resamples": Count,
    "sample": Count,
    "seed": Seed,
    "seeds": Count,
    "snapshots": Count,
    "steps": Count,
    "top": Whole,
    "verify": Whole,
    "window": Whole,
}
"""The types of integer options by name; a name means the same in every function."""

P = ParamSpec("P")
R = TypeVar("R")


def check_numbers(values: Mapping[str, Any], of: str = "the call") -> None:
    """Check those values that are integers, and ignore all others.

    Raises:
        InputError: an integer is not valid for the option of its name in `NUMBERS`.
    """
    check({name: int(v) for name, v in values.items() if isinstance(v, Integral)}, NUMBERS, of)


def bounded(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function so that `check_numbers` checks its arguments first."""
    names = [*signature(function).parameters]

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        check_numbers({**dict(zip(names, args, strict=False)), **kwargs})
        return function(*args, **kwargs)

    return checked


def or_none(of: Any) -> Any:
    """Return the union of a type and None."""
    return of | None


def check(values: Mapping[str, Any], types: Mapping[str, Any], of: str) -> None:
    """Check values against the types of the same names; values without a type are ignored.

    Raises:
        InputError: a value does not have its type; `of` says in the message where the values come from.
    """
    from pydantic import TypeAdapter, ValidationError  # takes a tenth of a second that no --help needs

    for name in values.keys() & types.keys():
        try:
            TypeAdapter(types[name]).validate_python(values[name], strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where, value = _place(name, values[name], first["loc"])
            said = first["msg"].replace("Input", "it", 1)
            raise InputError(f"{of} has {where}={_shown(value)}: {said[0].lower()}{said[1:]}.") from error


def _place(name: str, value: Any, location: tuple[int | str, ...]) -> tuple[str, Any]:
    """Return the path of an invalid part, and the part; skip pydantic's names for branches of unions."""
    for part in location:
        of_list = isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)
        if of_list or (isinstance(value, Mapping) and part in value):
            key: Any = part
            name, value = f"{name}.{key}", value[key]
    return name, value


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """Describe in words the differences of two mappings.

    >>> list(differences({"lr": 0.1, "of": {"n": 1}}, {"lr": 0.1, "of": {"n": 2}}))
    ['of.n was 1, now 2']
    """
    for key in {**wanted, **found}:
        old, new = found.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from (f"{key}.{each}" for each in differences(old, new))
        elif old != new:
            was, now = shortened(str(old)), shortened(str(new))
            yield f"{key} was {was}, now {now}" if was != now else f"{key} was another"


def checksum(value: Any) -> str:
    """Return the 64-bit XXH3 of what `repr` writes of a value, such as prompts."""
    return xxhash.xxh3_64_hexdigest(repr(value).encode())


def shortened(text: str, most: int = 60) -> str:
    """Shorten a text to `most` characters, for a message."""
    return text if len(text) <= most else f"{text[:most]}..."


def _shown(value: Any) -> str:
    try:
        return shortened(repr(value), 100)
    except ValueError:  # a number of more digits than Python writes
        return "a number of very many digits"
