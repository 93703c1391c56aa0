"""Relations: tables of subjects and objects, with prompts that ask for the object of a subject, as in
Hernandez et al. 2024 ("LRE")."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecstruct.errors import InputError
from ecstruct.facts.readers.fields import objects, text, texts, unescaped
from ecstruct.facts.readers.source import rows_of


@dataclass(frozen=True)
class Relation:
    """A relation. `samples` are (subject, object) pairs; `templates` ask for the object and have {} for the
    subject; `domain` says what a subject is ("country"), in words that fit into a sentence.

    Raises:
        InputError: There are no samples or no templates, or a template has no {}.
    """

    name: str
    templates: Sequence[str]
    samples: Sequence[tuple[str, str]]
    domain: str = "thing"

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", tuple(self.templates))
        object.__setattr__(self, "samples", tuple((s, o) for s, o in self.samples))
        if not self.samples:
            raise InputError(f"the relation {self.name!r} has no samples: give (subject, object) pairs.")
        if not self.templates or not all("{}" in template for template in self.templates):
            raise InputError(
                f"the templates of the relation {self.name!r} are {list(self.templates)!r}: there must be "
                "one, and each needs {} where its subject goes."
            )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Relation":
        """Make a relation from the record of an LRE file."""
        pairs = [
            (unescaped(text(s, "subject")).strip(), unescaped(text(s, "object")).strip())
            for s in objects(record, "samples")
        ]
        properties = record.get("properties")
        domain = properties.get("domain_name") if isinstance(properties, Mapping) else None
        domain = domain.replace("_", " ") if isinstance(domain, str) and domain.strip() else "thing"
        return cls(text(record, "name"), texts(record, "prompt_templates"), pairs, domain)


def read_relations(path: str | os.PathLike[str]) -> tuple[Relation, ...]:
    """Read the relations of an LRE file, of a file with one relation per line, or of a folder of files.

    Raises:
        InputError: The file cannot be read, or a record is not a relation; it is named.
    """
    relations = []
    for row in rows_of(Path(path)):
        try:
            if not isinstance(row.record, Mapping):
                raise InputError("it is no object.")
            relations.append(Relation.from_record(row.record))
        except InputError as error:
            raise InputError(f"{path}, {row.place}, is no relation: {error}") from error
    return tuple(relations)
