"""Windows of layers around each layer, as attention knockout blocks them."""

from ecstruct.errors import InputError


def windows(n_layers: int, size: int) -> list[range]:
    """The layers of the window of every layer l: max(0, l - size // 2) up to, not including,
    min(n_layers, l + ceil(size / 2)).

    Inside, a window has `size` layers, of which l is the middle one, or the later of two. Near the ends it
    is cut off: those of the first and of the last layer have about half as many, and as they block less,
    they have less of an effect.

    Raises:
        InputError: a window without layers, or of more than there are.

    >>> [(w.start, w.stop) for w in windows(6, 3)]
    [(0, 2), (0, 3), (1, 4), (2, 5), (3, 6), (4, 6)]
    """
    if not 1 <= size <= n_layers:
        raise InputError(f"window={size}: the model has {n_layers} layers, use 1 to {n_layers} of them.")
    return [
        range(max(0, layer - size // 2), min(n_layers, layer + (size + 1) // 2))
        for layer in range(n_layers)
    ]
