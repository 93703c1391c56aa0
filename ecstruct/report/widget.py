"""The explorer of a report as a widget, in Jupyter, Colab, marimo and VS Code."""

from __future__ import annotations

from typing import Any

from ecstruct.errors import InputError
from ecstruct.report.explorer import Explorer
from ecstruct.report.page import Section, report_html
from ecstruct.scores.result import ExtractiveScores

_SCRIPT = """
function render({ model, el }) {
  const frame = document.createElement("iframe");
  frame.setAttribute("sandbox", "allow-scripts allow-downloads");
  frame.style.cssText = `width: 100%; height: ${model.get("height")}px; border: 0`;
  frame.srcdoc = model.get("page");
  const told = ({ data, source }) => {
    if (source !== frame.contentWindow || !data.explorer) return;
    model.set("chosen", data.explorer);
    model.save_changes();
  };
  addEventListener("message", told);
  el.append(frame);
  return () => removeEventListener("message", told);
}
export default { render };
"""


def explore(scores: ExtractiveScores, *, height: int = 760) -> Any:
    """Return a widget to look through scores: any prompt, or the mean of a template's, layer by token, and
    the heads of any cell.

    It shows the page that a report has, in a frame of its own, without a network. `widget.chosen` says what
    is looked at: the `prompts`, `score`, `layer`, `token` and `part` ("MLP" or "attention"). It changes
    with that; `widget.observe(function, "chosen")` calls a function then.

    Args:
        height: the height of the widget in pixels.

    Raises:
        InputError: anywidget is not installed.
    """
    try:
        import anywidget  # of the extra "notebook"
        import traitlets
    except ImportError as error:
        raise InputError(
            "a widget needs the package anywidget: pip install anywidget, or look at scores.heatmap()."
        ) from error

    class Widget(anywidget.AnyWidget):
        _esm = _SCRIPT
        page = traitlets.Unicode().tag(sync=True)
        height = traitlets.Int().tag(sync=True)
        chosen = traitlets.Dict().tag(sync=True)

    section = Section("Which layer, at which token", [Explorer(scores)])
    page = report_html(title="Extractive scores", summary=repr(scores)[1:-1], sections=[section])
    return Widget(page=page, height=height)
