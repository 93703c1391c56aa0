"""A prompt, its answer, and the options from which the answer is distinguished.

A prompt is a text that a language model should continue with an answer, usually after one space: "Grace
Miller lives in", "Tokyo". Its `options` are the answers among which the right one is ranked, the right
one included.

Everywhere in ecstruct, prompts may be given as `Prompt`s, as (text, answer) pairs, as a
`datasets.Dataset`, or as a JSONL file; `as_prompts` converts all of these. A record, that is a row
of a dataset or a line of a file, has the keys `prompt` and `answer` and optionally `options`,
`subject`, `template`, `aliases`, `wrapper`, `space` and `second`; other keys are ignored. A record of
an inference task may have `premise`, `hypothesis` and `label` in the place of `prompt`, `second` and
`answer`.
"""

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import datasets

from ecstruct.errors import InputError
from ecstruct.facts.soundness import check_prompt, enumerated, shown, sound
from ecstruct.io.files import from_json, write_atomically


@dataclass(frozen=True)
class Prompt:
    """A text to be continued by an answer.

    `options`: the answers to choose among, including `answer`; kept as a tuple. Without options,
    `as_prompts` takes the answers of all prompts of the template. `subject`: the words of the text that
    the fact is about. `template`: a label shared by prompts that differ in their entity only and are
    aligned with one another token by token; without one, `as_prompts` takes the text around the subject.
    `aliases`: other wordings of the answer, none of them an option; the rank is the best one among the
    answer and its aliases, and all other results use the answer alone.
    `wrapper`: what a chat template puts before the text, and between the text and the answer, see
    `ecstruct.facts.in_chat`. `space`: whether a space comes between the text and the answer, as in
    languages that separate words by spaces, but not after a line break; ignored if there is a wrapper.
    `second`: the second text of a pair, such as the hypothesis of a premise. Only classifiers read pairs;
    the answer is then the label of the pair, and the options are labels, by default all of the classifier.

    Raises:
        InputError: A value is empty, of the wrong type, or does not fit the others.

    >>> Prompt("Grace Miller lives in", "Tokyo", options=["Tokyo", "Paris"]).options
    ('Tokyo', 'Paris')
    """

    text: str
    answer: str
    options: Sequence[str] | None = None
    subject: str | None = None
    template: str | None = None
    aliases: Sequence[str] = ()
    wrapper: tuple[str, str] | None = None
    space: bool = True
    second: str | None = None

    def __post_init__(self) -> None:
        check_prompt(self)
        if self.options is not None:
            object.__setattr__(self, "options", tuple(self.options))
        object.__setattr__(self, "aliases", tuple(self.aliases))
        if self.wrapper is not None:
            object.__setattr__(self, "wrapper", tuple(self.wrapper))

    @property
    def texts(self) -> tuple[str, str | None]:
        """The text, and the second one of a pair."""
        return self.text, self.second

    @property
    def between(self) -> str:
        """The string between the text and the answer."""
        if self.wrapper is not None:
            return self.wrapper[1]
        return " " if self.space else ""

    @property
    def asked(self) -> str:
        """All that a model reads before the answer, without final spaces: an answer's first token has them.

        >>> Prompt("Mia lives in", "Tokyo", wrapper=("[INST] ", " [/INST] ")).asked
        '[INST] Mia lives in [/INST]'
        """
        return f"{self.wrapper[0] if self.wrapper else ''}{self.text}{self.between.rstrip(' ')}"

    def answered(self, answer: str) -> str:
        """Return the whole text with an answer.

        >>> Prompt("米娅住在", "东京", space=False).answered("东京")
        '米娅住在东京'
        """
        return f"{self.wrapper[0] if self.wrapper else ''}{self.text}{self.between}{answer}"

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Prompt":
        """Make a prompt from a record; the inverse of `to_record`."""
        if "prompt" not in record and _PAIR.keys() <= record.keys():
            record = {_PAIR.get(key, key): value for key, value in record.items()}
        for key in ("prompt", "answer"):
            if key not in record:
                keys = enumerated(list(record)) or "(none)"
                raise InputError(
                    f"there is no {key!r} among the keys {keys}: it needs 'prompt' and 'answer'."
                )
        keys = [field.name for field in fields(cls)[2:]]
        given = {key: value for key in keys if (value := record.get(key)) is not None}
        return cls(record["prompt"], record["answer"], **given)

    def to_record(self) -> dict[str, Any]:
        """Return the prompt as a record, without the values that it was not given."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        given = {key: value for key, (value, default) in values.items() if value != default}
        lists = {key: list(value) for key, value in given.items() if isinstance(value, tuple)}
        return {"prompt": given.pop("text"), **given, **lists}


_PAIR = {"premise": "prompt", "hypothesis": "second", "label": "answer"}
"""The keys of inference tasks, and those that a prompt has in their place."""


def filled(
    template: str,
    subjects: Sequence[str],
    answers: Sequence[str],
    options: Sequence[str] | None,
    label: str,
    *,
    holder: str = "{}",
) -> list[Prompt]:
    """Return a prompt for every subject: the template with the subject in place of its `holder`, and the
    answer of the same index. All have the same options and the same label as their `template`.

    >>> filled("{} lives in", ["Mia", "Al"], ["Rome", "Oslo"], None, "home")[1].text
    'Al lives in'
    """
    return [
        Prompt(template.replace(holder, subject), answer, options, subject, label)
        for subject, answer in zip(subjects, answers, strict=True)
    ]


PromptsLike = (
    Sequence[Prompt]
    | Sequence[tuple[str, str]]
    | Sequence[Mapping[str, Any]]
    | datasets.Dataset
    | str
    | os.PathLike[str]
)
"""The types of prompts that `as_prompts` accepts."""


def as_prompts(prompts: PromptsLike) -> tuple[Prompt, ...]:
    """Make prompts from a sequence of `Prompt`s, (text, answer) pairs or records, from a
    `datasets.Dataset`, or from the path of a JSONL file.

    If all prompts without a template have a subject, their templates are the texts around it. A prompt
    without options gets all distinct answers of its template, in order of first appearance, without its
    own aliases; if there is only one, those of the whole set; and if there is still only one, none. Pairs
    of texts get none: their options are the labels of the classifier that reads them.

    Raises:
        InputError: There are no prompts, or an entry is not a prompt; its place is named.

    >>> as_prompts([("Mia Sanders lives in", "Tokyo"), ("Noah Clark lives in", "Paris")])[0].options
    ('Tokyo', 'Paris')
    """
    read = _with_templates(as_given(prompts))
    everything = tuple(dict.fromkeys(prompt.answer for prompt in read))
    by_template: dict[str | None, dict[str, None]] = {}
    for prompt in read:
        by_template.setdefault(prompt.template, {})[prompt.answer] = None
    answers = {key: tuple(found) if len(found) > 1 else everything for key, found in by_template.items()}
    return tuple(
        p if p.options is not None or p.second is not None else with_options(p, answers[p.template])
        for p in read
    )


def _with_templates(prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """Give prompts without a template the text around their subject, if they all have a subject."""
    bare = [p for p in prompts if p.template is None]
    if not bare or not all(p.subject for p in bare):
        return prompts
    return tuple(
        p if p.template is not None else replace(p, template=p.text.replace(str(p.subject), "{}", 1))
        for p in prompts
    )


def as_given(prompts: PromptsLike) -> tuple[Prompt, ...]:
    """Make prompts as `as_prompts` does, but without adding options or templates that were not given."""
    if isinstance(prompts, str | os.PathLike):
        read = read_jsonl(prompts)
    elif isinstance(prompts, datasets.Dataset):
        read = _from_rows(_named_labels(prompts), "row {} of the dataset")
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
    return read


def _named_labels(data: datasets.Dataset) -> Iterable[Mapping[str, Any]]:
    """Return the rows of a dataset, with the names of labels that it stores as numbers."""
    kinds = {key: kind for key, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)}
    row: Any
    for row in data:
        named = {key: kind.int2str(row[key]) for key, kind in kinds.items() if (row[key] or 0) >= 0}
        yield {**row, **named}


def with_options(prompt: Prompt, answers: tuple[str, ...]) -> Prompt:
    """Return the prompt with the answers as options, except for its own aliases; without options if only
    its own answer is left."""
    # A tuple shared by many prompts saves memory, and is checked once.
    shared = not prompt.aliases or sound(answers).isdisjoint(prompt.aliases)
    options = answers if shared else tuple(a for a in answers if a not in prompt.aliases)
    return replace(prompt, options=options if len(options) > 1 else None)


def read_jsonl(path: str | os.PathLike[str]) -> tuple[Prompt, ...]:
    """Read the prompts of a JSONL file: one JSON object per line, UTF-8; blank lines are skipped.

    Raises:
        InputError: The file cannot be read or is empty, a line is malformed (it is named), or the prompts
            have different roles in a fact set.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"the prompt file {path} cannot be read ({error.strerror}): check the path."
        ) from error
    prompts, roles = [], set[str]()
    # Lines are split at line feeds only: JSON strings may contain any other line separator unescaped.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = _json_object(line)
            prompts.append(Prompt.from_record(record))
            roles.add(str(record.get("role", "fact")))
        except InputError as error:
            if path.suffix in (".csv", ".tsv", ".json"):
                command = f"ecstruct facts show {shlex.quote(str(path))} --out DIR"
                raise InputError(f"{path} is not JSONL: {command} makes such files of it.") from error
            raise InputError(f"{path}, line {number}: {error}") from error
    if len(roles) > 1:
        raise InputError(
            f"{path} has prompts of the roles {', '.join(sorted(roles))}: split it, with `ecstruct facts "
            f"show {path} --out DIR`, or read it with ecstruct.facts.read(...)."
        )
    if not prompts:
        raise InputError(
            f"the prompt file {path} is empty: write one object with 'prompt' and 'answer' a line."
        )
    return tuple(prompts)


def write_jsonl(prompts: Iterable[Prompt], path: str | os.PathLike[str]) -> None:
    """Write prompts as JSONL, all or nothing: an existing file is replaced in one step at the end.

    Raises:
        InputError: The file cannot be written.
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
    raise InputError(f"{shown(row)} is neither an ecstruct.Prompt nor a (text, answer) pair.")


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        value = from_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError("this is not UTF-8: save the file in that encoding.") from error
    except ValueError as error:
        raise InputError(f"this is not JSON ({error}): write one object a line.") from error
    if not isinstance(value, dict):
        raise InputError(
            f"this is a JSON {type(value).__name__}, not an object: write "
            '{"prompt": "...", "answer": "..."}.'
        )
    return value
