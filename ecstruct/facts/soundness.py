"""Check that a prompt can be used, and say in one sentence what is wrong if it cannot."""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ecstruct.errors import InputError
from ecstruct.io.values import shortened


def check_prompt(prompt: Any) -> None:
    """Raise `InputError` if a `Prompt` cannot be used; its values may be of any type."""
    text, answer, options, subject = prompt.text, prompt.answer, prompt.options, prompt.subject
    space = prompt.space
    _check_string(text, "the text of a prompt")
    if not isinstance(space, bool):
        raise InputError(f"space of the prompt {shown(text)} is {shown(space)}: it must be True or False.")
    if prompt.second is None and text != text.rstrip() and (space or text.endswith(" ")):
        other = "" if text.endswith(" ") else ", or say space=False if the answer follows without one"
        raise InputError(
            f"the prompt {shown(text)} ends with whitespace, but a space is put before its answer "
            f"anyway: write {shown(text.rstrip())}{other}."
            if space
            else f"the prompt {shown(text)} ends with a space, which is part of the answer's first token: "
            f"write {shown(text.rstrip(' '))}, and leave space=False out."
        )
    where = f"of the prompt {shown(text)}"
    _check_answer(answer, f"the answer {where}")
    if options is not None:
        _check_options(options, answer, where)
    if subject is not None:
        _check_string(subject, f"the subject {where}")
        if subject not in text and composed(subject) in composed(text):
            raise InputError(
                f"the subject {_ascii(subject)} occurs in the prompt {_ascii(text)} in another Unicode "
                f"normal form only, which looks the same: {_NORMALISE}."
            )
        if subject not in text:
            raise InputError(
                f"the subject {shown(subject)} does not occur in the prompt {shown(text)}: write it as "
                "the text does, or leave it out."
            )
    if prompt.template is not None:
        _check_string(prompt.template, f"the template label {where}")
    if prompt.aliases != ():
        _check_aliases(prompt.aliases, answer, options, where)
    if prompt.wrapper is not None:
        _check_wrapper(prompt.wrapper, where)
    if prompt.second is not None:
        _check_string(prompt.second, f"the second text {where}")


def _check_options(options: Any, answer: str, where: str) -> None:
    if isinstance(options, str) or not isinstance(options, Sequence):
        raise InputError(f"the options {where} are {shown(options)}: they must be a list of strings.")
    options = tuple(options)
    if not sound(options):
        _check_each_option(options, where)
    if answer not in sound(options):
        if other := next((option for option in options if composed(option) == composed(answer)), None):
            raise InputError(_in_two_forms(f"the answer {{}} {where} and its option", answer, other))
        raise InputError(
            f"the answer {shown(answer)} {where} is not among its options {enumerated(options)}: add it to "
            "options=."
        )


def sound(options: tuple[Any, ...]) -> frozenset[str]:
    """Return the set of the options if they can be used, and otherwise the empty set."""
    try:
        return _sound_options(options)
    except TypeError:  # a value without a hash is not a string
        return frozenset()


@lru_cache(maxsize=64)  # thousands of prompts share their options
def _sound_options(options: tuple[Any, ...]) -> frozenset[str]:
    try:
        _check_each_option(options, "")
    except InputError:
        return frozenset()
    return frozenset(options)


def _check_each_option(options: tuple[Any, ...], where: str) -> None:
    for option in options:
        _check_answer(option, f"an option {where}")
    if len(options) < 2:
        raise InputError(
            f"the options {where} are only {list(options)!r}: pass at least two in options=, or "
            "none to take all answers of the set."
        )
    _check_once(options, f"the option {{}} {where}")
    by_form: dict[str, str] = {}
    for option in options:
        if (other := by_form.setdefault(composed(option), option)) != option:
            raise InputError(_in_two_forms(f"the option {{}} {where} and", option, other))


def _check_aliases(aliases: Any, answer: str, options: Any, where: str) -> None:
    if isinstance(aliases, str) or not isinstance(aliases, Sequence):
        raise InputError(f"the aliases {where} are {shown(aliases)}: they must be a list of strings.")
    for alias in aliases:
        _check_answer(alias, f"an alias {where}")
        if alias == answer or (options is not None and alias in sound(tuple(options))):
            raise InputError(
                f"the alias {shown(alias)} {where} is one of its options or the answer itself: leave it "
                "out of one of the two."
            )
    _check_once(aliases, f"the alias {{}} {where}")


def _check_wrapper(wrapper: Any, where: str) -> None:
    if isinstance(wrapper, str) or not isinstance(wrapper, Sequence) or len(wrapper) != 2:
        raise InputError(
            f"the wrapper {where} is {shown(wrapper)}: it must be two strings, what comes before the text "
            "and what between it and the answer."
        )
    for part in wrapper:
        _check_text(part, f"a part of the wrapper {where}")


def _check_once(values: Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise InputError(f"{what.replace('{}', shown(value), 1)} is there twice: remove one.")
        seen.add(value)


def enumerated(values: Sequence[str], most: int = 5) -> str:
    some = ", ".join(map(shown, values[:most]))
    return some if len(values) <= most else f"{some}, ... ({len(values)} in all)"


def _check_answer(value: Any, what: str) -> None:
    _check_string(value, what)
    if value != value.strip():
        raise InputError(
            f"{what}, {shown(value)}, begins or ends with whitespace, which is no part of it: write "
            f"{shown(value.strip())}; what comes before it is the prompt's to say."
        )


def _check_string(value: Any, what: str) -> None:
    if isinstance(value, str) and not value.strip():
        raise InputError(f"{what} is empty ({shown(value)}): it must have at least one word.")
    _check_text(value, what)


def _check_text(value: Any, what: str) -> None:
    if not isinstance(value, str):
        raise InputError(f"{what} is {shown(value)}, of type {type(value).__name__}: it must be a string.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what}, {shown(value)}, holds half of a surrogate pair, which is no character: remove it."
        ) from error


_NORMALISE = "write all texts in one form, as unicodedata.normalize('NFC', text) does"


def composed(text: str) -> str:
    """Return a text in the normal form NFC. Without it, texts that look the same may differ in accents."""
    return unicodedata.normalize("NFC", text)


def _in_two_forms(what: str, value: str, other: str) -> str:
    told = f"{what.replace('{}', _ascii(value), 1)} {_ascii(other)}"
    return f"{told} differ in their Unicode normal form only, and look the same: {_NORMALISE}."


def _ascii(text: str) -> str:
    return ascii(shortened(text, 200))


def shown(value: Any, most: int = 200) -> str:
    """Return a value as errors show it, cut off after `most` characters."""
    text = repr(value if not isinstance(value, str) else value[: most + 1])
    return text if len(text) <= most + 2 else f"{text[:most]}..."
