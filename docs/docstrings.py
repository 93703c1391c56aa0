"""Docstrings as they are written here, for the reference: griffe's Google style, and four things more.

Examples are fenced, so that they are shown as code, and `a, b: text` is said of `a` and of `b`. Experiments
get the arguments that all of them have. Options have their text in their types.
"""

import re
from importlib import import_module
from typing import Any, get_type_hints

import griffe
from typing_extensions import Doc

from ecstruct.experiments.result import explained

_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)
_TOGETHER = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)


def _fenced(found: re.Match[str]) -> str:
    return f"{found[1]}```pycon\n{found[0]}\n{found[1]}```"


def _apart(found: re.Match[str]) -> str:
    return "\n".join(f"{found[1]}{name}: {found[3]}" for name in found[2].split(", "))


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        if attr.docstring or "Doc(" not in str(attr.annotation) or not attr.parent:
            return
        owner = getattr(import_module(attr.module.path), attr.parent.name)
        annotated = get_type_hints(owner, include_extras=True)[attr.name].__metadata__
        text = next(each.documentation for each in annotated if isinstance(each, Doc))
        attr.docstring = griffe.Docstring(text, parent=attr)

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        if isinstance(obj, griffe.Function) and "experiment" in {str(d.value) for d in obj.decorators}:
            obj.docstring.value = explained(obj.docstring.value)
        before, args, after = obj.docstring.value.partition("\nArgs:\n")
        inside, gap, rest = after.partition("\n\n")
        obj.docstring.value = _EXAMPLE.sub(
            _fenced, before + args + _TOGETHER.sub(_apart, inside) + gap + rest
        )
