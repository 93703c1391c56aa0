"""What is analysed is hooked, fingerprinted and tokenised once, whatever is measured of it."""

from collections import Counter

import pytest
from helpers.command_line import run
from helpers.recall_cases import SUBJECTS
from helpers.tiny import single_pair

from ecstruct import InputError, load, recall
from ecstruct.facts import first_hop
from ecstruct.facts.prompt import write_jsonl
from ecstruct.models import WeightDelta, fingerprint, hooked
from ecstruct.models.bridge import named_weights
from ecstruct.recall import dissection, session
from ecstruct.runs import recall as runs
from ecstruct.scores import pair


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
    counted(runs, "load", "loaded")
    counted(runs, "load_after", "loaded")
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
    # Each is tokenised for by its own tokenizer.
    assert (counts["hooked"], counts["tokenized"], digests(counts)) == (2, 2, {1})


def test_a_session_in_the_place_of_its_model(counts):
    model = single_pair("llama")[0]
    counts.clear()
    one = session.Session.of(model)
    prompts = one.read(SUBJECTS)
    found = recall.knockout(one, prompts, window=2, progress=False)
    recall.extraction(one, prompts, progress=False)
    assert (counts["hooked"], counts["tokenized"], digests(counts)) == (1, 1, {1})
    assert found.identical(recall.knockout(model, SUBJECTS, window=2, progress=False))


@pytest.mark.parametrize("n_models", [1, 2])
def test_the_command_loads_every_model_once(counts, tmp_path, n_models):
    write_jsonl(first_hop().facts[:2], tmp_path / "prompts.jsonl")
    command = ["recall", "--before", "organism", "--prompts", str(tmp_path / "prompts.jsonl")]
    command += ["--attributes", "none", "--device", "cpu", "--quiet", "--out", str(tmp_path / "out")]
    if n_models == 2:
        weights = named_weights(load("organism", device="cpu"))
        moved = {name: p * 1.05 if ".mlp." in name else p for name, p in weights.items()}
        WeightDelta.from_weights(weights, moved).save(tmp_path / "delta.safetensors")
        command += ["--after", str(tmp_path / "delta.safetensors")]
        counts.clear()
    result = run(*command)
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert (counts["loaded"], digests(counts)) == (n_models, {1})


def test_sessions_that_are_no_pair_are_refused():
    before, after = map(session.Session.of, single_pair("llama"))
    with pytest.raises(InputError, match="give the models, or both sessions"):
        recall.compare(before, after, SUBJECTS, progress=False)
    pair = session.Session.both(*single_pair("llama"))
    assert session.Session.both(*pair) == pair
    with pytest.raises(InputError, match="in this order"):
        recall.compare(*pair[::-1], SUBJECTS, progress=False)
