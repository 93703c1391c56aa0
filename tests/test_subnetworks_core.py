"""Cores of hand-made subnetworks, and what chance leaves of random ones."""

from itertools import combinations

import numpy as np
import pytest

from ecstruct.errors import InputError
from ecstruct.subnetworks.common_core import Core, chance_overlap, core
from ecstruct.subnetworks.masks import Masks


def keeping(*subnetworks, layers=2, heads=3, mlps=(), **attrs):
    """Subnetworks that keep these heads, and all of them these MLPs."""
    of_heads = np.zeros((len(subnetworks), layers, heads), bool)
    for seed, kept in enumerate(subnetworks):
        for layer, head in kept:
            of_heads[seed, layer, head] = True
    of_mlps = np.zeros((len(subnetworks), layers), bool)
    of_mlps[:, list(mlps)] = True
    return Masks.of(of_heads, of_mlps, attrs=attrs)


DENSE = keeping([(0, 0), (0, 1), (1, 2), (1, 0)], [(0, 0), (1, 0), (1, 2)], mlps=[1])
SPARSE = keeping([(0, 0), (1, 2)], [(0, 0), (0, 1)], [(0, 0), (0, 1)], mlps=[0, 1])


def test_the_core_is_what_all_keep_by_sparsity_and_overall():
    found = core({0.5: DENSE, 0.7: SPARSE})
    assert found.groups == ["0.5", "0.7", "all"]
    assert found.components(0.5) == ["MLP 1", "head 0.0", "head 1.0", "head 1.2"]
    assert found.components("0.7") == ["MLP 0", "MLP 1", "head 0.0"]
    assert found.components() == ["MLP 1", "head 0.0"]
    assert np.argwhere(found.heads.values).tolist() == [[0, 0]]
    assert found.mlp.values.tolist() == [False, True]


def test_frequencies_are_shares_of_the_subnetworks():
    found = core({0.5: DENSE, 0.7: SPARSE})
    assert found.frequency(0.7)["heads"].values == pytest.approx(np.array([[1, 2 / 3, 0], [0, 0, 1 / 3]]))
    assert found.frequency()["heads"].sel(layer=0, head=1).item() == pytest.approx(3 / 5)
    assert found.frequency()["mlp"].values == pytest.approx([3 / 5, 1])


def test_the_table_has_sizes_and_chance_of_each_kind():
    table = core({0.5: DENSE, 0.7: SPARSE}).table().set_index(["group", "kind"])
    heads = table.loc[("0.5", "heads")]
    assert (heads["subnetworks"], heads["components"], heads["kept"], heads["core"]) == (2, 6, 3.5, 3)
    assert heads["expected"] == pytest.approx(6 * (4 / 6) * (3 / 6))
    # The second keeps 3 of 6; all of them are among the first one's 4 in 4 of 20 ways.
    assert heads["p"] == pytest.approx(4 / 20)
    assert table.loc[("0.7", "heads"), "distinct"] == 2
    assert table.loc[("0.7", "mlp"), ["core", "expected", "p"]].tolist() == [2, 2, 1]
    assert table.loc[("all", "heads"), "expected"] == pytest.approx(6 * (4 * 3 * 2 * 2 * 2) / 6**5)


def test_one_sparsity_is_one_group():
    found = core(DENSE)
    assert len(found.groups) == 1
    assert found.components() == found.components(found.groups[0])


def test_a_kind_that_was_not_pruned_is_in_no_core():
    found = core(keeping([(0, 0)], [(0, 0), (1, 1)], mlps=[0, 1], options={"kinds": ["heads"]}))
    assert found.kinds == ["heads"] == found.table()["kind"].tolist()
    assert found.components() == ["head 0.0"]


@pytest.mark.parametrize("sizes", [(3, 4), (5, 5, 4), (2, 7, 7, 6)])
def test_the_chance_overlap_is_that_of_all_subsets(sizes):
    total = 7
    first = set(range(sizes[0]))  # one of them may be held: all are alike
    overlaps = {frozenset(first): 1}
    for size in sizes[1:]:
        grown = {}
        for left, ways in overlaps.items():
            for subset in combinations(range(total), size):
                common = left & set(subset)
                grown[common] = grown.get(common, 0) + ways
        overlaps = grown
    counts = np.zeros(total + 1)
    for left, ways in overlaps.items():
        counts[len(left)] += ways
    assert chance_overlap(total, sizes) == pytest.approx(counts / counts.sum(), abs=1e-12)


def test_expectation_and_probability_are_those_of_simulated_subnetworks():
    rng = np.random.default_rng(0)
    sizes = (20, 16, 18, 14, 20)
    masks = Masks.of(
        np.array([np.isin(np.arange(24), rng.choice(24, size, replace=False)) for size in sizes]).reshape(
            5, 6, 4
        ),
        np.ones((5, 6)),
    )
    row = core(masks).table().set_index("kind").loc["heads"]
    draws = 20_000
    left = np.ones((draws, 24), bool)
    for size in sizes:
        left &= rng.random((draws, 24)).argsort(1) < size
    assert row["expected"] == pytest.approx(left.sum(1).mean(), abs=0.03)
    assert row["p"] == pytest.approx((left.sum(1) >= row["core"]).mean(), abs=0.015)
    expected = chance_overlap(24, sizes) @ np.arange(25)
    assert row["expected"] == pytest.approx(expected, rel=1e-12)


def test_chance_overlaps_of_many_heads_stay_probabilities():
    found = chance_overlap(1024, [512] * 24)
    assert found.sum() == pytest.approx(1, abs=1e-9)
    assert found @ np.arange(1025) == pytest.approx(1024 * 0.5**24, rel=1e-6)


def test_a_core_comes_back_from_its_file(tmp_path):
    found = core({0.5: DENSE, 0.7: SPARSE})
    found.save(tmp_path / "core.nc")
    again = Core.load(tmp_path / "core.nc")
    assert again.table().equals(found.table())
    assert again.components() == found.components()


def test_the_conclusion_says_how_many_of_how_many():
    assert core({0.5: DENSE, 0.7: SPARSE}).conclusion().startswith("1 of 6 heads is in all 5 subnetworks")


def test_what_has_no_core_is_refused():
    with pytest.raises(InputError, match="no masks"):
        core({})
    with pytest.raises(InputError, match="2 seeds or more"):
        core(DENSE.select([0]))
    with pytest.raises(InputError, match=r"some subnetworks have 2 layers and some 3"):
        core({0.5: DENSE, 0.7: keeping([(0, 0)], [(0, 0)], layers=3)})
    with pytest.raises(InputError, match="same kinds"):
        core({0.5: DENSE, 0.7: keeping([(0, 0)], [(0, 0)], options={"kinds": ["heads"]})})
    with pytest.raises(InputError, match=r"no core of '0\.9'"):
        core(DENSE).frequency(0.9)
