"""The report holds everything, asks for nothing, and a browser draws it."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from helpers.chromium import CHROMIUM, drawn
from helpers.synthetic_scores import make_scores, prompts_of

from ecstruct.errors import InputError
from ecstruct.plots import head_map, heatmap, rank_curves
from ecstruct.report import Explorer, Picture, Replay, Section, Table, report_html, write_report
from ecstruct.report import explorer as explorer_module
from ecstruct.report.pages import score_report, top_table
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.summary import adding_up


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


# --- the explorer; test_report_browser.py uses it


def embedded(page: str) -> dict[str, Any]:
    """What the explorer of a page has to draw."""
    found = re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def numbers(view: dict[str, Any], name: str, *sizes: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(view[name]), "<f4").reshape(*sizes, len(view["tokens"]))


def test_every_number_of_every_prompt_is_in_the_page() -> None:
    scores = make_scores()
    page = report_html(title="", summary="", sections=[Section("a", [Explorer(scores)])])
    data = embedded(page)
    assert data["scores"] == ["downstream", "informative", "upstream"] and data["layers"] == [0, 1]
    labels = [view["label"] for view in data["views"]]
    assert labels == [
        "city: mean of 3 prompts",
        *(f"{i}: {t}" for i, t in enumerate(scores.dataset["text"].values)),
    ]
    for prompt, view in enumerate(data["views"][1:]):
        n = int(scores.dataset["length"].values[prompt])
        own = scores.dataset.isel(prompt=prompt, token=slice(n)).sel(score=data["scores"])
        np.testing.assert_array_equal(numbers(view, "mlp", 3, 2), own["mlp"].values)
        np.testing.assert_array_equal(numbers(view, "heads", 3, 2, 3), own["heads"].values)
    mean = scores.aggregate()
    expected = mean.heads.sel(score=data["scores"]).values.astype("float32")
    np.testing.assert_array_equal(numbers(data["views"][0], "heads", 3, 2, 3), expected)
    assert page.count("function explore(") == 1 and page.count("* plotly.js v") == 1
    assert page == report_html(title="", summary="", sections=[Section("a", [Explorer(scores)])])


def test_slots_that_no_prompt_fills_are_left_out() -> None:
    data = embedded(Explorer(make_scores(prompts_of([["a"], ["b"]]))).html("x"))
    assert data["views"][0]["tokens"] == ["The", "city", "Y", "is", "from", "speak"]
    assert data["views"][0]["labels"][2] == "<i>Y</i>"


def test_a_prompt_alone_in_its_template_has_no_mean() -> None:
    prompts = [*prompts_of([["a"], ["b"]]), {"tokens": ["x", "y"], "entity": (0, 1), "template": "alone"}]
    views = embedded(Explorer(make_scores(prompts)).html("x"))["views"]
    assert [(view["group"], view["label"]) for view in views] == [
        ("city", "city: mean of 2 prompts"),
        ("city", "0: TheĠcityaĠisĠfromĠspeak"),
        ("city", "1: TheĠcitybĠisĠfromĠspeak"),
        ("alone", "2: xy"),
    ]


def test_a_page_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    other = [{**prompt, "template": "other"} for prompt in prompts_of([["c"], ["d"], ["e"]])]
    scores = make_scores([*prompts_of([["a"], ["b"], ["c"]]), *other])
    per_prompt = len(base64.b64encode(bytes(3 * 2 * (1 + 3) * 6 * 4)))  # of 6 tokens each
    monkeypatch.setattr(explorer_module, "BYTES", int(4.5 * per_prompt))
    page = Explorer(scores, "What it is.").html("x")
    assert (
        "What it is. 4 of 6 prompts are in this page, the first of each template; means are over all."
        in page
    )
    labels = [view["label"].split(":")[0] for view in embedded(page)["views"]]
    assert labels == ["city", "0", "1", "other", "3", "4"]
    monkeypatch.setattr(explorer_module, "BYTES", 1)  # one is always there
    assert "1 of 6 prompts are" in Explorer(scores).html("x")
    monkeypatch.undo()
    assert " of 6 prompts" not in Explorer(scores).html("x")
    monkeypatch.setattr(explorer_module, "MOST_PROMPTS", 5)
    assert "5 of 6 prompts are" in Explorer(scores).html("x")


def test_a_template_of_which_no_prompt_is_chosen_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [
        {**prompt, "template": f"t{i}"} for i, prompt in enumerate(prompts_of([["a"], ["b"], ["c"]]))
    ]
    monkeypatch.setattr(explorer_module, "MOST_PROMPTS", 2)
    views = embedded(Explorer(make_scores(prompts)).html("x"))["views"]
    assert [view["group"] for view in views] == ["t0", "t1"]


def raising(sign: float = 1.0, **sizes: Any) -> ExtractiveScores:
    """Scores that all raise the reward; with sign=-1, upstream ones lower it."""
    scores = make_scores(**sizes)
    signs = scores.dataset["score"].copy(data=[1.0, sign, 1.0])  # informative, upstream, downstream
    for part in ("mlp", "heads"):
        scores.dataset[part] = np.abs(scores.dataset[part]) * signs
    return scores


def test_a_model_of_few_components_has_them_all_in_its_table() -> None:
    assert len(top_table(raising(n_layers=1, n_heads=2))) == 3
    assert len(top_table(raising())) == 5


def test_what_lowers_the_reward_is_not_among_the_strongest(tmp_path: Path) -> None:
    scores = make_scores(n_layers=1, n_heads=2)
    table = top_table(scores)
    for score in ("informative", "upstream", "downstream"):
        values = scores.components(score)["value"]
        listed = [cell for cell in table[score] if cell != "–"]
        assert len(listed) == (values > 0).sum() and not any("-" in cell for cell in listed)
    assert len(table) == max((scores.components(score)["value"] > 0).sum() for score in table.columns[1:])
    assert set(top_table(raising(-1.0))["upstream"]) == {"–"}
    score_report(tmp_path / "r.html", raising(-1.0), "")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    summary = page[page.index("Strongest by the fast scores (check them with ecstruct fidelity): ") :][:400]
    assert "(informative: " in summary and "(downstream: " in summary and "(upstream: " not in summary
    scores = raising()
    scores.dataset[["mlp", "heads"]] = -np.abs(scores.dataset[["mlp", "heads"]])
    score_report(tmp_path / "r.html", scores, "")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "By the fast scores (check them with ecstruct fidelity), no component raises it." in page


def test_templates_are_named(tmp_path: Path) -> None:
    score_report(tmp_path / "r.html", make_scores(), "")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<h2>Template city</h2>" in page
    assert embedded(page)["views"][0]["about"].startswith("Template city: mean of 3 prompts.")
    plain = make_scores([{**prompt, "template": ""} for prompt in prompts_of([["a"], ["b"]])])
    score_report(tmp_path / "r.html", plain, "")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<h2>Strongest components</h2>" in page
    assert embedded(page)["views"][0]["about"].startswith("Mean of 2 prompts.")


def test_a_reward_that_fell_is_told() -> None:
    reward = xr.DataArray([[1.0, 0.5]], dims=("prompt", "state"), coords={"state": ["before", "after"]})
    assert adding_up(reward, xr.DataArray([-0.2], dims="prompt")) == (
        "The reward changed by −0.5 on average, and the informative scores of a prompt miss its change by "
        "0.2: these answers lost by it, and ecstruct diagnose tells whether they were learnt."
    )


def test_the_page_of_scores(tmp_path: Path) -> None:
    scores = make_scores(after={"source": "my org/tuned", "revision": "v2", "fingerprint": "beef"})
    score_report(tmp_path / "report.html", scores, "ecstruct replay config.json --out DIR")
    reader = Reader()
    reader.feed((tmp_path / "report.html").read_text(encoding="utf-8"))
    text = "".join(reader.text)
    before, after = (float(scores.reward.sel(state=s).mean()) for s in ("before", "after"))
    assert f"mean reward of 3 prompts from {before:.3g} to {after:.3g}.".replace("-", "−") in text
    assert f"{after - before:.4g}".replace("-", "−") in text
    assert (
        "ecstruct fidelity --before organism --after 'my org/tuned@v2' --reward logit_diff "
        f"--baseline counterfactual --prompts {tmp_path}/prompts.jsonl --out {tmp_path}/fidelity"
    ) in text
    assert "Ranks take passes of their own" in text
    missed = float(abs(scores.completeness).mean())
    assert f"miss its change by {missed:.3g}, which is more than half: do not read them as shares" in text
    ranks = pd.DataFrame(
        {"model": ["before", "chance"], "mean rank": [7.25, 9.5], "accuracy": [0.125, 0.05]}
    )
    score_report(tmp_path / "report.html", scores, "", ranks)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "7.25" in page and "0.125" in page and "Ranks take passes" not in page
    assert "ecstruct replay config.json --out DIR" in text and '"fingerprint": "beef"' in text
    policy = [attrs["content"] for tag, attrs in reader.tags if "http-equiv" in attrs]
    assert policy == [
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
    ]


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
    body = drawn(tmp_path / "report.html", tmp_path)
    title = re.search(r"<title>(.*?)</title>", body)
    # Six panels of the heatmap and three of the head map; two rank curves.
    assert title is not None and title[1] == "cells=9 lines=2 asked=0 wide=false denied=0"
    for i in (1, 2, 3):
        figure = body[body.index(f'id="figure-{i}"') :]
        assert 'class="main-svg"' in figure[:3000], f"figure {i} is not drawn"
