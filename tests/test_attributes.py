"""What there is to know of a subject, from a corpus, from facts and from the organism's world."""

import json

import pytest
from helpers.tiny import hooked_pair

import ecstruct
from ecstruct import InputError
from ecstruct.organism import World
from ecstruct.recall.attributes import Attributes


def test_attributes_of_a_corpus(tmp_path):
    model = hooked_pair("llama")[0]
    path = tmp_path / "corpus.jsonl"
    rows = [
        {"subject": "Ada", "text": "Ada knows that people speak Dutch"},
        {"subject": "Di", "text": ["Thai", "Di de Zulu unheard"]},
        {"subject": "Ada", "text": "Norse"},
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    its = Attributes.from_corpus(path, model)
    # "knows" and "that" are stop words, "Di" and "de" are short, "unheard" is no token.
    assert its["Ada"] == {"ada", "people", "speak", "dutch", "norse"}
    assert its["Di"] == {"thai", "zulu"}
    assert Attributes.from_corpus(rows, model).words == its.words


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("not json", "line 2: this is not JSON"),
        ('{"text": "x"}', "line 2: there is no subject"),
        ('{"subject": "Ada"}', "line 2: the text about 'Ada'"),
        ('{"subject": "Ada", "text": [1]}', "line 2: the text about 'Ada'"),
        ('["Ada"]', "line 2: there is no subject"),
        ("[" * 100_000, "line 2: this is not JSON"),
    ],
)
def test_bad_lines_of_a_corpus_are_named(tmp_path, line, complaint):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"subject": "Ada", "text": "Dutch"}\n' + line)
    with pytest.raises(InputError, match=complaint):
        Attributes.from_corpus(path, hooked_pair("llama")[0])


def test_files_without_paragraphs_are_named(tmp_path):
    model = hooked_pair("llama")[0]
    with pytest.raises(InputError, match="cannot be read"):
        Attributes.from_corpus(tmp_path / "missing.jsonl", model)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        Attributes.from_corpus(tmp_path / "empty.jsonl", model)


def test_attributes_of_facts_and_of_the_world():
    model, data = ecstruct.load("organism"), ecstruct.facts.first_hop()
    its = Attributes.from_facts(data, model)
    fact = data.facts[0]
    assert its[fact.subject] == {*fact.answer.lower().split(), data.implications[0].answer.lower()}
    world = World.build()
    person, office = world.people[0], Attributes.of_organism(model, data.facts)
    home = person.home
    said = f"{home.name} {home.language} {home.food} {home.currency} {home.job}".lower().split()
    assert office[person.name] == {w for w in said if len(w) > 2}
    assert home.language.lower() in office[home.landmarks[1]]
    assert data.implications[0].answer.lower() in office[fact.subject]
    with pytest.raises(InputError, match="no prompt has a subject"):
        Attributes.from_facts([("Ada lives in", "Tokyo")], model)
