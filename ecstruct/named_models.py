"""Models that a name stands for, such as `"organism"`, and what is known about them.

`ecstruct/__init__.py` registers them by functions, which are called when a model is first asked for. So
`load` knows the organism without importing its package, and `import ecstruct` does not import torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class NamedModel:
    """A model that a name stands for. `locate` returns its folder, fetched if need be, and how the weights
    in it were converted (`""` if they were not). `learning_rate` is the default for finetuning it.
    `texts` returns, by subject, what its pretraining data says; `Attributes.of_organism` reads this."""

    locate: Callable[[], tuple[Path, str]]
    learning_rate: float
    texts: Callable[..., Mapping[str, list[str]]] | None = None


_REGISTERED: dict[str, Callable[[], NamedModel]] = {}


def register(name: str, make: Callable[[], NamedModel]) -> None:
    """Let `name` stand for the model that `make` returns."""
    _REGISTERED[name] = make


def names() -> tuple[str, ...]:
    """Return the names of all registered models, in the order of their registration."""
    return tuple(_REGISTERED)


def named(name: str) -> NamedModel | None:
    """Return the model that a name stands for, `None` if it stands for none."""
    make = _REGISTERED.get(name)
    return make() if make else None
