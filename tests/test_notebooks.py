"""Every notebook of `examples/` runs from top to bottom, shows figures, and says nothing on stderr."""

from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("[0-9]_*.py"))
FIGURE = "application/vnd.plotly.v1+json"


def test_there_are_six():
    assert [path.name[0] for path in NOTEBOOKS] == list("123456")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_runs_and_shows_figures(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))  # nobody's own settings and history
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress")  # that ipywidgets are not installed
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the model is tiny: more threads only wait for one another
    notebook = jupytext.read(path)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()

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
