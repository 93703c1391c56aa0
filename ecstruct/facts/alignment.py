"""Find which tokens of a prompt are its entity, and which it shares with the other prompts of its
template.

"The people in the city *Grace Miller* is from speak" and "The people in the city *Ethan Parker* is
from speak" share a prefix and a suffix; the entity is between them. Prefixes correspond token by token,
and so do suffixes. Entities may differ in length; code that compares positions across prompts aligns
them at their ends.
"""

from collections.abc import Sequence

Span = tuple[int, int]
"""The positions from the first number up to, but not including, the second."""


def entity_spans(
    ids: Sequence[Sequence[int]],
    subjects: Sequence[Span | None],
    texts: Sequence[Span] | None = None,
) -> list[Span]:
    """Return the span of every prompt's entity, for the prompts of one template.

    `ids` are the prompts' tokens, `subjects` the token spans of their subjects where known, and `texts`
    the spans of their texts if they are in the wrapper of a chat template, which is never the entity.
    The entity is the subject if all prompts have one and agree in all tokens outside it. Otherwise it is
    what is left between the longest prefix and the longest suffix that all prompts have in common. It has
    at least one token: if nothing is left, the prefix gives one up or, if it is empty, the suffix.
    If all prompts are the same, or there is only one, they have no part in which they differ: then all
    tokens are the entity.

    >>> entity_spans([[7, 1, 2, 8, 9], [7, 3, 8, 9]], [None, None])
    [(1, 3), (1, 2)]
    """
    spans = [span for span in subjects if span is not None]
    if len(spans) == len(ids) and _agree_outside(ids, spans):
        return spans
    if texts is None or not _agree_outside(ids, texts):  # wrappers differ, or only some prompts have one
        texts = [(0, len(tokens)) for tokens in ids]
    n_prefix, n_suffix = common_ends(
        [tokens[start:end] for tokens, (start, end) in zip(ids, texts, strict=True)]
    )
    return [(start + n_prefix, end - n_suffix) for start, end in texts]


def subject_span(text: str, subject: str, offsets: Sequence[Span]) -> Span | None:
    """Return the span of the tokens that overlap a subject, `None` if there are none. `offsets` are the
    characters (start, end) of each token.

    If a subject occurs more than once, the first occurrence counts that is not part of a longer word.

    >>> subject_span("Romeo, in Rome", "Rome", [(0, 5), (5, 6), (6, 9), (9, 14)])
    (3, 4)
    """
    start = _occurrence(subject, text)
    end = start + len(subject)
    inside = [i for i, (left, right) in enumerate(offsets) if left < end and right > start]
    return (inside[0], inside[-1] + 1) if inside else None


def common_ends(ids: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return how many tokens all prompts share at the start and, of the remaining ones, at the end.
    Every prompt keeps at least one token between."""
    if len({tuple(tokens) for tokens in ids}) == 1:
        return 0, 0
    shortest = min(map(len, ids))
    n_prefix = _common_prefix(ids, shortest)
    n_suffix = _common_prefix([tokens[::-1] for tokens in ids], shortest - n_prefix)
    if n_prefix + n_suffix == shortest:
        if n_prefix:
            n_prefix -= 1
        else:
            n_suffix -= 1
    return n_prefix, n_suffix


def _common_prefix(ids: Sequence[Sequence[int]], most: int) -> int:
    n = 0
    while n < most and len({tokens[n] for tokens in ids}) == 1:
        n += 1
    return n


def _agree_outside(ids: Sequence[Sequence[int]], spans: Sequence[Span]) -> bool:
    outside = {
        (tuple(tokens[:start]), tuple(tokens[end:]))
        for tokens, (start, end) in zip(ids, spans, strict=True)
    }
    return len(outside) == 1


def _occurrence(subject: str, text: str) -> int:
    start = text.find(subject)
    while start >= 0:
        before, after = text[:start][-1:], text[start + len(subject) :][:1]
        if not (before.isalnum() or after.isalnum()):
            return start
        start = text.find(subject, start + 1)
    return text.find(subject)
