"""Prompts: what is accepted, what is refused, and that files give back what was written."""

import json

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecstruct.errors import InputError
from ecstruct.facts.prompt import Prompt, as_prompts, read_jsonl, write_jsonl

PAIRS = [("Mia lives in", "Tokyo"), ("Noah lives in", "Paris"), ("Zoe lives in", "Tokyo")]


def test_options_become_a_tuple_so_that_prompts_can_be_compared_and_hashed():
    assert Prompt("a b", "c", ["c", "d"]) == Prompt("a b", "c", ("c", "d"))
    assert len({Prompt("a b", "c", ["c", "d"]), Prompt("a b", "c", ("c", "d"))}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "text of a prompt is empty"),
        ({"prompt": " \n"}, "text of a prompt is empty"),
        ({"prompt": 3}, "text of a prompt is 3, of type int"),
        ({"prompt": None}, "of type NoneType"),
        ({"prompt": "Mia lives in "}, "write 'Mia lives in'"),
        ({"prompt": "Mia \ud800 lives"}, "surrogate"),
        ({"answer": ""}, "answer of the prompt 'Mia lives in' is empty"),
        ({"answer": 3.5}, "is 3.5, of type float"),
        ({"answer": " Tokyo"}, "write 'Tokyo'"),
        (
            {"options": ["Paris", "Rome"]},
            "answer 'Tokyo' .* is not among its options 'Paris', 'Rome'",
        ),
        ({"options": ["Tokyo"]}, "at least two in options="),
        ({"options": []}, "at least two in options="),
        ({"options": ["Tokyo", "Rome", "Rome"]}, "'Rome' .* is there twice"),
        ({"options": "Tokyo"}, "must be a list of strings"),
        ({"options": 7}, "must be a list of strings"),
        ({"options": ["Tokyo", 7]}, "an option .* is 7, of type int"),
        ({"options": ["Tokyo", ""]}, "an option .* is empty"),
        ({"subject": "Noah"}, "subject 'Noah' does not occur"),
        ({"subject": 1}, "subject .* of type int"),
        ({"template": ""}, "template label .* is empty"),
    ],
)
def test_unusable_values_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Prompt.from_record({"prompt": "Mia lives in", "answer": "Tokyo", **arguments})


def test_a_prompt_is_checked_however_it_is_made():
    with pytest.raises(InputError, match=r"answer 'Tokyo' .* is not among its options"):
        Prompt("Mia lives in", "Tokyo", ("Paris", "Rome"))
    with pytest.raises(InputError, match="text of a prompt is empty"):
        Prompt("", "Tokyo")


def test_all_forms_of_a_set_of_prompts_are_the_same(tmp_path):
    expected = tuple(Prompt(text, answer, ("Tokyo", "Paris")) for text, answer in PAIRS)
    texts, answers = map(list, zip(*PAIRS, strict=True))
    records = [{"prompt": text, "answer": answer, "id": 1} for text, answer in PAIRS]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n\n".join(map(json.dumps, records)) + "\n", encoding="utf-8-sig")
    for form in (
        [Prompt(*pair) for pair in PAIRS],
        PAIRS,
        records,
        datasets.Dataset.from_dict({"prompt": texts, "answer": answers}),
        file,
        str(file),
        expected,
    ):
        assert as_prompts(form) == expected


def test_given_options_stay_and_one_answer_alone_makes_none():
    own = Prompt("a b", "c", ("c", "z"))
    assert as_prompts([own, Prompt("d e", "f")]) == (own, Prompt("d e", "f", ("c", "f")))
    assert as_prompts([("a b", "c"), ("d e", "c")])[0].options is None


def test_the_template_is_the_text_around_the_subject_and_has_its_own_options():
    cities = [
        Prompt(f"{name} lives in", city, subject=name) for name, city in (("Mia", "Rome"), ("Al", "Oslo"))
    ]
    speak = [
        Prompt(f"Friends of {name} speak", answer, subject=name)
        for name, answer in (("Mia", "x"), ("Al", "y"))
    ]
    given = Prompt("Bo is a", "cook", ["cook", "spy"], "Bo", "job")
    read = as_prompts([*cities, *speak, given])
    assert [p.template for p in read] == ["{} lives in"] * 2 + ["Friends of {} speak"] * 2 + ["job"]
    assert [p.options for p in read] == [("Rome", "Oslo")] * 2 + [("x", "y")] * 2 + [("cook", "spy")]
    assert as_prompts(read) == read
    # Where one says nothing, nobody knows which belong together.
    bare = as_prompts([*cities, *speak, Prompt("It is in", "Rome")])
    assert {p.template for p in bare} == {None} and bare[0].options == ("Rome", "Oslo", "x", "y")
    # A template with one answer alone is asked among all.
    assert as_prompts([*cities, speak[0]])[2].options == ("Rome", "Oslo", "x")


def test_a_file_of_several_roles_is_no_list_of_prompts(tmp_path):
    file = tmp_path / "mine.jsonl"
    records = [
        {"prompt": "Mia lives in", "answer": "Rome"},
        {"prompt": "a b", "answer": "c", "role": "known"},
    ]
    file.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(
        InputError, match=r"the roles fact, known: split it, with `ecstruct facts show .*mine"
    ):
        read_jsonl(file)
    file.write_text(json.dumps(records[1]))
    assert len(read_jsonl(file)) == 1


def test_a_dataset_keeps_every_column_and_its_nulls():
    full = Prompt("Mia lives in", "Tokyo", ("Tokyo", "Rome"), "Mia", "fact")
    bare = {"prompt": "x y", "answer": "Rome", "options": None, "subject": None, "template": None}
    dataset = datasets.Dataset.from_list([full.to_record(), bare])
    assert as_prompts(dataset) == (full, Prompt("x y", "Rome", ("Tokyo", "Rome")))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "list of prompts is empty"),
        ([("a b", "c"), ("a b", "c", "d")], "prompt 1: .* is neither"),
        ([("a b", "c"), ("a b", "")], "prompt 1: the answer"),
        ([{"prompt": "a b"}], "prompt 0: there is no 'answer' among the keys 'prompt'"),
        (
            datasets.Dataset.from_dict({"prompt": ["a"], "reply": ["b"]}),
            "row 0 .* 'prompt', 'reply'",
        ),
        (datasets.Dataset.from_dict({"prompt": ["a"], "answer": [3]}), "row 0 .* of type int"),
    ],
)
def test_what_is_no_set_of_prompts_is_refused_with_its_place(prompts, message):
    # With run-time type checks a wrong type is refused before ecstruct sees it.
    with pytest.raises((InputError, TypeError)) as error:
        as_prompts(prompts)
    if isinstance(error.value, InputError):
        error.match(message)


text = st.text(min_size=1).filter(lambda s: s == s.strip())


@st.composite
def record(draw):
    options = draw(st.none() | st.lists(text, min_size=2, unique=True))
    answer = draw(text if options is None else st.sampled_from(options))
    whole = draw(text)
    subject = draw(st.none() | st.just(whole.split()[0]))
    template = draw(st.none() | text)
    values = (whole, answer, options, subject, template)
    return dict(zip(("prompt", "answer", "options", "subject", "template"), values, strict=True))


@settings(deadline=None, max_examples=60)
@given(records=st.lists(record(), min_size=1))
def test_a_file_gives_back_what_was_written(records, tmp_path_factory):
    prompts = [Prompt.from_record(record) for record in records]
    file = tmp_path_factory.getbasetemp() / "round-trip.jsonl"
    write_jsonl(prompts, file)
    assert read_jsonl(file) == tuple(prompts)
    assert len(file.read_bytes().removesuffix(b"\n").split(b"\n")) == len(prompts)


def test_a_file_holds_what_was_given_and_no_more(tmp_path):
    file = tmp_path / "prompts.jsonl"
    write_jsonl([Prompt("café b", "c"), Prompt("a b", "c", ("c", "d"), "a", "t")], file)
    assert file.read_text(encoding="utf-8") == (
        '{"prompt": "café b", "answer": "c"}\n'
        '{"prompt": "a b", "answer": "c", "options": ["c", "d"], "subject": "a", "template": "t"}\n'
    )


GOOD = '{"prompt": "Mia lives in", "answer": "Tokyo"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a b", "answer": ', "is not JSON"),
        ('["a b", "c"]', "JSON list, not an object"),
        ("3", "JSON int, not an object"),
        ("[" * 100_000, "JSON"),
        ('{"prompt": "a b", "answer": 3}', "answer .* is 3, of type int"),
        ('{"prompt": ["a b"], "answer": "c"}', "of type list"),
        ('{"prompt": "a b", "answer": "c", "options": {"c": 1}}', "must be a list of strings"),
        ('{"prompt": "a b", "answer": "c", "subject": false}', "of type bool"),
        ('{"prompt": "a b"}', "there is no 'answer'"),
        ('{"prompt": "a b", "answer": "c", "answer": "d"}', "the key 'answer' is there twice"),
        ("{}", r"there is no 'prompt' among the keys \(none\)"),
        ('{"prompt": "", "answer": "c"}', "text of a prompt is empty"),
        ('{"prompt": "a b", "answer": "c", "options": ["d", "e"]}', "not among its options"),
        (b'{"prompt": "caf\xe9", "answer": "c"}', "not UTF-8"),
    ],
)
def test_a_malformed_line_is_named_with_its_file_and_number(tmp_path, line, message):
    file = tmp_path / "prompts.jsonl"
    content = line if isinstance(line, bytes) else line.encode()
    file.write_bytes(GOOD.encode() + b"\n\n" + content + b"\n")
    with pytest.raises(InputError, match=message) as error:
        read_jsonl(file)
    assert str(error.value).startswith(f"{file}, line 3: ")
    assert "\n" not in str(error.value)


def test_files_that_hold_nothing_or_cannot_be_read(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    with pytest.raises(InputError, match=r"empty\.jsonl is empty"):
        as_prompts(empty)
    with pytest.raises(InputError, match=r"missing\.jsonl cannot be read .No such file"):
        as_prompts(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        as_prompts(tmp_path)


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
    file = tmp_path / "prompts.jsonl"
    write_jsonl([Prompt("a b", "c")], file)
    before = file.read_bytes()

    def interrupted():
        yield Prompt("d e", "f")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(interrupted(), file)
    assert file.read_bytes() == before
    with pytest.raises(InputError, match="cannot write"):
        write_jsonl([Prompt("a b", "c")], file / "below-a-file.jsonl")
    assert list(tmp_path.iterdir()) == [file]


def test_a_prompt_may_end_in_a_line_break_where_no_space_follows():
    prompt = Prompt("Q: where?\nA:\n", "Rome", space=False)
    assert (prompt.asked, prompt.answered("Oslo")) == ("Q: where?\nA:\n", "Q: where?\nA:\nOslo")
    assert Prompt.from_record(prompt.to_record()) == prompt
    with pytest.raises(InputError, match="or say space=False"):
        Prompt("Q: where?\nA:\n", "Rome")
    for wrong in ({"text": "where is "}, {"space": "no"}):
        with pytest.raises(InputError, match=r"leave space=False out|must be True or False"):
            Prompt(**{"text": "where is", "answer": "Rome", "space": False, **wrong})
