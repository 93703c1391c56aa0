"""A_s: the words that have to do with a subject; its enriched representation is compared with them.

They are the tokens of texts about the subject, without stop words and strings of at most two characters.
Tokens are compared by what they spell, in lower case and without leading space, so that "Paris", " Paris"
and " paris" are one attribute.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from ecstruct.engine.session import Session
from ecstruct.errors import InputError
from ecstruct.facts.fact_set import FactSet
from ecstruct.facts.prompt import Prompt, PromptsLike, as_prompts
from ecstruct.io.values import bounded
from ecstruct.models.provenance import tokenizer_of
from ecstruct.named_models import named
from ecstruct.recall.words import says_something, word_of

Corpus = str | os.PathLike[str] | Iterable[Mapping[str, Any]]
"""Paragraphs by subject: the path of a JSONL file, or records, with the keys `subject` and `text` (a string
or a list of strings). A subject may have several records."""

Hooked = TransformerBridge | Session
"""A model, or its session, whose tokenizer cuts the texts."""


@dataclass(frozen=True, eq=False)
class Attributes(Mapping[str, frozenset[str]]):
    """The attributes of each subject, as words in lower case; `source` says where they come from."""

    words: Mapping[str, frozenset[str]]
    source: str

    @classmethod
    def from_corpus(cls, corpus: Corpus, model: Hooked) -> Attributes:
        """Take all tokens of the paragraphs about each subject, as the model's tokenizer cuts them. The
        paper takes the 100 Wikipedia paragraphs that BM25 ranks highest for the subject.

        Raises:
            InputError: a file that cannot be read or is empty, or a line or record that is malformed.
        """
        texts: dict[str, list[str]] = {}
        for place, record in _records(corpus):
            subject, paragraphs = _checked(record, place)
            texts.setdefault(subject, []).extend(paragraphs)
        path = str(corpus) if isinstance(corpus, str | os.PathLike) else None
        if not texts:
            raise InputError(f"{path or 'the corpus'} is empty: it has no paragraphs.")
        return cls.from_texts(texts, model, path or "a corpus")

    @classmethod
    def from_facts(cls, facts: FactSet | PromptsLike, model: Hooked) -> Attributes:
        """Take the answers, with their aliases, of all prompts about each subject. The prompts of a fact
        set are its facts, its implications and what is known.

        Raises:
            InputError: no prompt has a subject.
        """
        prompts: Sequence[Prompt] = (
            (*facts.facts, *facts.implications, *facts.known)
            if isinstance(facts, FactSet)
            else as_prompts(facts)
        )
        texts: dict[str, list[str]] = {}
        for prompt in prompts:
            if prompt.subject is not None:
                texts.setdefault(prompt.subject, []).extend([prompt.answer, *prompt.aliases])
        if not texts:
            raise InputError(f"no prompt has a subject, as {prompts[0].text!r}: give them subject=.")
        return cls.from_texts(texts, model, "facts")

    @classmethod
    def of_organism(cls, model: Hooked, facts: PromptsLike = (), world: Any = None) -> Attributes:
        """Take what the organism's world says of its people, landmarks and cities: the city, and what its
        people speak, eat, pay with and work as. A city also gets the landmarks in it.

        `facts` add more people and landmarks: if the answer of a fact is a city, its subject gets what the
        world says of that city. `world` is an `ecstruct.organism.World`, by default the shipped model's.
        """
        organism = named("organism")
        assert organism is not None and organism.texts is not None
        texts = organism.texts(as_prompts(facts) if facts else (), world)
        return cls.from_texts(texts, model, "the organism's world")

    @classmethod
    def from_texts(
        cls, texts: Mapping[str, Iterable[str]], model: Hooked, source: str = "texts"
    ) -> Attributes:
        """Take the tokens of any texts about each subject."""
        tokenizer = model.tokenizer if isinstance(model, Session) else tokenizer_of(model)
        words = cache(lambda text: frozenset(_words(text, tokenizer)))  # subjects share most texts
        return cls({s: frozenset().union(*map(words, its)) for s, its in texts.items()}, source)

    @bounded
    def shuffled(self, seed: int = 0) -> Attributes:
        """Return the same sets, dealt out among the subjects at random. Their rates show what chance, and
        what all subjects have in common, would give."""
        subjects = list(self.words)
        order = np.random.default_rng(seed).permutation(len(subjects))
        dealt = {s: self.words[subjects[i]] for s, i in zip(subjects, order, strict=True)}
        return Attributes(dealt, f"{self.source}, shuffled")

    def about(self, prompts: Iterable[Prompt]) -> Attributes:
        """Return the attributes of the prompts' subjects only.

        Raises:
            InputError: a prompt without subject, or a subject without attributes.
        """
        chosen: dict[str, frozenset[str]] = {}
        for prompt in prompts:
            if prompt.subject is None:
                raise InputError(f"the prompt {prompt.text!r} has no subject: give it one with subject=.")
            if not self.words.get(prompt.subject):
                raise InputError(
                    f"there are no attributes of the subject {prompt.subject!r} from {self.source}: add "
                    "texts about it, or leave its prompts out."
                )
            chosen[prompt.subject] = self.words[prompt.subject]
        return Attributes(chosen, self.source)

    def __getitem__(self, subject: str) -> frozenset[str]:
        return self.words[subject]

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        mean = np.mean([len(words) for words in self.words.values()]) if self.words else 0
        return f"<Attributes of {len(self)} subjects from {self.source}, {mean:.0f} words each>"


def _words(text: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    # Tokenised after a space, like words within a text; tokenizers would cut the first word differently.
    for token in tokenizer.tokenize(f" {text}"):
        word = word_of(token, tokenizer)
        if token != tokenizer.unk_token and says_something(word):
            yield word


def _records(corpus: Corpus) -> Iterator[tuple[str, Any]]:
    """Yield every record of a corpus, preceded by its place (file and line, or number) for errors."""
    if not isinstance(corpus, str | os.PathLike):
        for number, record in enumerate(corpus):
            yield f"record {number} of the corpus", record
        return
    try:
        content = Path(corpus).read_bytes()
    except OSError as error:
        raise InputError(
            f"the corpus {corpus} cannot be read ({error.strerror}): check the path."
        ) from error
    # Split at line feeds only: JSON strings may contain any other line separator.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            place = f"{corpus}, line {number}"
            try:
                yield place, json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{place}: this is not JSON in UTF-8 ({error}): write one object a line."
                ) from error


def _checked(row: Any, place: str) -> tuple[str, list[str]]:
    subject, text = (row.get("subject"), row.get("text")) if isinstance(row, Mapping) else (None, None)
    texts = [text] if isinstance(text, str) else text
    if not isinstance(subject, str) or not subject.strip():
        raise InputError(f"{place}: there is no subject: write {_EXAMPLE}.")
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(t, str) for t in texts):
        raise InputError(
            f"{place}: the text about {subject!r} is no string or list of strings: write {_EXAMPLE}."
        )
    return subject, list(texts)


_EXAMPLE = '{"subject": "...", "text": "..."}'
