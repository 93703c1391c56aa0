"""What subnetworks that generalise keep, and others do not."""

import numpy as np
import pytest

from ecstruct.errors import InputError
from ecstruct.subnetworks.best_and_worst import generalising
from ecstruct.subnetworks.masks import Masks


def subnetworks(which):
    """Twelve that all keep head 0.0 and the MLPs; `which` of them keep head 1.1."""
    heads = np.zeros((12, 2, 2), bool)
    heads[:, 0, 0] = True
    heads[list(which), 1, 1] = True
    return Masks.of(heads, np.ones((12, 2)))


def test_a_head_of_generalising_subnetworks_is_found():
    found = generalising(subnetworks(range(6)), np.arange(12.0))
    row = found.frame.set_index(["kind", "layer", "head"]).loc[("head", 1, 1)]
    assert (row["best"], row["worst"], row["difference"]) == (1, 0, 1)
    assert (found.best, found.worst) == (1.5, 9.5)
    # Of the six that keep it, four are the best and the worst are of the other six, or the other way.
    p = 2 * (15 * 15) / (495 * 70)
    assert row["p"] == pytest.approx(p, abs=0.004)
    assert row["p_adjusted"] == row["p"]  # nothing else varies
    assert found.heads.values.tolist() == [[False, False], [False, True]]
    assert "head 1.1 (100% of the best, 0% of the worst" in found.conclusion()


def test_what_does_not_differ_is_not_significant():
    found = generalising(subnetworks(range(0, 12, 2)), np.arange(12.0))
    assert found.significant().empty
    assert "No component is significantly more frequent" in found.conclusion()
    assert found.frame.set_index(["kind", "layer", "head"])["core"][("head", 0, 0)]


def test_thirds_are_taken_within_each_sparsity():
    dense, sparse = subnetworks(range(6)), subnetworks(range(6, 12))
    found = generalising({0.3: dense, 0.5: sparse}, {0.3: np.arange(12.0), 0.5: np.arange(12.0) + 50})
    row = found.frame.set_index(["kind", "layer", "head"]).loc[("head", 1, 1)]
    assert (row["best"], row["worst"]) == (0.5, 0.5)  # one sparsity has it in the best, one in the worst
    assert found.best == pytest.approx((1.5 + 51.5) / 2)


def test_ranks_that_do_not_go_with_the_masks_are_refused():
    with pytest.raises(InputError, match="each of its 12 subnetworks"):
        generalising(subnetworks([0]), np.arange(3.0))
    with pytest.raises(InputError, match="by sparsity"):
        generalising({0.3: subnetworks([0]), 0.5: subnetworks([1])}, np.arange(12.0))
    with pytest.raises(InputError, match="not all finite"):
        generalising(subnetworks([0]), np.full(12, np.nan))
    with pytest.raises(InputError, match="permutations=0"):
        generalising(subnetworks([0]), np.arange(12.0), permutations=0)
