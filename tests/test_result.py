"""Scores on disk and in frames: every bit comes back, and the order of components is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from helpers.synthetic_scores import ENTITIES, make_scores, prompts_of

from ecstruct.errors import InputError
from ecstruct.scores.result import ExtractiveScores


@pytest.fixture
def scores() -> ExtractiveScores:
    return make_scores()


def with_values(scores: ExtractiveScores, **values: float) -> ExtractiveScores:
    """A copy in which all scores are 0, but for `kind=value` everywhere."""
    dataset = scores.dataset.copy(deep=True)
    for name in ("mlp", "heads"):
        dataset[name] = xr.where(np.isnan(dataset[name]), np.nan, values.get(name, 0.0))
        dataset[name] = dataset[name].transpose(*scores.dataset[name].dims)
    return ExtractiveScores(dataset)


# --- saving and loading


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_bit_comes_back(tmp_path: Path, dtype: str) -> None:
    hard = ["Ġ日本", "naïve\n", "", " ", "<|endoftext|>"]
    saved = make_scores(prompts_of([hard, *ENTITIES]), dtype=dtype, note={"options": [1, 2.5, None]})
    saved.mlp.values[0, 0, 0, :3] = [np.finfo(dtype).tiny / 4, -0.0, np.finfo(dtype).max]
    saved.save(tmp_path / "scores.nc")
    loaded = ExtractiveScores.load(tmp_path / "scores.nc")
    assert set(loaded.dataset.variables) == set(saved.dataset.variables)
    for name, variable in saved.dataset.variables.items():
        other = loaded.dataset.variables[name]
        assert other.dims == variable.dims
        if variable.dtype.kind == "U":
            assert other.values.tolist() == variable.values.tolist()
        else:
            assert other.dtype == variable.dtype
            assert other.values.tobytes() == variable.values.tobytes()
    assert loaded.attrs == saved.attrs
    assert set(loaded.dataset.coords) == set(saved.dataset.coords)


def test_large_attributes_and_no_groups_come_back(tmp_path: Path) -> None:
    # Netcdf has limits on compact attributes; object strings and empty groups come from the engine.
    scores = make_scores(hashes={f"tensor {i}": "0" * 64 for i in range(2000)})
    empty = scores.dataset.isel(group=slice(0)).assign_coords(group=np.array([], dtype=object))
    ExtractiveScores(empty).save(tmp_path / "scores.nc")
    loaded = ExtractiveScores.load(tmp_path / "scores.nc")
    assert loaded.attrs == scores.attrs
    assert loaded.rest.shape == (3, 0)


def test_characters_that_netcdf_cannot_hold_do_not_lose_the_scores(tmp_path: Path) -> None:
    scores = make_scores(prompts_of([["a\0b", "\ud800"]]))
    scores.save(tmp_path / "scores.nc")
    loaded = ExtractiveScores.load(tmp_path / "scores.nc")
    assert loaded.dataset["token_text"].values[0, 2:4].tolist() == ["a␀b", "?"]
    assert loaded.mlp.values.tobytes() == scores.mlp.values.tobytes()


def test_a_failing_write_leaves_the_old_file(
    tmp_path: Path, scores: ExtractiveScores, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scores.nc"
    scores.save(path)
    before = path.read_bytes()

    def half_a_file(self: Path, content: bytes) -> None:
        self.write_text("half a f")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", half_a_file)
    with pytest.raises(KeyboardInterrupt):
        make_scores(seed=1).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["scores.nc"]


def test_what_is_no_file_of_scores(tmp_path: Path, scores: ExtractiveScores) -> None:
    with pytest.raises(InputError, match=r"no file of scores .*nowhere\.nc"):
        ExtractiveScores.load(tmp_path / "nowhere.nc")
    (tmp_path / "text.nc").write_text("hello")
    with pytest.raises(InputError, match=r"text\.nc cannot be read as scores"):
        ExtractiveScores.load(tmp_path / "text.nc")
    (tmp_path / "empty.nc").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.nc cannot be read as scores"):
        ExtractiveScores.load(tmp_path / "empty.nc")
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(InputError, match=r"other\.nc is a netCDF file, but not one of"):
        ExtractiveScores.load(tmp_path / "other.nc")
    with pytest.raises(InputError, match=r"cannot be read as scores"):
        ExtractiveScores.load(tmp_path)


def test_damaged_files_are_noticed(tmp_path: Path, scores: ExtractiveScores) -> None:
    path = tmp_path / "scores.nc"
    scores.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        ExtractiveScores.load(path)
    # One bit of one score.
    numbers = scores.heads.values.tobytes()
    at = whole.index(numbers) + len(numbers) // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(InputError, match="damaged"):
        ExtractiveScores.load(path)


def test_a_dataset_of_something_else() -> None:
    with pytest.raises(InputError, match="no variable 'mlp'"):
        ExtractiveScores(xr.Dataset())
    with pytest.raises(InputError, match="'heads' has no dimension 'head'"):
        ExtractiveScores(make_scores().dataset.isel(head=0))


# --- difference and mean


def test_difference_and_mean(scores: ExtractiveScores) -> None:
    other = make_scores(seed=1, seed_of="other")
    difference, mean = scores - other, scores.mean(other)
    for name in scores.dataset.data_vars:
        a, b = scores.dataset[name].values, other.dataset[name].values
        np.testing.assert_array_equal(difference.dataset[name].values, a - b)
        np.testing.assert_array_equal(mean.dataset[name].values, (a + b) / 2)
        assert mean.dataset[name].dtype == np.float32
    assert difference.attrs == {"difference": [scores.attrs, other.attrs]}
    assert mean.attrs == {"mean": [scores.attrs, other.attrs]}
    assert difference.dataset["text"].equals(scores.dataset["text"])
    assert difference.aggregate().count.values.tolist() == [3, 3, 2, 3, 3, 3, 3]


def test_dimensions_are_matched_by_name(scores: ExtractiveScores) -> None:
    turned = ExtractiveScores(scores.dataset.transpose())
    assert float(abs((scores - turned).heads).max()) == 0.0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make_scores(n_layers=3), r"sizes of 'layer': \(2,\) and \(3,\)"),
        (make_scores(n_heads=2), r"sizes of 'head': \(3,\) and \(2,\)"),
        (make_scores(prompts_of(ENTITIES[:2])), "sizes of 'text'"),
        (make_scores(prompts_of([*ENTITIES[:2], ["ĠBono"]])), r"differ in 'text': .*Cher.*Bono"),
        (
            ExtractiveScores(make_scores().dataset.drop_vars("rest")),
            "only one of the two scores has 'rest'",
        ),
        (
            ExtractiveScores(make_scores().dataset.isel(score=[1, 0, 2])),
            "differ in 'score': 'informative' and 'upstream'",
        ),
    ],
)
def test_what_cannot_be_subtracted(other: ExtractiveScores, message: str) -> None:
    scores = make_scores()
    with pytest.raises(InputError, match=message):
        scores - other
    with pytest.raises(InputError, match=message):
        scores.mean(scores, other)


# --- components and frames


def test_top_is_the_mean_over_prompts_of_the_sum_over_tokens(scores: ExtractiveScores) -> None:
    values = {}
    for layer in range(2):
        mlp = scores.mlp.values[1, :, layer].astype("float64")
        values["mlp", layer, None] = np.mean([np.nansum(row) for row in mlp])
        for head in range(3):
            rows = scores.heads.values[1, :, layer, head].astype("float64")
            values["head", layer, head] = np.mean([np.nansum(row) for row in rows])
    ranked = sorted(values, key=lambda name: -values[name])
    top = scores.top(100, "upstream")
    found = [
        (row["kind"], row["layer"], None if row["kind"] == "mlp" else row["head"])
        for _, row in top.iterrows()
    ]
    assert found == ranked
    np.testing.assert_allclose(top["value"], [values[name] for name in ranked], rtol=1e-12)
    assert list(scores.top(2, "upstream")["value"]) == list(top["value"][:2])
    heads = scores.top(100, "upstream", kind="head")
    assert list(heads["value"]) == list(top["value"][top["kind"] == "head"])
    assert set(scores.top(100, "upstream", kind="mlp")["kind"]) == {"mlp"}


def test_components_are_in_order_whatever_the_order_of_dimensions(scores: ExtractiveScores) -> None:
    turned = ExtractiveScores(scores.dataset.transpose())
    frame, expected = turned.components("upstream"), scores.components("upstream")
    np.testing.assert_allclose(frame.pop("value"), expected.pop("value"), rtol=1e-12)
    assert frame.equals(expected)
    assert expected["layer"].tolist() == [0, 1, 0, 0, 0, 1, 1, 1]
    assert expected["head"].fillna(-1).tolist() == [-1, -1, 0, 1, 2, 0, 1, 2]


def test_top_puts_what_raises_the_reward_before_what_lowers_it(scores: ExtractiveScores) -> None:
    assert set(with_values(scores, mlp=-9.0, heads=0.1).top(6, "downstream")["kind"]) == {"head"}
    assert set(with_values(scores, mlp=0.1, heads=-9.0).top(2, "downstream")["kind"]) == {"mlp"}


def test_bad_questions(scores: ExtractiveScores) -> None:
    with pytest.raises(InputError, match=r"score='midstream' is not among .*'upstream'"):
        scores.top(3, "midstream")
    with pytest.raises(InputError, match="kind='attn' is unknown"):
        scores.top(3, "upstream", kind="attn")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="n=0"):
        scores.top(0, "upstream")
    bare = ExtractiveScores(scores.dataset.drop_vars(["rest", "attribution_mlp"]))
    with pytest.raises(InputError, match="without 'rest'"):
        _ = bare.rest
    with pytest.raises(InputError, match="without 'attribution_mlp'"):
        _ = bare.attribution


def test_dataframe_is_tidy_and_ends_with_each_prompt(scores: ExtractiveScores) -> None:
    frame = scores.to_dataframe()
    assert len(frame) == 3 * (2 + 2 * 3) * (7 + 8 + 6)
    assert not frame["value"].isna().any()
    row = frame.query(
        "score == 'downstream' and prompt == 1 and kind == 'head' and layer == 1 and head == 2 "
        "and token == 4"
    )
    assert row["value"].item() == scores.heads.values[2, 1, 1, 2, 4]
    assert row["token_text"].item() == "ĠParker"
    assert row["answer"].item() == "answer 1"
    assert frame[frame["kind"] == "mlp"]["head"].isna().all()


def test_scores_without_tokens_have_frames(scores: ExtractiveScores) -> None:
    summed = ExtractiveScores(scores.dataset.sum("token"))
    assert len(summed.to_dataframe()) == 3 * (2 + 2 * 3) * 3
    np.testing.assert_allclose(
        summed.top(8, "upstream")["value"], scores.top(8, "upstream")["value"], rtol=1e-5
    )


def test_properties_and_attributes(scores: ExtractiveScores) -> None:
    assert scores.rest.dims == ("prompt", "group")
    assert scores.reward.dims == ("prompt", "state")
    assert scores.attribution["heads"].dims == ("state", "prompt", "layer", "head", "token")
    attrs = scores.attrs
    attrs["options"]["reward"] = "changed"
    assert scores.attrs["options"]["reward"] == "logit_diff"


# --- what a notebook shows


def test_short_and_html_descriptions(scores: ExtractiveScores) -> None:
    assert "2 x 3 heads on 3 prompts" in repr(scores)
    hostile = scores.dataset.assign_coords(text=("prompt", ["<script>", "b", "c"]))
    html = ExtractiveScores(hostile)._repr_html_()
    before, after = scores.reward.values.mean(0)
    assert f"{before:.3g} before, {after:.3g} after" in html
    assert "reward logit_diff" in html and "source organism" in html
    assert "&lt;script&gt;" in html and "<script>" not in html
    assert "f00d" not in html and "None" not in html
    for score in ("informative", "upstream", "downstream"):
        best = scores.top(1, score).iloc[0]
        name = f"MLP {best['layer']}" if best["kind"] == "mlp" else (f"head {best['layer']}.{best['head']}")
        assert name in html
        assert f"{best['value']:+.3g}" in html
