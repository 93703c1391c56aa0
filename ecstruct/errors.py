"""The exceptions that are no faults of ecstruct.

The message is one sentence that names the offending value and the way out. The command line prints it: bad
input ends with status 2, a lost rank with 1.
"""


class InputError(ValueError):
    """Something a caller passed in (a path, a prompt, an option) cannot be used as it is."""


class LostRank(RuntimeError):
    """Another process of a distributed run is gone; `lost` says which."""

    def __init__(self, lost: str) -> None:
        super().__init__(f"{lost}: run the same command again, what is finished is kept")
