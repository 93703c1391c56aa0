"""The report holds everything, asks for nothing, and a browser draws it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_scores import make_scores

from ecstruct.errors import InputError
from ecstruct.plots import head_map, heatmap, rank_curves
from ecstruct.report import Picture, Replay, Section, Table, report_html, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def sections() -> list[Section]:
    scores = make_scores()
    ranks = {"facts": [9.5, 0.0], "implications": [9.4, 0.4]}
    frame = pd.DataFrame(
        {
            "prompts": ["facts <all>", "implications"],
            "before": [9.5, -0.25],
            "n": pd.array([20, pd.NA], dtype="Int64"),
        }
    )
    return [
        Section("Learning & <more>", [Table(frame, "Mean ranks"), Picture(rank_curves(ranks), "Curves")]),
        Section(
            "Scores",
            ["Red raises the reward.", Picture(heatmap(scores)), Picture(head_map(scores))],
        ),
        Section("Replay", [Replay("ecstruct demo --seed 0", {"name": "</pre><b>", "seed": 0})]),
    ]


@pytest.fixture(scope="module")
def page() -> str:
    return report_html(title="A <b>demo</b>", summary="It <i>learned</i> & more.", sections=sections())


class Reader(HTMLParser):
    """Tags that are opened and not closed, all tags and all visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def test_well_formed_and_escaped(read: Reader) -> None:
    assert read.open == []
    assert not any(tag in ("b", "i") for tag, _ in read.tags)
    text = "".join(read.text)
    for shown in ("A <b>demo</b>", "It <i>learned</i> & more.", "Learning & <more>", "facts <all>"):
        assert shown in text
    assert '"name": "</pre><b>"' in text
    assert "ecstruct demo --seed 0" in text


def test_plotly_is_there_once_and_nothing_is_fetched(page: str, read: Reader) -> None:
    assert page.count("* plotly.js v") == 1
    for tag, attrs in read.tags:
        assert not {"src", "href", "srcset"} & set(attrs), f"<{tag}> fetches {attrs}"
    policy = [attrs["content"] for tag, attrs in read.tags if "http-equiv" in attrs]
    assert policy and "default-src 'none'" in str(policy[0])
    assert "@import" not in page.split("</style>")[0]


def test_no_plotly_without_figures() -> None:
    plain = report_html(title="t", summary="s", sections=[Section("a", ["b"])])
    assert "<script" not in plain
    assert len(plain) < 10_000


def test_tables_can_be_read_aloud(read: Reader) -> None:
    scopes = [attrs.get("scope") for tag, attrs in read.tags if tag == "th"]
    assert scopes == ["col"] * 3 + ["row"] * 2
    assert [tag for tag, _ in read.tags if tag == "caption"] == ["caption"]
    text = "".join(read.text)
    assert "−0.25" in text and "9.5" in text and "–" in text and "<NA>" not in text


def test_same_input_same_page(page: str) -> None:
    again = report_html(title="A <b>demo</b>", summary="It <i>learned</i> & more.", sections=sections())
    assert again == page


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write_report(path, title="first", summary="", sections=[])
    before = path.read_bytes()
    assert b"<h1>first</h1>" in before

    def broken(self: Path, target: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(InputError, match=r"cannot write .*report\.html: No space left"):
        write_report(path, title="second", summary="", sections=[])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_what_has_no_place(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no place for a ndarray"):
        report_html(title="", summary="", sections=[Section("a", [np.zeros(2)])])  # pyright: ignore


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_draws_every_figure(page: str, tmp_path: Path) -> None:
    # The probe reports what only a browser knows: panels drawn, requests, and the page's own width.
    probe = """<script>addEventListener("load", () => setTimeout(() => {
      const cells = document.querySelectorAll(".hm image").length;
      const lines = document.querySelectorAll(".scatterlayer .trace").length;
      const asked = performance.getEntriesByType("resource").filter(
        (e) => !/^(data|blob):/.test(e.name)).length;
      const wide = document.documentElement.scrollWidth > innerWidth;
      document.title =
        `cells=${cells} lines=${lines} asked=${asked} wide=${wide} denied=${window.denied}`;
    }, 0));</script></body>"""
    listener = """<script>window.denied = 0;
    addEventListener("securitypolicyviolation", () => window.denied++);</script>"""
    probed = page.replace("<style>", listener + "<style>", 1).replace("</body>", probe)
    (tmp_path / "report.html").write_text(probed, encoding="utf-8")
    assert CHROMIUM is not None
    run = subprocess.run(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=500,900",
            "--virtual-time-budget=5000",
            "--dump-dom",
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    body = run.stdout
    title = re.search(r"<title>(.*?)</title>", body)
    # Six panels of the heatmap and three of the head map; two rank curves.
    assert title is not None and title[1] == "cells=9 lines=2 asked=0 wide=false denied=0"
    for i in (1, 2, 3):
        drawn = body[body.index(f'id="figure-{i}"') :]
        assert 'class="main-svg"' in drawn[:3000], f"figure {i} is not drawn"
