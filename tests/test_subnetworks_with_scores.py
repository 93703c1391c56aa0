"""How often subnetworks keep a component, beside its extractive scores."""

import numpy as np
import pytest
from helpers.synthetic_scores import make_scores
from scipy.stats import spearmanr

from ecstruct.errors import InputError
from ecstruct.subnetworks.beside_scores import with_scores
from ecstruct.subnetworks.common_core import core
from ecstruct.subnetworks.masks import Masks


def test_correlations_are_spearmans():
    scores = make_scores(n_layers=6, n_heads=4)
    rng = np.random.default_rng(1)
    its = Masks.of(rng.random((30, 6, 4)) < rng.random((6, 4)), rng.random((30, 6)) < 0.5)
    beside = with_scores(core(its), scores)
    for row in beside.correlations.to_dict(orient="records"):
        value = scores.components(row["score"]).set_index("kind").loc[row["kind"], "value"].abs()
        kept = its.heads if row["kind"] == "head" else its.mlp
        expected = spearmanr(kept.mean("seed").values.ravel(), value)
        assert row["rho"] == pytest.approx(expected.statistic)
        if row["kind"] == "head":
            assert row["p"] == pytest.approx(expected.pvalue, abs=0.03)
    assert set(beside.frame["group"]) <= {"core", "added", "other"}
    assert len(beside.figure.data) >= 3


def test_groups_have_percentiles_of_their_kind():
    scores = make_scores(n_layers=2, n_heads=2)
    strongest = scores.components("informative").query("kind == 'head'")["value"].abs().to_numpy().argmax()
    heads = np.zeros((12, 4), bool)
    heads[:, strongest] = True
    beside = with_scores(core(Masks.of(heads.reshape(12, 2, 2), np.ones((12, 2)))), scores)
    groups = beside.groups().set_index(["kind", "group"])
    assert groups.loc[("head", "core"), "informative"] == pytest.approx(3.5 / 4)
    assert groups.loc[("head", "core"), "components"] == 1
    assert groups.loc[("mlp", "core"), "downstream"] == 0.5
    rows = beside.correlations.set_index(["score", "kind"])
    assert np.isnan(rows.loc[("informative", "mlp"), "rho"])  # all MLPs are always kept


def test_scores_of_another_model_are_refused():
    its = Masks.of(np.ones((2, 3, 4)), np.ones((2, 3)))
    with pytest.raises(InputError, match="give those of one model"):
        with_scores(core(its), make_scores())
