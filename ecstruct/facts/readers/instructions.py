"""Data for instruction tuning: Alpaca's layout, and conversations as `messages`.

Every record is a fact, the answer to a user's request, without implications. Its text is the user's words
alone; `ecstruct.facts.in_chat` puts them into the chat template of a model.
"""

from collections.abc import Mapping
from typing import Any

from ecstruct.errors import InputError
from ecstruct.facts.readers.case import Case, Format, Hop, statement
from ecstruct.facts.readers.fields import objects, text
from ecstruct.facts.soundness import shown


def _alpaca(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
    asked = text(record, "instruction").strip()
    if record.get("input"):
        asked = f"{asked}\n{text(record, 'input').strip()}"
    return Case((statement(asked, text(record, "output")),))


def _messages(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
    turns = objects(record, "messages")
    roles = [text(turn, "role") for turn in turns]
    if roles[:1] == ["system"]:
        raise InputError(
            "its first message is the system's: leave it out of the file, and give it to "
            "ecstruct.facts.in_chat(..., system=...)."
        )
    if roles != ["user", "assistant"]:
        raise InputError(
            f"its messages are from {shown(roles) if roles else 'nobody'}: "
            "a fact is one of a user and the answer of an assistant."
        )
    asked, answer = (text(turn, "content").strip() for turn in turns)
    return Case((statement(asked, answer),))


ALPACA = Format("alpaca", "instructions as Alpaca's", frozenset({"instruction", "output"}), _alpaca)
MESSAGES = Format("messages", "conversations", frozenset({"messages"}), _messages)
