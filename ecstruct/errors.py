"""The exceptions that do not indicate a bug in ecstruct.

The message is one sentence that names the offending value and the remedy. The command line prints it and
exits with status 2 for bad input, 1 for a lost rank.
"""


class InputError(ValueError):
    """Something a caller passed in (a path, a prompt, an option) cannot be used as it is."""


class LostRank(RuntimeError):
    """Another process of a distributed run is gone; `lost` says which, as in "rank 1 of 4 died"."""

    def __init__(self, lost: str) -> None:
        super().__init__(f"{lost}: run the same command again, what is finished is kept")
