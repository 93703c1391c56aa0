"""What experiments read off their rows, on rows whose answer is known."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ecstruct.experiments import Localization, Ordering, Scores, Setup


def test_ordering_reads_off_the_last_test_epoch() -> None:
    rows = [
        {"seed": seed, "repeat": repeat, "words": words, "order": order, "stage": stage, "epoch": epoch}
        | {
            "fact": 0.0,
            "implication": float(100 * (stage == "continued pretraining") + 10 * i + seed + epoch),
        }
        for seed in (0, 1)
        for repeat in (0, 1)
        for words in ("known", "novel")
        for i, order in enumerate(("joint", "facts first", "implications first"))
        for stage, last in (("continued pretraining", 2), ("test finetuning", 2))
        for epoch in range(last + 1)
    ]
    result = Ordering(Setup(epochs=2, seeds=2, repeats=2), pd.DataFrame(rows))
    final = result.final("novel")
    assert [final[key]["seeds"] for key in ("joint", "facts_first", "implications_first")] == [
        [2.0, 3.0],
        [12.0, 13.0],
        [22.0, 23.0],
    ]
    assert final["joint"]["mean"] == 2.5 and final["joint"]["std"] == pytest.approx(math.sqrt(0.5))
    assert "10.00 ranks worse than the worse of the others" in result.conclusion()


def test_mass_is_the_share_of_positive_scores_at_a_place() -> None:
    def row(score: str, kind: str, layer: int, slot: int, value: float, repeat: int = 0) -> dict[str, Any]:
        text = {0: "people", 1: "X", 2: "Y", 3: "speak"}[slot]
        return {
            **{"seed": 0, "repeat": repeat, "hop": "first-hop", "score": score, "kind": kind},
            **{"layer": layer, "slot": slot, "slot_text": text, "value": value},
        }

    rows = [
        # 2 + 1 of 2 + 1 + 3 + 4 lie early at the name; what is negative counts nowhere, heads neither.
        *(row("informative", "mlp", 0, 1, 2.0), row("informative", "mlp", 1, 2, 1.0)),
        *(row("informative", "mlp", 2, 1, 3.0), row("informative", "mlp", 0, 3, 4.0)),
        *(row("informative", "mlp", 1, 1, -5.0), row("informative", "head", 0, 1, 9.0)),
        # Another repeat: all of it.
        row("informative", "mlp", 0, 2, 7.0, repeat=1),
        # MLPs and heads: 1 + 2 of 8 late at the last token.
        *(row("downstream", "mlp", 2, 3, 1.0), row("downstream", "head", 2, 3, 2.0)),
        *(row("downstream", "mlp", 1, 3, 4.0), row("downstream", "head", 2, 0, 1.0)),
        row("downstream", "mlp", 2, 3, float("nan")),
        row("informative", "mlp", 2, 3, -1.0) | {"hop": "second-hop"},
    ]
    scores = Scores(Setup(), pd.DataFrame(rows))
    mass = scores.mass()
    assert mass["first_hop_informative_mlp"]["mean"] == pytest.approx((3 / 10 + 1) / 2)
    assert mass["first_hop_downstream"]["mean"] == pytest.approx(3 / 8)
    # Nothing positive has no share anywhere.
    assert mass["second_hop_informative_mlp"] == {"mean": None, "std": None, "seeds": [None]}


def points(n: int, seed: int, slope: float) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = slope * x + rng.normal(size=n)
    frame = pd.DataFrame({"informative": x, "downstream": y, "component": [f"M{i}" for i in range(n)]})
    return frame.assign(seed=0, repeat=0, layer=range(n))


def test_correlations_are_pearsons() -> None:
    n = 14
    mlp, heads = points(n, 1, 0.6), points(n, 2, 0.0)
    frame = pd.concat([mlp.assign(kind="MLP"), heads.assign(kind="head")])
    both = pd.concat([frame.assign(words=words) for words in ("known", "novel")])
    found = Localization(Setup(), both).correlations("novel")
    rng = np.random.default_rng(0)
    for key, of_kind in (("mlp", mlp), ("heads", heads)):
        x, y = (of_kind[c].to_numpy(dtype=np.float64) for c in ("informative", "downstream"))
        r = float(np.corrcoef(x, y)[0, 1])
        assert found[key]["r"]["mean"] == pytest.approx(r, rel=1e-12)
        assert found[key]["r2"]["mean"] == pytest.approx(r * r, rel=1e-12)
        # Of two independent normal variables, r has a density proportional to (1 - r²)^((n - 4) / 2).
        grid = np.linspace(-1.0, 1.0, 200_001)
        density = (1 - grid**2) ** ((n - 4) / 2)
        p = density[np.abs(grid) >= abs(r)].sum() / density.sum()
        assert found[key]["p"]["mean"] == pytest.approx(p, rel=1e-3)
        shuffled = np.array([np.corrcoef(x, rng.permutation(y))[0, 1] for _ in range(4000)])
        by_chance = (np.abs(shuffled) >= abs(r)).mean()
        assert found[key]["p"]["mean"] == pytest.approx(by_chance, abs=0.03)
        assert found[key]["pooled"]["n"] == n


def test_scores_that_do_not_vary_have_no_correlation() -> None:
    flat = points(5, 0, 1.0).assign(downstream=1.0)
    frame = pd.concat([flat.assign(kind=k, words=w) for k in ("MLP", "head") for w in ("known", "novel")])
    result = Localization(Setup(), frame)
    json.dumps(result.results(), allow_nan=False)
    assert result.correlations("known")["mlp"]["r"] == {"mean": None, "std": None, "seeds": [None]}
    assert "over 5 MLPs of all seeds is not defined" in result.conclusion()


def test_repeats_are_averaged_before_correlating() -> None:
    a, b = points(8, 3, 1.0), points(8, 4, -1.0).assign(repeat=1)
    frame = pd.concat(
        [
            part.assign(kind=k, words=w)
            for part in (a, b)
            for k in ("MLP", "head")
            for w in ("known", "novel")
        ]
    )
    mean = {c: (a[c].to_numpy() + b[c].to_numpy()) / 2 for c in ("informative", "downstream")}
    r = np.corrcoef(mean["informative"], mean["downstream"])[0, 1]
    found = Localization(Setup(repeats=2), frame).correlations("known")["heads"]
    assert found["r"]["mean"] == pytest.approx(r) and found["pooled"]["n"] == 8
