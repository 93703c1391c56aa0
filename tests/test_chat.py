"""Prompts in chat templates: their wrappers, tokens and alignment."""

import json
from dataclasses import replace

import pytest
from helpers.chat_models import (
    ALWAYS_THINKING,
    ASKED,
    CHATML,
    LLAMA2,
    LLAMA3,
    TEMPLATES,
    THINKING,
    chat_tokenizer,
    said_by_template,
    save_chat,
)
from helpers.facts_fixtures import FACTS

import ecstruct
from ecstruct.errors import InputError
from ecstruct.facts import FactSet, Prompt, as_prompts, in_chat, read, read_jsonl, write_jsonl
from ecstruct.facts.options import option_tokens
from ecstruct.facts.tokens import tokenize


@pytest.fixture(scope="module", params=TEMPLATES)
def tokenizer(request):
    return chat_tokenizer(TEMPLATES[request.param])


# --- tokens ---


def test_ids_are_those_of_the_template(tokenizer):
    for t in tokenize(in_chat(ASKED, tokenizer), tokenizer):
        prompt = t.prompt
        assert list(t.ids) == said_by_template(tokenizer, prompt.text, add_generation_prompt=True)
        whole = said_by_template(tokenizer, prompt.text, prompt.answer)
        assert whole[: len(t.ids) + len(t.answer_ids)] == [*t.ids, *t.answer_ids]
        said = tokenizer.decode(t.answer_ids)
        assert said.strip() == prompt.answer
        assert (said != prompt.answer) == (tokenizer.chat_template == LLAMA2)


def test_options_and_aliases_are_what_an_assistant_says(tokenizer):
    prompt = replace(as_prompts(ASKED)[0], aliases=["Noah", "Mia"])
    [t] = tokenize(in_chat([prompt], tokenizer), tokenizer)
    n = len(t.ids)

    def answer_ids(answer):
        return said_by_template(tokenizer, prompt.text, answer)[n:]

    assert list(t.option_ids) == [answer_ids(option)[0] for option in prompt.options]
    for alias, ids in zip(prompt.aliases, t.alias_ids, strict=True):
        assert list(ids) == answer_ids(alias)[: len(ids)]
    for option, ids in zip(prompt.options, option_tokens([t.prompt], tokenizer)[0], strict=True):
        assert tokenizer.decode(ids).strip() == option
        assert list(ids) == answer_ids(option)[: len(ids)]


@pytest.mark.parametrize("template", [LLAMA3, LLAMA2])
def test_one_bos_where_the_tokenizer_and_the_template_have_one(template):
    tokenizer = chat_tokenizer(template)
    assert tokenizer(FACTS[0][0])["input_ids"][0] == tokenizer.bos_token_id
    for t in tokenize(in_chat(ASKED, tokenizer), tokenizer):
        assert t.ids.count(tokenizer.bos_token_id) == 1 and t.ids[0] == tokenizer.bos_token_id


def test_wrapped_and_plain_prompts_are_tokenized_side_by_side(tokenizer):
    plain, chat = ASKED[:3], in_chat(ASKED[3:6], tokenizer)
    mixed = [plain[0], chat[0], chat[1], plain[1], chat[2], plain[2]]
    alone = [
        *tokenize(plain, tokenizer, with_options=False),
        *tokenize(chat, tokenizer, with_options=False),
    ]
    by_prompt = {t.prompt.text: (t.ids, t.answer_ids) for t in alone}
    for t in tokenize(mixed, tokenizer, with_options=False):
        assert (t.ids, t.answer_ids) == by_prompt[t.prompt.text]
        # All that they have in common is a BOS, and nothing where ChatML has none.
        assert t.entity == (int(tokenizer.chat_template != CHATML), len(t.ids))


def test_an_answer_comes_after_an_empty_thought():
    tokenizer = chat_tokenizer(THINKING)
    for t in tokenize(in_chat(ASKED, tokenizer), tokenizer):
        asked = said_by_template(tokenizer, t.prompt.text, add_generation_prompt=True)
        whole = said_by_template(tokenizer, t.prompt.text, t.prompt.answer)
        assert list(t.ids[: len(asked)]) == asked
        assert tokenizer.decode(t.ids[len(asked) :]) == "<think>\n\n</think>\n\n"
        assert whole[: len(t.ids) + len(t.answer_ids)] == [*t.ids, *t.answer_ids]


def test_an_answer_comes_in_place_of_a_thought():
    tokenizer = chat_tokenizer(ALWAYS_THINKING)
    for t in tokenize(in_chat(ASKED, tokenizer), tokenizer):
        asked = said_by_template(tokenizer, t.prompt.text, add_generation_prompt=True)
        whole = said_by_template(tokenizer, t.prompt.text, t.prompt.answer)
        assert tokenizer.decode(asked[len(t.ids) :]) == "<think>\n" and list(t.ids) == asked[: len(t.ids)]
        assert whole == [*t.ids, *t.answer_ids, tokenizer.convert_tokens_to_ids("<|eot|>")]


def test_a_system_message_opens_the_conversation():
    tokenizer = chat_tokenizer(CHATML)
    [default] = in_chat(FACTS[:1], tokenizer)
    [prompt] = in_chat(FACTS[:1], tokenizer, system="Be brief.")
    assert default.wrapper[0] == "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n"
    assert prompt.wrapper[0] == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    assert prompt.wrapper[1] == "<|im_end|>\n<|im_start|>assistant\n"


# --- prompts ---


def test_only_the_wrapper_is_new(tokenizer, tmp_path):
    wrapped = in_chat(ASKED, tokenizer)
    assert [replace(p, wrapper=None) for p in wrapped] == ASKED
    assert len({p.wrapper for p in wrapped}) == 1
    write_jsonl(wrapped, tmp_path / "wrapped.jsonl")
    assert read_jsonl(tmp_path / "wrapped.jsonl") == tuple(wrapped)
    assert [Prompt.from_record(json.loads(json.dumps(p.to_record()))) for p in wrapped] == wrapped
    data = FactSet(as_prompts(wrapped[:2]), as_prompts(wrapped[2:4]))
    assert FactSet.from_dataset(data.to_dataset()) == read(data.to_dataset()) == data
    write_jsonl(ASKED, tmp_path / "plain.jsonl")
    assert in_chat(tmp_path / "plain.jsonl", tokenizer) == wrapped


def test_the_template_of_a_model_and_of_a_source(tmp_path):
    before = save_chat(tmp_path / "chat")
    expected = in_chat(ASKED, chat_tokenizer(CHATML))
    assert in_chat(ASKED, before) == in_chat(ASKED, str(before)) == expected
    assert in_chat(ASKED, ecstruct.load(before, device="cpu")) == expected


def strips(text):
    return CHATML.replace("message.content", f"message.content{text}")


@pytest.mark.parametrize(
    ("template", "prompts", "system", "message"),
    [
        (None, FACTS, None, "the tokenizer of .* has no chat template: use a chat model"),
        (LLAMA2, FACTS, "Be brief.", "refuses a conversation of system, user, .*no system messages here"),
        (strips(" | upper"), FACTS, None, "does not write out what a user asks"),
        (
            strips(" | replace('Grace', 'G.')"),
            FACTS,
            None,
            "does not take the prompt 'Grace Miller lives in'",
        ),
        (strips(" | replace('brief', 'long')"), FACTS, "Be brief.", "leaves out .*message 'Be brief.'"),
        (
            LLAMA3,
            [(" Mia lives in", "Rome")],
            None,
            "does not take the prompt ' Mia lives in' and .*spaces",
        ),
        (CHATML, [Prompt("Mia", "Rome", wrapper=("[", "]"))], None, "'Mia' is in a chat template already"),
        ("{% if x %}", FACTS, None, "refuses a conversation of user, assistant"),
        (
            "{% for m in messages %}{{ m.nothing.at_all }}{% endfor %}",
            FACTS,
            None,
            "refuses a conversation",
        ),
        ("Hello", FACTS, None, "does not write out what a user asks"),
    ],
)
def test_refused(template, prompts, system, message):
    tokenizer = chat_tokenizer(CHATML)
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=message):
        in_chat(prompts, tokenizer, system=system)


@pytest.mark.parametrize("wrapper", ["[]", ["["], ["[", "]", "]"], ["[", 1], {"[": "]"}, 3])
def test_a_wrapper_is_two_strings(wrapper):
    with pytest.raises(InputError, match="wrapper of the prompt 'Mia' is"):
        Prompt.from_record({"prompt": "Mia", "answer": "Rome", "wrapper": wrapper})


# --- alignment ---


def test_wrappers_are_aligned_and_never_an_entity(tokenizer):
    tokenized = tokenize(in_chat(ASKED, tokenizer), tokenizer, with_options=False)
    plain = tokenize(ASKED, chat_tokenizer(tokenizer.chat_template, adds_bos=False), with_options=False)
    [before] = {t.ids[: t.wrapper[0]] for t in tokenized}
    [after] = {t.ids[len(t.ids) - t.wrapper[1] :] for t in tokenized}
    assert before and after
    of_city = [t for t in tokenized if t.template == "city"]
    assert len({len(t.ids) for t in of_city}) > 1
    assert len({(t.entity[0], len(t.ids) - t.entity[1]) for t in of_city}) == 1
    for t, p in zip(tokenized, plain, strict=True):
        start, end = t.text_span
        assert tokenizer.decode(t.ids[start:end]).strip() == t.prompt.text
        assert start <= t.entity[0] < t.entity[1] <= end
        # As without the wrapper: the entity is found in the text alone.
        here, there = (tokenizer.decode(x.ids[slice(*x.entity)]).strip() for x in (t, p))
        assert here == there
    assert tokenizer.decode(tokenized[-1].ids[slice(*tokenized[-1].entity)]).strip() == "user"
