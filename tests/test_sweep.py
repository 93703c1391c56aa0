"""Cells are computed once: whatever stops a run, the next one goes on from what was finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.processes import holding

import ecstruct.organism
from ecstruct.errors import InputError
from ecstruct.experiments import Rates, Setup, choice, sweep
from ecstruct.experiments.sweep import Sweep, grid

MODEL = "some/model"
WEIGHTS = {"w": torch.zeros(2)}


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models are their sources, and this is what was loaded."""
    loads: list[str] = []

    def load(source: str, device: str | None) -> str:
        loads.append(source)
        return source

    monkeypatch.setattr(sweep, "load", load)
    monkeypatch.setattr(sweep, "named_weights", lambda model: WEIGHTS)
    return loads


def setup(**options: Any) -> Setup:
    return Setup(**{"model": MODEL, "rates": Rates.same(1e-5), "repeats": 2} | options)


class Measure:
    """Counts what it is asked for; stops with an error at the n-th cell."""

    def __init__(self, fail_at: int | None = None, error: BaseException | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.fail_at, self.error = fail_at, error

    def __call__(self, model: str, setup: Setup, **cell: Any) -> list[dict[str, Any]]:
        if len(self.asked) == self.fail_at and self.error is not None:
            raise self.error
        self.asked.append(cell)
        return [{"row": i, "value": 0.1 * cell["repeat"] + i} for i in range(2)]


def run(measure: Measure, folder: Path | None, **options: Any) -> pd.DataFrame:
    here = setup(**options)
    cells = grid(here, hop=["a", "b"])
    return Sweep(here, folder, progress=False).run("it", measure, cells)


def cells_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "cells" / "it").iterdir())


def test_a_row_says_which_cell_it_is_of(tmp_path: Path) -> None:
    frame = run(Measure(), tmp_path)
    assert list(frame.columns) == ["seed", "repeat", "hop", "row", "value"]
    assert frame[["repeat", "hop", "row"]].values.tolist() == [
        [repeat, hop, row] for repeat in (0, 1) for hop in "ab" for row in (0, 1)
    ]
    assert frame["value"].tolist() == [0.0, 1.0, 0.0, 1.0, 0.1, 1.1, 0.1, 1.1]
    pd.testing.assert_frame_equal(run(Measure(), None), frame)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Measure(fail_at=3, error=KeyboardInterrupt()), tmp_path)
    assert len(cells_of(tmp_path)) == 3
    after = Measure()
    frame = run(after, tmp_path)
    assert after.asked == [{"seed": 0, "repeat": 1, "hop": "b"}]
    pd.testing.assert_frame_equal(frame, run(Measure(), None))


def test_a_finished_run_computes_and_loads_nothing(tmp_path: Path, loaded: list[str]) -> None:
    first = run(Measure(), tmp_path)
    assert loaded == [MODEL]
    loaded.clear()
    again = Measure()
    pd.testing.assert_frame_equal(run(again, tmp_path), first)
    assert again.asked == [] and loaded == []


def test_more_seeds_and_repeats_compute_the_new_cells_only(tmp_path: Path) -> None:
    run(Measure(), tmp_path, repeats=1)
    more = Measure()
    frame = run(more, tmp_path, repeats=2, seeds=2)
    assert [(cell["seed"], cell["repeat"]) for cell in more.asked] == [(0, 1)] * 2 + [(1, 0)] * 2 + [
        (1, 1)
    ] * 2
    assert len(frame) == 16
    fewer = Measure()
    assert len(run(fewer, tmp_path, repeats=1)) == 4 and fewer.asked == []


def test_another_setup_is_refused_with_every_difference(tmp_path: Path) -> None:
    run(Measure(), tmp_path)
    with pytest.raises(InputError) as raised:
        run(Measure(), tmp_path, epochs=3, rates=Rates(1e-5, 1e-5, 2e-5, 1e-5))
    for words in (str(tmp_path), "epochs was 8, now 3", "rates.continued was 1e-05, now 2e-05"):
        assert words in str(raised.value)
    assert "first_hop" not in str(raised.value) and "seeds" not in str(raised.value)
    run(Measure(), tmp_path, device="cpu")  # where it is computed is no difference


@pytest.mark.parametrize(
    "content",
    ['{"cell": {"see', "[]", '{"rows": []}', '{"cell": {"seed": 7}, "rows": []}', "", '{"cell": null}'],
)
def test_a_damaged_cell_is_computed_again(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run(Measure(), tmp_path)
    path = tmp_path / "cells" / "it" / "seed=0-repeat=1-hop=a.json"
    assert path.exists()
    path.write_text(content)
    measure = Measure()
    pd.testing.assert_frame_equal(run(measure, tmp_path), expected)
    assert measure.asked == [{"seed": 0, "repeat": 1, "hop": "a"}]
    (said,) = caplog.messages
    assert said == f"{path} is damaged (it has no checksum): it is computed again"


def test_the_rows_of_another_cell_are_not_its_own(tmp_path: Path) -> None:
    run(Measure(), tmp_path)
    cells = tmp_path / "cells" / "it"
    shutil.copy(cells / "seed=0-repeat=0-hop=a.json", cells / "seed=0-repeat=1-hop=a.json")
    measure = Measure()
    run(measure, tmp_path)
    assert measure.asked == [{"seed": 0, "repeat": 1, "hop": "a"}]


def test_what_is_in_a_folder_is_known_again_where_the_folder_is_moved_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    Sweep(setup(), old).model(str(old / "organisms" / "seed-1"))
    assert set(json.loads((old / "weights.json").read_text())) == {"organisms/seed-1"}
    old.rename(new)
    Sweep(setup(), new).model(str(new / "organisms" / "seed-1"))
    monkeypatch.setattr(sweep, "named_weights", lambda model: {"w": torch.ones(2)})
    with pytest.raises(InputError, match=r"the weights of .*seed-1 are not those"):
        Sweep(setup(), new).model(str(new / "organisms" / "seed-1"))


@pytest.mark.parametrize("name", ["setup.json", "weights.json"])
def test_a_broken_note_is_refused(tmp_path: Path, name: str) -> None:
    run(Measure(), tmp_path, repeats=1)
    (tmp_path / name).write_text('{"mod')
    with pytest.raises(InputError, match=f"{name} .*choose another folder"):
        run(Measure(), tmp_path)


def test_changed_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(Measure(), tmp_path, repeats=1)
    monkeypatch.setattr(sweep, "named_weights", lambda model: {"w": torch.tensor([0.0, 1e-7])})
    measure = Measure()
    with pytest.raises(InputError, match="the weights of some/model are not those"):
        run(measure, tmp_path)
    assert measure.asked == [] and len(cells_of(tmp_path)) == 2


def test_a_full_disk_leaves_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text
    n_cells = 0

    def full(self: Path, text: str, **options: Any) -> int:
        nonlocal n_cells
        n_cells += self.parent.name == "it" and self.suffix == ".json"
        if n_cells == 3:
            write(self, text[:10], **options)
            raise OSError(28, "No space left on device")
        return write(self, text, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(InputError, match=r"hop=a\.json: No space left on device"):
            run(Measure(), tmp_path)
    assert cells_of(tmp_path) == [f"seed=0-repeat=0-hop={hop}.json" for hop in "ab"]
    measure = Measure()
    assert len(run(measure, tmp_path)) == 8 and len(measure.asked) == 2


def test_what_is_not_finite_is_missing_in_json_too(tmp_path: Path) -> None:
    def measure(model: str, setup: Setup, **cell: Any) -> list[dict[str, Any]]:
        return [{"value": float("nan")}, {"value": 1.0}, {"value": float("inf")}]

    def frame(folder: Path | None) -> pd.DataFrame:
        return Sweep(setup(), folder, progress=False).run("it", measure, [{"seed": 0}])

    fresh = frame(tmp_path)
    assert fresh["value"].isna().tolist() == [True, False, True]
    for other in (frame(tmp_path), frame(None)):
        pd.testing.assert_frame_equal(other, fresh)
    cell = tmp_path / "cells" / "it" / "seed=0.json"
    rows = json.loads(cell.read_text(), parse_constant=pytest.fail)["rows"]
    assert rows == [{"value": None}, {"value": 1.0}, {"value": None}]


def test_the_same_cell_twice_is_a_mistake() -> None:
    with pytest.raises(InputError, match="two cells of it are the same: give every value once"):
        Sweep(setup(), None, progress=False).run("it", Measure(), [{"seed": 0}, {"seed": 0}])


def test_seeds_of_the_organism_need_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"seeds=2 needs organisms .*: pass out="):
        Sweep(Setup(seeds=2))
    with pytest.raises(InputError, match="the organism x is pretrained first: pass out="):
        Sweep(Setup()).organism("x", 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*setup\.json"):
        Sweep(Setup(), tmp_path / "file" / "folder")


def test_organisms_are_pretrained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: list[str]
) -> None:
    pretrained: list[int] = []

    def pretrain(home: Path, *, seed: int, progress: bool) -> None:
        pretrained.append(seed)
        home.mkdir(parents=True)

    monkeypatch.setattr(ecstruct.organism, "pretrain", pretrain)
    for _ in range(2):
        organisms = Setup(seeds=3, repeats=1, rates=Rates.same(1e-3))
        Sweep(organisms, tmp_path, progress=False).run("it", Measure(), grid(organisms))
        assert pretrained == [1, 2]
    homes = [str(tmp_path / "organisms" / f"seed-{seed}") for seed in (1, 2)]
    assert loaded == ["organism", *homes]


def test_organisms_take_rates_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts of seed 1 are learnt at the setup's rate, those of seed 2 only at 1.4 times it."""
    start, tried, used = Setup().rates, [], []

    def measure_rates(model: str, setup: Setup, **cell: Any) -> list[dict[str, Any]]:
        assert setup.rates == start
        tried.append(cell["seed"])
        if cell["what"] == "continued":
            lr = cell["factor"] * start.continued
            return [{"lr": lr, "test": 5.0, "rank": abs(cell["factor"] - 0.85)}]
        lr = cell["factor"] * getattr(start, cell["what"].replace("-", "_"))
        enough = {1: 1.0, 2: 1.4}[cell["seed"]]
        return [{"lr": lr, "test": None, "rank": 0.0 if cell["factor"] >= enough else 5.0}]

    def measure(model: str, setup: Setup, **cell: Any) -> list[dict[str, Any]]:
        used.append(setup.rates)
        return [{"value": 1.0}]

    monkeypatch.setattr(choice, "measure", measure_rates)
    monkeypatch.setattr(
        ecstruct.organism, "pretrain", lambda home, seed, progress: home.mkdir(parents=True)
    )
    organisms = Setup(seeds=3, repeats=1)
    for name in ("it", "another"):
        Sweep(organisms, tmp_path, progress=False).run(name, measure, grid(organisms))
    of_1 = Rates(start.first_hop, start.second_hop, 0.85 * start.continued, 5.0)
    of_2 = Rates(1.4 * start.first_hop, 1.4 * start.second_hop, 0.85 * start.continued, 5.0)
    assert used == [start, of_1, of_2] * 2
    assert len(tried) == 2 * len(choice.FACTORS) * len(choice.WHAT) * choice.REPEATS  # once for both
    # More repeats need no other rates; rates that are given are taken.
    more = Setup(seeds=3, repeats=2)
    Sweep(more, tmp_path, progress=False).run("it", measure, grid(more))
    assert used[6:] == [start, of_1, of_2]
    given = Setup(seeds=2, repeats=1, rates=Rates.same(1e-4))
    (tmp_path / "setup.json").unlink()
    Sweep(given, tmp_path, progress=False).run("third", measure, grid(given))
    assert used[9:] == [Rates.same(1e-4)] * 2


def test_an_experiment_is_computed_by_one_process(tmp_path: Path) -> None:
    other = Measure()
    with holding(tmp_path / "cells" / "it" / ".lock") as process:
        with pytest.raises(InputError, match=f"cells/it is being written by process {process.pid} "):
            run(Measure(), tmp_path)
        here = setup()
        Sweep(here, tmp_path, progress=False).run("another", other, grid(here))
    assert len(other.asked) == 2
    measure = Measure()
    run(measure, tmp_path)
    assert len(measure.asked) == 4


def test_rates_that_another_process_chooses_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        choice, "measure", lambda model, setup, **cell: [{"lr": 1.0, "test": 1.0, "rank": 1.0}]
    )
    with holding(tmp_path / "cells" / "rates" / ".lock", 0.5):
        Sweep(setup(), tmp_path, progress=False).rates([0], [1.0])
    assert len(list((tmp_path / "cells" / "rates").iterdir())) == choice.REPEATS * len(choice.WHAT)
