"""Figures as files: pictures through kaleido (an optional extra), HTML through nothing else."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import plotly.graph_objects as go

from ecstruct.errors import InputError
from ecstruct.io.files import write_atomically

PICTURES = (".png", ".svg", ".pdf")


def save_figure(fig: go.Figure, path: str | os.PathLike[str], *, scale: float = 2.0) -> None:
    """Write a figure as PNG, SVG, PDF or HTML, as the path's suffix says, whole or not at all.

    HTML is self-contained and opens offline.

    Args:
        scale: Pixels of a PNG per pixel of the figure; SVG and PDF have the figure's own size, 96
            pixels to the inch.

    Raises:
        InputError: The suffix is another one, there is no kaleido or no Chrome to draw a picture, Chrome
            does not answer, or the path cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".html":
        page = fig.to_html(include_plotlyjs=True, include_mathjax=False)
        write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    elif suffix in PICTURES:
        data = _picture(fig, suffix[1:], scale if suffix == ".png" else 1.0)
        write_atomically(path, lambda temporary: temporary.write_bytes(data))
    else:
        known = ", ".join((*PICTURES, ".html"))
        raise InputError(f"cannot write a figure to {path}: its suffix is not one of {known}")


def _picture(fig: go.Figure, file_format: str, scale: float) -> bytes:
    """Return the bytes of a picture that kaleido draws."""
    try:
        importlib.import_module("kaleido")
        errors = importlib.import_module("kaleido.errors")
    except ImportError:
        raise InputError(
            f"{file_format.upper()} export needs kaleido, which is not installed; `pip install kaleido`, "
            "or write .html, which needs nothing"
        ) from None
    try:
        return fig.to_image(format=file_format, scale=scale)
    except TimeoutError as error:
        raise InputError(
            f"{file_format.upper()} export through kaleido got no answer from Chrome in time; try again "
            "when the machine is less busy, or write .html, which needs nothing"
        ) from error
    except (RuntimeError, errors.BrowserFailedError, errors.BrowserClosedError) as error:
        raise InputError(
            f"{file_format.upper()} export through kaleido found no Chrome that runs; install Chrome or "
            "Chromium, or run `plotly_get_chrome`, or write .html, which needs nothing"
        ) from error
