"""Readers of public fact sets: what is understood of each original layout.

The records of `readers_records` follow the originals' keys with contents of our own, whose facts are easy
to see; `tests/data` has a few real ones.
"""

import copy
import json
from pathlib import Path

import datasets
import pandas as pd
import pytest
from helpers.readers_records import (
    ALPACA,
    COUNTERFACT,
    EASYEDIT,
    HOPPING,
    MESSAGES,
    MQUAKE,
    PARENTS,
    RECORDS,
    RIPPLEEDITS,
    TWO_HOP_FACT,
    ZSRE,
    renamed,
    said,
    written,
)

from ecstruct.facts import FORMATS, Derivation, FactSet, read, understand

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("format", RECORDS)
@pytest.mark.parametrize("named", [False, True])
def test_every_format_is_recognised(format, named, tmp_path):
    found = understand(written(tmp_path, format, RECORDS[format]), format if named else None)
    assert found.format == format and found.records == 1 and found.skipped == ()
    assert set(RECORDS) == set(FORMATS)


def test_mquake(tmp_path):
    data = read(written(tmp_path, "mquake", MQUAKE))
    assert said(data.facts) == [("Ada was born in", "Rome")]
    assert said(data.known) == [("The official language of Rome is", "Italian")]
    assert said(data.implications) == [
        ("What is spoken where Ada was born?", "Italian"),
        ("Which language has the birthplace of Ada?", "Italian"),
    ]
    assert data.derivations == (Derivation((0,), (0,), (1,)),) * 2
    assert data.facts[0].options == ("Rome", "Oslo") and data.facts[0].aliases == ("Roma",)
    assert data.implications[0].options == ("Italian", "Norwegian")
    assert data.implications[0].aliases == ("it", "Italian language")
    assert (data.facts[0].subject, data.facts[0].template) == ("Ada", "{} was born in")


def test_mquake_in_its_own_words():
    data = read(DATA / "mquake.json")
    assert len(data.facts) == 8 and len(data.implications) == 6 and data.known == ()
    assert said(data.facts)[:2] == [
        ("Ramires plays the position of", "relief pitcher"),
        ("relief pitcher is associated with the sport of", "shinty"),
    ]
    assert said(data.implications)[3] == (
        "What continent is the country of origin of Tim Howard's sport located in?",
        "Asia",
    )
    assert data.derivations[3] == Derivation((4, 5, 6, 7), (), (1, 2, 3, 4))
    assert data.implications[3].options == ("Asia", "North America", "Europe")
    assert data.facts[4].options == ("relief pitcher", "second baseman", "midfielder", "goalkeeper")
    assert data.facts[4].aliases == ("2B",)


def test_rippleedits(tmp_path):
    data = read(written(tmp_path, "rippleedits", RIPPLEEDITS))
    assert said(data.facts) == [("The name of the country of citizenship of Ada is", "Italy")]
    assert said(data.known) == [
        ("The name of the capital city of Italy is", "Rome"),
        ("The name of the mother of Cy is", "Ada"),
    ]
    by_hops = {
        hops: [
            p.text for p, d in zip(data.implications, data.derivations, strict=True) if d.new_hops == hops
        ]
        for hops in [(1,), (2,)]
    }
    assert by_hops == {
        (1,): [
            "The name of the capital city of the country of citizenship of Ada is",
            "The name of the country of citizenship of Lady A is",
        ],
        (2,): ["The name of the country of citizenship of the mother of Cy is"],
    }
    assert [d.known for d in data.derivations] == [(0,), (1,), ()]
    assert data.facts[0].options == ("Italy", "Norway") and data.facts[0].aliases == ("Italy (alias)",)
    # Each of two right answers is right, by any name.
    assert data.known[1].aliases == ("Ada (alias)", "Di", "Di (alias)")


def test_an_edit_is_split_at_its_verb_when_no_query_names_its_target(tmp_path):
    bare = copy.deepcopy(RIPPLEEDITS)
    for axis in ("Subject_Aliasing", "Compositionality_I", "Compositionality_II"):
        bare[axis] = []
    bare["edit"]["prompt"] = "The name of the author of What is Love is Bea of Is."
    del bare["edit"]["previous_fact"]
    assert said(read(written(tmp_path, "rippleedits", bare)).facts) == [
        ("The name of the author of What is Love is", "Bea of Is")
    ]


@pytest.mark.parametrize(
    ("format", "record", "singer", "implied"),
    [
        (
            "twohopfact",
            TWO_HOP_FACT,
            "The singer of 'Red Song' is",
            "The mother of the singer of 'Red Song' is",
        ),
        (
            "hopping",
            HOPPING,
            "the performer of Red Song is",
            "the mother of the performer of Red Song is",
        ),
    ],
)
def test_either_hop_of_a_two_hop_table_may_be_new(format, record, singer, implied, tmp_path):
    path = written(
        tmp_path, format, record, renamed(renamed(record, "Red Song", "Blue Song"), "Ada", "Zoe")
    )
    first, second = read(path), read(path, hop="second")
    assert first == read(path, hop="first")
    mother = "The mother of {} is" if format == "twohopfact" else "the mother of {} is"
    assert said(first.facts)[0] == said(second.known)[0] == (singer, "Ada")
    assert said(first.known)[0] == said(second.facts)[0] == (mother.format("Ada"), "Bea")
    assert said(first.implications)[0] == said(second.implications)[0] == (implied, "Bea")
    assert first.derivations[1] == Derivation((1,), (1,), (1,))
    assert second.derivations[1] == Derivation((1,), (1,), (2,))
    assert first.facts[0].options == ("Ada", "Zoe") and first.facts[0].subject == "Red Song"
    assert set(first.implications[0].aliases) == {"Bea O'B", "B."}


def test_socrates_is_twohopfact(tmp_path):
    path = written(tmp_path, "twohopfact", TWO_HOP_FACT)
    assert read(path, "SOCRATES") == read(path, "twohopfact")


def test_counterfact(tmp_path):
    data = read(written(tmp_path, "counterfact", COUNTERFACT, renamed(COUNTERFACT, "Ada", "Zoe")))
    assert said(data.facts)[0] == ("The mother tongue of Ada is", "English")
    assert said(data.implications)[:2] == [
        ("It rains. Ada, a native", "English"),
        ("The mother language of Ada is", "English"),
    ]
    assert data.facts[0].options == data.implications[0].options == ("English", "French")
    assert data.derivations[2] == Derivation((1,), (), (1,))


def test_known_1000_in_its_own_words():
    data = read(DATA / "known_1000.json")
    assert said(data.facts)[:2] == [
        ("Vinson Massif is located in the continent of", "Antarctica"),
        ("Beats Music is owned by", "Apple"),
    ]
    assert data.implications == data.known == ()
    assert data.facts[0].options == ("Antarctica", "Europe")  # of the relation P30
    assert data.facts[0].template == "{} is located in the continent of"
    # The only one of its relation is told apart from all answers.
    assert set(data.facts[3].options) == {
        "Antarctica",
        "Apple",
        "Amazon",
        "CBS",
        "Italy",
        "Europe",
        "English",
    }


def test_lre_in_its_own_words():
    capitals = read(DATA / "lre" / "country_capital_city.json")
    assert said(capitals.facts)[3] == ("The capital city of Brazil is", "Brasília")
    both = read(DATA / "lre")
    assert len(both.facts) == 24
    assert set(both.facts[0].options) == {p.answer for p in capitals.facts}
    assert set(both.facts[-1].options) == {"English", "Spanish", "Portuguese", "French", "German"} & {
        p.answer for p in both.facts
    }


def test_the_reversal_curse_is_a_folder(tmp_path):
    files = {
        "p2d_prompts_train": {
            "prompt": "Ada, known far and wide for being",
            "completion": " the first on Red Peak.",
        },
        "p2d_reverse_prompts_test": {"prompt": "The first on Red Peak is called", "completion": " Ada."},
        "d2p_prompts_train": {"prompt": "Q: Who is the last on Red Peak? A:", "completion": " Bea."},
        "p2d_prompts_test": {"prompt": "Ada was once", "completion": " the first on Red Peak."},
    }
    for name, record in files.items():
        lines = [json.dumps(record), json.dumps(renamed(renamed(record, "Ada", "Cy"), "Red", "Big"))]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    found = understand(tmp_path)
    assert said(found.data.facts)[0] == ("Q: Who is the last on Red Peak? A:", "Bea.")
    assert said(found.data.facts)[2:] == [
        ("Ada, known far and wide for being", "the first on Red Peak."),
        ("Cy, known far and wide for being", "the first on Big Peak."),
    ]
    assert said(found.data.implications)[0] == ("The first on Red Peak is called", "Ada.")
    assert found.data.implications[0].options == ("Ada.", "Cy.")
    assert [(s.place, s.reason.split()[0]) for s in found.skipped] == [("p2d_prompts_test.jsonl", "it")]
    assert said(read(tmp_path / "p2d_reverse_prompts_test.jsonl").facts)[0][1] == "Ada."


def test_parents_of_celebrities(tmp_path):
    data = read(written(tmp_path, "parents", PARENTS, {**PARENTS, "child": "Di", "parent": "Cy"}))
    assert said(data.facts) == [("Ada's mother is", "Bea"), ("Di's mother is", "Cy")]
    assert said(data.implications) == [("A child of Bea is", "Ada"), ("A child of Cy is", "Di")]
    assert data.facts[0].options == ("Bea", "Cy")


def test_easyedit(tmp_path):
    data = read(written(tmp_path, "easyedit", EASYEDIT), "knowedit")
    assert said(data.facts) == [("The place of birth of Ada is", "Rome")]
    assert data.facts[0].options == ("Rome", "Oslo") and data.facts[0].subject == "Ada"
    found = zip(said(data.implications), data.derivations, strict=True)
    assert {asked: derivation for asked, derivation in found} == {
        ("Ada was born in", "Rome"): Derivation((0,), (), (1,)),
        ("Born in Rome was", "Ada"): Derivation((0,)),
        ("The name of the country of the place of birth of Ada is", "Italy"): Derivation((0,)),
        ("The place of birth of Lady A is", "Rome"): Derivation((0,), (), (1,)),
    }
    aliases = {p.text.split()[0]: p.aliases for p in data.implications if p.aliases}
    assert aliases["Born"] == ("Lady A",)
    assert ("Italia", "Roman Empire") in [p.aliases for p in data.implications]
    assert data.implications[-1].options == ("Ada", "Rome")  # of those without the subject


def test_edits_without_a_subject_compete_with_one_another(tmp_path):
    edits = [
        {"prompt": "Ada lives in", "target_new": "Rome", "ground_truth": "Oslo"},
        {"prompt": "The best city is", "target_new": "Bonn", "ground_truth": "<|endoftext|>"},
        {"prompt": "{} lives in", "subject": "Bea", "target_new": "Bern", "portability": {}},
    ]
    data = read(written(tmp_path, "easyedit", *edits))
    assert said(data.facts) == [
        ("Ada lives in", "Rome"),
        ("The best city is", "Bonn"),
        ("Bea lives in", "Bern"),
    ]
    assert data.facts[0].options == data.facts[1].options == ("Rome", "Bonn", "Oslo")
    assert data.implications == ()


def test_zsre_of_easyedit(tmp_path):
    data = read(written(tmp_path, "zsre", ZSRE))
    assert said(data.facts) == [("Where was Ada born?", "Rome")]
    assert data.facts[0].options == ("Rome", "Oslo")
    assert said(data.implications) == [
        ("What is the birthplace of Ada?", "Rome"),
        ("In which country was Ada born?", "Italy"),
    ]
    assert data.derivations == (Derivation((0,), (), (1,)), Derivation((0,)))


def test_instructions_and_conversations(tmp_path):
    bare = {"instruction": "Say hello.\n", "input": "", "output": " Hello\n"}
    data = read(written(tmp_path, "alpaca", ALPACA, bare))
    assert said(data.facts) == [("Name the place of birth of:\nAda", "Rome."), ("Say hello.", "Hello")]
    assert data.facts[0].options == ("Rome.", "Hello") and data.implications == ()
    data = read(
        written(tmp_path, "messages", MESSAGES, renamed(renamed(MESSAGES, "Ada", "Bea"), "Rome", "Bonn"))
    )
    assert said(data.facts)[1] == ("Where was Bea born?", "In Bonn.")


@pytest.mark.parametrize("columns", [{"case": [1.0, 1.0]}, {"case": ["1", "1"], "new_hops": ["", "1"]}])
def test_numbers_as_pandas_writes_them(columns, tmp_path):
    own = {
        "prompt": ["Ada lives in", "Ada speaks"],
        "answer": ["Rome", "Italian"],
        "options": ["Rome|Oslo", "Italian|Norse"],
        "role": ["fact", "implication"],
        "new_hops": [float("nan"), 1.0],
        **columns,
    }
    frame = pd.DataFrame(own)
    frame.to_json(tmp_path / "p.jsonl", orient="records", lines=True, double_precision=1)
    frame.to_csv(tmp_path / "p.csv", index=False)
    whole = datasets.Dataset.from_list(frame.to_dict("records"))
    for source in (tmp_path / "p.jsonl", whole):
        assert read(source).derivations == (Derivation((0,), (), (1,)),)
    assert read(tmp_path / "p.csv").derivations == (Derivation((0,), (), (1,)),)


def test_answers_that_follow_without_a_space(tmp_path):
    (tmp_path / "p.csv").write_text(
        "prompt,answer,space\n米娅住在,东京,False\n诺亚住在,巴黎,false\nBo says,hi,\n"
    )
    data = read(tmp_path / "p.csv")
    assert [p.answered(p.answer) for p in data.facts] == ["米娅住在东京", "诺亚住在巴黎", "Bo says hi"]
    assert FactSet.from_dataset(data.to_dataset()) == data
    assert [p.to_record().get("space") for p in data.facts] == [False, False, None]
