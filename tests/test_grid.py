"""What a sweep is asked for: grids, the names of their cells, and the words of Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command_line import run
from hypothesis import given
from hypothesis import strategies as st

from ecstruct.errors import InputError
from ecstruct.experiments import Rates, Setup
from ecstruct.grids import Cell, Grid
from ecstruct.grids.executors import minutes, slurm_options


class TestGrid:
    def test_every_combination_is_a_cell(self, tmp_path: Path) -> None:
        path = tmp_path / "grid.yaml"
        path.write_text(
            "models: [organism, some/model]\n"
            "learning_rates: [1e-4, 3.0e-4]\n"  # YAML takes the first for text
            "epochs: [4, 8]\n"
            "seeds: [0, 7]\n"
            "experiments: [ocr, freezing]\n"
            "repeats: 2\nearly: 0.5\n"
            "known: {fact: '{name} lives in', implication: '{name} zong'}\n"
        )
        grid = Grid.read(path)
        cells = grid.cells()
        assert len(cells) == len(set(cells)) == len({each.name for each in cells}) == 32
        assert cells[1] == Cell("organism", 1e-4, 4, 0, "freezing")
        setup = grid.setup(cells[-1], "cpu")
        assert (setup.model, setup.epochs, setup.seed_list) == ("some/model", 8, (7,))
        assert (setup.repeats, setup.early, setup.rates) == (2, 0.5, Rates.same(3e-4))
        assert (setup.known.implication, setup.device) == ("{name} zong", "cpu")
        assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid

    def test_what_is_not_given_is_the_organism_as_it_was_measured(self) -> None:
        (only,) = Grid.from_dict({"experiments": ["ocr"]}).cells()
        assert only == Cell("organism", None, 8, 0, "ocr")
        assert Grid(["ocr"]).setup(only) == Setup(seeds=(0,))

    def test_names_of_many_experiments_are_all_of_them(self) -> None:
        assert len(Grid(["all"]).cells()) == 7

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "experiments: [ocr]\nlearning_rate: [1]",
                "no 'learning_rate' in a grid: it takes models, lea",
            ),
            ("experiments: [ocr]\nrates: {}", "no 'rates' in a grid"),
            ("experiments: [ocr]\nseeds: &a [1]\nepochs: *a", r"is no YAML: \*a stands for something else"),
            (
                f"experiments: [ocr]\nseeds: {list(range(4000))}\nepochs: {list(range(1, 2501))}",
                "it has 10,000,000 cells, and a grid at most 100,000",
            ),
            (
                f"experiments: [ocr]\nseeds: {list(range(4000))}\nepochs: {[*range(1, 20), 0]}",
                "epochs=0 runs nothing",
            ),
            (
                "experiments: [ocr]\nmodels: [organism, some/model]\nlearning_rates: [0.1, null]",
                "no learning rates are known for some/model",
            ),
            (
                "experiments: [sensitivity]\noptions: {sensitivity: {words: ..}}",
                "sensitivity has words='..'",
            ),
            ("experiments: [ocr]\nepochs: []", "epochs is empty: name at least one value"),
            ("experiments: [ocr]\nepochs: 8", "it has epochs=8: it should be a valid list"),
            ("experiments: [ocr]\nepochs: [2.5]", "it has epochs.0=2.5: it should be a valid integer"),
            ("experiments: [ocr]\nepochs: [true]", "it has epochs.0=True: it should be a valid integer"),
            ("experiments: [ocr]\nepochs: [0]", "epochs=0 runs nothing"),
            ("experiments: [ocr]\nseeds: [-1]", r"seeds=\[-1\] cannot be run"),
            ("experiments: [ocr]\nseeds: [1, 1]", "seeds names 1 twice"),
            (
                "experiments: [ocr]\nlearning_rates: [fast]",
                "learning_rates.0='fast': it should be a valid number",
            ),
            (
                "experiments: [ocr]\nlearning_rates: [0]",
                "learning_rates.0=0: it should be greater than 0",
            ),
            ("experiments: [ocr]\nlearning_rates: [1e-4, 0.0001]", "learning_rates names 0.0001 twice"),
            ("experiments: [ocr]\nmodels: [1]", "it has models.0=1: it should be a valid string"),
            ("experiments: [ocr]\nmodels: [some/model]", "no learning rates are known for some/model"),
            ("experiments: [ocd]", "there is no experiment 'ocd'"),
            ("models: [organism]", "it names no experiments"),
            ("experiments: [ocr]\nrepeats: many", "no setup"),
            ("experiments: [ocr]\noptions: [1]", r"it has options=\[1\]: it should be a valid dictionary"),
            ("experiments: [ocr]\noptions: {ocr: {speed: 1}}", "ocr does not run with the option 'speed'"),
            ("experiments: [ocr]\noptions: {rates: {factors: [1]}}", "rates does not run with"),
            ("- ocr", "it is no mapping"),
            ("", "it is no mapping"),
            ("a: [", "is no YAML"),
        ],
    )
    def test_what_is_no_grid_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "grid.yaml"
        path.write_text(text)
        with pytest.raises(InputError, match=message) as raised:
            Grid.read(path)
        assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"cannot read .*nowhere\.yaml"):
            Grid.read(tmp_path / "nowhere.yaml")


cells = st.builds(
    Cell,
    model=st.text(min_size=1, max_size=300) | st.sampled_from(["a/b", "a%2Fb", "m-lr=1.0", "..", "m"]),
    learning_rate=st.none() | st.floats(1e-12, 1e3, exclude_min=True),
    epochs=st.integers(1, 10**6),
    seed=st.integers(0, 10**6),
    experiment=st.sampled_from(["ocr", "scores", "built_in"]),
)


class TestNames:
    @given(cells, cells)
    def test_different_cells_have_different_names(self, a: Cell, b: Cell) -> None:
        assert (a.name == b.name) == (a == b)
        of = [(each.model, each.learning_rate, each.epochs, each.seed) for each in (a, b)]
        assert (a.setup_name == b.setup_name) == (of[0] == of[1])

    @given(cells)
    def test_names_are_names_of_folders(self, a: Cell) -> None:
        for name in (a.name, a.setup_name):
            assert name.isascii() and len(name) < 200 and not set(name) & set('/\\ *?"<>|:')

    def test_a_name_says_what_it_is(self) -> None:
        name = Cell("org/model@main", 3e-6, 8, 2, "ocr").name
        assert name == "org%2Fmodel@main-lr=3e-06-epochs=8-seed=2-ocr"


class TestWords:
    @pytest.mark.parametrize("text", ["", "1h", "1:2:3:4", "-5"])
    def test_times(self, text: str) -> None:
        with pytest.raises(InputError, match="is no time"):
            minutes(text)

    def test_times_that_slurm_has(self) -> None:
        assert [minutes(t) for t in ("1-0", "1-12:30", "0-0:0:30", "59:59")] == [1440, 2190, 1, 60]

    @pytest.mark.parametrize("text", ["partition", "=gpu", "time="])
    def test_options(self, text: str) -> None:
        with pytest.raises(InputError, match="--slurm takes NAME=VALUE"):
            slurm_options([text])

    def test_slurm_options_need_slurm(self, tmp_path: Path) -> None:
        path = tmp_path / "grid.yaml"
        path.write_text("experiments: [ocr]")
        words = ["sweep", str(path), "--out", str(tmp_path / "out"), "--slurm", "time=5"]
        result = run(*words)
        assert result.exit_code == 2 and "--slurm is for --executor slurm" in result.stderr


@pytest.mark.parametrize("model", ["..", ".", "/", "no/such/model", "./none", "organism/../x"])
def test_a_model_that_is_not_there_is_refused_before_the_work(tmp_path: Path, model: str) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(f"models: [organism, '{model}']\nlearning_rates: [0.1]\nexperiments: [ocr]\n")
    result = run("sweep", str(path), "--out", str(tmp_path / "out"), "--quiet")
    assert result.exit_code == 2 and model in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out" / "grid.json").exists()
