"""Records and fact sets of our own formats, read from every kind of file."""

import csv
import json

import datasets
import pytest
from helpers.readers_records import (
    LRE,
    MQUAKE,
    REVERSAL,
    said,
    written,
)

from ecstruct.facts import Derivation, FactSet, Prompt, read, read_jsonl

OURS = [
    {"case": "a", "prompt": "Ada lives in", "answer": "Rome", "subject": "Ada", "template": "home"},
    {"case": "b", "prompt": "Bea lives in", "answer": "Oslo", "subject": "Bea", "template": "home"},
    {"case": "a", "role": "known", "prompt": "People in Rome speak", "answer": "Italian"},
    {
        "case": "b",
        "role": "known",
        "prompt": "People in Oslo speak",
        "answer": "Norwegian",
        "aliases": ["Norsk"],
    },
    {"case": "b", "role": "implication", "prompt": "Bea speaks", "answer": "Norwegian", "new_hops": [1]},
    {"case": "a", "role": "implication", "prompt": "Ada speaks", "answer": "Italian", "new_hops": [1]},
]


def as_table(path, delimiter):
    keys = ["role", "case", "prompt", "answer", "subject", "template", "aliases", "new_hops"]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, keys, delimiter=delimiter)
        table.writeheader()
        for record in OURS:
            joined = {k: "|".join(map(str, v)) if isinstance(v, list) else v for k, v in record.items()}
            table.writerow(joined)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "dataset", "saved dataset"])
def test_our_own_records_say_what_follows_from_what(kind, tmp_path):
    path = tmp_path / f"own.{kind}"
    keys = dict.fromkeys(key for record in OURS for key in record)
    whole = [{**keys, **record} for record in OURS]  # a dataset has all columns in all rows
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, OURS)))
    elif kind == "json":
        path.write_text(json.dumps(OURS))
    elif kind in ("csv", "tsv"):
        as_table(path, "," if kind == "csv" else "\t")
    elif kind == "dataset":
        path = datasets.Dataset.from_list(whole)
    else:
        datasets.Dataset.from_list(whole).save_to_disk(str(path))
    data = read(path)
    assert said(data.facts) == [("Ada lives in", "Rome"), ("Bea lives in", "Oslo")]
    assert data.facts[0].options == ("Rome", "Oslo") and data.facts[0].template == "home"
    assert said(data.known) == [("People in Rome speak", "Italian"), ("People in Oslo speak", "Norwegian")]
    assert data.known[1].aliases == ("Norsk",)
    assert said(data.implications) == [("Bea speaks", "Norwegian"), ("Ada speaks", "Italian")]
    assert data.derivations == (Derivation((1,), (1,), (1,)), Derivation((0,), (0,), (1,)))


def test_a_fact_set_of_datasets_is_read_as_it_was(tmp_path):
    data = read(written(tmp_path, "mquake", MQUAKE))
    assert FactSet.from_dataset(data.to_dataset()) == data
    assert read(data.to_dataset()) == data
    data.to_dataset().save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved") == data


def test_what_write_jsonl_wrote_is_read(tmp_path):
    prompts = [
        Prompt("Ada lives in", "Rome", ["Rome", "Oslo"], "Ada", "home", ["Roma"]),
        Prompt("a b", "c", ["c", "d"]),
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(p.to_record()) for p in prompts))
    assert read(tmp_path / "p.jsonl").facts == tuple(prompts) == read_jsonl(tmp_path / "p.jsonl")


def test_records_of_lre_and_reversal_without_a_folder(tmp_path):
    two = {**LRE, "name": "other", "prompt_templates": ["{} has the capital"]}
    data = read(written(tmp_path, "lre", LRE, two))
    assert said(data.facts)[2:] == [("Italy has the capital", "Rome"), ("Norway has the capital", "Oslo")]
    assert said(read(written(tmp_path, "reversal", REVERSAL)).facts) == [
        ("Ada, known far and wide for being", "the first to cross the Red Peak.")
    ]
