"""The one exception for input that ecstruct cannot work with.

Its message is one sentence that names the offending value and the way out. In Python it is a
`ValueError`; the command line prints it and exits with status 2.
"""


class InputError(ValueError):
    """Something a caller passed in (a path, a prompt, an option) cannot be used as it is."""
