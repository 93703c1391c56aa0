"""RippleEdits (Cohen et al. 2024): an edit, and what else must change with it.

The edit is the fact. Its sentence ends with the answer, which is the value of the queries that ask for the
same target or else what follows the last " is " or " are ". Implications are the queries of
`Compositionality_I` (the edit is the first hop), `Compositionality_II` (the second),
`Logical_Generalization` (no chain of hops) and `Subject_Aliasing` (the edit in other words, one hop). Their
`condition_queries` are known. `Relation_Specificity` and `Forgetfulness` (what must stay) are not read.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ecstruct.errors import InputError
from ecstruct.facts.readers.case import Case, Format, Hop, Implication, Statement, statement
from ecstruct.facts.readers.fields import aliases, items, objects, text

_NEW_HOPS = {
    "Compositionality_I": (1,),
    "Compositionality_II": (2,),
    "Logical_Generalization": (),
    "Subject_Aliasing": (1,),
}


def _case(record: Mapping[str, Any], file: str, hop: Hop) -> Case:
    tests = {axis: objects(record, axis) if axis in record else [] for axis in _NEW_HOPS}
    sentence, relation = text(record, "edit", "prompt").strip(), text(record, "edit", "relation")
    edit, names = _split(sentence, _target_names(record, tests))
    rivals = []
    if record["edit"].get("previous_fact") is not None:
        rivals = [_split(text(record, "edit", "previous_fact", "prompt").strip(), {})[0][1]]
    fact = statement(*edit, relation=relation, aliases=names, rivals=rivals)
    implied = []
    for axis, cases in tests.items():
        for test in cases:
            # A query for the edit itself matters as a condition only in tests of what must stay.
            conditions = [_query(q) for q in objects(test, "condition_queries")]
            known = tuple(c for c in conditions if c.prompt.text != fact.prompt.text)
            if axis == "Subject_Aliasing":
                known = ()
            for query in objects(test, "test_queries"):
                implied.append(Implication(_query(query), _NEW_HOPS[axis], known))
    return Case((fact,), tuple(implied))


def _query(query: Mapping[str, Any]) -> Statement:
    """Make the prompt of a query. One right answer is enough: all other names are aliases of the first."""
    answers = objects(query, "answers")
    if not answers:
        raise InputError(f"the query {text(query, 'prompt')[:100]!r} has no answers.")
    names = [name for a in answers for name in (text(a, "value"), *aliases(a, "aliases"))]
    relation = text(query, "second_relation" if query.get("query_type") == "two_hop" else "relation")
    return statement(text(query, "prompt"), names[0], relation=relation, aliases=names[1:])


def _target_names(
    record: Mapping[str, Any], tests: Mapping[str, list[Mapping[str, Any]]]
) -> dict[str, list[str]]:
    """Return the names that queries use for the target of the edit, each with its aliases."""
    target = record["edit"].get("target_id")
    return {
        text(q, "answers", 0, "value"): aliases(objects(q, "answers")[0], "aliases")
        for q in _queries(tests)
        if q.get("query_type") == "regular"
        and target is not None
        and items(q, "target_ids")[:1] == [target]
    }


def _queries(tests: Mapping[str, list[Mapping[str, Any]]]) -> Iterator[Mapping[str, Any]]:
    for test in (test for cases in tests.values() for test in cases):
        yield from objects(test, "test_queries")
        yield from objects(test, "condition_queries")


def _split(sentence: str, values: Mapping[str, list[str]]) -> tuple[tuple[str, str], list[str]]:
    """Split an edit's sentence into text and answer, which is one of `values` or else what follows the last
    verb; return also the answer's aliases."""
    body = sentence.removesuffix(".")
    for value, names in values.items():
        for end in (body, sentence):
            if end.endswith(f" {value}"):
                return (end.removesuffix(value), value), names
    cuts = [body.rfind(verb) + len(verb) for verb in (" is ", " are ") if verb in body]
    if not cuts or not body[max(cuts) :].strip():
        raise InputError(f"where the answer of the edit {sentence[:100]!r} begins cannot be told.")
    return (body[: max(cuts)], body[max(cuts) :]), []


RIPPLEEDITS = Format("rippleedits", "RippleEdits", frozenset({"edit", "Compositionality_I"}), _case)
