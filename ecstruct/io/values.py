"""Values by name, against the types that they must have and against what they were."""

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from inspect import signature
from numbers import Integral
from typing import Annotated, Any, ParamSpec, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from ecstruct.errors import InputError

Text = Annotated[str, Field(min_length=1)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Count = Annotated[int, Field(le=10**6)]
"""How often something is done: what is too small has a better message where it is used."""
Number = Annotated[float, Field(strict=True, ge=-1e300, le=1e300)]
"""Neither NaN nor infinite."""
FASTEST = 1e30
"""Of learning rates: what an optimiser makes of a larger one is beyond numbers of 32 bits."""
Rate = Annotated[float, Field(strict=True, ge=-FASTEST, le=FASTEST)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Threads = Annotated[int, Field(lt=2**10)]
"""With far more of them, a process dies."""

NUMBERS: Mapping[str, Any] = {
    "accumulate": Whole,
    "batch_size": Whole,
    "checkpoint_every": Whole,
    "draws": Count,
    "epochs": Count,
    "memory": Whole,
    "path_steps": Annotated[int, Field(le=1000)],
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
"""Of options that are whole numbers, by name: they mean the same wherever they are."""

P = ParamSpec("P")
R = TypeVar("R")


def check_numbers(values: Mapping[str, Any], of: str = "the call") -> None:
    """Check those values that are whole numbers; all others are for others to check.

    Raises:
        InputError: a number that an option of its name, among `NUMBERS`, cannot be.
    """
    check({name: int(v) for name, v in values.items() if isinstance(v, Integral)}, NUMBERS, of)


def bounded(function: Callable[P, R]) -> Callable[P, R]:
    """The function, its arguments being checked by `check_numbers` first."""
    names = [*signature(function).parameters]

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        check_numbers({**dict(zip(names, args, strict=False)), **kwargs})
        return function(*args, **kwargs)

    return checked


def or_none(of: Any) -> Any:
    """A type, or nothing."""
    return of | None


def check(values: Mapping[str, Any], types: Mapping[str, Any], of: str) -> None:
    """Values that are not among the types are for others to check.

    Raises:
        InputError: a value is of another type than that of its name; `of` says where they come from.
    """
    for name in values.keys() & types.keys():
        try:
            TypeAdapter(types[name]).validate_python(values[name], strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where, value = _place(name, values[name], first["loc"])
            said = first["msg"].replace("Input", "it", 1)
            raise InputError(f"{of} has {where}={_shown(value)}: {said[0].lower()}{said[1:]}.") from error


def _place(name: str, value: Any, location: tuple[int | str, ...]) -> tuple[str, Any]:
    """Where in a value something is wrong, and what is there; pydantic names branches of types, too."""
    for part in location:
        of_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if of_list or (isinstance(value, Mapping) and part in value):
            key: Any = part
            name, value = f"{name}.{key}", value[key]
    return name, value


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """What is not the same in two mappings, in words.

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


def shortened(text: str, most: int = 60) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= most else f"{text[:most]}..."


def _shown(value: Any) -> str:
    try:
        return shortened(repr(value), 100)
    except ValueError:  # a number of more digits than Python writes
        return "a number of very many digits"
