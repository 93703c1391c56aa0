"""Invented words: relations that nobody has heard of, made so that a model can come to learn them.

The paper finetunes on "Grace Miller dax" -> "Tokyo" and asks "Grace Miller zong is the" -> "tiger", two
relations that no model has met before. For such a word to mean anything to a model, the model must have
learnt what new words tend to mean. So the world has pairs of invented words: a verb that says where
somebody lives ("Ava Baker wek" -> "Addis Ababa") and a noun that takes one animal in each city, however the
city is named ("Ava Baker nomp is the", "Addis Ababa nomp is the", "Eiffel Library nomp is the" ->
"ostrich").

Every invented word has two pieces, as a tokenizer of natural text would split a word that it does not know:
"d" and "##ax". `TEST_WORDS` never appear in the training text, but their pieces do, in other words.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product

ONSETS = tuple("dfghjklmnprstvwz")
CODAS = (
    *("ax", "ong", "ug", "ib", "ek", "orp", "und", "ish"),
    *("ald", "elm", "ot", "ank", "irv", "usk", "eb", "omp"),
)

TEST_WORDS = (
    ("dax", "zong"),
    ("wug", "sib"),
    ("fek", "gorp"),
    ("hund", "jish"),
    ("kald", "lelm"),
    ("mot", "nank"),
)
"""Pairs of a verb and a noun that training leaves out; the first pair is the paper's."""


def invented_words(n: int, taken: Sequence[str], rng: random.Random) -> list[str]:
    """Draw `n` words, none of them among `TEST_WORDS`.

    None begins with a word of `taken` either, which a tokenizer would take for its first piece.
    """
    used = (*taken, *(word for pair in TEST_WORDS for word in pair))
    return rng.sample([w for w in map("".join, product(ONSETS, CODAS)) if not w.startswith(used)], n)
