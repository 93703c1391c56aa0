"""Prompts in chat templates: tokens, alignment, scores, training and the command line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from chat_models import (
    ALWAYS_THINKING,
    CHATML,
    LLAMA2,
    LLAMA3,
    TEMPLATES,
    THINKING,
    chat_tokenizer,
    save_chat,
)
from facts_fixtures import FACTS, hugging_face
from folders import save
from safetensors.torch import load_file
from typer.testing import CliRunner

import ecstruct
from ecstruct.cli import app
from ecstruct.errors import InputError
from ecstruct.facts import FactSet, Prompt, as_prompts, in_chat, read, read_jsonl, write_jsonl
from ecstruct.facts.tokens import option_tokens, tokenize
from ecstruct.finetuning.batches import IGNORED, teacher_forced
from ecstruct.plots.heatmap import slot_labels

ASKED = [
    *(Prompt(text, city, subject=text.removesuffix(" lives in"), template="city") for text, city in FACTS),
    Prompt("The assistant of Grace Miller says that Mia lives in", "Rome", subject="Mia", template="said"),
    Prompt("The assistant of Grace Miller says that Noah Clark lives in", "Paris", template="said"),
    Prompt("user", "Paris", template="one word", subject="user"),
]
"""Of three templates, one with a word of the wrapper, one with a single prompt."""


@pytest.fixture(scope="module", params=TEMPLATES)
def tokenizer(request):
    return chat_tokenizer(TEMPLATES[request.param])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models with ChatML."""
    folder = tmp_path_factory.mktemp("chat")
    return save_chat(folder / "before"), save_chat(folder / "after", seed=1)


@pytest.fixture
def facts(tmp_path):
    return write(tmp_path / "facts.jsonl", [Prompt(*fact) for fact in FACTS])


def write(path, prompts):
    write_jsonl(prompts, path)
    return path


def said_by_template(tokenizer, *said, **options):
    """The ids that transformers makes of a conversation, beginning with the user."""
    roles = ("user", "assistant")
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in (*words, "--device", "cpu", "--quiet")])


def works(*words):
    result = run(*words)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result


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
    for option, ids in zip(prompt.options, option_tokens([t], tokenizer)[0], strict=True):
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
    assert read_jsonl(write(tmp_path / "wrapped.jsonl", wrapped)) == tuple(wrapped)
    assert [Prompt.from_record(json.loads(json.dumps(p.to_record()))) for p in wrapped] == wrapped
    data = FactSet(as_prompts(wrapped[:2]), as_prompts(wrapped[2:4]))
    assert FactSet.from_dataset(data.to_dataset()) == read(data.to_dataset()) == data
    assert in_chat(write(tmp_path / "plain.jsonl", ASKED), tokenizer) == wrapped


def test_the_template_of_a_model_and_of_a_source(folders):
    before, _ = folders
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


# --- scores ---


def test_scores_are_those_of_the_whole_text_without_a_bos(tmp_path):
    """Llama 2's template is a text with a space before its answer, as any prompt."""
    before, after = (save_chat(tmp_path / str(seed), LLAMA2, seed) for seed in (0, 1))
    wrapped = as_prompts(in_chat(ASKED[:6], before))
    scores = ecstruct.score(load(before), load(after), wrapped, progress=False)
    bare = [replace(p, text=p.asked, wrapper=None) for p in wrapped]
    plain = [load(folder, adds_bos=False) for folder in (before, after)]
    expected = ecstruct.score(*plain, bare, progress=False)
    for name in scores.dataset.data_vars:
        np.testing.assert_array_equal(scores.dataset[name].values, expected.dataset[name].values, name)
    assert float(abs(scores.mlp).max()) > 1e-3


def load(folder, *, adds_bos=True):
    hf = hugging_face(folder)
    tokenizer = chat_tokenizer(LLAMA2, adds_bos=adds_bos)
    return ecstruct.load(hf, tokenizer=tokenizer, device="cpu")


def test_rewards_are_those_of_the_templates_ids(folders):
    before, after = folders
    tokenizer = chat_tokenizer(CHATML)
    prompts = as_prompts(in_chat(ASKED[:6], before))
    scores = ecstruct.score(*(ecstruct.load(f, device="cpu") for f in folders), prompts, progress=False)
    for state, folder in (("before", before), ("after", after)):
        hf = hugging_face(folder)
        for row, prompt in enumerate(prompts):
            asked = said_by_template(tokenizer, prompt.text, add_generation_prompt=True)
            first = [said_by_template(tokenizer, prompt.text, o)[len(asked)] for o in prompt.options]
            logits = hf(torch.tensor([asked])).logits[0, -1]
            reward = logits[first[prompt.options.index(prompt.answer)]] - logits[first].mean()
            found = scores.reward.sel(state=state)[row].item()
            assert found == pytest.approx(reward.item(), rel=1e-4, abs=1e-4)


def test_scores_tell_tokens_of_the_wrapper(folders, tmp_path):
    before, after = folders
    prompts = in_chat(ASKED[:6], before, system="Be brief.")
    scores = ecstruct.score(ecstruct.load(before, device="cpu"), str(after), prompts, progress=False)
    wrapper, texts = scores.dataset["wrapper"].values, scores.dataset["token_text"].values
    for row, prompt in enumerate(prompts):
        length = int(scores.dataset["length"][row])
        said = [
            t for t, outside in zip(texts[row, :length], wrapper[row, :length], strict=True) if not outside
        ]
        assert "".join(said) == prompt.text.replace(" ", "")
        assert not wrapper[row, length:].any()
    slots = scores.aggregate()
    labels = dict(zip(slots.slot_text, zip(slots.in_wrapper, slot_labels(slots), strict=True), strict=True))
    assert labels["<|im_start|>"] == (True, '<span style="color:#8a8a8a">&lt;|im_start|&gt;</span>')
    assert labels["Ċ"] == (True, '<span style="color:#8a8a8a">\\n</span>')
    assert labels["X"] == (False, "<i>X</i>")
    inside = np.array(slots.slot_text)[~np.array(slots.in_wrapper)].tolist()
    assert inside[:2] == ["X", "Y"] and "".join(inside[2:]) == "livesin"
    assert any("im_start" in label for label in scores.heatmap().layout.xaxis.ticktext)
    scores.save(tmp_path / "scores.nc")
    loaded = ecstruct.ExtractiveScores.load(tmp_path / "scores.nc")
    assert loaded.dataset["wrapper"].dtype == bool
    assert (loaded.dataset["wrapper"].values == wrapper).all()


def test_no_token_of_a_plain_prompt_is_of_a_wrapper(folders):
    before, after = folders
    scores = ecstruct.score(ecstruct.load(before, device="cpu"), str(after), ASKED[:6], progress=False)
    assert not scores.dataset["wrapper"].values.any()
    assert not any(scores.aggregate().in_wrapper)


# --- training ---


def test_documents_are_conversations(folders):
    before, _ = folders
    tokenizer = chat_tokenizer(CHATML)
    tokenized = tokenize(in_chat(FACTS, before), tokenizer, with_options=False)
    ids, mask, labels = teacher_forced(tokenized, 0, torch.device("cpu"))
    losses = []
    hf = hugging_face(before)
    for row, (text, answer) in enumerate(FACTS):
        asked = said_by_template(tokenizer, text, add_generation_prompt=True)
        n_answer = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
        whole = said_by_template(tokenizer, text, answer)[: len(asked) + n_answer]
        n_read = len(whole) - 1
        assert ids[row, :n_read].tolist() == whole[:-1]
        assert mask[row].sum() == n_read
        expected = [IGNORED] * (len(asked) - 1) + whole[len(asked) :]
        assert labels[row, :n_read].tolist() == expected
        log_probs = hf(torch.tensor([whole])).logits[0, len(asked) - 1 : -1].log_softmax(-1)
        losses += (-log_probs.gather(1, torch.tensor(whole[len(asked) :])[:, None])).flatten().tolist()
    tuned = ecstruct.finetune(
        ecstruct.load(before, device="cpu"), in_chat(FACTS, before), lr=1e-3, epochs=1, progress=False
    )
    assert len(FACTS) <= 8  # one step
    assert tuned.history.to_dict()["loss"][0] == pytest.approx(np.mean(losses), rel=1e-4)


# --- the command line ---


def test_command_line_and_replay(folders, facts, tmp_path):
    before, _ = folders
    words = ("--chat-template", "--system", "Be brief.")
    wrapped = in_chat(facts, before, system="Be brief.")
    records = [p.to_record() for p in wrapped]
    tuned = ("finetune", "--model", before, "--facts", facts, "--evaluate", f"again={facts}", *words)
    works(*tuned, "--lr", "1e-3", "--epochs", "2", "--out", tmp_path / "tuned")
    config = json.loads((tmp_path / "tuned/config.json").read_text())["arguments"]
    assert config["facts"] == [p.to_record() for p in as_prompts(wrapped)]
    assert [record["wrapper"] for record in config["evaluate"]["again"]] == [
        list(p.wrapper) for p in wrapped
    ]

    pair = ("--before", before, "--after", tmp_path / "tuned/delta.safetensors", "--prompts", facts)
    works("score", *pair, *words, "--out", tmp_path / "scores")
    model = ecstruct.load(before, device="cpu")
    expected = ecstruct.score(model, str(tmp_path / "tuned/delta.safetensors"), wrapped, progress=False)
    found = ecstruct.ExtractiveScores.load(tmp_path / "scores/scores.nc")
    np.testing.assert_array_equal(found.mlp.values, expected.mlp.values)
    assert "im_start" in (tmp_path / "scores/report.html").read_text()

    works("fidelity", *pair, *words, "--out", tmp_path / "fidelity")
    assert json.loads((tmp_path / "fidelity/config.json").read_text())["arguments"]["prompts"] == records

    works("rank", "--model", before, "--prompts", facts, *words, "--out", tmp_path / "ranks.json")
    ranked = json.loads((tmp_path / "ranks.json").read_text())
    assert ranked["mean_rank"] == ecstruct.mean_rank(model, wrapped)
    assert ranked["prompts"] == records

    # A template that has changed since does not matter.
    (before / "chat_template.jinja").write_text(LLAMA2)
    try:
        works("replay", tmp_path / "scores/config.json", "--out", tmp_path / "again")
        works("replay", tmp_path / "tuned/config.json", "--out", tmp_path / "tuned-again")
    finally:
        (before / "chat_template.jinja").write_text(CHATML)
    again = ecstruct.ExtractiveScores.load(tmp_path / "again/scores.nc")
    assert again.dataset.equals(found.dataset)
    deltas = [load_file(tmp_path / name / "delta.safetensors") for name in ("tuned", "tuned-again")]
    assert deltas[0].keys() == deltas[1].keys() and deltas[0]
    assert all(torch.equal(deltas[1][name], t) for name, t in deltas[0].items())


@pytest.mark.parametrize("command", ["rank", "score", "fidelity", "finetune"])
def test_bad_command_lines_are_one_sentence(command, facts, tmp_path):
    folder = save(tmp_path / "plain")
    out = tmp_path / "out"
    words = {
        "rank": ("--model", folder, "--prompts", facts, "--out", out),
        "score": ("--before", folder, "--after", folder, "--prompts", facts, "--out", out),
        "fidelity": ("--before", folder, "--after", folder, "--prompts", facts, "--out", out),
        "finetune": ("--model", folder, "--facts", facts, "--lr", "1e-3", "--out", out),
    }[command]
    for options, message in (
        (("--chat-template",), f"error: the tokenizer of {folder} has no chat template"),
        (("--system", "Hi"), "error: --system is a part of the chat template: add --chat-template."),
    ):
        result = run(command, *words, *options)
        assert result.exit_code == 2 and result.stderr.startswith(message), result.stderr
        assert result.stderr.count("\n") == 1 and not out.exists()
