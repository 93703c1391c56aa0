"""Scores and checks of a model that is given as a source, which is loaded once."""

import numpy as np
import pandas as pd
import pytest
from helpers.tiny import PROMPTS, hooked_pair

from ecstruct import FactSet, causal_scores, fidelity, load, save_model, score
from ecstruct.checks import controls
from ecstruct.grafting import grafts

FACTS = FactSet(PROMPTS, PROMPTS[:2], name="tiny")
SILENT = {"progress": False}


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before") / "model"
    save_model(hooked_pair("llama")[0], folder)
    return folder


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    folder = tmp_path_factory.mktemp("after") / "model"
    save_model(hooked_pair("llama")[1], folder)
    return load(folder, device="cpu")


def test_causal_scores_and_fidelity(before, after):
    for source in (before, str(before)):
        found = causal_scores(source, after, PROMPTS, **SILENT)
        expected = causal_scores(load(before, device="cpu"), after, PROMPTS, **SILENT)
        np.testing.assert_array_equal(found.heads, expected.heads)
        assert found.attrs == expected.attrs
    checked = fidelity(before, after, PROMPTS, sample=None, **SILENT)
    assert checked.causal.dataset.identical(found.dataset)


def test_controls_and_grafts(before, after):
    tune = {"lr": 1e-2, "epochs": 1}
    found, expected = (
        controls(model, after, PROMPTS, facts=FACTS, tune=tune, **SILENT)
        for model in (before, load(before, device="cpu"))
    )
    for name, control in expected.controls.items():
        np.testing.assert_array_equal(found.controls[name].mlp, control.mlp)
    ranking = score(before, after, PROMPTS, **SILENT)
    frames = [
        grafts(model, after, PROMPTS, ranking, ks=[1], random_seeds=1, **SILENT).frame
        for model in (before, load(before, device="cpu"))
    ]
    pd.testing.assert_frame_equal(*frames)
