"""Random sets of components: what they do, and what sums of scores say of it."""

import numpy as np
import pandas as pd
import pytest
from helpers.grafted import of_plain, replaced
from helpers.oracle import first_ids
from helpers.tiny import N_HEADS, N_LAYERS, PROMPTS, double_throughout, hooked_pair, plain_pair
from scipy.stats import rankdata

import ecstruct
from ecstruct import InputError
from ecstruct.grafting import RandomSets, random_sets
from ecstruct.scores.components import selected

SCORES = ecstruct.score(*hooked_pair("llama"), PROMPTS, progress=False)
OPTIONS = {"n_sets": 5, "shares": [0.2, 0.5], "progress": False}


def reward_of(plain) -> float:
    found = []
    for prompt, logits in zip(PROMPTS, of_plain(plain), strict=True):
        options = logits[first_ids(prompt)]
        found.append(float(options[prompt.options.index(prompt.answer)] - options.mean()))
    return float(np.mean(found))


def test_gains_are_those_of_plain_models_and_sums_are_of_scores():
    before, after = plain_pair("llama")
    names = [f"MLP {n}" for n in range(N_LAYERS)]
    names += [f"head {n}.{h}" for n in range(N_LAYERS) for h in range(N_HEADS)]
    values = SCORES.components("informative")["value"].to_numpy()
    options = {"baseline": "mean", "upstream": "surrogate", "propagation": "gradient", "progress": False}
    with double_throughout():
        scores = ecstruct.score(*hooked_pair("llama"), PROMPTS, **options)
        found = random_sets(*hooked_pair("llama"), PROMPTS, SCORES, seed=3, **OPTIONS).frame
    of_after = scores.attribution.sel(state="after").sum("token").mean("prompt")
    attributed = np.concatenate([of_after[part].values.ravel() for part in ("mlp", "heads")])
    assert found["share"].tolist() == 5 * [0.2] + 5 * [0.5] and found["k"].tolist() == 5 * [3] + 5 * [8]
    rng = np.random.default_rng(3)
    for _, row in found.iterrows():
        chosen = rng.permutation(len(names))[: int(row["k"])]
        mixed = replaced(before, after, *selected([names[i] for i in chosen], N_LAYERS, N_HEADS))
        assert row["gain"] == pytest.approx(reward_of(mixed) - reward_of(before), rel=1e-8)
        assert row["informative"] == pytest.approx(values[chosen].sum())
        assert row["weight change"] > 0
        assert row["components"] == ", ".join(names[i] for i in chosen)
        assert row["attribution"] == pytest.approx(attributed[chosen].sum(), rel=1e-6)


def test_correlations_are_of_ranks():
    rng = np.random.default_rng(0)
    gains = rng.normal(size=(2, 40))
    sets = [", ".join(f"MLP {i}" for i in rng.permutation(12)[:4]) for _ in range(40)]
    rows = [
        pd.DataFrame(
            {
                **{"share": share, "k": 4, "gain": gain, "components": sets},
                **{"right": gain**3, "noise": rng.normal(size=40)},
            }
        )
        for share, gain in zip((0.1, 0.5), gains, strict=True)
    ]
    found = RandomSets(pd.concat(rows, ignore_index=True))
    table = found.table().set_index(["share", "ranking"])
    of_right = table.loc[[(0.1, "right"), (0.5, "right")], ["correlation", "low", "high"]]
    np.testing.assert_allclose(of_right, 1)
    expected = np.corrcoef(rankdata(rows[0]["gain"]), rankdata(rows[0]["noise"]))[0, 1]
    noise = table.loc[(0.1, "noise")]
    assert noise["correlation"] == pytest.approx(expected) and noise["low"] < expected < noise["high"]
    drawn = [f"{table.loc[(share, 'random'), 'correlation']:.2f}" for share in (0.1, 0.5)]
    assert found.conclusion() == (
        "Of 40 random sets each of 10%, 50% of the components, summed values and gains in reward are "
        f"correlated (Spearman): right 1.00, 1.00; noise {noise['correlation']:.2f}, "
        f"{table.loc[(0.5, 'noise'), 'correlation']:.2f}; random {', '.join(drawn)}."
    )
    of_random = table.loc[[(0.1, "random"), (0.5, "random")]]
    assert (of_random["correlation"].abs() < 0.1).all()
    assert (of_random["low"] < -0.1).all() and (of_random["high"] > 0.1).all()
    points = [trace for trace in found.figure.data if trace.mode == "markers"]
    assert [len(trace.x) for trace in points] == [80, 80]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_sets": 2}, "n_sets"),
        ({"shares": []}, "shares"),
        ({"shares": [1.0]}, "shares"),
        ({"ranking": {}}, "ranks nothing"),
        ({"ranking": {"mine": ["MLP 0"]}}, "the ranking 'mine' has no values to sum"),
        ({"ranking": {"gain": SCORES}}, "a ranking is called 'gain'"),
    ],
)
def test_bad_input(options, message):
    arguments = {"prompts": PROMPTS, "ranking": SCORES, **OPTIONS, **options}
    with pytest.raises(InputError, match=message):
        random_sets(*hooked_pair("llama"), **arguments)
