"""The HTML of reports: Jinja2 templates beside this module, in which all text is escaped."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_TEMPLATES = Environment(
    loader=PackageLoader("ecstruct", "report"),
    autoescape=True,
    trim_blocks=True,
    undefined=StrictUndefined,
)
_TEMPLATES.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}


def render(template: str, **values: Any) -> str:
    """Return the HTML that a template makes of these values; it escapes what it does not mark as safe."""
    return _TEMPLATES.get_template(template).render(values)
