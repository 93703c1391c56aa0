"""One model on two ranks beside one process, and runs that are killed beside runs that are not."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers.command_line import run
from helpers.facts_fixtures import FACTS, hugging_face, save_tiny
from helpers.plain_finetuning import bits, in_hugging_face_names, plain_loss, same_bits
from helpers.processes import TESTS, Started, command, forked, launched
from helpers.tiny import double_throughout

import ecstruct
from ecstruct.finetuning import finetune
from ecstruct.models.bridge import named_weights
from ecstruct.models.loading import load

TINY = ("llama", "gpt2", "neox")
FROZEN = {"freeze": {"names": ["blocks.0.attn.q", "blocks.1.ln1"]}}  # of a fused tensor, a part
OPTIONS: dict[str, dict[str, Any]] = {
    # Batches of four and two: of the last, each rank has one fact.
    "gpt2 float64": {"epochs": 3, "batch_size": 4, "schedule": "linear", "evaluate": {"facts": FACTS}},
    # Batches of one, for which a rank has nothing to do, and parts.
    "neox float64": {"epochs": 1, "batch_size": 5, "accumulate": 3, **FROZEN},
    "tied float64": {"epochs": 2, "batch_size": 1, "train_embeddings": True, "recompute": True},
}


def options(name: str) -> dict[str, Any]:
    return {"lr": 1e-2, **OPTIONS[name]}


def organism_options(epochs: int) -> dict[str, Any]:
    data = ecstruct.facts.first_hop()
    facts, asked = ([p.to_record() for p in some] for some in (data.facts, data.implications))
    return {"facts": facts, "epochs": epochs, "evaluate": {"implications": asked}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {family: save_tiny(tmp_path_factory.mktemp(family), family) for family in TINY}
    return made | {"tied": save_tiny(tmp_path_factory.mktemp("tied"), tied=True)}


@pytest.fixture(scope="module")
def two_ranks(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What came out of every case on two ranks."""
    cases: dict[str, Any] = {
        f"gradients of {family}": {"folder": str(folders[family]), "dtype": "float64"} for family in TINY
    }
    for name in OPTIONS:
        family, dtype = name.split()
        cases[name] = {"folder": str(folders[family]), "dtype": dtype, "options": options(name)}
    for name in ("float32", "float64", "half"):
        dtype = "float32" if name == "half" else name
        case = {"folder": "organism", "dtype": dtype, "options": organism_options(epochs=2)}
        cases[f"organism {name}"] = case | {"half": name == "half"}
    never = {"lr": 0.001, "batch_size": 4, "epochs": 30}
    cases["never killed"] = {"folder": str(folders["gpt2"]), "dtype": "float32", "options": never}
    home = tmp_path_factory.mktemp("two")
    (home / "cases.json").write_text(json.dumps(cases))
    script = str(TESTS / "helpers" / "sharded_script.py")
    done = forked(2, script, str(home / "cases.json"), str(home / "out.pt"))
    assert done.returncode == 0, done.stderr
    return torch.load(home / "out.pt")


@pytest.mark.parametrize("family", TINY)
def test_gradients_are_those_of_the_plain_model(
    two_ranks: Any, folders: dict[str, Path], family: str
) -> None:
    hf = hugging_face(folders[family], torch.float64)
    model = load(folders[family], device="cpu", dtype=torch.float64)
    with double_throughout():
        plain_loss(hf, model.tokenizer, FACTS).backward()
    found = two_ranks[f"gradients of {family}"]
    with torch.no_grad():
        for name, p in named_weights(model).items():
            p.copy_(found[name])
    found = in_hugging_face_names(family, model)
    expected = {name: p.grad for name, p in hf.named_parameters()}
    assert found.keys() == expected.keys()
    largest = max(g.abs().max().item() for g in expected.values())
    for name, g in expected.items():
        assert (found[name] - g).abs().max().item() < 1e-6 * largest, name


@pytest.mark.parametrize("name", OPTIONS)
def test_two_ranks_end_where_one_process_does(two_ranks: Any, folders: dict[str, Path], name: str) -> None:
    model = load(folders[name.split()[0]], device="cpu", dtype=torch.float64)
    alone = finetune(model, FACTS, **options(name), progress=False)
    history, weights, delta, metadata = two_ranks[name]
    # In Llama's norms and everywhere's softmax double is single.
    assert history["loss"] == pytest.approx(alone.history.loss, abs=1e-6)
    assert history["ranks"] == alone.history.ranks
    assert delta.keys() == alone.delta.tensors.keys()
    for n, p in bits(alone.model).items():
        close = dict(rtol=0, atol=1e-6 if "tied" in name else 1e-8, msg=n)
        torch.testing.assert_close(weights[n], p, **close)
        if n in delta:
            torch.testing.assert_close(delta[n], alone.delta.tensors[n], **close)
    for key in ("before", "before_fingerprint", "after"):
        assert metadata[key] == alone.delta.metadata[key]


@pytest.mark.parametrize(
    ("name", "loss", "weight"), [("float32", 1e-3, None), ("float64", 1e-9, 1e-8), ("half", 0.2, None)]
)
def test_the_organism_learns_the_same(two_ranks: Any, name: str, loss: float, weight: float | None) -> None:
    dtype = torch.float64 if name == "float64" else torch.float32
    model = load("organism", device="cpu", dtype=dtype)
    history, weights, delta, _ = two_ranks[f"organism {name}"]
    arguments = organism_options(len(history["loss"]) // history["steps_per_epoch"])
    alone = finetune(model, arguments.pop("facts"), **arguments, progress=False)
    assert history["loss"] == pytest.approx(alone.history.loss, abs=loss)
    ranks, expected = (h["implications"] for h in (history["ranks"], alone.history.ranks))
    assert ranks == (pytest.approx(expected, abs=1) if name == "half" else expected)
    assert delta.keys() == alone.delta.tensors.keys()
    for n, p in bits(alone.model).items():
        assert weight is None or (weights[n] - p).abs().max().item() < weight, n


# --- Killed, and run again ---


@pytest.fixture
def facts_file(tmp_path: Path) -> Path:
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in FACTS]
    (tmp_path / "facts.jsonl").write_text("\n".join(lines))
    return tmp_path / "facts.jsonl"


def words_of(model: Path, facts: Path, out: Path, epochs: int) -> list[str]:
    given = {"--model": model, "--facts": facts, "--out": out, "--lr": "0.001", "--batch-size": "4"}
    words = [str(word) for pair in given.items() for word in pair]
    return ["finetune", *words, "--epochs", str(epochs), "--checkpoint-every", "8"]


def results(out: Path) -> tuple[Any, Any]:
    delta = ecstruct.WeightDelta.load(out / "delta.safetensors")
    return json.loads((out / "history.json").read_text()), dict(delta.tensors)


def wait_for(folder: Path, process: Started, seconds: float = 100) -> None:
    """Until a checkpoint is there."""
    ended = time.monotonic() + seconds
    while not list(folder.glob("checkpoint/step-*")):
        assert process.running() and time.monotonic() < ended
        time.sleep(0.005)


def test_a_killed_rank_is_named_and_the_rerun_ends_with_the_same_bits(
    two_ranks: Any, folders: dict[str, Path], facts_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    words = words_of(folders["gpt2"], facts_file, out, epochs=30)
    first = launched(2, "ecstruct", *words)
    wait_for(out, first)
    *_, victim = sorted(psutil.Process(first.pid).children(), key=psutil.Process.create_time)
    os.kill(victim.pid, signal.SIGKILL)  # rank 1, which was started last
    ended = first.ended()
    assert "error: rank 1 of 2 died: run the same command again" in ended.stderr
    assert ended.returncode == 1 and not (out / "delta.safetensors").exists()
    done = [int(p.name.removeprefix("step-")) for p in out.glob("checkpoint/step-*")]
    assert done and 8 <= min(done) < 60

    again = forked(2, "ecstruct", *words)
    assert again.returncode == 0, again.stderr
    history, delta = results(out)
    expected, _, moved, _ = two_ranks["never killed"]
    assert history == expected and len(history["loss"]) == 60 and same_bits(delta, moved)
    assert not (out / "checkpoint").exists()


def test_a_terminated_process_exits_with_143_and_goes_on(
    folders: dict[str, Path], facts_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "terminated"
    words = words_of(folders["llama"], facts_file, out, epochs=60)
    first = command(*words)
    wait_for(out, first)
    os.kill(first.pid, signal.SIGTERM)
    ended = first.ended()
    assert ended.returncode == 143 and "run the same command again to go on" in ended.stderr, ended
    assert len(list(out.glob("checkpoint/step-*"))) == 1

    other = run(*words, "--seed", "1")
    assert other.exit_code == 2
    assert "checkpoint holds a part of another run (seed was 0, now 1): finish that run" in other.output
    again = run(*words)
    assert again.exit_code == 0, again.output
    model = load(folders["llama"], device="cpu")
    whole = finetune(model, facts_file, lr=0.001, batch_size=4, epochs=60, progress=False)
    history, delta = results(out)
    assert history == whole.history.to_dict() and same_bits(delta, dict(whole.delta.tensors))
