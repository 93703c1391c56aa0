"""The report of all experiments: that it says everything, and that a browser draws it.

The file stands beside test_experiments.py, so that one process runs the experiments for both.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.chromium import CHROMIUM, drawn
from helpers.command_line import works
from helpers.paper_models import TINY, finished

from ecstruct.experiments import EXPERIMENTS


@pytest.fixture(scope="module")
def page() -> Path:
    """The report of all experiments that were run already."""
    folder, results = finished("llama")
    out = folder / "out"
    names = [name for name in EXPERIMENTS if name in results]
    works("reproduce", *names, "--model", folder / "model", "--out", out, *TINY)
    return out / "report.html"


def test_the_report_says_everything(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    _, results = finished("llama")
    assert text.count("<table>") == len(results)
    assert text.count('<div class="drawing">') == len(results) + 1  # scores have a twin
    for result in results.values():
        assert f"<h2>{result.title}</h2>" in text
    assert "ecstruct replay" in text and ">nan<" not in text.lower()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_draws_the_report(page: Path, tmp_path: Path) -> None:
    listener = """<script>window.wrong = 0;
    addEventListener("error", () => window.wrong++);
    addEventListener("unhandledrejection", () => window.wrong++);
    addEventListener("securitypolicyviolation", () => window.wrong++);
    console.error = () => window.wrong++;</script>"""
    probe = """<script>addEventListener("load", () => setTimeout(() => {
      const drawn = [...document.querySelectorAll(".plotly-graph-div")].map((plot) =>
        plot.querySelectorAll(".hm image, .scatterlayer .trace, .barlayer .trace").length > 0);
      const asked = performance.getEntriesByType("resource").filter(
        (e) => !/^(data|blob):/.test(e.name)).length;
      const wide = document.documentElement.scrollWidth > innerWidth;
      document.title = `drawn=${drawn.filter(Boolean).length}/${drawn.length} wrong=${window.wrong} ` +
        `asked=${asked} wide=${wide} tables=${document.querySelectorAll("table").length}`;
    }, 0));</script></body>"""
    text = page.read_text(encoding="utf-8").replace("<style>", listener + "<style>", 1)
    (tmp_path / "report.html").write_text(text.replace("</body>", probe), encoding="utf-8")
    dom = drawn(tmp_path / "report.html", tmp_path)
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None and title[1] == "drawn=7/7 wrong=0 asked=0 wide=false tables=6"
