"""Figures on disk: pages that need nothing else, and pictures."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import plotly.graph_objects as go
import pytest
from helpers.chromium import CHROMIUM

from ecstruct.errors import InputError
from ecstruct.plots import rank_curves, save_figure


def test_html_needs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_kaleido(monkeypatch)
    save_figure(rank_curves({"facts": [1.0]}), tmp_path / "ranks.html")
    page = (tmp_path / "ranks.html").read_text(encoding="utf-8")
    assert "mean rank of the answer" in page
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)


def test_pictures_without_kaleido(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_kaleido(monkeypatch)
    message = r"PNG export needs kaleido.*pip install kaleido.*\.html"
    with pytest.raises(InputError, match=message):
        save_figure(go.Figure(), tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


def test_pictures_without_chrome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kaleido")

    def no_chrome(*args: object, **options: object) -> bytes:
        raise RuntimeError("Kaleido requires Google Chrome to be installed.")

    monkeypatch.setattr(go.Figure, "to_image", no_chrome)
    with pytest.raises(InputError, match=r"found no Chrome that runs.*plotly_get_chrome.*\.html"):
        save_figure(go.Figure(), tmp_path / "figure.pdf")


def test_pictures_of_a_chrome_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kaleido")

    def slow(*args: object, **options: object) -> bytes:
        return asyncio.run(asyncio.wait_for(asyncio.sleep(60), 0))  # as kaleido waits

    monkeypatch.setattr(go.Figure, "to_image", slow)
    with pytest.raises(InputError, match=r"no answer from Chrome in time; try again .*\.html"):
        save_figure(go.Figure(), tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


def test_unknown_suffix_and_a_folder(tmp_path: Path) -> None:
    for name in ("figure.bmp", "figure"):
        with pytest.raises(InputError, match=r"suffix is not one of \.png, \.svg, \.pdf, \.html"):
            save_figure(go.Figure(), tmp_path / name)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*folder\.html"):
        save_figure(go.Figure(), tmp_path / "folder.html")


def test_a_picture_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kaleido")
    asked = {}

    def picture(self: go.Figure, **options: object) -> bytes:
        asked.update(options)
        return b"a picture"

    monkeypatch.setattr(go.Figure, "to_image", picture)
    save_figure(go.Figure(), tmp_path / "figure.PNG", scale=3)
    assert asked == {"format": "png", "scale": 3}
    assert (tmp_path / "figure.PNG").read_bytes() == b"a picture"
    assert [file.name for file in tmp_path.iterdir()] == ["figure.PNG"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_real_picture(tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    save_figure(rank_curves({"facts": [9.5, 0.0]}), tmp_path / "ranks.svg")
    picture = (tmp_path / "ranks.svg").read_text(encoding="utf-8")
    assert picture.startswith("<svg")
    assert "mean rank of the answer" in picture


def _without_kaleido(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)  # importing it fails from here on
