"""`ecstruct facts show`: what a reader makes of a file, printed and written."""

import json
from functools import partial
from pathlib import Path

import pytest
from helpers.command_line import run
from helpers.readers_records import KNOWN_1000, TWO_HOP_FACT, one_sentence, renamed, written

from ecstruct.errors import InputError
from ecstruct.facts import read, read_jsonl

DATA = Path(__file__).parent / "data"


show = partial(run, "facts", "show")


def test_show_prints_what_was_understood(tmp_path):
    result = show(DATA / "mquake.json")
    assert result.exit_code == 0
    assert "mquake, 2 records" in result.stdout and "8 facts" in result.stdout
    assert "Ramires plays the position of -> relief pitcher (of 4: " in result.stdout
    assert "new hops 1, 2, 3, 4: 6 implications" in result.stdout


def test_show_lists_what_is_left_out_and_strict_refuses(tmp_path):
    path = written(tmp_path, "known_1000", KNOWN_1000, {**KNOWN_1000, "attribute": 3})
    result = show(path, "--json")
    account = json.loads(result.stdout)
    assert account["facts"] == 1 and account["records"] == 2
    assert account["skipped"][0]["place"].endswith("(record 2)")
    printed = show(path).stdout
    assert "known_1000, 2 records\n1 fact\n" in printed and "1 left out" in printed
    strict = show(path, "--strict", "--out", tmp_path / "out")
    assert strict.exit_code == 2 and strict.stdout == "" and not (tmp_path / "out").exists()
    assert one_sentence(strict.stderr.strip()).startswith("error: 1 of the records of")


def test_show_writes_what_other_commands_read(tmp_path):
    path = written(
        tmp_path, "twohopfact", TWO_HOP_FACT, renamed(renamed(TWO_HOP_FACT, "Red", "Old"), "Bea", "Cy")
    )
    shown = show(path, "--hop", "second", "--out", tmp_path / "out")
    assert shown.exit_code == 0 and f"1 fact, in {tmp_path / 'out' / 'facts.jsonl'}\n" in shown.stdout
    data = read(path, hop="second")
    for kind in ("facts", "implications", "known"):
        assert read_jsonl(tmp_path / "out" / f"{kind}.jsonl") == getattr(data, kind)


def test_a_table_is_sent_here(tmp_path):
    path = tmp_path / "my facts.csv"
    path.write_text("prompt,answer\nAda lives in,Rome\nBea lives in,Oslo\n")
    with pytest.raises(InputError, match=r"is not JSONL: ecstruct facts show '.*/my facts\.csv' --out DIR"):
        read_jsonl(path)
    assert show(path, "--out", tmp_path / "out").exit_code == 0
    assert [prompt.answer for prompt in read_jsonl(tmp_path / "out" / "facts.jsonl")] == ["Rome", "Oslo"]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b'[{"prompt": "a b", "answer": "c"}, ', b"[" * 200_000]
)
def test_show_refuses_damage_in_one_sentence(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    result = show(tmp_path / "x.json", "--out", tmp_path / "out")
    assert result.exit_code == 2 and result.stdout == "" and not (tmp_path / "out").exists()
    one_sentence(result.stderr.strip())
