"""What is analysed is loaded, fingerprinted and tokenised once, whatever is measured of it."""

import sys
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.recall_cases import SUBJECTS
from helpers.tiny import N_HEADS, N_LAYERS, PROMPTS, hooked_pair, plain_pair, single_pair, tokenizer
from typer.testing import CliRunner

import ecstruct
from ecstruct import InputError, load, recall, subnetworks
from ecstruct.checks.against_causal import fidelity
from ecstruct.cli import app
from ecstruct.engine import plan, session
from ecstruct.engine.session import Session
from ecstruct.evaluate import ranks
from ecstruct.facts import first_hop
from ecstruct.facts.prompt import write_jsonl
from ecstruct.models import WeightDelta, fingerprint, hooked
from ecstruct.models.bridge import named_weights
from ecstruct.recall import dissection
from ecstruct.recall.runs import read
from ecstruct.scores import pair
from ecstruct.scores.pair import Pair
from ecstruct.subnetworks.masks import Masks


@pytest.fixture
def counts(monkeypatch):
    """How often models are loaded, hooked and tokenised for, and the digests of their weights."""
    found = Counter()

    def counted(owner, name, key):
        function = getattr(owner, name)

        def counting(*args, **kwargs):
            found[key(*args) if callable(key) else key] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    counted(hooked.HookedView, "__init__", "hooked")
    for owner in (fingerprint, pair):
        counted(owner, "digest", lambda weight: weight.data_ptr())
    counted(session, "tokenize", "tokenized")
    counted(sys.modules["ecstruct.models.loading"], "_hooked", "loaded")
    return found


def digests(counts) -> set[int]:
    return {n for key, n in counts.items() if isinstance(key, int)}


def test_one_model(counts, monkeypatch):
    monkeypatch.setattr(dissection, "AT_ONCE", 2)
    model = single_pair("llama")[0]
    attributes = recall.Attributes.from_facts(SUBJECTS, model)
    counts.clear()
    recall.dissect(model, SUBJECTS, attributes, progress=False)
    assert (counts["hooked"], counts["tokenized"], digests(counts)) == (1, 1, {1})


def test_two_models(counts, monkeypatch):
    monkeypatch.setattr(dissection, "AT_ONCE", 2)
    before, after = single_pair("llama")
    attributes = recall.Attributes.from_facts(SUBJECTS, before)
    counts.clear()
    recall.compare(before, after, SUBJECTS, attributes, progress=False)
    # Each is tokenised for by its own tokenizer, and run in the blocks of the first.
    assert (counts["hooked"], counts["tokenized"], digests(counts)) == (1, 2, {1})


def test_a_session_in_the_place_of_its_model(counts):
    model = single_pair("llama")[0]
    counts.clear()
    one = Session.of(model)
    prompts = read(one, SUBJECTS)
    found = recall.knockout(one, prompts, window=2, progress=False)
    recall.extraction(one, prompts, progress=False)
    assert (counts["hooked"], counts["tokenized"], digests(counts)) == (1, 1, {1})
    values = subnetworks.reference_values(one, PROMPTS)
    masks = Masks.of(np.eye(N_HEADS)[None, :N_LAYERS], np.ones((1, N_LAYERS)), reference=values)
    subnetworks.evaluate(one, masks, PROMPTS, progress=False)
    subnetworks.prune(one, PROMPTS, steps=1, seeds=1, progress=False)
    assert (counts["hooked"], digests(counts)) == (1, {1})
    assert found.identical(recall.knockout(model, SUBJECTS, window=2, progress=False))


QUIET = {"progress": False}
USES = {
    "score": (2, lambda before, after: ecstruct.score(before, after, PROMPTS, verify=1, **QUIET)),
    "fidelity": (
        2,
        lambda before, after: fidelity(before, after, PROMPTS, forms=("path", "exact"), sample=4, **QUIET),
    ),
    "compare": (2, lambda before, after: recall.compare(before, after, SUBJECTS, **QUIET)),
    "dissect": (1, lambda before, after: recall.dissect(after, SUBJECTS, **QUIET)),
    "prune": (1, lambda before, after: subnetworks.prune(after, PROMPTS, steps=1, seeds=2, **QUIET)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = [tmp_path_factory.mktemp(state) for state in ("before", "after")]
    for folder, plain in zip(found, plain_pair("llama"), strict=True):
        plain.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return found


@pytest.mark.parametrize("use", USES)
def test_paths_are_loaded_and_fingerprinted_once(counts, folders, use):
    n_models, measure = USES[use]
    measure(*folders)
    assert (counts["loaded"], digests(counts)) == (n_models, {1})


@pytest.mark.parametrize("n_models", [1, 2])
def test_recall_loads_every_model_once(counts, tmp_path, n_models):
    write_jsonl(first_hop().facts[:2], tmp_path / "prompts.jsonl")
    command = ["recall", "--before", "organism", "--prompts", str(tmp_path / "prompts.jsonl")]
    command += ["--attributes", "none", "--device", "cpu", "--quiet", "--out", str(tmp_path / "out")]
    if n_models == 2:
        weights = named_weights(load("organism", device="cpu"))
        moved = {name: p * 1.05 if ".mlp." in name else p for name, p in weights.items()}
        WeightDelta.from_weights(weights, moved).save(tmp_path / "delta.safetensors")
        command += ["--after", str(tmp_path / "delta.safetensors")]
        counts.clear()
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert (counts["loaded"], digests(counts)) == (1, {1})  # a delta is added to the model before


def test_subnetworks_load_their_model_once(counts, folders, tmp_path):
    write_jsonl(PROMPTS, tmp_path / "prompts.jsonl")
    values = subnetworks.reference_values(folders[1], PROMPTS)
    heads = np.random.default_rng(0).random((3, N_LAYERS, N_HEADS)) > 0.4
    heads[:, 0, 0], heads[0, 2, 1] = True, False
    Masks.of(heads, np.ones((3, N_LAYERS)), reference=values).save(tmp_path / "masks.nc")
    given = ["--model", folders[1], "--prompts", tmp_path / "prompts.jsonl", "--quiet"]
    masks = ["--generalization", tmp_path / "prompts.jsonl", "--masks", tmp_path / "masks.nc"]
    for name, options in {
        "prune": ["--steps", 1, "--seeds", 1],
        "evaluate": masks,
        "core": [*masks, "--draws", 1],
    }.items():
        counts.clear()
        command = ["subnetworks", name, *given, *options, "--out", tmp_path / name]
        result = CliRunner().invoke(app, list(map(str, command)))
        assert result.exit_code == (2 if name == "prune" else 0), (name, result.stderr, result.exception)
        assert (tmp_path / name / "report.html").exists()  # also of masks of too few steps
        assert (counts["loaded"], digests(counts)) == (1, {1}), name


def test_sessions_that_are_no_pair_are_refused():
    before, after = map(Session.of, single_pair("llama"))
    with pytest.raises(InputError, match="give the models, or both sessions"):
        recall.compare(before, after, SUBJECTS, progress=False)
    of_models = Pair.of(*single_pair("llama"))
    again = Pair.of(*of_models.sessions)
    assert again.view is of_models.view and again.sources == of_models.sources


# --- When memory runs out ---

MEASURES = {
    "ranks": lambda model: ranks(model, PROMPTS),
    "knockout": lambda model: recall.knockout(model, SUBJECTS, window=2, **QUIET),
    "rate": lambda model: recall.attributes_rate(
        model, SUBJECTS, recall.Attributes.from_facts(SUBJECTS, model), **QUIET
    ),
    "extraction": lambda model: recall.extraction(model, SUBJECTS, patched=[1], **QUIET)["attention"],
    "reference": lambda model: subnetworks.reference_values(model, PROMPTS).heads,
    "prune": lambda model: subnetworks.prune(model, PROMPTS, steps=30, seeds=3, **QUIET).heads,
    "evaluate": lambda model: subnetworks.evaluate(model, masks_of(model), PROMPTS, **QUIET)["kl"],
    "causal": lambda model: (
        ecstruct.causal_scores(*hooked_pair("llama"), PROMPTS, baseline="zero", **QUIET).mlp
    ),
}


def masks_of(model) -> Masks:
    heads = np.random.default_rng(0).random((4, N_LAYERS, N_HEADS)) > 0.5
    values = subnetworks.reference_values(model, PROMPTS)
    return Masks.of(heads, np.ones((4, N_LAYERS)), reference=values)


@pytest.mark.parametrize("name", MEASURES)
def test_less_at_once_when_memory_runs_out(name, monkeypatch, caplog, double_everywhere):
    model = hooked_pair("llama")[0]
    expected = np.asarray(MEASURES[name](model))
    owner, method = (type(model), "forward") if name == "ranks" else (hooked.HookedView, "_call_block")
    most, call = {"prune": 7, "evaluate": 6, "causal": 5}.get(name, 2), getattr(owner, method)

    def call_if_it_fits(self, *args, **kwargs):
        rows = args[0 if name == "ranks" else 3]
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return call(self, *args, **kwargs)

    monkeypatch.setattr(owner, method, call_if_it_fits)
    np.testing.assert_allclose(np.asarray(MEASURES[name](model)), expected, rtol=1e-6, atol=1e-9)
    assert "out of memory: trying again" in caplog.text


def test_what_does_not_fit_alone_runs_out_of_memory():
    tried = []

    def run(size):
        tried.append(size)
        raise RuntimeError("not enough memory: you tried to allocate 99 bytes")

    with pytest.raises(RuntimeError, match="not enough memory"):
        plan.halving(6, run)
    assert tried == [6, 3, 1]
    with pytest.raises(ZeroDivisionError):
        plan.halving(6, lambda size: 1 // 0)


def test_pieces_go_on_where_memory_ran_out():
    done = []

    def run(some):
        if len(some) > 2:
            raise torch.OutOfMemoryError
        done.append([*some])

    plan.each_piece(range(7), 5, run)
    assert done == [[0, 1], [2, 3], [4, 5], [6]]
