"""`ecstruct recall`: what it writes, how it is run again, and what it says of bad input."""

import json
import signal
from collections import Counter

import pytest
import xarray as xr
from helpers.command_line import run, works

from ecstruct import Prompt, load, recall
from ecstruct.facts import first_hop
from ecstruct.facts.prompt import write_jsonl
from ecstruct.io.store import FinishedPieces
from ecstruct.models import WeightDelta
from ecstruct.models.bridge import named_weights
from ecstruct.organism import World
from ecstruct.recall import dissection

PROMPTS = first_hop().facts[:2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Prompts, paragraphs about their subjects, and a change of the organism's weights."""
    folder = tmp_path_factory.mktemp("inputs")
    write_jsonl(PROMPTS, folder / "prompts.jsonl")
    lines = [{"subject": p.subject, "text": [f"{p.answer} is the city of", "Tokyo"]} for p in PROMPTS]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = named_weights(load("organism", device="cpu"))
    moved = {name: p * 1.05 if ".mlp." in name else p for name, p in weights.items()}
    WeightDelta.from_weights(weights, moved).save(folder / "delta.safetensors")
    return folder


@pytest.fixture(scope="module")
def both(inputs):
    """A command about both models."""
    words = ("--after", inputs / "delta.safetensors", "--attributes", "world", "--device", "cpu")
    prompts = ("--prompts", inputs / "prompts.jsonl", "--window", 2)
    return ("recall", "--before", "organism", *words, *prompts, "--out")


@pytest.fixture(scope="module")
def whole(both, tmp_path_factory):
    """A folder that it wrote, and what it showed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dissection, "AT_ONCE", 1)
        return folder, works(*both, folder).stderr


def test_two_models(inputs, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(dissection, "AT_ONCE", 1)
    whole, _ = whole
    names = {path.name for path in whole.iterdir()}
    for part in ("knockout", "extraction", "readings", "rate", "sublayers", "heads", "tokens"):
        assert {f"{part}-before.nc", f"{part}-after.nc"} <= names
    assert {"report.html", "config.json", "agreement.csv", "scores.nc"} <= names

    model = load("organism", device="cpu")
    after = WeightDelta.load(inputs / "delta.safetensors").apply_to(model)
    for state, its in (("before", model), ("after", after)):
        found = recall.load(whole / f"knockout-{state}.nc")
        for at, prompt in enumerate(PROMPTS):
            expected = recall.knockout(its, [prompt], window=2, token="answer", progress=False)
            same = expected.assign_coords(prompt=[at])
            xr.testing.assert_allclose(found.isel(prompt=[at]), same, rtol=1e-6)

    config = json.loads((whole / "config.json").read_text())
    assert config["command"] == "recall"
    assert config["arguments"]["attributes"]["words"].keys() == {p.subject for p in PROMPTS}
    replayed = works("replay", whole / "config.json", "--out", tmp_path / "again", "--quiet")
    assert not replayed.stdout
    for name in names - {"report.html"}:
        assert (tmp_path / "again" / name).read_bytes() == (whole / name).read_bytes(), name

    config["arguments"]["fingerprints"]["after"] = "0" * 32
    (tmp_path / "other.json").write_text(json.dumps(config))
    result = run("replay", tmp_path / "other.json", "--out", tmp_path / "other", "--quiet")
    assert result.exit_code == 2
    assert "are not those that this configuration was run with" in result.stderr


def test_one_model(inputs, tmp_path):
    command = ("recall", "--before", "organism", "--prompts", inputs / "prompts.jsonl", "--quiet")
    works(*command, "--attributes", inputs / "corpus.jsonl", "--token", "answer", "--out", tmp_path / "a")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"knockout.nc", "rate.nc", "heads.nc", "tokens.nc", "report.html"} <= names
    assert not {"scores.nc", "agreement.csv"} & names
    found = recall.load(tmp_path / "a" / "knockout.nc")
    assert found.attrs["options"]["window"] == 6  # the paper's 9 are more than there are
    assert found["token"].values.tolist() == [p.answer.split()[0] for p in PROMPTS]


def test_known_prompts_alone(inputs, tmp_path):
    """Of the world's homes the organism knows most, of other people's none."""
    people = [p for p in World.build().people if not p.held_out][:3]
    known = [Prompt(f"{p.name} lives in", p.home.name, subject=p.name) for p in people]
    model = load("organism", device="cpu")
    predicted = recall.extraction(model, [*known, *PROMPTS], progress=False)["predicted"].values
    assert 0 < predicted.sum() < len(predicted)
    write_jsonl([*known, *PROMPTS], tmp_path / "prompts.jsonl")
    words = ("--prompts", tmp_path / "prompts.jsonl", "--known", "--attributes", "none", "--normed")
    shown = works("recall", "--before", "organism", *words, "--out", tmp_path / "out").stdout
    assert not (tmp_path / "out" / "rate.nc").exists()
    found = recall.load(tmp_path / "out" / "readings.nc")
    asked = [*known, *PROMPTS]
    expected = [p.text for p, right in zip(asked, predicted, strict=True) if right]
    assert found["text"].values.tolist() == expected
    assert found.attrs["options"]["normed"]
    assert f"the model knows {len(expected)} of {len(asked)} prompts" in shown


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--window", "7"), "error: window=7: the model has 6 layers, use 1 to 6 of them.\n"),
        (("--attributes", "missing.jsonl"), "error: the corpus missing.jsonl cannot be read"),
    ],
)
def test_says_what_is_wrong(inputs, tmp_path, words, error):
    command = ("recall", "--before", "organism", "--prompts", inputs / "prompts.jsonl", "--quiet")
    result = run(*command, *words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith(error)
    assert not (tmp_path / "out" / "config.json").exists()


def test_prompts_without_subjects(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "Grace Miller lives in", "answer": "Tokyo"}) + "\n")
    command = ("recall", "--before", "organism", "--prompts", path, "--attributes", "none", "--quiet")
    result = run(*command, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: the prompt 'Grace Miller lives in' has no subject: give it one")


def test_goes_on_where_it_was_terminated(both, whole, tmp_path, monkeypatch):
    """In each of two parts of the model before, one after the other."""
    whole, _ = whole
    ends = {("before", f"{part} 1") for part in ("attention knockout", "extraction heads")}
    monkeypatch.setattr(dissection, "AT_ONCE", 1)
    result, measured = FinishedPieces.result, []

    def terminated(self, name, measure):
        key = (self.folder.name, name)

        def noted():
            stop = key in ends and key not in measured
            measured.append(key)
            if stop:
                signal.raise_signal(signal.SIGTERM)
            return measure()

        return result(self, name, noted)

    monkeypatch.setattr(FinishedPieces, "result", terminated)
    command = (*both, tmp_path, "--quiet")
    for end in range(2):
        assert run(*command).exit_code == 143
        assert not (tmp_path / "report.html").exists() and len(ends & {*measured}) == end + 1
    damaged = tmp_path / "unfinished" / "after" / "attributes-rate-0.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    other = run(*command, "--window", 3)
    assert "holds a part of another run (window was 2, now 3)" in other.stderr
    works(*command)
    again = ends | {("after", "attributes rate 0")}
    assert Counter(measured) == Counter([*{*measured}, *again])
    files = {path.name for path in whole.iterdir()}
    assert files == {path.name for path in tmp_path.iterdir()}
    for name in files - {"report.html"}:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


def test_one_bar_over_both_models(whole):
    _, shown = whole
    for phase in ("after finetuning: ", "before finetuning: extraction heads", "scoring"):
        assert phase in shown
    assert shown.count("\n") == 2  # one bar of recall, one of the scores


def test_answers_of_one_word_are_no_attributes(inputs, tmp_path):
    command = ("recall", "--before", "organism", "--prompts", inputs / "prompts.jsonl", "--out", tmp_path)
    result = run(*command, "--attributes", "facts", "--quiet")
    assert result.exit_code == 2
    assert "hardly more than one attribute each" in result.stderr
    result = works(*command, "--device", "cpu")
    assert (tmp_path / "knockout.nc").exists() and not (tmp_path / "rate.nc").exists()
