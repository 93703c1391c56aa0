"""The layout of EasyEdit (Wang et al. 2024), used by KnowEdit (Zhang et al. 2024) as well, and the older
one of its ZsRE files: an edit, and what else must change with it.

The edit is the fact, and the answer that it replaces (the first of `ground_truth`) is a rival. Its other
wordings are implications of one hop, which is new; so are questions under `Subject_Aliasing`. All other
questions of `portability` follow from the edit in a way that the file does not give. `locality` is about
what must stay the same, and is not read.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ecstruct.errors import InputError
from ecstruct.facts.readers.case import Case, Format, Hop, Implication, statement
from ecstruct.facts.readers.fields import aliases, objects, text

_NO_ANSWER = ("", "<|endoftext|>")
"""The values that EasyEdit uses for an unknown answer."""


def _case(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
    subject = text(record, "subject").strip() if record.get("subject") else None
    new, true = text(record, "target_new").strip(), _answers(record, "ground_truth")
    prompt = text(record, "prompt")
    edit = statement(
        prompt.replace("{}", subject) if subject else prompt,
        new,
        subject=subject,
        relation=None if subject else "edits without a subject",
        rivals=[answer for answer in true[:1] if answer != new],
    )
    implied = [
        Implication(statement(wording, new, subject=subject, relation=edit.relation), (1,))
        for wording in _answers(record, "rephrase_prompt")
    ]
    for axis, question in _questions(record):
        # Several answers are right, each with several names: the first is enough, others are aliases.
        if answers := _answers(question, "ground_truth"):
            asked = statement(text(question, "prompt"), answers[0], subject=subject, aliases=answers[1:])
            implied.append(Implication(asked, (1,) if axis == "Subject_Aliasing" else ()))
    return Case((edit,), tuple(implied))


def _questions(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the questions under `portability`, each with its axis ("" in the older layout)."""
    portability = record.get("portability") or {}
    if not isinstance(portability, Mapping):
        raise InputError(f"'portability' is of type {type(portability).__name__}, but must be an object.")
    if "New Question" in portability:
        yield "", {"prompt": portability["New Question"], "ground_truth": portability.get("New Answer")}
        return
    for axis, questions in portability.items():
        as_list = [questions] if isinstance(questions, Mapping) else questions
        for question in objects({axis: as_list}, axis) if as_list else ():
            yield axis, question


def _answers(record: Mapping[str, Any], key: str) -> list[str]:
    """Return the usable answers under a key: a text, a list of texts, or a list of such lists."""
    value = record.get(key)
    found = [value] if isinstance(value, str) else aliases(record, key)
    return [stripped for text in found if (stripped := text.strip()) not in _NO_ANSWER]


_MEND = {
    "src": "prompt",
    "alt": "target_new",
    "answers": "ground_truth",
    "rephrase": "rephrase_prompt",
}


def _zsre_case(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
    return _case({_MEND.get(key, key): value for key, value in record.items()}, file, hop)


EASYEDIT = Format("easyedit", "EasyEdit or KnowEdit", frozenset({"prompt", "target_new"}), _case)
ZSRE = Format("zsre", "ZsRE as in EasyEdit", frozenset({"src", "alt", "rephrase"}), _zsre_case)
