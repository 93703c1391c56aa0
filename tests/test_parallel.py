"""Several processes give the scores of one; what is finished is not computed again."""

import json
import re
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr
from helpers.command_line import works
from helpers.folders import contents, truncate
from helpers.parallel_cases import CASES, ON_TWO, TWO_TEMPLATES, engine_and_prompts, save_checkpoints
from helpers.processes import TESTS, forked
from helpers.tiny import PROMPTS, single_pair
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ecstruct.errors import InputError
from ecstruct.io.distributed import Ranks
from ecstruct.scores import batching
from ecstruct.scores.engine import ScoreEngine
from ecstruct.scores.passes import Passes
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.walk import Walk

SCRIPT = str(TESTS / "helpers" / "parallel_cases.py")
IN_TWOS = ("--batch-size", 2)  # five batches


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    save_checkpoints(folder)
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(p.to_record()) for p in TWO_TEMPLATES))
    return folder


def words(checkpoints, out, *more):
    files = ("--before", checkpoints / "before", "--after", checkpoints / "after")
    prompts = ("--prompts", checkpoints / "prompts.jsonl")
    return [*map(str, ("score", *files, *prompts, "--out", out, "--device", "cpu", "--quiet", *more))]


@pytest.fixture(autouse=True)
def own_rounds(monkeypatch):
    monkeypatch.setattr(batching, "TOKENS_PER_ROUND", batching.TOKENS_PER_ROUND)


def assert_same_scores(found: ExtractiveScores, expected: ExtractiveScores, tolerance=1e-6) -> None:
    """Relative to the largest score, and everything beside the numbers exactly."""
    assert found.attrs == expected.attrs
    assert list(found.dataset.variables) == list(expected.dataset.variables)
    for name, variable in expected.dataset.variables.items():
        mine = found.dataset[name]
        assert mine.dims == variable.dims
        if name in expected.dataset.coords:
            assert (mine.values == variable.values).all(), name
        else:
            np.testing.assert_array_equal(np.isnan(mine), np.isnan(variable))
            assert np.nanmax(np.abs(mine.values - variable.values)) <= tolerance * np.nanmax(
                np.abs(variable)
            )


# --- Several processes ---


@pytest.fixture(scope="module")
def one_process(checkpoints):
    """By name, in one round, and without a folder."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "TOKENS_PER_ROUND", None)
        for name in CASES:
            engine, prompts = engine_and_prompts(name, checkpoints)
            batching.TOKENS_PER_ROUND = 10_000
            found[name] = engine.score(prompts)
    return found


@pytest.fixture(scope="module")
def three(checkpoints):
    """A launch that ends in a death, and the folder of the dead command."""
    for out in ("on-3", "on-2"):
        (checkpoints / out).mkdir()
    dead = checkpoints / "dead"
    return forked(3, SCRIPT, str(checkpoints / "on-3"), "dies", *words(checkpoints, dead, *IN_TWOS)), dead


@pytest.fixture(scope="module")
def two(checkpoints, three):
    """One that goes on where that one died."""
    resumed = shutil.copytree(three[1], checkpoints / "resumed")
    return forked(
        2, SCRIPT, str(checkpoints / "on-2"), "lives", *words(checkpoints, resumed, *IN_TWOS)
    ), resumed


@pytest.mark.parametrize("n", [2, 3])
def test_ranks_give_the_scores_of_one_process(n, two, three, checkpoints, one_process):
    launched, out = {2: two, 3: three}[n][0], checkpoints / f"on-{n}"
    for name in {2: ON_TWO, 3: CASES}[n]:
        assert_same_scores(ExtractiveScores.load(out / f"{name}.nc"), one_process[name])
    assert f"{n - 1} of {n} ranks have nothing to do" in launched.stderr
    for rank in range(n):
        assert re.fullmatch(
            "the ranks differ in baseline: counterfactual on rank 0, mean on rank 1; .*",
            (out / f"refused-{rank}").read_text(),
        )


def test_a_rank_that_dies_is_named_and_only_its_part_is_computed_again(
    three, two, checkpoints, tmp_path, monkeypatch
):
    launched, dead = three
    assert launched.returncode != 0
    assert re.search("^error: rank 2 of 3 died: run the same command again", launched.stderr, re.MULTILINE)
    kept = contents(dead)
    assert "shards/baseline.safetensors" in kept and len(kept) in (3, 4) and "scores.nc" not in kept

    one = shutil.copytree(dead, tmp_path / "one")
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))  # of a launch of one process
    computed = recorded(monkeypatch)
    works(*words(checkpoints, one, *IN_TWOS))
    n_kept = {3: 4, 4: 8}[len(kept)]  # prompts of one rank, or of two
    assert sum(map(len, computed)) == len(TWO_TEMPLATES) - n_kept

    works(*words(checkpoints, tmp_path / "whole", *IN_TWOS))
    whole = ExtractiveScores.load(tmp_path / "whole" / "scores.nc")
    assert two[0].returncode == 0, two[0].stderr
    for out in (one, two[1]):
        assert contents(out) == ["config.json", "prompts.jsonl", "report.html", "scores.nc"]
        assert_same_scores(ExtractiveScores.load(out / "scores.nc"), whole)


def test_the_command_offloads(checkpoints, tmp_path):
    for out, more in (("resident", ("--verify", 0)), ("offloaded", ("--offload",))):
        works(*words(checkpoints, tmp_path / out, *more))
    again = ["replay", str(tmp_path / "offloaded" / "config.json"), "--out", str(tmp_path / "again")]
    works(*again, "--device", "cpu", "--quiet")
    config = [json.loads((tmp_path / out / "config.json").read_text()) for out in ("offloaded", "again")]
    assert config[0] == config[1] and config[0]["arguments"]["offload"] is True
    resident, *others = (
        ExtractiveScores.load(tmp_path / out / "scores.nc") for out in ("resident", "offloaded", "again")
    )
    for found in others:
        assert_same_scores(found, resident, 1e-5)
        xr.testing.assert_identical(found.dataset["rank"], resident.dataset["rank"])


# --- What is kept ---


def recorded(patch) -> list[list[int]]:
    """The prompts of every round that is scored from now on."""
    found, plain = [], Passes._score

    def score(self, ascent, *arguments):
        found.append([row for rows in ascent.job.rows for row in rows])
        return plain(self, ascent, *arguments)

    patch.setattr(Passes, "_score", score)
    return found


def engine(family: str = "llama", **options) -> ScoreEngine:
    return ScoreEngine(*single_pair(family), progress=False, **{"batch_size": 2, **options})


@pytest.fixture(scope="module")
def whole():
    return engine().score(TWO_TEMPLATES)


@pytest.fixture(scope="module")
def dead(tmp_path_factory):
    """The folder of a run of five rounds that died in its third."""
    folder = tmp_path_factory.mktemp("dead")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "TOKENS_PER_ROUND", 1)
        plain, n = Passes._score, []

        def score(self, *arguments):
            n.append(1)
            if len(n) == 3:
                raise KeyboardInterrupt
            return plain(self, *arguments)

        patch.setattr(Passes, "_score", score)
        with pytest.raises(KeyboardInterrupt):
            engine().score_across(TWO_TEMPLATES, Ranks(), folder)
    assert len(contents(folder)) == 4
    return folder


@pytest.fixture
def died(dead, tmp_path):
    """A copy of it, and rounds as short as its own."""
    batching.TOKENS_PER_ROUND = 1
    return shutil.copytree(dead, tmp_path / "died")


@pytest.mark.parametrize("batch_size", [2, 3])
def test_a_run_goes_on_where_it_died(died, monkeypatch, batch_size):
    """Also when prompts are batched in another way: then it is of whole batches again."""
    expected = engine(batch_size=batch_size).score(TWO_TEMPLATES)
    (died / ".writing-0.safetensors").write_text("half")
    computed = recorded(monkeypatch)
    ups = []
    plain_up = Walk.up
    monkeypatch.setattr(Walk, "up", lambda *arguments, **o: [ups.append(1), plain_up(*arguments, **o)])
    found = engine(batch_size=batch_size).score_across(TWO_TEMPLATES, Ranks(), died)
    assert not ups  # the baseline is known
    assert sum(map(len, computed)) == {2: 6, 3: 7}[batch_size]
    assert_same_scores(found, expected, {2: 1e-6, 3: 1e-5}[batch_size])
    computed.clear()
    assert_same_scores(engine(batch_size=batch_size).score_across(TWO_TEMPLATES, Ranks(), died), found, 0)
    assert not computed


def test_without_its_sums_the_baseline_is_seen_again(died, whole, monkeypatch):
    (died / "baseline.safetensors").unlink()
    computed = recorded(monkeypatch)
    assert_same_scores(engine().score_across(TWO_TEMPLATES, Ranks(), died), whole)
    assert len(computed) == 3


@pytest.mark.parametrize(
    ("options", "prompts", "message"),
    [
        ({"baseline": "mean"}, TWO_TEMPLATES, "baseline was counterfactual, now mean"),
        ({"path_steps": 2}, TWO_TEMPLATES, "path_steps was 1, now 2"),
        ({}, TWO_TEMPLATES[::-1], "the prompts was 10 with checksum .*, now 10 with checksum"),
        ({}, PROMPTS, "the prompts was 10 with checksum .*, now 5 with checksum"),
        ({"family": "qwen2"}, TWO_TEMPLATES, "the weights before was .*, now"),
    ],
    ids=["option", "number", "order", "prompts", "weights"],
)
def test_parts_of_another_run_are_refused(died, options, prompts, message):
    before = contents(died)
    with pytest.raises(InputError, match=f"holds a part of another run .{message}.*: finish that run by"):
        engine(**options).score_across(prompts, Ranks(), died)
    assert contents(died) == before


@pytest.mark.parametrize("file", ["part-*", "baseline*"])
@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop(sorted(tensors)[0]),
        lambda tensors: tensors.update({name: t.half() for name, t in tensors.items()}),
        lambda tensors: tensors.update({name: t[:1].clone() for name, t in tensors.items()}),
        lambda tensors: tensors.update({name: t + 100 for name, t in tensors.items()}),
        None,
    ],
)
def test_a_damaged_part_is_computed_again(died, whole, monkeypatch, caplog, file, change):
    path = next(died.glob(file))
    if change is None:
        truncate(path)
    else:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata)
    computed = recorded(monkeypatch)
    assert_same_scores(engine().score_across(TWO_TEMPLATES, Ranks(), died), whole, 1e-6)
    assert [m for m in caplog.messages if m.startswith(f"{path} is damaged")]
    assert len(computed) == (4 if file.startswith("part") else 3)


def test_a_run_of_one_round_keeps_nothing(tmp_path):
    engine().score_across(PROMPTS, Ranks(), tmp_path)
    assert contents(tmp_path) == []


def test_parts_of_a_reward_of_ones_own_are_not_kept(tmp_path):
    with pytest.raises(InputError, match="parts of a run with the reward own cannot be told"):

        def own(logits, batch):
            return logits[:, 0]

        engine(reward=own).score_across(PROMPTS, Ranks(), tmp_path)


def test_one_of_several_ranks_out_of_memory_says_what_to_do(monkeypatch):
    def run(self, job):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Passes, "run", run)
    monkeypatch.setattr(Ranks, "agree", lambda *_: None)
    with pytest.raises(InputError, match="rank 1 is out of memory with batch_size=4: pass batch_size=2"):
        engine(batch_size=4).score_across(PROMPTS, Ranks(1, 2))


# --- The cut ---


@dataclass
class Length:
    ids: range


@pytest.mark.parametrize(
    ("n", "length", "expected"),
    [(20, 11, 23), (100, 11, 23), (186, 11, 23), (400, 11, 50), (3000, 11, 186), (3, 900, 1)],
)
def test_batches_are_cut_by_the_prompts_alone(n, length, expected):
    assert batching.prompts_per_batch([Length(range(length))] * n) == expected


def test_rounds_take_whole_batches_in_their_order(monkeypatch):
    view, tokens = engine().pair.view, [8, 8, 8, 30, 8, 8]
    batches = [type("Batch", (), {"ids": torch.zeros(1, n)}) for n in tokens]
    monkeypatch.setattr(batching, "TOKENS_PER_ROUND", 16)
    assert batching.rounds(view, batches, range(6)) == [[0, 1], [2], [3], [4, 5]]
    assert batching.rounds(view, batches, [1, 4]) == [[1, 4]]
    assert batching.rounds(view, batches, []) == []
    monkeypatch.setattr(batching, "free_bytes", lambda _: 0)
    assert batching.rounds(view, batches, [0, 2]) == [[0], [2]]
