"""The environment variables that `torchrun` and `accelerate launch` set for a command's processes."""

import os

from ecstruct.errors import InputError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Return whether this process is one of several that a launcher started.

    Raises:
        InputError: the environment variables have impossible values.
    """
    if not all(os.environ.get(name) for name in NEEDED):
        return False
    size = _number("WORLD_SIZE", 1, 10**6)
    if size == 1:
        return False
    _number("RANK", 0, size - 1)
    _number("LOCAL_RANK", 0, size - 1)
    _number("MASTER_PORT", 1, 2**16 - 1)
    return True


def writes() -> bool:
    """Return whether this process writes the files of its command."""
    return not launched() or _number("RANK", 0, 10**6) == 0


def _number(name: str, least: int, most: int) -> int:
    said = os.environ.get(name, "0")
    number = int(said) if said.isdecimal() and len(said) < 10 else -1
    if not least <= number <= most:
        raise InputError(
            f"the environment says {name}={said[:60]!r}, which is no number from {least} to {most}: start "
            f"the processes with torchrun, or unset {', '.join(NEEDED)}."
        )
    return number
