"""Pretraining: its phases and snapshots, that a seed fixes the weights, and what it refuses."""

import json
from dataclasses import asdict, replace
from itertools import chain

import pytest
import torch
from helpers.command_line import refused, run
from helpers.tiny_organisms import few_sentences
from transformers import AutoTokenizer, OlmoForCausalLM

from ecstruct import organism
from ecstruct.errors import InputError
from ecstruct.models.steps import checkpoints
from ecstruct.organism import Phase, Recipe, training
from ecstruct.organism.locality import local_attention
from ecstruct.organism.sentences import MIXTURE, training_sentences, vocabulary
from ecstruct.organism.tokenizer import word_tokenizer
from ecstruct.organism.training import CONTEXT, new_model, train
from ecstruct.organism.world import World

PHASES = (Phase(2 / 3, inventions=2), Phase(1 / 3, inventions=4))
"""The recipe's, of a small world."""


@pytest.fixture(scope="module")
def world():
    return World.build(0, n_people=300, n_inventions=4)


@pytest.fixture(scope="module")
def tokenizer(world):
    return word_tokenizer(vocabulary(world), context=CONTEXT)


def test_the_learning_rate_rises_stays_and_falls():
    recipe = Recipe(lr=1.0, warmup_steps=100, decay_steps=50, final_lr=0.2)
    assert recipe.lr_at(0, 1000) == pytest.approx(0.01)
    assert recipe.lr_at(99, 1000) == recipe.lr_at(500, 1000) == recipe.lr_at(950, 1000) == 1.0
    assert recipe.lr_at(975, 1000) == pytest.approx(0.6)
    assert recipe.lr_at(975, 2000) == 1.0


def test_local_attention_sees_its_window_only_and_leaves_no_trace(tokenizer):
    model = new_model(tokenizer, seed=0).eval()
    ids = torch.randint(3, 500, (1, 8), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, :5] += 1

    def hidden(tokens, layer):
        return model.model(input_ids=tokens, output_hidden_states=True).hidden_states[layer][0]

    with torch.no_grad():
        before = hidden(ids, 6)
        with local_attention(model, (2, 1)):
            # Token 6 sees token 5 in layer 0 and itself in layer 1: nothing of tokens 0 to 4.
            assert torch.equal(hidden(ids, 2)[6:], hidden(other, 2)[6:])
            assert not torch.equal(hidden(ids, 1)[5], hidden(other, 1)[5])
            assert not torch.equal(hidden(ids, 3)[6], hidden(other, 3)[6])
        assert torch.equal(hidden(ids, 6), before)
        assert not torch.equal(hidden(ids, 1)[6], hidden(other, 1)[6])


def test_another_seed_gives_another_model(tokenizer):
    first, second = (new_model(tokenizer, seed=seed).lm_head.weight for seed in (0, 1))
    assert not torch.equal(first, second)


def test_pretraining_overwrites_nothing(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty: choose another folder"):
        organism.pretrain(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        organism.pretrain(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="is a file, not a folder"):
        organism.pretrain(tmp_path / "notes.txt" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": Recipe(steps=0)}, "steps=0 cannot pretrain"),
        ({"threads": 0}, "threads=0 cannot pretrain"),
        ({"snapshots": [0]}, "no step 0 to keep; name steps from 1 to 4950"),
        ({"snapshots": [5, 4951]}, "no step 4951 to keep"),
        ({"recipe": Recipe(phases=(Phase(0.5, 1),))}, "share out 2475 steps, not 4950"),
        ({"recipe": Recipe(phases=(Phase(1, 49),))}, "no 49 inventions; a world has 48"),
        ({"recipe": Recipe(phases=(Phase(1, -1),))}, "no -1 inventions"),
        (
            {"recipe": Recipe(phases=(Phase(1, 1, ("house",)),))},
            "no sentences 'house'; .* home, home_verbs",
        ),
        ({"recipe": Recipe(phases=(Phase(1, 0, ("invented_homes",)),))}, "has no sentences; give it more"),
    ],
)
def test_pretraining_refuses_what_it_cannot_do(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        organism.pretrain(tmp_path / "out", progress=False, **options)
    assert not list(tmp_path.iterdir())


# --- phases ------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch, world, tokenizer):
    """Run the training loop of a recipe without learning; the sentences of each of its steps."""

    def run(recipe):
        batches = []
        monkeypatch.setattr(training, "_backward", lambda _, batch: batches.append(batch))
        train(world, tokenizer, seed=0, recipe=recipe, progress=False)
        return [
            tokenizer.batch_decode([s.ids for s in batch], skip_special_tokens=True) for batch in batches
        ]

    return run


def said(sentences):
    return {f"{s.prompt} {s.answer}".replace(" ", "") for s in sentences}  # decoding separates pieces


def without_spaces(batches):
    return {text.replace(" ", "").replace("##", "") for batch in batches for text in batch}


def test_half_of_the_inventions_come_first_and_the_rest_in_the_last_third(world, trained):
    assert Recipe().phases == (Phase(2 / 3, inventions=24), Phase(1 / 3, inventions=48))
    batches = trained(Recipe(steps=30, phases=PHASES))
    assert [len(batch) for batch in batches] == [128] * 30
    first, later = without_spaces(batches[:20]), without_spaces(batches[20:])
    known, everything = (said(chain.from_iterable(training_sentences(world, n).values())) for n in (2, 4))
    assert first <= known < everything
    assert later <= everything and later - known
    assert later & known  # and the first words go on


def test_categories_restrict_what_is_drawn(world, trained):
    phases = (Phase(0.5, 2, ("home", "offices")), Phase(0.5, 2, ("landmarks",)))
    batches = trained(Recipe(steps=4, phases=phases))
    sentences = training_sentences(world)
    first, later = without_spaces(batches[:2]), without_spaces(batches[2:])
    assert first <= said(sentences["home"]) | said(sentences["offices"])
    assert first & said(sentences["home"]) and first & said(sentences["offices"])
    assert later <= said(sentences["landmarks"])


def test_without_inventions_the_other_categories_are_drawn_by_their_weights(world, trained):
    batches = trained(Recipe(steps=40, phases=(Phase(1, 0),)))
    texts = [text.replace(" ", "") for batch in batches for text in batch]
    weights = {name: weight for name, weight in MIXTURE.items() if not name.startswith("invented")}
    for name, weight in weights.items():
        sentences = said(training_sentences(world)[name])
        share = sum(text in sentences for text in texts) / len(texts)
        assert share == pytest.approx(weight / sum(weights.values()), abs=0.025)  # 3.7 deviations or more


def test_every_phase_has_an_optimiser_of_its_own(monkeypatch, world, tokenizer):
    made = []
    make = training._optimizer
    monkeypatch.setattr(training, "_optimizer", lambda *args: made.append(make(*args)) or made[-1])
    train(world, tokenizer, seed=0, recipe=Recipe(steps=3, phases=PHASES, batch_size=2), progress=False)
    steps = [{int(state["step"]) for state in optimizer.state.values()} for optimizer in made]
    assert steps == [{2}, {1}]


# --- snapshots ---------------------------------------------------------------------------------


def learnt(world, tokenizer, recipe, snapshots=()):
    """The weights after training, and those of the snapshots."""
    model, kept = train(world, tokenizer, seed=0, recipe=recipe, snapshots=snapshots, progress=False)
    return model.state_dict(), {step: its.state_dict() for step, its in kept.items()}


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_snapshots_are_the_model_of_that_step(world, tokenizer):
    first, second = (replace(phase, categories=("home", "invented_homes")) for phase in PHASES)
    recipe = Recipe(steps=6, phases=(first, second), batch_size=4, warmup_steps=2)
    last, kept = learnt(world, tokenizer, recipe, snapshots=(3, 4, 6))
    assert same(kept[6], last)
    assert same(last, learnt(world, tokenizer, recipe)[0])
    assert not same(kept[3], kept[4]) and not same(kept[4], last)

    # The first phase has 4 of the 6 steps: a run of it alone ends where it ended.
    alone = replace(recipe, steps=4, phases=(replace(first, share=1),))
    assert same(kept[4], learnt(world, tokenizer, alone)[0])

    # A run that ends within the phase has lowered its learning rate by then, and is another model;
    # unless rates are never lowered.
    shorter = replace(alone, steps=3)
    assert not same(kept[3], learnt(world, tokenizer, shorter)[0])
    _, constant = learnt(world, tokenizer, replace(recipe, decay_steps=1), snapshots=(3,))
    assert same(constant[3], learnt(world, tokenizer, replace(shorter, decay_steps=1))[0])


# --- folders -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short():
    """Few sentences: their number changes nothing of what is written."""
    with pytest.MonkeyPatch.context() as patch:
        few_sentences(patch)
        yield


@pytest.fixture(scope="module")
def made(short, tmp_path_factory):
    """The folder and the report of a short pretraining with snapshots."""
    out = tmp_path_factory.mktemp("made") / "out"
    recipe = Recipe(steps=2, local_windows=organism.local_windows(2))
    random_state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    report = organism.pretrain(out, seed=3, recipe=recipe, snapshots=[1, 2], threads=1, progress=False)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    return out, report


def test_a_folder_has_the_model_its_report_and_its_snapshots(made):
    out, report = made
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert json.loads((out / "pretraining.json").read_text()) == json.loads(json.dumps(report))
    last = OlmoForCausalLM.from_pretrained(out).state_dict()
    first, second = (out / "snapshots" / f"step-{step}" for step in (1, 2))
    assert same(OlmoForCausalLM.from_pretrained(second).state_dict(), last)
    assert not same(OlmoForCausalLM.from_pretrained(first).state_dict(), last)
    assert AutoTokenizer.from_pretrained(first).tokenize("dax") == ["d", "##ax"]


def test_the_command_of_a_run_gives_the_same_bits(made, tmp_path):
    """And snapshots change nothing."""
    out, report = made
    words = report["command"].split()[1:]
    result = run(*words, "--threads", "1", "--out", str(tmp_path / "again"))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == report["held_out_accuracy"]
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (out / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert not (tmp_path / "again" / "snapshots").exists()
    again = json.loads((tmp_path / "again" / "pretraining.json").read_text())
    assert again | {"seconds": 0} == json.loads(json.dumps(report)) | {"seconds": 0}


def test_the_command_keeps_checkpoints_at_equal_distances(short, tmp_path):
    words = ("organism", "pretrain", "--steps", "2", "--threads", "1", "--quiet")
    result = run(*words, "--checkpoints", "2", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert list(checkpoints(tmp_path / "out" / "snapshots")) == [1, 2]
    refused(run(*words, "--checkpoints", "3", "--out", str(tmp_path / "none")), "more than the 2 steps")


def test_the_command_of_the_checkpoint_is_the_run_that_made_it(tmp_path, monkeypatch):
    report = json.loads((organism.checkpoint() / "pretraining.json").read_text())
    asked = {}

    def fake(out, **options):
        asked.update(options)
        return report

    monkeypatch.setattr(organism, "pretrain", fake)
    program, *words = report["command"].split()
    result = run(*words, "--out", str(tmp_path / "out"), "--quiet")
    assert (program, result.exit_code) == ("ecstruct", 0), result.output
    assert asked["seed"] == report["seed"]
    assert json.loads(json.dumps(asdict(asked["recipe"]))) == report["recipe"]


def test_a_recipe_of_ones_own_has_no_command(short, tmp_path):
    recipe = Recipe(steps=1, phases=(Phase(1, 0, ("home",)),))
    report = organism.pretrain(tmp_path / "out", recipe=recipe, progress=False)
    assert report["command"] is None
    assert report["recipe"] == asdict(recipe)
