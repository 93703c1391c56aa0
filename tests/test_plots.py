"""Figures hold the numbers they should, where they should; how they look is for eyes."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from synthetic_scores import ENTITIES, PREFIX, SUFFIX, make_scores, prompts_of

from ecstruct.errors import InputError
from ecstruct.plots import head_map, heatmap, rank_curves, save_figure
from ecstruct.plots.style import colour_scale, number, reward_title, token_label
from ecstruct.scores.result import ExtractiveScores

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ROWS = ("downstream", "informative", "upstream")


@pytest.fixture
def scores() -> ExtractiveScores:
    return make_scores(n_layers=3, n_heads=4)


def panels(figure: go.Figure) -> dict[tuple[float, float], go.Heatmap]:
    """Heatmaps by where their panels are: (left, top) in shares of the figure."""
    found = {}
    for trace in figure.data:
        x, y = (figure.layout[axis[0] + "axis" + axis[1:]] for axis in (trace.xaxis, trace.yaxis))
        found[round(x.domain[0], 3), round(y.domain[1], 3)] = trace
    return found


def grid(figure: go.Figure) -> list[list[go.Heatmap]]:
    """Heatmaps as rows from the top, each from the left."""
    placed = panels(figure)
    tops = sorted({top for _, top in placed}, reverse=True)
    lefts = sorted({left for left, _ in placed})
    return [[placed[left, top] for left in lefts] for top in tops]


def grid_of_cells(figure: go.Figure) -> list[list[go.Heatmap]]:
    """The same of a figure that also has dots."""
    return grid(go.Figure([trace for trace in figure.data if trace.type == "heatmap"], figure.layout))


def axis_of(figure: go.Figure, trace: go.Heatmap, which: str) -> object:
    name = getattr(trace, f"{which}axis")
    return figure.layout[name[0] + "axis" + name[1:]]


# --- the heatmap


def test_cells_are_the_aggregated_values(scores: ExtractiveScores) -> None:
    averaged = scores.aggregate()
    rows = grid(heatmap(scores))
    assert [len(row) for row in rows] == [2, 2, 2]
    for row, score in zip(rows, ROWS, strict=True):
        mlp, attention = row
        np.testing.assert_array_equal(mlp.z, averaged.mlp.sel(score=score).values)
        summed = averaged.heads.sel(score=score).values.sum(1)
        np.testing.assert_allclose(attention.z, summed, rtol=1e-14)


def test_rows_are_named_and_layer_0_is_at_the_bottom(scores: ExtractiveScores) -> None:
    figure = heatmap(scores)
    for row, score in zip(grid(figure), ROWS, strict=True):
        assert axis_of(figure, row[0], "y").title.text == f"<b>{score}</b><br>layer"
        for trace in row:
            axis = axis_of(figure, trace, "y")
            assert list(trace.y) == [0, 1, 2]
            assert axis.range[0] < axis.range[1], "the axis is turned over"
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["MLP", "attention (heads summed)"]


def test_labels_may_repeat_but_positions_do_not() -> None:
    scores = make_scores(prompts_of(ENTITIES, ["the", "city", "the"], ["is", "the"]))
    figure = heatmap(scores)
    lowest = grid(figure)[-1][0]
    axis = axis_of(figure, lowest, "x")
    assert list(lowest.x) == list(axis.tickvals) == list(range(7))
    assert list(axis.ticktext) == ["the", "city", "the", "<i>X</i>", "<i>Y</i>", "is", "the"]
    assert axis.tickangle == -45
    assert axis.title.text == "token"


def test_each_panel_has_its_colour_bar_beside_it(scores: ExtractiveScores) -> None:
    figure = heatmap([scores, scores])
    bars = set()
    for trace in figure.data:
        x, y = axis_of(figure, trace, "x"), axis_of(figure, trace, "y")
        bar = trace.colorbar
        assert bar.title.text == "Δ reward (logits)"
        assert x.domain[1] < bar.x < x.domain[1] + 0.02
        assert bar.y == pytest.approx(sum(y.domain) / 2)
        bars.add((bar.x, bar.y))
    assert len(bars) == len(figure.data) == 12


def test_symmetric_scale_is_centred_and_fits_each_panel(scores: ExtractiveScores) -> None:
    for trace in heatmap(scores).data:
        assert trace.zmax == pytest.approx(np.abs(trace.z).max())
        assert trace.zmin == -trace.zmax
        middle = [colour for place, colour in trace.colorscale if place == pytest.approx(0.5)]
        assert middle == ["#ffffff"]


def test_paper_scale_is_clipped_below(scores: ExtractiveScores) -> None:
    for trace in heatmap(scores, scale="paper").data:
        assert trace.zmax == pytest.approx(np.max(trace.z))
        assert trace.zmin == pytest.approx(-0.25 * trace.zmax)
        white = [place for place, colour in trace.colorscale if colour == "#ffffff"]
        assert white == [pytest.approx(0.2)]
        clipped = np.min(trace.z) < trace.zmin
        assert trace.colorbar.ticktext[0].startswith("≤") == clipped


def test_scales_of_nothing_and_of_negative_numbers_only(scores: ExtractiveScores) -> None:
    nothing = scores - scores
    assert {(t.zmin, t.zmax) for t in heatmap(nothing).data} == {(-1.0, 1.0)}
    negative = ExtractiveScores(-abs(scores.dataset))
    for trace in heatmap(negative, scale="paper").data:
        assert trace.zmin < 0 < trace.zmax


def test_a_value_has_one_colour_on_both_scales() -> None:
    whole, clipped = colour_scale(), colour_scale(-0.25)
    colours = {round(2 * place - 1, 9): colour for place, colour in whole}
    for place, colour in clipped[1:]:
        assert colours[round(-0.25 + place * 1.25, 9)] == colour
    # A quarter of the way from #d1e5f0, at -0.2, to #92c5de, at -0.4.
    assert clipped[0] == (0.0, "#c1ddec")


def test_hover_says_layer_token_value_and_count(scores: ExtractiveScores) -> None:
    averaged = scores.aggregate()
    mlp = grid(heatmap(scores))[0][0]
    assert mlp.hovertemplate == "%{text}<extra></extra>"
    value = number(averaged.mlp.sel(score="downstream", layer=2, slot=2).item())
    assert mlp.text[2][2] == (f"layer 2, <i>X</i><br>Δ reward (logits): {value}<br>mean of 2 prompts")
    assert "mean of 3 prompts" in mlp.text[2][3]


def test_hover_names_the_strongest_heads(scores: ExtractiveScores) -> None:
    dataset = scores.dataset.copy(deep=True)
    dataset["heads"] = dataset["heads"] * 0.0
    where = {"score": "upstream", "layer": 1, "token": 0}
    for head, value in enumerate((0.5, -2.0, 0.0, 1.25)):
        dataset["heads"].loc[{**where, "head": head}] = value
    attention = grid(heatmap(ExtractiveScores(dataset)))[2][1]
    assert attention.text[1][0].endswith("<br>strongest heads: 1 (−2), 3 (+1.2), 0 (+0.5)")
    assert attention.z[1][0] == -0.25


def test_one_prompt_is_shown_by_its_own_tokens(scores: ExtractiveScores) -> None:
    figure = heatmap(scores, prompt=1)
    lowest = grid(figure)[-1][0]
    labels = [token_label(text) for text in (*PREFIX, *ENTITIES[1], *SUFFIX)]
    assert list(axis_of(figure, lowest, "x").ticktext) == labels
    np.testing.assert_array_equal(lowest.z, scores.mlp.values[1, 1].astype("float64"))
    assert "mean of" not in lowest.text[0][0]
    figure = heatmap(make_scores(prompts_of(ENTITIES[1:2])))
    assert list(axis_of(figure, grid(figure)[-1][0], "x").ticktext) == labels


def test_slots_that_no_prompt_fills_are_left_out() -> None:
    figure = heatmap(make_scores(prompts_of([["a"], ["b"]])))
    lowest = grid(figure)[-1][0]
    assert list(axis_of(figure, lowest, "x").ticktext)[2:4] == ["<i>Y</i>", "is"]
    assert np.isfinite(lowest.z).all()


def dots(figure: go.Figure, cells: go.Heatmap) -> np.ndarray:
    """Which cells of a panel have a dot, (layer, column)."""
    found = np.zeros(np.shape(cells.z), dtype=bool)
    for trace in figure.data:
        if trace.type == "scatter" and (trace.xaxis, trace.yaxis) == (cells.xaxis, cells.yaxis):
            assert (trace.mode, trace.hoverinfo, trace.showlegend) == ("markers", "skip", False)
            found[np.searchsorted(cells.y, trace.y), trace.x] = True
            assert found.sum() == len(trace.x)
    return found


def notes(figure: go.Figure) -> list[str]:
    return [note.text for note in figure.layout.annotations]


@pytest.fixture
def clear() -> ExtractiveScores:
    """20 prompts; only MLP 1 raises the reward, and only head 2.3 lowers it, at "The"."""
    scores = make_scores(prompts_of([["a", "b"]] * 20), n_layers=3, n_heads=4)
    centred = scores.dataset - scores.dataset.mean("prompt")
    centred["mlp"].loc[{"layer": 1, "token": 0}] += 2
    centred["heads"].loc[{"layer": 2, "head": 3, "token": 0}] -= 9
    return ExtractiveScores(centred.assign_attrs(scores.attrs))


def test_cells_whose_interval_excludes_zero_have_a_dot(clear: ExtractiveScores) -> None:
    averaged = clear.aggregate(ci=0.99)
    figure = heatmap(averaged)
    cells = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(cells) == 6
    for trace, layer in zip(cells, (1, 1, 1, 2, 2, 2), strict=True):
        assert np.argwhere(dots(figure, trace)).tolist() == [[layer, 0]]
    assert notes(figure) == ["MLP", "attention (heads summed)", "● 99% interval excludes zero"]
    low, high = (
        ends["mlp"].sel(score="upstream", layer=1, slot=0) for ends in (averaged.low, averaged.high)
    )
    line = f"<br>99% interval: {number(low.item())} to {number(high.item())}<br>mean of 20 prompts"
    assert line in cells[2].text[1][0]
    low, high = (ends["attention"].sel(score="upstream") for ends in (averaged.low, averaged.high))
    line = f"<br>99% interval: {number(low[0, 4].item())} to {number(high[0, 4].item())}<br>mean of 20"
    assert line in cells[5].text[0][4]


def test_a_head_map_has_dots(clear: ExtractiveScores) -> None:
    averaged = clear.aggregate(ci=0.99)
    figure = head_map(averaged, 0)
    for trace in figure.data:
        if trace.type == "heatmap":
            assert np.argwhere(dots(figure, trace)).tolist() == [[2, 3]]
    low, high = (
        ends["heads"].sel(score="informative", layer=2, head=3, slot=0).item()
        for ends in (averaged.low, averaged.high)
    )
    assert figure.data[2].text[2][3].endswith(f"<br>99% interval: {number(low)} to {number(high)}")
    assert notes(figure)[-1] == "● 99% interval excludes zero"


def test_without_intervals_there_is_no_word_of_them(clear: ExtractiveScores) -> None:
    for figure in (heatmap(clear), head_map(clear), heatmap(clear, prompt=0)):
        assert {trace.type for trace in figure.data} == {"heatmap"}
        assert "interval" not in figure.to_json()
    with_note = heatmap(clear.aggregate(ci=0.95))
    assert with_note.layout.height == heatmap(clear).layout.height + 22


def test_intervals_of_some_of_the_sets(clear: ExtractiveScores) -> None:
    some = heatmap([clear, clear.aggregate(ci=0.95)])
    assert notes(some)[-1] == "● 95% interval excludes zero (not all of these have intervals)"
    assert "interval" not in grid_of_cells(some)[0][0].text[1][0]
    both = heatmap([clear.aggregate(ci=0.999), clear.aggregate(ci=0.95)])
    assert notes(both)[-1] == "● 95% / 99.9% interval excludes zero"


def test_a_mean_of_one_prompt_has_no_interval_to_show() -> None:
    scores = make_scores(prompts_of([["a", "b"], ["c"], ["d"]]))
    shifted = ExtractiveScores((scores.dataset + 100).assign_attrs(scores.attrs))
    figure = heatmap(shifted.aggregate(ci=0.95))
    for row in grid_of_cells(figure):
        for trace in row:
            assert dots(figure, trace).sum(0).tolist() == [2, 2, 0, 2, 2, 2, 2]
            assert "interval" not in trace.text[0][2] and "interval" in trace.text[0][3]


@pytest.mark.parametrize("form", ["list", "mapping"])
def test_sets_side_by_side(scores: ExtractiveScores, form: str) -> None:
    other = make_scores(prompts_of(ENTITIES, ["A"], ["b"]), n_layers=5, n_heads=2)
    titles = ["first-hop", "second <hop>"]
    figure = (
        heatmap([scores, other.aggregate()], titles=titles)
        if form == "list"
        else heatmap(dict(zip(titles, [scores, other], strict=True)))
    )
    rows = grid(figure)
    assert [len(row) for row in rows] == [4, 4, 4]
    np.testing.assert_array_equal(rows[1][0].z, scores.aggregate().mlp.sel(score=ROWS[1]).values)
    np.testing.assert_array_equal(rows[1][2].z, other.aggregate().mlp.sel(score=ROWS[1]).values)
    texts = [note.text for note in figure.layout.annotations]
    assert texts[-2:] == ["<b>first-hop</b>", "<b>second &lt;hop&gt;</b>"]


def test_templates_and_bad_arguments(scores: ExtractiveScores) -> None:
    two = make_scores(
        [*prompts_of(ENTITIES), {"tokens": ["A", "b"], "entity": (0, 1), "template": "other"}]
    )
    with pytest.raises(InputError, match="2 templates"):
        heatmap(two)
    assert len(heatmap(two, template="other").data) == 6
    with pytest.raises(InputError, match="1 titles do not fit 2 sets"):
        heatmap([scores, scores], titles=["one"])
    with pytest.raises(InputError, match="no scores to show"):
        heatmap([])
    with pytest.raises(InputError, match="not str"):
        heatmap(["scores.nc"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="scale='log' is unknown"):
        heatmap(scores, scale="log")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="no prompt= or template="):
        heatmap(scores.aggregate(), prompt=0)


@pytest.mark.parametrize(("n_layers", "n_tokens"), [(1, 1), (6, 11), (32, 12), (80, 60)])
def test_figures_grow_with_what_they_show(n_layers: int, n_tokens: int) -> None:
    words = [f"word{i}" for i in range(n_tokens)]
    figure = heatmap(make_scores(prompts_of([words], [], []), n_layers=n_layers, n_heads=1))
    layout = figure.layout
    inner_width = layout.width - layout.margin.l - layout.margin.r
    inner_height = layout.height - layout.margin.t - layout.margin.b
    for trace in figure.data:
        x, y = axis_of(figure, trace, "x"), axis_of(figure, trace, "y")
        assert 0 <= x.domain[0] < x.domain[1] <= 1
        # To half a pixel, as figures have whole ones.
        assert (x.domain[1] - x.domain[0]) * inner_width >= 16 * n_tokens - 0.5
        height = (y.domain[1] - y.domain[0]) * inner_height
        assert height >= 119.5, "too low for the numbers of a colour bar"
        assert height / n_layers * np.diff(y.tickvals).min(initial=n_layers) >= 13


def test_the_global_template_is_neither_read_nor_changed(scores: ExtractiveScores) -> None:
    before = pio.templates.default
    plain = heatmap(scores).to_json()
    pio.templates.default = "plotly_dark"
    try:
        assert heatmap(scores).to_json() == plain
        assert pio.templates.default == "plotly_dark"
    finally:
        pio.templates.default = before


def test_units_follow_the_reward() -> None:
    def title(**attrs: object) -> str:
        return reward_title(attrs)

    logits, nats = {"reward": "logit_diff"}, {"reward": "logprob"}
    assert title(options=logits) == "Δ reward (logits)"
    assert title(options=nats) == "Δ reward (nats)"
    assert title(options={"reward": "my_reward"}) == "Δ reward (my_reward)"
    assert title() == "Δ reward"
    assert title(difference=[{"options": logits}, {"options": logits}]) == "Δ reward (logits)"
    assert title(mean=[{"options": logits}, {"options": nats}]) == ("Δ reward (logit_diff / logprob)")


# --- the head map


def test_head_map_shows_one_slot(scores: ExtractiveScores) -> None:
    averaged = scores.aggregate()
    figure = head_map(scores, "from")
    (row,) = grid(figure)
    for trace, score in zip(row, ROWS, strict=True):
        expected = averaged.heads.sel(score=score, slot=5).values
        np.testing.assert_array_equal(trace.z, expected)
        assert axis_of(figure, trace, "x").title.text == "head"
        assert axis_of(figure, trace, "y").range[0] < axis_of(figure, trace, "y").range[1]
    assert axis_of(figure, row[0], "y").title.text == "layer"
    assert [note.text for note in figure.layout.annotations][:3] == [f"<b>{s}</b>" for s in ROWS]
    assert "“from”" in figure.layout.annotations[3].text
    value = number(averaged.heads.sel(score="upstream", layer=2, head=3, slot=5).item())
    assert row[2].text[2][3] == f"head 2.3, from<br>Δ reward (logits): {value}"


def test_head_map_slots(scores: ExtractiveScores) -> None:
    averaged = scores.aggregate()

    def slot_shown(figure: go.Figure) -> int:
        shown = grid(figure)[0][0].z
        same = [
            np.array_equal(shown, averaged.heads.sel(score=ROWS[0], slot=slot).values) for slot in range(7)
        ]
        return same.index(True)

    assert slot_shown(scores.head_map()) == 6
    assert slot_shown(scores.head_map(2)) == 2
    assert slot_shown(averaged.head_map(slot="X")) == 2
    assert slot_shown(scores.head_map("Ġspeak")) == 6
    with pytest.raises(InputError, match="slot='to' occurs not among"):
        head_map(scores, "to")
    with pytest.raises(InputError, match="slot=7 is not there"):
        head_map(scores, 7)
    twice = make_scores(prompts_of(ENTITIES, ["the", "the"]))
    with pytest.raises(InputError, match=r"occurs 2 times, at \[0, 1\]"):
        head_map(twice, "the")
    with pytest.raises(InputError, match="no prompt has a token at slot 'X'"):
        head_map(make_scores(prompts_of([["a"], ["b"]])), "X")


# --- rank curves


def test_rank_curves() -> None:
    ranks = {
        "first-hop facts": [9.5, 1.0, 0.0],
        "first-hop implications": [9.4, 5.0, 0.4],
        "second-hop facts": [9.6, 2.0, 0.1],
    }
    figure = rank_curves(ranks)
    lines = {trace.name: trace for trace in figure.data}
    assert {name: list(trace.y) for name, trace in lines.items()} == ranks
    assert list(lines["first-hop facts"].x) == [0, 1, 2]
    dashes = {name: trace.line.dash for name, trace in lines.items()}
    assert dashes == {
        "first-hop facts": "solid",
        "first-hop implications": "dash",
        "second-hop facts": "solid",
    }
    colours = [lines[name].line.color for name in ranks]
    assert colours[0] == colours[1] != colours[2]
    assert list(figure.layout.yaxis.range) == [-0.5, 11]
    assert figure.layout.xaxis.title.text == "epoch"
    assert rank_curves(SimpleNamespace(ranks=ranks)).to_json() == figure.to_json()


def test_rank_curves_of_many_options_and_of_nothing() -> None:
    assert rank_curves({"facts": [49.5, 3.0]}).layout.yaxis.range[1] > 49.5
    for nothing in ({}, {"facts": []}):
        with pytest.raises(InputError, match="no ranks to show"):
            rank_curves(nothing)


# --- files


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
