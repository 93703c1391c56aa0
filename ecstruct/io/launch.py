"""What `torchrun` and `accelerate launch` say to the processes of one command, in their environment."""

import os

from ecstruct.errors import InputError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether this process is one of several that a launcher started.

    Raises:
        InputError: what the environment says of it cannot be.
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
    """Whether this process writes what its command writes."""
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
