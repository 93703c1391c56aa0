"""Fields that configurations of several commands have: models, prompts, and fingerprints of weights."""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import MinLen
from typing_extensions import Doc

from ecstruct.io.values import Text
from ecstruct.options import Options

SOURCE = (
    "'organism', 'smollm2', 'minilm', a Hugging Face folder, folder@step, a GGUF file, "
    "an adapter's folder, a hub id or id@revision"
)
JSONL = (
    "JSONL with the keys prompt, answer and optionally options, aliases, subject, template, second; or "
    "premise, hypothesis, label"
)

FROM_FILE = "from a JSONL file"
"""Marks prompts, which the command line takes as a file."""
Records = Annotated[list[dict[str, Any]], MinLen(1), FROM_FILE]
"""Prompts, as records."""

Source = Annotated[Text, Doc(SOURCE)]
Prompts = Annotated[Records, Doc(JSONL)]
Fingerprint = Annotated[str | None, "of the weights, which a replay compares with those that it finds"]
Fingerprints = Annotated[dict[str, str] | None, "the same of several models"]


@dataclass(frozen=True, kw_only=True)
class TwoModels(Options):
    """The fields of commands that compare two models."""

    before: Source
    after: Source
    fingerprints: Fingerprints = None


@dataclass(frozen=True, kw_only=True)
class PairOptions(TwoModels):
    """The fields of commands that compare two models on prompts."""

    prompts: Prompts
