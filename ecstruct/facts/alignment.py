"""Which tokens of a prompt are its entity, and which it shares with the other prompts of its
template.

"The people in the city *Grace Miller* is from speak" and "The people in the city *Ethan Parker* is
from speak" share a prefix and a suffix; what is between them is the entity. Prefixes correspond
token by token, and so do suffixes; entities of different length are aligned at their ends by
whoever compares positions across prompts.
"""

from collections.abc import Sequence

Span = tuple[int, int]
"""The positions from the first number up to, not including, the second."""


def entity_spans(
    ids: Sequence[Sequence[int]],
    subjects: Sequence[Span | None],
    texts: Sequence[Span] | None = None,
) -> list[Span]:
    """The span of every prompt's entity, for the prompts of one template.

    `ids` are the prompts' tokens, `subjects` the token spans of their subjects where known, `texts`
    those of their texts when they are in the wrapper of a chat template, which is no entity. The entity
    is the subject when all prompts have one and agree in all the tokens outside it.
    Otherwise it is what is left between the longest prefix and the longest suffix that all prompts
    have in common, at least one token: the prefix, or when it is empty the suffix, gives one up if
    need be. Prompts that are all the same, or only one, have no part in which they differ, and are
    all entity.

    >>> entity_spans([[7, 1, 2, 8, 9], [7, 3, 8, 9]], [None, None])
    [(1, 3), (1, 2)]
    """
    spans = [span for span in subjects if span is not None]
    if len(spans) == len(ids) and _agree_outside(ids, spans):
        return spans
    if texts is None or not _agree_outside(ids, texts):  # in different wrappers, or only some in one
        texts = [(0, len(tokens)) for tokens in ids]
    n_prefix, n_suffix = common_ends(
        [tokens[start:end] for tokens, (start, end) in zip(ids, texts, strict=True)]
    )
    return [(start + n_prefix, end - n_suffix) for start, end in texts]


def subject_span(text: str, subject: str, offsets: Sequence[Span]) -> Span | None:
    """The tokens that overlap a subject, by the characters (start, end) that each token stands for;
    `None` when there are none.

    A subject that occurs more than once is taken where it is first no part of a longer word.

    >>> subject_span("Romeo, in Rome", "Rome", [(0, 5), (5, 6), (6, 9), (9, 14)])
    (3, 4)
    """
    start = _occurrence(subject, text)
    end = start + len(subject)
    inside = [i for i, (left, right) in enumerate(offsets) if left < end and right > start]
    return (inside[0], inside[-1] + 1) if inside else None


def common_ends(ids: Sequence[Sequence[int]]) -> tuple[int, int]:
    """How many tokens all prompts share at the start, and of the rest at the end, so that every
    prompt keeps one token between."""
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
