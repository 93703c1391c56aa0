"""Heatmaps and head maps hold the numbers they should, where they should; how they look is for eyes."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from helpers.figures import axis_of, grid
from helpers.synthetic_scores import ENTITIES, PREFIX, SUFFIX, make_scores, prompts_of

from ecstruct.errors import InputError
from ecstruct.plots import head_map, heatmap
from ecstruct.plots.panels import label_length
from ecstruct.plots.style import colour_scale, number, reward_title, token_label
from ecstruct.scores.result import ExtractiveScores

ROWS = ("downstream", "informative", "upstream")


@pytest.fixture
def scores() -> ExtractiveScores:
    return make_scores(n_layers=3, n_heads=4)


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
    assert titles == ["MLP", "attention (heads summed)", "token", "token", "Δ reward (logits)"]


def test_labels_may_repeat_but_positions_do_not() -> None:
    scores = make_scores(prompts_of(ENTITIES, ["the", "city", "the"], ["is", "the"]))
    figure = heatmap(scores)
    lowest = grid(figure)[-1][0]
    axis = axis_of(figure, lowest, "x")
    assert list(lowest.x) == list(axis.tickvals) == list(range(7))
    assert list(axis.ticktext) == ["the", "city", "the", "<i>X</i>", "<i>Y</i>", "is", "the"]
    assert axis.tickangle == -45


def test_each_panel_has_its_colour_bar_above_it(scores: ExtractiveScores) -> None:
    figure = heatmap([scores, scores])
    margin, bars = figure.layout.margin, set()
    inner = (figure.layout.width - margin.l - margin.r, figure.layout.height - margin.t - margin.b)
    for trace in figure.data:
        x, y, bar = axis_of(figure, trace, "x"), axis_of(figure, trace, "y"), trace.colorbar
        assert (bar.x, bar.xanchor, bar.orientation) == (x.domain[0], "left", "h")
        assert bar.len == pytest.approx((x.domain[1] - x.domain[0]) * inner[0], abs=1)
        # The bar and its numbers are between the panel and what is above it.
        assert bar.thickness + 12 < (bar.y - y.domain[1]) * inner[1] < 30
        # Numbers end where the bar ends: digits have half an em and more.
        for end, tick, text in zip((-1, 1), bar.tickvals[::2], bar.ticktext[::2], strict=True):
            half = len(text) * 0.5 * bar.tickfont.size / 2 * 2 * trace.zmax / bar.len
            assert abs(tick) + half <= trace.zmax and tick * end > 0
        bars.add((bar.x, bar.y))
    assert len(bars) == len(figure.data) == 12


def test_titles_of_narrow_figures_are_whole() -> None:
    """Of one prompt of few tokens, the title is wider than the cells."""
    short = make_scores(prompts_of([["a " * 20]], [], ["is"]))
    for figure in (heatmap(short, prompt=0), heatmap({"checkpoint " * 5: short}), short.head_map(0)):
        layout = figure.layout
        inner = layout.width - layout.margin.l - layout.margin.r
        for title in layout.annotations[2:4]:
            if title.y == 1 and title.text.startswith("<b>") and title.font.size > 13:
                longest = max(label_length(line) for line in title.text.split("<br>"))
                half = 0.6 * title.font.size * longest / 2
                middle = layout.margin.l + title.x * inner
                assert half < middle and middle + half < layout.width, title.text


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
    assert texts[4:6] == ["<b>first-hop</b>", "<b>second &lt;hop&gt;</b>"]


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
        assert axis_of(figure, trace, "y").range[0] < axis_of(figure, trace, "y").range[1]
    assert axis_of(figure, row[0], "y").title.text == "layer"
    assert [note.text for note in figure.layout.annotations][:3] == [f"<b>{s}</b>" for s in ROWS]
    assert "“from”" in figure.layout.annotations[3].text
    assert [note.text for note in figure.layout.annotations][4:] == ["head"] * 3 + ["Δ reward (logits)"]
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
