"""A prompt, its answer, and the answers it is told apart from.

A prompt is a text that a language model is to continue with an answer, after one space: "Grace
Miller lives in", "Tokyo". Its `options` are the answers the right one is ranked among, the right
one included.

Everywhere in ecstruct, prompts may be given as `Prompt`s, as (text, answer) pairs, as a
`datasets.Dataset`, or as a JSONL file; `as_prompts` makes one of them all. A record, that is a row
of a dataset or a line of a file, has the keys `prompt` and `answer` and optionally `options`,
`subject`, `template` and `aliases`; other keys are ignored.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets

from ecstruct.errors import InputError
from ecstruct.files import write_atomically

_KEYS = ("prompt", "answer", "options", "subject", "template", "aliases")


@dataclass(frozen=True)
class Prompt:
    """A text to be continued by an answer.

    `options`: the answers to choose among, `answer` one of them; kept as a tuple. Without options,
    `as_prompts` takes the answers of the whole set. `subject`: the words of the text that the fact
    is about. `template`: a label shared by the prompts that differ in their entity only, and that
    are aligned with one another token by token. `aliases`: other wordings of the answer, none of
    them an option; a rank is the best of the answer's and theirs, and all else is about the answer.

    Raises:
        InputError: a value is empty, of the wrong type or does not go with the others.

    >>> Prompt("Grace Miller lives in", "Tokyo", options=["Tokyo", "Paris"]).options
    ('Tokyo', 'Paris')
    """

    text: str
    answer: str
    options: Sequence[str] | None = None
    subject: str | None = None
    template: str | None = None
    aliases: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check(self.text, self.answer, self.options, self.subject, self.template, self.aliases)
        if self.options is not None:
            object.__setattr__(self, "options", tuple(self.options))
        object.__setattr__(self, "aliases", tuple(self.aliases))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Prompt":
        """The prompt of a record, the inverse of `to_record`."""
        for key in ("prompt", "answer"):
            if key not in record:
                keys = _listed(list(record)) or "(none)"
                raise InputError(
                    f"there is no {key!r} among the keys {keys}: it needs 'prompt' and 'answer'."
                )
        values: list[Any] = [record.get(key) for key in _KEYS]
        values[-1] = () if values[-1] is None else values[-1]
        _check(*values)  # a record's values are of any type, a prompt's are not
        return cls(*values)

    def to_record(self) -> dict[str, Any]:
        """The prompt as a record; what it was not given is left out."""
        options = None if self.options is None else list(self.options)
        values = (self.text, self.answer, options, self.subject, self.template, list(self.aliases) or None)
        return {k: v for k, v in zip(_KEYS, values, strict=True) if v is not None}


PromptsLike = (
    Sequence[Prompt]
    | Sequence[tuple[str, str]]
    | Sequence[Mapping[str, Any]]
    | datasets.Dataset
    | str
    | os.PathLike[str]
)
"""What `as_prompts` takes."""


def as_prompts(prompts: PromptsLike) -> tuple[Prompt, ...]:
    """Prompts from a sequence of `Prompt`s, (text, answer) pairs or records, from a
    `datasets.Dataset`, or from the path of a JSONL file.

    A prompt without options gets all distinct answers of the set, in order of first appearance,
    without its own aliases; it stays without when that is only one.

    Raises:
        InputError: there are no prompts, or something is none; its place is named.

    >>> as_prompts([("Mia Sanders lives in", "Tokyo"), ("Noah Clark lives in", "Paris")])[0].options
    ('Tokyo', 'Paris')
    """
    if isinstance(prompts, str | os.PathLike):
        read = read_jsonl(prompts)
    elif isinstance(prompts, datasets.Dataset):
        read = _from_rows(prompts, "row {} of the dataset")
    elif isinstance(prompts, Sequence):
        read = _from_rows(prompts, "prompt {}")
    else:
        parts = [".facts", ".implications"] if hasattr(prompts, "facts") else []
        if isinstance(prompts, Mapping):
            parts = [f"[{key!r}]" for key in prompts]
        hint = f"; what it holds is under {' and '.join(parts)}" if parts else ""
        raise InputError(
            f"a {type(prompts).__name__} is no list of prompts: pass a list of ecstruct.Prompt or "
            f"of (text, answer) pairs, a datasets.Dataset, or the path of a JSONL file{hint}."
        )
    if not read:
        raise InputError("the list of prompts is empty: pass at least one prompt.")
    answers = tuple(dict.fromkeys(prompt.answer for prompt in read))
    return tuple(p if p.options is not None else with_options(p, answers) for p in read)


def with_options(prompt: Prompt, answers: tuple[str, ...]) -> Prompt:
    """The prompt with those of the answers that are no aliases of its own as options, and without
    options when its own answer is all that is left."""
    # One tuple for many prompts costs no memory, and is checked once.
    shared = not prompt.aliases or _sound(answers).isdisjoint(prompt.aliases)
    options = answers if shared else tuple(a for a in answers if a not in prompt.aliases)
    return replace(prompt, options=options if len(options) > 1 else None)


def read_jsonl(path: str | os.PathLike[str]) -> tuple[Prompt, ...]:
    """The prompts of a JSONL file: one JSON object a line, UTF-8, blank lines skipped.

    Raises:
        InputError: the file cannot be read or is empty, or a line is malformed; file and line are
            named.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"the prompt file {path} cannot be read ({error.strerror}): check the path."
        ) from error
    prompts = []
    # Lines are split at line feeds only: JSON strings may hold any other line separator as it is.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            prompts.append(Prompt.from_record(_json_object(line)))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    if not prompts:
        raise InputError(
            f"the prompt file {path} is empty: write one object with 'prompt' and 'answer' a line."
        )
    return tuple(prompts)


def write_jsonl(prompts: Iterable[Prompt], path: str | os.PathLike[str]) -> None:
    """Write prompts as JSONL, all or nothing: an existing file is replaced in one step at the end.

    Raises:
        InputError: the file cannot be written.
    """
    lines = [json.dumps(prompt.to_record(), ensure_ascii=False) + "\n" for prompt in prompts]
    content = "".join(lines).encode("utf-8")
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(content))


def _from_rows(rows: Iterable[Any], place: str) -> tuple[Prompt, ...]:
    prompts = []
    for i, row in enumerate(rows):
        try:
            prompts.append(_from_row(row))
        except InputError as error:
            raise InputError(f"{place.format(i)}: {error}") from error
    return tuple(prompts)


def _from_row(row: Any) -> Prompt:
    if isinstance(row, Prompt):
        return row
    if isinstance(row, Mapping):
        return Prompt.from_record(row)
    if isinstance(row, tuple | list) and len(row) == 2:
        return Prompt.from_record({"prompt": row[0], "answer": row[1]})
    raise InputError(f"{_shown(row)} is neither an ecstruct.Prompt nor a (text, answer) pair.")


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError("this is not UTF-8: save the file in that encoding.") from error
    except ValueError as error:
        raise InputError(f"this is not JSON ({error}): write one object a line.") from error
    except RecursionError as error:
        raise InputError("this JSON is nested too deeply: write one flat object a line.") from error
    if not isinstance(value, dict):
        raise InputError(
            f"this is a JSON {type(value).__name__}, not an object: write "
            '{"prompt": "...", "answer": "..."}.'
        )
    return value


def _check(text: Any, answer: Any, options: Any, subject: Any, template: Any, aliases: Any) -> None:
    _check_string(text, "the text of a prompt")
    if text != text.rstrip():
        raise InputError(
            f"the prompt {_shown(text)} ends with whitespace, but a space is put before its answer "
            f"anyway: write {_shown(text.rstrip())}."
        )
    where = f"of the prompt {_shown(text)}"
    _check_answer(answer, f"the answer {where}")
    if options is not None:
        _check_options(options, answer, where)
    if subject is not None:
        _check_string(subject, f"the subject {where}")
        if subject not in text:
            raise InputError(
                f"the subject {_shown(subject)} does not occur in the prompt {_shown(text)}: write it as "
                "the text does, or leave it out."
            )
    if template is not None:
        _check_string(template, f"the template label {where}")
    if aliases != ():
        _check_aliases(aliases, answer, options, where)


def _check_options(options: Any, answer: str, where: str) -> None:
    if isinstance(options, str) or not isinstance(options, Sequence):
        raise InputError(f"the options {where} are {_shown(options)}: they must be a list of strings.")
    options = tuple(options)
    if not _sound(options):
        _check_each_option(options, where)
    if answer not in _sound(options):
        raise InputError(
            f"the answer {_shown(answer)} {where} is not among its options {_listed(options)}: add it to "
            "options=."
        )


def _sound(options: tuple[Any, ...]) -> frozenset[str]:
    """The options if they can be used, and otherwise nothing."""
    try:
        return _sound_options(options)
    except TypeError:  # something that has no hash is no string
        return frozenset()


@lru_cache(maxsize=64)  # thousands of prompts share theirs
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


def _check_aliases(aliases: Any, answer: str, options: Any, where: str) -> None:
    if isinstance(aliases, str) or not isinstance(aliases, Sequence):
        raise InputError(f"the aliases {where} are {_shown(aliases)}: they must be a list of strings.")
    for alias in aliases:
        _check_answer(alias, f"an alias {where}")
        if alias == answer or (options is not None and alias in _sound(tuple(options))):
            raise InputError(
                f"the alias {_shown(alias)} {where} is one of its options or the answer itself: leave it "
                "out of one of the two."
            )
    _check_once(aliases, f"the alias {{}} {where}")


def _check_once(values: Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise InputError(f"{what.replace('{}', _shown(value), 1)} is there twice: remove one.")
        seen.add(value)


def _listed(values: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(map(_shown, values[:most]))
    return shown if len(values) <= most else f"{shown}, ... ({len(values)} in all)"


def _check_answer(value: Any, what: str) -> None:
    _check_string(value, what)
    if value != value.strip():
        raise InputError(
            f"{what}, {_shown(value)}, begins or ends with whitespace, but a space is put before it "
            f"anyway: write {_shown(value.strip())}."
        )


def _check_string(value: Any, what: str) -> None:
    if not isinstance(value, str):
        raise InputError(f"{what} is {_shown(value)}, of type {type(value).__name__}: it must be a string.")
    if not value.strip():
        raise InputError(f"{what} is empty ({_shown(value)}): it must have at least one word.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what}, {_shown(value)}, holds half of a surrogate pair, which is no character: remove it."
        ) from error


def _shown(value: Any, most: int = 200) -> str:
    """A value as an error names it: a text of many pages is no part of one sentence."""
    shown = repr(value if not isinstance(value, str) else value[: most + 1])
    return shown if len(shown) <= most + 2 else f"{shown[:most]}..."
