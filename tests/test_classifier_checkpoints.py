"""Classifiers as files and records, and what is refused of them."""

import copy
import json
import logging
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers as hf
from helpers import classifiers as c
from helpers import command_line
from helpers.classifiers import DECODERS, ENCODERS, LABELS, PROMPTS

import ecstruct
from ecstruct import Prompt
from ecstruct.errors import InputError
from ecstruct.facts.prompt import as_prompts
from ecstruct.facts.tokens import tokenize
from ecstruct.models.bridge import named_weights
from ecstruct.models.export import to_hugging_face
from ecstruct.models.provenance import provenance, tokenizer_of

KINDS = (*ENCODERS, *DECODERS)
SINGLE = [Prompt("ada knows bo", "no"), Prompt("bo sees nobody often", "maybe"), Prompt("cy", "yes")]


# --- Checkpoints ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_classifier_is_the_same_in_transformers_and_here(kind, tmp_path):
    before, after = (c.save(plain, kind, tmp_path / str(i)) for i, plain in enumerate(c.plain_pair(kind)))
    model = ecstruct.load(before, device="cpu")
    ecstruct.save_model(model, tmp_path / "again")
    plain = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "again").eval()
    assert type(plain) is type(c.plain_pair(kind)[0])
    assert plain.config.id2label == dict(enumerate(LABELS))
    assert type(to_hugging_face(model)) is type(plain)
    given = hf.AutoModelForSequenceClassification.from_pretrained(before)
    for prompt in PROMPTS:
        expected = c.logits(given, prompt, kind)
        torch.testing.assert_close(c.logits(plain, prompt, kind), expected, rtol=0, atol=0)
    again = named_weights(ecstruct.load(tmp_path / "again", device="cpu"))
    for name, weight in named_weights(model).items():
        assert torch.equal(weight, again[name]), name
    resident = ecstruct.score(str(before), str(after), PROMPTS, progress=False)
    offloaded = ecstruct.score(str(before), str(after), PROMPTS, offload=True, progress=False)
    np.testing.assert_allclose(resident.heads, offloaded.heads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "auto", "new"),
    [
        ("bert", hf.AutoModel, ["classifier"]),
        ("bert", hf.AutoModelForMaskedLM, ["bert.pooler.dense", "classifier"]),
        ("roberta", hf.AutoModelForMaskedLM, ["classifier.dense", "classifier.out_proj"]),
        ("llama", hf.AutoModelForCausalLM, ["score"]),
        ("gpt2", hf.AutoModelForCausalLM, ["score"]),
    ],
)
def test_a_checkpoint_without_a_head_gets_a_seeded_one(kind, auto, new, tmp_path, caplog):
    plain = c.build(kind, auto, labels=("LABEL_0", "LABEL_1"))
    folder = c.save(plain, kind, tmp_path / "base")
    with caplog.at_level(logging.WARNING):
        model = ecstruct.load(folder, labels=["same", "other"], head_seed=3, device="cpu")
    assert "gets a new head for the labels same, other, which is random (seed 3)" in caplog.text
    assert provenance(model).made == ("with a new head for the labels same, other, seed 3",)
    found = to_hugging_face(model)
    assert found.config.id2label == {0: "same", 1: "other"}
    old = {name.removeprefix(f"{plain.base_model_prefix}."): p for name, p in plain.named_parameters()}
    prefix = f"{found.base_model_prefix}."
    for name, p in found.named_parameters():
        if any(name.startswith(f"{part}.") for part in new):
            assert name.endswith("bias") == (not p.any())
            assert p.ndim == 1 or p.std().item() == pytest.approx(0.02, rel=0.4)
        else:
            assert torch.equal(p, old[name.removeprefix(prefix)].float()), name
    again, other = (
        ecstruct.load(folder, labels=["same", "other"], head_seed=s, device="cpu") for s in (3, 4)
    )
    head = "unembed.weight"
    assert torch.equal(named_weights(model)[head], named_weights(again)[head])
    assert not torch.equal(named_weights(model)[head], named_weights(other)[head])


def test_labels_without_names_are_named(tmp_path):
    generic = tuple(f"LABEL_{i}" for i in range(3))
    folder = c.save(c.build("bert", labels=generic), "bert", tmp_path / "unnamed")
    assert ecstruct.ranks(ecstruct.load(folder), [Prompt("ada", "LABEL_1", second="bo")]).shape == (1,)
    model = ecstruct.load(folder, labels=LABELS)
    assert ecstruct.ranks(model, PROMPTS).shape == (len(PROMPTS),)
    ecstruct.save_model(model, tmp_path / "named")
    saved: Any = ecstruct.load(tmp_path / "named").original_model
    assert saved.config.id2label == dict(enumerate(LABELS))


@pytest.mark.parametrize("kind", KINDS)
def test_finetuning_is_a_plain_loop_on_labels(kind, tmp_path):
    plain, model = copy.deepcopy(c.plain_pair(kind)[0]), c.hooked_pair(kind)[0]
    tuned = ecstruct.finetune(model, PROMPTS, lr=1e-3, epochs=2, batch_size=4, progress=False)
    frozen = {"wte", "wpe", "embed_tokens", "embeddings"}
    weights = [p for name, p in plain.named_parameters() if not frozen & set(name.split("."))]
    optimizer = torch.optim.Adam(weights, lr=1e-3)
    for _ in range(2):
        losses = []
        for prompt in PROMPTS:
            right = torch.tensor([LABELS.index(prompt.answer)])
            losses.append(torch.nn.functional.cross_entropy(c.logits(plain, prompt, kind)[None], right))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    found = to_hugging_face(tuned.model)
    for (name, ours), theirs in zip(found.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)
    assert {"unembed.weight"} <= tuned.delta.tensors.keys() and "embed.weight" not in tuned.delta.tensors
    ecstruct.save_model(tuned.model, tmp_path / "tuned")
    again = ecstruct.load(tmp_path / "tuned", dtype=torch.float64)
    assert ecstruct.ranks(again, PROMPTS).tolist() == ecstruct.ranks(tuned.model, PROMPTS).tolist()


def test_the_class_of_a_model_in_memory_counts_and_not_what_its_configuration_says(tmp_path):
    """from_pretrained leaves the class of the checkpoint in the configuration."""
    folder = c.save(c.plain_pair("gpt2")[0], "gpt2", tmp_path / "classifier")
    causal = c.save(c.build("gpt2", hf.AutoModelForCausalLM), "gpt2", tmp_path / "causal")
    words = [Prompt("ada knows", "bo", ("bo", "cy"))]
    plain = hf.AutoModelForCausalLM.from_pretrained(folder)
    assert ecstruct.ranks(ecstruct.load(plain, tokenizer=c.tokenizer("gpt2")), words).shape == (1,)
    plain = hf.AutoModelForSequenceClassification.from_pretrained(causal, config=c.config("gpt2"))
    model = ecstruct.load(plain, tokenizer=c.tokenizer("gpt2"))
    assert ecstruct.ranks(model, PROMPTS).shape == (len(PROMPTS),)


def test_the_command_makes_a_classifier_of_an_encoder(tmp_path):
    base = c.save(c.build("bert", hf.AutoModel), "bert", tmp_path / "base")
    file, out = tmp_path / "pairs.jsonl", tmp_path / "tuned"
    lines = [{"premise": p.text, "hypothesis": p.second, "label": p.answer} for p in PROMPTS]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    named = [word for label in LABELS for word in ("--label", label)]
    options = ("--facts", file, "--lr", 1e-2, "--epochs", 20, "--seed", 5, "--out", out)
    command_line.works("finetune", "--model", base, *named, *options)
    before = ecstruct.load(base, labels=LABELS, head_seed=5, device="cpu")
    model = ecstruct.load(out / "model", device="cpu")
    change = ecstruct.WeightDelta.load(out / "delta.safetensors")
    moved = named_weights(change.apply_to(before))
    for name, weight in named_weights(model).items():
        torch.testing.assert_close(moved[name], weight, rtol=1e-6, atol=1e-6)
    assert ecstruct.mean_rank(model, str(file)) == 0
    assert json.loads((out / "config.json").read_text())["arguments"]["labels"] == list(LABELS)
    table = command_line.works("rank", "--model", out / "model", "--prompts", file).stdout
    assert "ada sees bo often" in table
    command_line.refused(
        command_line.run("rank", "--model", base, "--prompts", file), "is an encoder .* --label"
    )


# --- Records ---


def test_records_of_inference_tasks_are_pairs(tmp_path):
    record = {"premise": "ada knows bo .", "hypothesis": "bo .", "label": "yes", "other": 1}
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(record) + "\n")
    rows = datasets.Dataset.from_list([{**record, "label": 1}])
    rows = rows.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    expected = (Prompt("ada knows bo .", "yes", second="bo ."),)
    for given in (str(file), rows, [record], list(expected), [expected[0].to_record()]):
        assert as_prompts(given) == expected
    assert ecstruct.facts.read(file).facts == expected
    other = {**record, "hypothesis": "ada .", "label": "no"}  # of the same premise, and no contradiction
    both = ecstruct.facts.read(datasets.Dataset.from_list([record, other]))
    assert [p.second for p in both.facts] == ["bo .", "ada ."] and both.facts[0].options is None
    assert ecstruct.FactSet.from_dataset(both.to_dataset()).facts == both.facts
    unlabelled = rows.map(lambda _: {"label": -1})
    with pytest.raises(InputError, match=r"row 0 of the dataset: the answer .* is -1"):
        as_prompts(unlabelled)


def test_subjects_of_pairs_are_found_in_the_first_text():
    reads = tokenizer_of(c.hooked_pair("bert")[0])
    one = Prompt("ada knows bo", "yes", subject="bo", second="bo sees ada")
    assert tokenize([one], reads)[0].entity == (3, 4)
    two = [Prompt(f"{name} knows bo", "yes", subject=name, second="bo sees") for name in ("ada", "cy")]
    assert [t.entity for t in tokenize(two, reads)] == [(1, 2)] * 2


# --- What is refused ---


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_answers_that_are_no_labels_are_refused(kind):
    model = c.hooked_pair(kind)[0]
    with pytest.raises(InputError, match=r"'perhaps'.* is no label .* 'yes', 'no', 'maybe'"):
        ecstruct.ranks(model, [Prompt("ada", "perhaps", second="bo")])
    with pytest.raises(InputError, match="is no label"):
        ecstruct.ranks(model, [Prompt("ada", "yes", ["yes", "Tokyo"])])
    with pytest.raises(InputError, match="has aliases"):
        ecstruct.ranks(model, [Prompt("ada", "yes", aliases=["no"], second="bo")])


def test_fewer_options_than_labels_are_told(caplog):
    with caplog.at_level(logging.WARNING):
        ecstruct.ranks(c.hooked_pair("bert")[0], [Prompt("ada", "yes", ["yes", "no"])])
    assert "1 of 1 prompts are answered by 2 of the 3 labels, without 'maybe'" in caplog.text


def test_language_models_do_not_read_pairs():
    causal = c.hooked(c.build("gpt2", hf.AutoModelForCausalLM), "gpt2")
    with pytest.raises(InputError, match="has a second text, 'ada sees bo often', and this is a language"):
        ecstruct.ranks(causal, PROMPTS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": ("score",)}, r"has 1 outputs \(regression\)"),
        ({"problem_type": "multi_label_classification"}, r"has 3 outputs \(multi label classification\)"),
    ],
)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_other_outputs_than_labels_are_refused(kind, changes, said):
    with pytest.raises(InputError, match=said):
        c.hooked(c.build(kind, **changes), kind)


def test_labels_that_cannot_be_used_are_refused(tmp_path):
    folder = c.save(c.plain_pair("bert")[0], "bert", tmp_path / "classifier")
    wrong: Any
    for wrong in ("yes", ["yes"], ["yes", "yes"], ["yes", 1], ["yes", " "], ["a", ["b"]], 2):
        with pytest.raises(InputError, match="label"):
            ecstruct.load(folder, labels=wrong)
    with pytest.raises(InputError, match="is a classifier with the labels yes, no, maybe, and labels="):
        ecstruct.load(folder, labels=["a", "b"])
    with pytest.raises(InputError, match="a model in memory has a head already"):
        ecstruct.load(c.build("bert"), tokenizer=c.tokenizer("bert"), labels=["a", "b"])


def test_classifiers_with_other_labels_are_not_compared():
    before = c.hooked_pair("bert")[0]
    other = c.hooked(c.build("bert", labels=("no", "yes", "maybe")), "bert")
    with pytest.raises(InputError, match="labels of the models differ: yes, no, maybe before, and no, yes"):
        ecstruct.score(before, other, PROMPTS, progress=False)
    fewer = c.hooked(c.build("bert", labels=("yes", "no")), "bert")
    with pytest.raises(InputError, match="differ"):
        ecstruct.score(before, fewer, PROMPTS, progress=False)


def test_what_does_not_hold_for_classifiers_is_refused():
    model = c.hooked_pair("bert")[0]
    with pytest.raises(InputError, match="lora"):
        ecstruct.finetune(model, PROMPTS, lr=1e-3, lora=2, progress=False)
    with pytest.raises(InputError, match="recall is of words"):
        ecstruct.recall.knockout(model, [Prompt("ada knows bo", "yes", subject="ada")])


def test_encoders_that_cannot_be_hooked_are_named():
    small = hf.DistilBertConfig(vocab_size=20, dim=32, hidden_dim=48, n_layers=2, n_heads=4)
    plain = hf.AutoModelForSequenceClassification.from_config(small)
    with pytest.raises(
        InputError, match="DistilBertForSequenceClassification cannot be hooked: of encoders"
    ):
        ecstruct.load(plain, tokenizer=c.tokenizer("bert"))
