"""What a reader does with a report, in a real browser: choose, click, press keys, by phone, in the dark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.chromium import CHROMIUM
from helpers.synthetic_scores import make_scores, prompts_of

from ecstruct.report import Explorer, Replay, Section, Table, write_report
from ecstruct.report.pages import score_report
from ecstruct.scores.result import ExtractiveScores

ROWS = ("downstream", "informative", "upstream")
NASTY = ["</script><script>window.hacked=1</script>", 'Ġ"quo\'ted"', "<!--", "Ġ語\u2028🙂", "Ġ&amp;"]
WAIT = 60_000  # milliseconds that one step may take on a slow machine

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")


@pytest.fixture(scope="module")
def scores() -> ExtractiveScores:
    """Two templates: three prompts of unlike lengths, and one prompt of tokens that could break a page."""
    odd = {"tokens": NASTY, "entity": (1, 3), "template": 'odd "<i>'}
    return make_scores([*prompts_of([["a"], ["b", "c"], ["d", "e", "f"]]), odd], n_layers=3, n_heads=4)


@pytest.fixture(scope="module")
def report(scores: ExtractiveScores, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    score_report(path, scores, "ecstruct replay config.json --out DIR")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"], timeout=WAIT
        )
        yield chromium
        chromium.close()


def opened(browser: Any, url: str, **context: Any) -> tuple[Any, list[str]]:
    """A page, and what it complains of."""
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(WAIT)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: wrong.append(asked.url) if asked.url.startswith("http") else None)
    page.goto(url, wait_until="load", timeout=WAIT)
    page.wait_for_selector(".explorer .heads .barlayer")
    return page, wrong


@pytest.fixture
def page(browser: Any, report: str) -> Iterator[Any]:
    page, wrong = opened(browser, report)
    yield page
    assert wrong == []
    page.context.close()


def cells(page: Any) -> np.ndarray:
    """What the map shows: (MLP or attention, score, layer, token)."""
    drawn = page.evaluate("[...document.querySelector('.map').data.map((t) => t.z.map((row) => [...row]))]")
    return np.array(drawn).reshape(2, 3, *np.array(drawn[0]).shape)


def bars(page: Any) -> list[float]:
    """What the heads' panel shows: the MLP, then the heads."""
    return page.evaluate("[...document.querySelector('.drawing.heads').data[0].y]")


def choose(page: Any, what: str, **option: Any) -> None:
    page.locator(f"[data-choose={what}]").select_option(**option, timeout=WAIT)


def chosen(page: Any) -> dict[str, int]:
    return {
        what: int(page.locator(f"[data-choose={what}]").input_value())
        for what in ("score", "layer", "token")
    }


def expected_bars(scores: ExtractiveScores, prompt: int, score: str, layer: int, token: int) -> np.ndarray:
    mlp = scores.mlp.sel(score=score).isel(prompt=prompt, layer=layer, token=token)
    heads = scores.heads.sel(score=score).isel(prompt=prompt, layer=layer, token=token)
    return np.array([float(mlp), *heads.values])


def test_the_mean_is_shown_first(page: Any, scores: ExtractiveScores) -> None:
    mean = scores.aggregate(template="city")
    shown = cells(page)
    for row, score in enumerate(ROWS):
        np.testing.assert_allclose(shown[0, row], mean.mlp.sel(score=score).values, rtol=1e-6)
        summed = mean.heads.sel(score=score).sum("head").values
        np.testing.assert_allclose(shown[1, row], summed, rtol=1e-5, atol=1e-6)
    options = page.locator("[data-choose=view] option").all_text_contents()
    assert options[0] == "city: mean of 3 prompts" and len(options) == 1 + 3 + 1
    groups = page.locator("[data-choose=view] optgroup").evaluate_all("(all) => all.map((g) => g.label)")
    assert groups == ["city", 'odd "<i>']


def test_a_prompt_that_is_chosen_is_shown(page: Any, scores: ExtractiveScores) -> None:
    for prompt in (0, 2, 1):
        text = str(scores.dataset["text"].values[prompt])
        choose(page, "view", label=f"{prompt}: {text}")
        length = int(scores.dataset["length"].values[prompt])
        shown = cells(page)
        assert shown.shape == (2, 3, 3, length)
        for row, score in enumerate(ROWS):
            own = scores.mlp.sel(score=score).isel(prompt=prompt).values[:, :length]
            np.testing.assert_allclose(shown[0, row], own, rtol=1e-6)
        about = page.locator(".about").inner_text()
        assert text in about and f"answer {prompt}" in about
        labels = page.evaluate("document.querySelector('.map').layout.xaxis.ticktext")
        assert len(labels) == length


def test_a_cell_that_is_clicked_opens_its_heads(page: Any, scores: ExtractiveScores) -> None:
    choose(page, "view", index=3)  # the mean is first
    prompt = 2
    before = bars(page)
    for panel, layer, token in ((0, 2, 1), (4, 0, 5), (5, 1, 7)):  # panels go down the columns
        click_cell(page, panel, layer, token)
        score = ROWS[panel % 3]
        assert chosen(page) == {"score": panel % 3, "layer": layer, "token": token}
        now = bars(page)
        assert now != before
        before = now
        np.testing.assert_allclose(now, expected_bars(scores, prompt, score, layer, token), rtol=1e-6)
        said = page.locator(".said").inner_text()
        assert said.startswith(f"{score}, layer {layer}, ")
        assert page.evaluate("document.querySelector('.map').layout.shapes.length") == 4


def click_cell(page: Any, panel: int, layer: int, token: int) -> None:
    axis = 2 * (panel % 3) + panel // 3  # axes are counted by rows
    name = "" if axis == 0 else str(axis + 1)
    place = page.evaluate(
        """([name, x, y]) => {
          const map = document.querySelector(".map");
          map.scrollIntoView();
          const box = map.getBoundingClientRect();
          const [across, up] = [map._fullLayout["xaxis" + name], map._fullLayout["yaxis" + name]];
          return [box.x + across._offset + across.l2p(x), box.y + up._offset + up.l2p(y)];
        }""",
        [name, token, layer],
    )
    page.mouse.move(*place)
    page.mouse.click(*place)
    page.wait_for_function(
        "(said) => document.querySelector('.said').textContent.startsWith(said)",
        arg=f"{ROWS[panel % 3]}, layer {layer}, ",
        timeout=WAIT,
    )


def test_the_table_has_all_scores_of_the_cell(page: Any, scores: ExtractiveScores) -> None:
    choose(page, "view", index=2)
    choose(page, "layer", value="1")
    choose(page, "token", value="3")
    page.locator("summary").click()
    rows = page.locator(".explorer tbody tr").all_inner_texts()
    assert len(rows) == 1 + 4 and rows[1].startswith("head 1.0")
    table = np.array([[float(x.replace("−", "-")) for x in row.split("\t")[1:]] for row in rows])
    for column, score in enumerate(ROWS):
        np.testing.assert_allclose(table[:, column], expected_bars(scores, 1, score, 1, 3), rtol=1e-3)


def test_keys_alone_are_enough(page: Any, scores: ExtractiveScores) -> None:
    focus = "document.activeElement.dataset.choose ?? document.activeElement.getAttribute('aria-label')"
    seen = []
    for _ in range(5):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(focus))
    assert seen[:4] == ["view", "score", "layer", "token"] and "arrow keys" in seen[4]
    choose(page, "view", index=2)
    for what, value in (("layer", "1"), ("token", "2"), ("score", "0")):
        choose(page, what, value=value)
    page.locator(".explorer .scroll").first.focus()
    for key in ("ArrowUp", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowUp"):  # layer 2 is the last
        page.keyboard.press(key)
    assert chosen(page) == {"score": 0, "layer": 2, "token": 3}
    np.testing.assert_allclose(bars(page), expected_bars(scores, 1, "downstream", 2, 3), rtol=1e-6)


def test_nothing_in_a_prompt_breaks_the_page(page: Any, scores: ExtractiveScores) -> None:
    choose(page, "view", index=4)
    assert page.evaluate("window.hacked") is None
    assert page.locator(".about").inner_text().startswith("“" + NASTY[0])
    tokens = page.locator("[data-choose=token] option").all_text_contents()
    assert [t[:5] for t in tokens] == ["</scr", "\"quo'", "<!--", "語\u2028🙂", "&amp;"]
    assert {"<!--", "&amp;"} <= set(page.locator(".map text").all_text_contents())


def luminance(colour: str) -> float:
    channels = np.array([float(x) for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable(browser: Any, report: str, scheme: str) -> None:
    page, wrong = opened(browser, report, color_scheme=scheme)
    pairs = page.evaluate(
        """() => [...document.querySelectorAll("h1, p, figcaption, caption, td, th, pre, select, summary")]
          .filter((node) => node.textContent.trim())
          .map((node) => {
            let under = node;
            while (under && getComputedStyle(under).backgroundColor === "rgba(0, 0, 0, 0)")
              under = under.parentElement;
            return [getComputedStyle(node).color,
                    under ? getComputedStyle(under).backgroundColor : null, node.tagName];
          })"""
    )
    assert len(pairs) > 30
    for ink, paper, tag in pairs:
        light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{tag}: {ink} on {paper}"
    body = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert body < 0.05 if scheme == "dark" else body > 0.9
    assert wrong == []
    page.context.close()


def test_on_a_phone_only_figures_scroll(browser: Any, report: str) -> None:
    size = {"width": 390, "height": 844}
    page, wrong = opened(
        browser, report, viewport=size, has_touch=True, is_mobile=True, device_scale_factor=2
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    scroller = page.locator(".explorer .scroll").first
    assert scroller.evaluate("(node) => node.scrollWidth > node.clientWidth")
    for select in page.locator("select").all():
        box = select.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 24
    scroller.focus()
    moved = []
    for start in (0, 9999):  # a key brings the chosen cell, which is in one of both panels, into view
        before = scroller.evaluate(
            "(node, start) => { node.scrollLeft = start; return node.scrollLeft; }", start
        )
        page.keyboard.press("ArrowLeft")
        moved.append(scroller.evaluate("(node) => node.scrollLeft") != before)
    assert sorted(moved) == [False, True]
    assert wrong == []
    page.context.close()


def test_captions_are_whole_on_a_phone(browser: Any, tmp_path: Path) -> None:
    wide = Table(pd.DataFrame([range(10**6, 10**6 + 20)]).rename(columns=str), "These numbers. " * 9)
    narrow = Table(pd.DataFrame({"a": [1]}), "What this one number is.")
    write_report(tmp_path / "a.html", title="a", summary="b", sections=[Section("c", [wide, narrow])])
    page = browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True).new_page()
    page.goto((tmp_path / "a.html").as_uri(), timeout=WAIT)
    assert page.locator("table").first.bounding_box()["width"] > 500
    boxes = [caption.bounding_box() for caption in page.locator("caption").all()]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
    assert boxes[1]["height"] < 2 * 16 * 1.5  # in one line
    page.context.close()


def test_many_heads_fit_beside_the_map(browser: Any, tmp_path: Path) -> None:
    score_report(tmp_path / "many.html", make_scores(n_layers=3, n_heads=64), "ecstruct replay")
    page, wrong = opened(
        browser, (tmp_path / "many.html").as_uri(), viewport={"width": 1366, "height": 800}
    )
    place = page.locator(".drawing.heads").locator("..")
    assert place.evaluate("(node) => node.scrollWidth <= node.clientWidth")
    boxes = page.locator(".drawing.heads .xtick text").evaluate_all(
        "(all) => all.map((text) => text.getBoundingClientRect()).map((box) => [box.left, box.right])"
    )
    assert len(boxes) > 5 and all(left[1] < right[0] for left, right in pairwise(boxes))
    numbers = page.evaluate(
        """() => [...document.querySelectorAll(".map .cbaxis text")].map((text) => {
          const [own, all] = [text, text.closest(".map")].map((node) => node.getBoundingClientRect());
          return own.left >= all.left && own.right <= all.right;
        })"""
    )
    assert len(numbers) == 18 and all(numbers)
    assert wrong == []
    page.context.close()


def test_two_explorers_do_not_meddle(browser: Any, tmp_path: Path) -> None:
    mine, its = (make_scores(seed=seed) for seed in (1, 2))
    sections = [Section("a", [Explorer(mine)]), Section("b", [Explorer(its, "of b"), Replay("x")])]
    write_report(tmp_path / "two.html", title="two", summary="", sections=sections)
    page, wrong = opened(browser, (tmp_path / "two.html").as_uri())
    first = page.evaluate("JSON.stringify(document.querySelectorAll('.map')[0].data[0].z)")
    page.locator("#explorer-2 [data-choose=view]").select_option(index=1)
    second = page.evaluate("JSON.stringify(document.querySelectorAll('.map')[1].data[0].z)")
    assert page.evaluate("JSON.stringify(document.querySelectorAll('.map')[0].data[0].z)") == first
    length = int(its.dataset["length"].values[0])
    own = its.mlp.sel(score="downstream").isel(prompt=0).values[:, :length]
    np.testing.assert_allclose(json.loads(second), own, rtol=1e-6)
    assert wrong == []
    page.context.close()
