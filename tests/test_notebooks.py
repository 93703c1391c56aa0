"""Every notebook of `examples/` runs from top to bottom, shows figures, and says nothing on stderr."""

from collections.abc import Iterator
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("[0-9]_*.py"))
FIGURE = "application/vnd.plotly.v1+json"
QUICKER = {
    "3_the_papers_experiments": {"repeats=1": "repeats=1, epochs=1"},
    "4_can_i_trust_the_scores": {
        "(1, 2, 4, 8)": "(1, 2)",
        ' "surrogate", "exact")': ")",
        "sample=None": "sample=6",
    },
    "6_subnetworks": {"(0.3, 0.5)": "(0.5,)", "seeds=6, steps=250": "seeds=2, steps=160, lr=0.2"},
}
"""What takes long in a notebook, and what runs instead."""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookClient]:
    """One process for all notebooks, as its imports take longer than most of them."""
    home, client = tmp_path_factory.mktemp("jupyter"), NotebookClient(new_notebook(), kernel_name="python3")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, str(home / name))  # nobody's own settings and history
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("PYTHONWARNINGS", "ignore:IProgress")  # that ipywidgets are not installed
        patch.setenv("OMP_NUM_THREADS", "1")  # the model is tiny: more threads only wait for one another
        with client.setup_kernel():
            yield client


def test_there_are_six():
    assert [path.name[0] for path in NOTEBOOKS] == list("123456")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_runs_and_shows_figures(path: Path, tmp_path: Path, kernel: NotebookClient):
    notebook = jupytext.read(path)
    for long, quick in QUICKER.get(path.stem, {}).items():
        assert any(long in cell.source for cell in notebook.cells)
        for cell in notebook.cells:
            cell.source = cell.source.replace(long, quick)
    afresh = f"%reset -f\nimport os\nos.chdir({str(tmp_path)!r})"
    notebook.cells.insert(0, new_code_cell(afresh))
    client = NotebookClient(notebook, km=kernel.km, timeout=600)
    client.kc = kernel.kc
    client.execute()

    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(cell.execution_count for cell in cells)
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert any(FIGURE in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_is_a_pair_in_the_percent_format(path: Path):
    text, notebook = path.read_text(encoding="utf-8"), jupytext.read(path)
    assert notebook.metadata.jupytext.formats == "ipynb,py:percent"
    assert notebook.cells[0].source.startswith("# ")
    assert jupytext.writes(notebook, fmt="py:percent").split("\n# %%", 1)[1] == text.split("\n# %%", 1)[1]
