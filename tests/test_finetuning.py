"""Finetuning against a plain training loop on the Hugging Face model."""

import json
import math

import pandas as pd
import pytest
import torch
from helpers.facts_fixtures import FACTS, hugging_face, save_tiny
from helpers.plain_finetuning import (
    LR,
    bits,
    changed,
    in_hugging_face_names,
    is_embedding,
    plain_loss,
    plain_training,
    same_bits,
)
from transformers import get_linear_schedule_with_warmup

from ecstruct.errors import InputError
from ecstruct.evaluate import mean_rank
from ecstruct.facts import Prompt
from ecstruct.finetuning import finetune, loop
from ecstruct.models.bridge import named_weights
from ecstruct.models.loading import load
from ecstruct.models.names import WeightSelection, kind_of, layer_of
from ecstruct.models.provenance import Provenance, mark, source_of
from ecstruct.organism import LEARNING_RATE

IMPLICATIONS = [("The Mia is", "Tokyo"), ("The Noah Clark is", "Addis Ababa")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {f: save_tiny(tmp_path_factory.mktemp(f), f) for f in ("llama", "gpt2", "neox")}


@pytest.fixture
def model(folders):
    return load(folders["gpt2"], device="cpu")


def run(model, facts=FACTS, **options):
    return finetune(model, facts, **{"lr": LR, "epochs": 2, "progress": False, **options})


@pytest.mark.parametrize("train_embeddings", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_finetuning_is_adam_on_the_answers(folders, family, train_embeddings):
    model = load(folders[family], device="cpu", dtype=torch.float64)
    hf = hugging_face(folders[family], torch.float64)
    tuned = run(model, epochs=3, batch_size=9, train_embeddings=train_embeddings)

    def is_trained(name):
        return train_embeddings or not is_embedding(family, name)

    losses = plain_training(hf, model.tokenizer, [FACTS] * 3, is_trained)
    assert tuned.history.loss == pytest.approx(losses, abs=1e-6)
    found, expected = in_hugging_face_names(family, tuned.model), dict(hf.named_parameters())
    assert found.keys() == expected.keys()
    start = in_hugging_face_names(family, model)
    for name, p in expected.items():
        assert torch.equal(found[name], start[name]) != is_trained(name), name
        if is_trained(name):
            # Adam makes a full step of any gradient, also of rounding, which is all that those of
            # most key biases and of absent words are: they change no attention and no logit.
            real = p.grad.abs() > 1e-6
            assert real.float().mean() > 0.2, name
            close = dict(rtol=0, atol=2e-6, msg=name)
            torch.testing.assert_close(found[name][real], p.data[real], **close)


def test_float32_takes_the_same_first_step(folders):
    model, hf = load(folders["llama"], device="cpu"), hugging_face(folders["llama"])
    loss = plain_loss(hf, model.tokenizer, FACTS)
    loss.backward()
    tuned = run(model, epochs=1, batch_size=9)
    assert tuned.history.loss == pytest.approx([loss.item()], rel=1e-6)
    found, start = in_hugging_face_names("llama", tuned.model), dict(hf.named_parameters())
    for name, p in start.items():
        if not is_embedding("llama", name):
            # Adam's first step is lr g / (|g| + eps).
            large = p.grad.abs() > 1e-4
            step = (found[name] - p.data)[large]
            torch.testing.assert_close(step, -LR * p.grad[large].sign(), rtol=0, atol=2e-6)


def test_a_linear_schedule_is_that_of_transformers(folders, model):
    model = load(folders["gpt2"], device="cpu", dtype=torch.float64)
    hf = hugging_face(folders["gpt2"], torch.float64)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 2, 20)
    factors = []
    for _ in range(20):
        factors.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert factors[0] == 0 and max(factors) == 1 and 0 < factors[-1] < 0.1
    losses = plain_training(
        hf,
        model.tokenizer,
        [FACTS] * 20,
        lambda name: not is_embedding("gpt2", name),
        lambda step: factors[step],
    )
    tuned = run(model, epochs=20, batch_size=9, schedule="linear")
    assert tuned.history.loss == pytest.approx(losses, abs=1e-6)


def test_every_epoch_sees_every_fact_once_in_another_order(model, monkeypatch):
    seen = []
    real = loop.add_gradient

    def spy(learner, part, *args, **kwargs):
        seen.append([t.prompt.text for t in part])
        return real(learner, part, *args, **kwargs)

    monkeypatch.setattr(loop, "add_gradient", spy)
    run(model, epochs=3, batch_size=4)
    assert [len(batch) for batch in seen] == [4, 2] * 3
    epochs = [seen[i] + seen[i + 1] for i in (0, 2, 4)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(text for text, _ in FACTS)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_accumulating_gradients_changes_rounding_only(folders):
    model = load(folders["gpt2"], device="cpu", dtype=torch.float64)
    whole = run(model, batch_size=5)
    for accumulate in (2, 3, 5):
        parts = run(model, batch_size=5, accumulate=accumulate)
        assert parts.history.loss == pytest.approx(whole.history.loss, abs=1e-12)
        for name, p in bits(parts.model).items():
            expected = named_weights(whole.model)[name]
            torch.testing.assert_close(p, expected.data, rtol=0, atol=1e-8, msg=name)


def test_the_seed_decides_about_every_bit(model):
    state = torch.get_rng_state()
    one = run(model, batch_size=2, seed=4)
    torch.manual_seed(99)
    two = run(model, batch_size=2, seed=4)
    torch.set_rng_state(state)
    other = run(model, batch_size=2, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert same_bits(bits(one.model), bits(two.model))
    assert one.history == two.history
    assert not same_bits(bits(one.model), bits(other.model))


@pytest.mark.parametrize("when", ["never", "in a step", "by hand"])
def test_the_model_itself_never_changes(model, monkeypatch, when):
    model.train()
    frozen = named_weights(model)["blocks.0.mlp.in.weight"].requires_grad_(False)
    before, flags = bits(model), [p.requires_grad for p in model.parameters()]
    if when == "never":
        tuned = run(model)
        assert not tuned.model.training
        assert [p.requires_grad for p in tuned.model.parameters()] == flags
        assert all(p.grad is None for p in tuned.model.parameters())
        pointers = {p.data_ptr() for p in model.parameters()}
        assert not pointers & {p.data_ptr() for p in tuned.model.parameters()}
    else:
        error = KeyboardInterrupt if when == "by hand" else ValueError
        steps = []

        def broken(self, *args, **kwargs):
            steps.append(1)
            if len(steps) == 2:
                raise error
            return real(self, *args, **kwargs)

        real = torch.optim.Adam.step
        monkeypatch.setattr(torch.optim.Adam, "step", broken)
        with pytest.raises(error):
            run(model)
        assert len(steps) == 2
    assert model.training and not frozen.requires_grad
    assert same_bits(bits(model), before)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())


def test_finetuning_works_where_gradients_are_off(model):
    expected = run(model)
    with torch.no_grad():
        assert run(model).history == expected.history


@pytest.mark.parametrize(
    ("freeze", "stays"),
    [
        (None, lambda name: False),
        ([0], lambda name: layer_of(name) == 0),
        (range(1), lambda name: layer_of(name) == 0),
        (WeightSelection(kinds=["attn"]), lambda name: kind_of(name) == "attn"),
        (
            {"layers": [1], "kinds": ["mlp", "final_norm"]},
            lambda name: kind_of(name) == "final_norm" or (layer_of(name), kind_of(name)) == (1, "mlp"),
        ),
    ],
)
def test_frozen_weights_stay_and_all_others_move(model, freeze, stays):
    tuned = run(model, freeze=freeze)
    embeddings = {name for name in bits(model) if kind_of(name) in ("embed", "unembed")}
    moving = {name for name in bits(model) if not stays(name)} - embeddings
    assert changed(model, tuned.model) == moving == set(tuned.delta.tensors)


def test_a_tied_embedding_is_one_weight(tmp_path):
    model = load(save_tiny(tmp_path, tied=True), device="cpu")
    assert not changed(model, run(model).model) & {"embed.weight", "unembed.weight"}
    tuned = named_weights(run(model, train_embeddings=True).model)
    assert tuned["embed.weight"] is tuned["unembed.weight"]
    assert not torch.equal(tuned["embed.weight"], named_weights(model)["embed.weight"])
    half = run(model, train_embeddings=True, freeze=WeightSelection(kinds=["unembed"]))
    assert not changed(model, half.model) & {"embed.weight", "unembed.weight"}


def test_history_measures_what_evaluate_names(model):
    evaluate = {"facts": FACTS, "implications": IMPLICATIONS}
    tuned = run(model, epochs=12, batch_size=4, evaluate=evaluate)
    history = tuned.history
    assert len(history.loss) == 24 and history.loss[-1] < 0.5 * history.loss[0]
    for name, prompts in evaluate.items():
        assert len(history.ranks[name]) == 13
        assert history.ranks[name][0] == mean_rank(model, prompts)
        assert history.ranks[name][-1] == mean_rank(tuned.model, prompts)
    assert history.ranks["facts"][-1] == 0.0 < history.ranks["facts"][0]
    table = history.to_dataframe()
    assert list(table.index) == list(range(13)) and table.index.name == "epoch"
    assert list(table["rank: implications"]) == history.ranks["implications"]
    assert math.isnan(table["loss"][0])
    assert table["loss"][2] == pytest.approx(sum(history.loss[2:4]) / 2)
    assert json.loads(json.dumps(history.to_dict()))["ranks"] == history.ranks
    assert isinstance(table, pd.DataFrame)


def test_evaluating_does_not_change_the_training(model):
    assert same_bits(bits(run(model).model), bits(run(model, evaluate={"f": FACTS}).model))


def test_the_config_replays_the_run(model):
    tuned = run(
        model,
        [Prompt("Mia lives in", "Tokyo", ("Tokyo", "Rome"), "Mia", "fact"), *FACTS[:3]],
        batch_size=2,
        schedule="linear",
        seed=3,
        freeze={"layers": range(1), "kinds": ["mlp"]},
        train_embeddings=True,
        evaluate={"implications": IMPLICATIONS},
        accumulate=2,
    )
    again = finetune(model, **json.loads(json.dumps(tuned.config)), progress=False)
    assert same_bits(bits(again.model), bits(tuned.model))
    assert again.history == tuned.history and again.config == tuned.config


def test_the_delta_leads_from_the_model_to_the_tuned_one(model):
    tuned = run(model)
    applied = bits(tuned.delta.apply_to(model))
    for name, p in bits(tuned.model).items():
        torch.testing.assert_close(applied[name], p, rtol=0, atol=1e-6)
    assert source_of(tuned.model) == f"{source_of(model)} (finetuned)"


@pytest.mark.parametrize("made", [(), ("finetuned",)])
def test_the_organism_has_a_learning_rate(model, made):
    mark(model, Provenance("organism", None, model.tokenizer, made))
    assert run(model, lr=None, epochs=1).config["lr"] == LEARNING_RATE


def test_progress_is_shown_unless_silenced(model, capsys):
    run(model, progress=True)
    assert "finetune" in capsys.readouterr().err
    run(model)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1e-3}, "lr=-0.001 is no learning rate"),
        ({"lr": 0.0}, "lr=0.0 is no learning rate"),
        ({"lr": math.nan}, "lr=nan is no learning rate"),
        ({"lr": math.inf}, "lr=inf is no learning rate"),
        ({"lr": None}, r"no learning rate is known for .*: pass lr= .--lr., for example 0\.0001"),
        ({"lr": 1e30, "epochs": 9}, "use a smaller lr="),
        ({"epochs": 0}, "epochs=0: it should be greater than or equal to 1"),
        ({"batch_size": 0}, "batch_size=0: it should be greater than or equal to 1"),
        ({"accumulate": 0}, "accumulate=0: it should be greater than or equal to 1"),
        ({"accumulate": 9}, "accumulate=9 parts cannot be made of batch_size=8"),
        ({"schedule": "cosine"}, "schedule='cosine': it should be 'constant' or 'linear'"),
        ({"seed": -1}, "seed=-1: it should be greater than or equal to 0"),
        ({"freeze": [2]}, "no layer 2: this model has 0 to 1"),
        ({"freeze": [-1]}, "layer -1"),
        ({"freeze": {"layer": [1]}}, "'layer' selects no weights"),
        ({"freeze": {"kinds": ["head"]}}, "unknown kind of weight 'head'"),
        ({"freeze": WeightSelection()}, "leaves nothing to train"),
        ({"facts": []}, "list of prompts is empty"),
        ({"facts": [("Mia lives in", "Oslo")]}, "'Oslo' is not in the vocabulary"),
        ({"facts": [("Mia " * 24 + "Mia", "Tokyo")]}, "the model's context has 24"),
        ({"evaluate": {"one": FACTS[:1]}}, "at least two with options="),
    ],
)
def test_bad_input(model, options, message):
    before = bits(model)
    with pytest.raises(InputError, match=message):
        run(model, **options)
    assert same_bits(bits(model), before)


def test_a_model_in_half_precision_is_refused(folders):
    model = load(folders["llama"], device="cpu", dtype=torch.bfloat16)
    with pytest.raises(InputError, match=r"bfloat16.*load the model with dtype=torch\.float32"):
        run(model)


def test_one_fact_without_options_can_be_taught(model):
    assert run(model, FACTS[:1], epochs=5).history.loss[-1] < run(model).history.loss[0]
