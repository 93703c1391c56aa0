"""Readers of public fact sets: what does not fit is left out, and said."""

import json
import logging

import datasets
import pytest
from helpers.readers_records import COUNTERFACT, MQUAKE, OWN, TWO_HOP_FACT, renamed, written

from ecstruct.errors import InputError
from ecstruct.facts import Derivation, read, understand


def test_records_that_do_not_fit_are_listed_with_line_and_reason(tmp_path, caplog):
    good, other = {"prompt": "Ada lives in", "answer": "Rome"}, {"prompt": "Bea lives in", "answer": "Oslo"}
    lines = [
        good,
        {"prompt": "Cy lives in"},
        {"prompt": "Di lives in", "answer": 3},
        [1],
        {**good, "role": "?"},
        other,
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)))
    with caplog.at_level(logging.WARNING):
        found = understand(path)
    assert [p.answer for p in found.data.facts] == ["Rome", "Oslo"] and found.records == 6
    places, reasons = zip(*[(s.place, s.reason) for s in found.skipped], strict=True)
    assert places == ("line 3", "line 5", "line 7", "line 9")
    for reason, word in zip(reasons, ("'answer'", "of type int", "being a list", "'role'"), strict=True):
        assert word in reason
    assert "left out: 4;" in caplog.text and "line 3" in caplog.text
    with pytest.raises(
        InputError, match=r"4 of the records of .* cannot be read as prompts; the first: line 3"
    ):
        read(path, strict=True)


def test_a_record_of_a_list_says_its_line(tmp_path):
    path = written(tmp_path, "counterfact", COUNTERFACT, {**COUNTERFACT, "requested_rewrite": []})
    line = path.read_text().split("\n").index("  {", 2) + 1
    found = understand(path)
    assert [s.place for s in found.skipped] == [f"line {line} (record 2)"]


def test_contradictions_are_left_out(tmp_path):
    elsewhere = renamed(MQUAKE, "Rome", "Bonn")  # Ada cannot be born in both
    assert (
        "'Ada was born in' is answered by 'Bonn'"
        in understand(written(tmp_path, "mquake", MQUAKE, elsewhere)).skipped[0].reason
    )
    # The edit of one record undoes what an implication of the other takes as known.
    edits = renamed(MQUAKE, "Ada", "Bea")
    edits["requested_rewrite"] = [
        {
            "prompt": "The official language of {} is",
            "relation_id": "P37",
            "target_new": {"str": "Latin"},
            "target_true": {"str": "Italian"},
            "subject": "Rome",
        }
    ]
    edits["new_single_hops"][1] |= {"answer": "Latin", "answer_alias": []}
    edits |= {"new_answer": "Latin", "new_answer_alias": []}
    found = understand(written(tmp_path, "mquake", MQUAKE, edits))
    assert [p.answer for p in found.data.facts] == ["Rome", "Latin"]
    assert [p.answer for p in found.data.implications] == ["Latin", "Latin"]
    assert found.data.derivations[0] == Derivation((1,), (0,), (2,))
    assert len(found.skipped) == 2
    assert "'The official language of Rome is' is answered by 'Italian', but at" in found.skipped[0].reason


def test_known_facts_that_contradict_one_another(tmp_path):
    other = {**renamed(TWO_HOP_FACT, "Red", "Old"), "e3.value": "Cy", "e3.aliases": ""}
    found = understand(written(tmp_path, "twohopfact", TWO_HOP_FACT, other))
    assert len(found.data.facts) == 2 and len(found.data.implications) == len(found.data.known) == 1
    assert "'The mother of Ada is' is answered by 'Cy', but at line 2 by 'Bea'" in found.skipped[0].reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "sonnets"}, "format 'sonnets' is unknown: choose among mquake, "),
        ({"format": "mquake"}, "no record of .* fits mquake; the first: line 1"),
        ({"hop": "second"}, "hop='second' does not go with .* twohopfact or hopping only"),
    ],
)
def test_arguments_that_do_not_go_with_the_file(arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read(written(tmp_path, "prompts", OWN), **arguments)


def test_unknown_records_are_named(tmp_path):
    (tmp_path / "x.json").write_text('[{"question": "?", "answer": "!"}]')
    with pytest.raises(InputError, match="its first record has the keys 'question', 'answer'"):
        read(tmp_path / "x.json")
    (tmp_path / "empty").mkdir()
    empty = datasets.Dataset.from_dict({"prompt": []})
    for nothing in (tmp_path / "none", 7, empty, "x" * 5000, "a\0b", tmp_path / "empty", "/dev/null"):
        with pytest.raises(InputError) as error:
            read(nothing)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (("system", "user", "assistant"), r"give it to ecstruct.facts.in_chat\(..., system=...\)"),
        (
            ("user", "assistant", "user", "assistant"),
            r"from \['user', 'assistant', 'user', 'assistant'\]: a fact is one of",
        ),
        ((), "from nobody"),
    ],
)
def test_conversations_that_are_no_facts(roles, reason, tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps([{"messages": [{"role": role, "content": "Hi"} for role in roles]}]))
    with pytest.raises(InputError, match=reason):
        read(path)


def test_texts_that_look_the_same_are_told_apart_in_words(tmp_path):
    path = tmp_path / "p.jsonl"
    composed, apart = "Jos\u00e9", "Jose\u0301"
    for record in (
        {"prompt": f"{apart} lives in", "answer": "Rome", "subject": composed},
        {"prompt": "His name is", "answer": composed, "options": [apart, "Ada"]},
        {"prompt": "His name is", "answer": composed, "options": [composed, apart]},
    ):
        path.write_text(json.dumps(record))
        with pytest.raises(InputError, match=r"Unicode normal form only.*'NFC'") as error:
            read(path)
        assert r"'Jos\xe9'" in str(error.value) and r"'Jose\u0301" in str(error.value)
