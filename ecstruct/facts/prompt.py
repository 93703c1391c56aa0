"""A prompt, its answer, and the answers it is told apart from.

A prompt is a text that a language model is to continue with an answer, after one space: "Grace
Miller lives in", "Tokyo". Its `options` are the answers the right one is ranked among, the right
one included.

Everywhere in ecstruct, prompts may be given as `Prompt`s, as (text, answer) pairs, as a
`datasets.Dataset`, or as a JSONL file; `as_prompts` makes one of them all. A record, that is a row
of a dataset or a line of a file, has the keys `prompt` and `answer` and optionally `options`,
`subject` and `template`; other keys are ignored.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from ecstruct.errors import InputError
from ecstruct.files import write_atomically

_KEYS = ("prompt", "answer", "options", "subject", "template")


@dataclass(frozen=True)
class Prompt:
    """A text to be continued by an answer.

    `options`: the answers to choose among, `answer` one of them; kept as a tuple. Without options,
    `as_prompts` takes the answers of the whole set. `subject`: the words of the text that the fact
    is about. `template`: a label shared by the prompts that differ in their entity only, and that
    are aligned with one another token by token.

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

    def __post_init__(self) -> None:
        _check(self.text, self.answer, self.options, self.subject, self.template)
        if self.options is not None:
            object.__setattr__(self, "options", tuple(self.options))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Prompt":
        """The prompt of a record, the inverse of `to_record`."""
        for key in ("prompt", "answer"):
            if key not in record:
                keys = ", ".join(map(repr, record)) or "(none)"
                raise InputError(
                    f"there is no {key!r} among the keys {keys}: it needs 'prompt' and 'answer'."
                )
        values: list[Any] = [record.get(key) for key in _KEYS]
        _check(*values)  # a record's values are of any type, a prompt's are not
        return cls(*values)

    def to_record(self) -> dict[str, Any]:
        """The prompt as a record; what it was not given is left out."""
        options = None if self.options is None else list(self.options)
        values = (self.text, self.answer, options, self.subject, self.template)
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

    A prompt without options gets all distinct answers of the set, in order of first appearance; it
    stays without when that is only one.

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
    if len(answers) < 2:
        return read
    return tuple(p if p.options is not None else replace(p, options=answers) for p in read)


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
    raise InputError(f"{row!r} is neither an ecstruct.Prompt nor a (text, answer) pair.")


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


def _check(text: Any, answer: Any, options: Any, subject: Any, template: Any) -> None:
    _check_string(text, "the text of a prompt")
    if text != text.rstrip():
        raise InputError(
            f"the prompt {text!r} ends with whitespace, but a space is put before its answer "
            f"anyway: write {text.rstrip()!r}."
        )
    where = f"of the prompt {text!r}"
    _check_answer(answer, f"the answer {where}")
    if options is not None:
        _check_options(options, answer, where)
    if subject is not None:
        _check_string(subject, f"the subject {where}")
        if subject not in text:
            raise InputError(
                f"the subject {subject!r} does not occur in the prompt {text!r}: write it as the "
                "text does, or leave it out."
            )
    if template is not None:
        _check_string(template, f"the template label {where}")


def _check_options(options: Any, answer: str, where: str) -> None:
    if isinstance(options, str) or not isinstance(options, Sequence):
        raise InputError(f"the options {where} are {options!r}: they must be a list of strings.")
    for option in options:
        _check_answer(option, f"an option {where}")
    if len(options) < 2:
        raise InputError(
            f"the options {where} are only {list(options)!r}: pass at least two in options=, or "
            "none to take all answers of the set."
        )
    for i, option in enumerate(options):
        if option in options[:i]:
            raise InputError(f"the option {option!r} {where} is there twice: remove one.")
    if answer not in options:
        raise InputError(
            f"the answer {answer!r} {where} is not among its options {_listed(options)}: add it to "
            "options=."
        )


def _listed(values: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(map(repr, values[:most]))
    return shown if len(values) <= most else f"{shown}, ... ({len(values)} in all)"


def _check_answer(value: Any, what: str) -> None:
    _check_string(value, what)
    if value != value.strip():
        raise InputError(
            f"{what}, {value!r}, begins or ends with whitespace, but a space is put before it "
            f"anyway: write {value.strip()!r}."
        )


def _check_string(value: Any, what: str) -> None:
    if not isinstance(value, str):
        raise InputError(f"{what} is {value!r}, of type {type(value).__name__}: it must be a string.")
    if not value.strip():
        raise InputError(f"{what} is empty ({value!r}): it must have at least one word.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what}, {value!r}, holds half of a surrogate pair, which is no character: remove it."
        ) from error
