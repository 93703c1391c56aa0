"""Models that answer in chat templates: scores, training and the command line."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.chat_models import ASKED, CHATML, LLAMA2, chat_tokenizer, said_by_template, save_chat
from helpers.command_line import run, works
from helpers.facts_fixtures import FACTS, hugging_face
from helpers.folders import save
from safetensors.torch import load_file

import ecstruct
from ecstruct.facts import Prompt, as_prompts, in_chat, write_jsonl
from ecstruct.facts.tokens import tokenize
from ecstruct.finetuning.batches import IGNORED, teacher_forced
from ecstruct.plots.scores import slot_labels


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models with ChatML."""
    folder = tmp_path_factory.mktemp("chat")
    return save_chat(folder / "before"), save_chat(folder / "after", seed=1)


@pytest.fixture
def facts(tmp_path):
    write_jsonl([Prompt(*fact) for fact in FACTS], tmp_path / "facts.jsonl")
    return tmp_path / "facts.jsonl"


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
    every, folded = scores.heatmap(fold=False), scores.heatmap()
    assert any("im_start" in label for label in every.layout.xaxis.ticktext)
    # Runs of the template's tokens are one column each, their sum; the last token has its own.
    labels, all_labels = folded.layout.xaxis.ticktext, every.layout.xaxis.ticktext
    runs = [label for label in labels if "template tokens" in label]
    assert len(runs) == 2 and labels[-1] == all_labels[-1] and not labels[1].startswith("<span")
    first = int(re.findall(r"(\d+) template tokens", runs[0])[0])
    values, summed = (np.asarray(figure.data[0].z, dtype=float) for figure in (every, folded))
    np.testing.assert_allclose(summed[:, 0], values[:, :first].sum(1), rtol=1e-5)
    np.testing.assert_array_equal(summed[:, 1], values[:, first])
    np.testing.assert_allclose(summed.sum(), values.sum(), rtol=1e-4)
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


QUIET = ("--device", "cpu", "--quiet")


def test_command_line_and_replay(folders, facts, tmp_path):
    before, _ = folders
    words = ("--chat-template", "--system", "Be brief.")
    wrapped = in_chat(facts, before, system="Be brief.")
    records = [p.to_record() for p in wrapped]
    tuned = ("finetune", "--model", before, "--facts", facts, "--evaluate", f"again={facts}", *words)
    works(*tuned, "--lr", "1e-3", "--epochs", "2", "--out", tmp_path / "tuned", *QUIET)
    config = json.loads((tmp_path / "tuned/config.json").read_text())["arguments"]
    assert config["facts"] == [p.to_record() for p in as_prompts(wrapped)]
    assert [record["wrapper"] for record in config["evaluate"]["again"]] == [
        list(p.wrapper) for p in wrapped
    ]

    pair = ("--before", before, "--after", tmp_path / "tuned/delta.safetensors", "--prompts", facts)
    works("score", *pair, *words, "--out", tmp_path / "scores", *QUIET)
    model = ecstruct.load(before, device="cpu")
    expected = ecstruct.score(model, str(tmp_path / "tuned/delta.safetensors"), wrapped, progress=False)
    found = ecstruct.ExtractiveScores.load(tmp_path / "scores/scores.nc")
    np.testing.assert_array_equal(found.mlp.values, expected.mlp.values)
    assert "template tokens" in (tmp_path / "scores/report.html").read_text()

    works("fidelity", *pair, *words, "--sample", 2, "--out", tmp_path / "fidelity", *QUIET)
    assert json.loads((tmp_path / "fidelity/config.json").read_text())["arguments"]["prompts"] == records
    agreement = json.loads((tmp_path / "fidelity/fidelity.json").read_text())["agreement"]
    assert {row["n"] for row in agreement} == {0, 2}  # the sample has no MLP

    works("rank", "--model", before, "--prompts", facts, *words, "--out", tmp_path / "ranks.json", *QUIET)
    ranked = json.loads((tmp_path / "ranks.json").read_text())
    assert ranked["mean_rank"] == ecstruct.mean_rank(model, wrapped)
    assert ranked["prompts"] == records

    # A template that has changed since does not matter.
    (before / "chat_template.jinja").write_text(LLAMA2)
    try:
        works("replay", tmp_path / "scores/config.json", "--out", tmp_path / "again", *QUIET)
        works("replay", tmp_path / "tuned/config.json", "--out", tmp_path / "tuned-again", *QUIET)
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
        result = run(command, *words, *options, *QUIET)
        assert result.exit_code == 2 and result.stderr.startswith(message), result.stderr
        assert result.stderr.count("\n") == 1 and not out.exists()
