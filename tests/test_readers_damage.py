"""Readers and files of any content: one sentence, never a traceback, never a part of the file."""

import json

import pytest
from helpers.fuzz.damage import put, ways
from helpers.readers_records import RECORDS, TABLES, one_sentence, renamed, written

from ecstruct.errors import InputError
from ecstruct.facts import read, read_jsonl, understand


def refused(path, **arguments):
    with pytest.raises(InputError) as error:
        read(path, **arguments)
    return one_sentence(str(error.value))


def cuts(whole, path):
    """Where it shows that a file is cut off: not between two lines, nor within a table's last cell."""
    if path.suffix == ".json":
        return [*(len(whole) * i // 7 for i in range(1, 7)), len(whole.rstrip()) - 1]
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    if path.suffix == ".jsonl":
        return [ends[0] // 2, ends[0] - 1, ends[0] + 2, (ends[0] + ends[1]) // 2, ends[1] - 1]
    last_comma = whole.rindex(b",")
    return [ends[1] + 2, (ends[1] + last_comma) // 2, last_comma]


@pytest.mark.parametrize("format", RECORDS)
def test_a_file_that_is_cut_off_is_refused_as_a_whole(format, tmp_path):
    path = written(tmp_path, format, RECORDS[format], renamed(RECORDS[format], "Ada", "Zoe"))
    whole = path.read_bytes()
    for cut in cuts(whole, path):
        path.write_bytes(whole[:cut])
        refused(path)


ACCENTS = {"Ada": "Zo\xeb", "Oslo": "\xd6slo", "Asia": "\xc4sia"}


@pytest.mark.parametrize("format", RECORDS)
@pytest.mark.parametrize("damage", ["utf-16", "latin-1", "binary", "nothing", "blank", "nul"])
def test_a_file_in_another_encoding_is_refused(format, damage, tmp_path):
    path = written(tmp_path, format, RECORDS[format])
    text = path.read_text(encoding="utf-8")
    for plain, accented in ACCENTS.items():
        text = text.replace(plain, accented)
    content = {
        "utf-16": text.encode("utf-16"),
        "latin-1": text.encode("latin-1"),
        "binary": bytes(range(256)) * 4,
        "nothing": b"",
        "blank": b" \n \n",
        "nul": b"\0" * 100,
    }[damage]
    path.write_bytes(text.encode("utf-8"))
    understand(path)
    path.write_bytes(content)
    refused(path)


DEEP = "[" * 100_000
VALUES = {
    "nothing": None,
    "a number": 7,
    "a huge number": 10**4000,
    "infinity": 1e999,
    "true": True,
    "no text": "",
    "blanks": " \n",
    "an empty list": [],
    "an empty object": {},
    "a list": [1, None, {"a": []}],
    "an object": {"str": None, "prompt": 1},
    "a nested list": [[[[[[[[["x"]]]]]]]]],
    "half a pair": "\ud800",
    "braces": "{0.__class__} {} {!r:>9999}",
}


@pytest.mark.parametrize("format", [format for format in RECORDS if format not in TABLES])
@pytest.mark.parametrize("value", VALUES)
def test_values_of_the_wrong_kind_anywhere_in_a_record(format, value, tmp_path):
    record, new = RECORDS[format], VALUES[value]
    for wrong in (new, *(put(record, way, new) for way in ways(record))):
        path = tmp_path / "x.json"
        path.write_text(json.dumps([record, wrong]), encoding="utf-8")
        try:
            found = understand(path, format)
        except InputError as error:
            one_sentence(str(error))
        else:
            for skipped in found.skipped:
                one_sentence(skipped.reason)
            assert found.data.facts  # those of the record that is as it should be


@pytest.mark.parametrize("format", RECORDS)
def test_keys_that_are_missing(format, tmp_path):
    record = RECORDS[format]
    for key in record:
        path = written(tmp_path, format, {k: v for k, v in record.items() if k != key})
        try:
            found = understand(path, format)
        except InputError as error:
            one_sentence(str(error))
        else:
            assert found.data.facts


CELLS = [
    "",
    " ",
    "[",
    "[['a', 3]]",
    "{'a': 1}",
    DEEP,
    "(" * 100_000,
    "-" * 100_000 + "1",
    "1" + "+1" * 100_000,
    "__import__('os').system('true')",
    "9" * 5000,
    "[" + "'a'," * 400_000 + "]",
    "x" * 10_000_000,
    "nan",
    "\u2028x",
]


@pytest.mark.parametrize("format", TABLES)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell[:9]!r}...{len(cell)}")
def test_cells_of_any_content(format, cell, tmp_path):
    record = RECORDS[format]
    keys = list(record)
    for key in keys if len(cell) < 10_000 else [keys[-1], "e3.aliases", "e3_aliases"]:
        if key in record:
            path = written(tmp_path, format, record, {**renamed(record, "Ada", "Zoe"), key: cell})
            found = understand(path, format)
            for skipped in found.skipped:
                one_sentence(skipped.reason)


LINES = {
    "10 MB of one text": lambda line: line.replace("Ada", "A" * 10_000_000, 1),
    "10 MB of blanks": lambda line: line + " " * 10_000_000,
    "10 MB, cut off": lambda line: line.replace("Ada", "A" * 10_000_000, 1)[:-3],
    "10 MB of no JSON": lambda line: "x" * 10_000_000,
    "nested deeply": lambda line: DEEP + "]" * 100_000,
    "nested deeply, objects": lambda line: '{"a":' * 100_000 + "1" + "}" * 100_000,
    "a number of 10,000 digits": lambda line: line[:-1] + ', "n": ' + "9" * 10_000 + "}",
    "huge exponents": lambda line: line[:-1] + ', "n": 1e999999}',
    "two objects": lambda line: line + line,
    "not closed": lambda line: line[:-1],
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("format", ["mquake", "lre", "prompts"])
def test_lines_of_any_content(format, line, tmp_path):
    good = json.dumps(renamed(RECORDS[format], "Ada", "Zoe"))
    bad = LINES[line](json.dumps(renamed(RECORDS[format], "Italy", "Ada")))
    path = tmp_path / "x.jsonl"
    for content in (f"{good}\n{bad}\n", f"{bad}\n{good}\n", f"[{good},\n{bad}]", bad):
        path.write_text(content)
        try:
            found = understand(path, format)
        except InputError as error:
            one_sentence(str(error))
        else:
            for skipped in found.skipped:
                one_sentence(skipped.reason)
            assert line in ("10 MB of one text", "10 MB of blanks", "huge exponents")


@pytest.mark.parametrize("line", LINES)
def test_files_of_prompts_alone_with_lines_of_any_content(line, tmp_path):
    plain = {"prompt": "Ada lives in", "answer": "Rome"}
    (tmp_path / "x.jsonl").write_text(LINES[line](json.dumps(plain)))
    if line in ("10 MB of blanks", "huge exponents", "10 MB of one text"):
        assert read_jsonl(tmp_path / "x.jsonl")[0].answer == "Rome"
    else:
        with pytest.raises(InputError) as error:
            read_jsonl(tmp_path / "x.jsonl")
        assert "line 1" in one_sentence(str(error.value))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "prompt,answer\na,b,c\n", "line 2, has 3 cells and not 2"),
        ("x.csv", "prompt,answer\na\n", "line 2, has 1 cells"),
        ("x.csv", 'prompt,answer\na,"b\n', "is no table"),
        ("x.csv", "prompt,answer\n", "a header without rows"),
        ("x.csv", "prompt,answer,answer\na,b,c\n", "line 1, has the column 'answer' twice"),
        ("x.jsonl", '{"prompt": "a", "answer": "b", "answer": "c"}', "the key 'answer' is there twice"),
        ("x.json", '[{"prompt": "a", "prompt": "b"}]', "line 1, is not JSON (the key 'prompt' is there"),
        ("x.json", "[]", "a list without records"),
        ("x.json", '[{"prompt": "a", "answer": "b"}', "the list does not end"),
        ("x.json", '[{"prompt": "a", "answer": "b"},]', "line 1, is not JSON"),
        ("x.json", '[{"prompt": "a", "answer": "b"}] x', "something follows the list"),
        ("x.json", '{\n"prompt": "a"}\n{', "line 3, is not JSON"),
        ("x.json", '{\n"prompt": "a",\n"answer"}', "line 3, is not JSON"),
    ],
)
def test_damage_is_named_with_its_line(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    assert message in refused(tmp_path / name)
