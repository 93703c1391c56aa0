"""What controls are made with: noise of the same size, and facts with other answers."""

from collections import Counter
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from ecstruct import FactSet, InputError, Prompt, WeightDelta
from ecstruct.facts import first_hop

# --- Noise ---


def made_up() -> WeightDelta:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "embed.weight": torch.randn(50, 40, generator=generator),
        "blocks.0.mlp.in.weight": 1e-3 * torch.rand(300, 40, generator=generator, dtype=torch.float64),
        "blocks.0.ln1.bias": torch.zeros(7),
        "blocks.0.attn.q.bias": torch.tensor([2.0]),
    }
    return WeightDelta(
        tensors, {"before": "a", "before_fingerprint": "1", "after": "b", "after_fingerprint": "2"}
    )


def test_noise_has_the_norm_and_the_type_of_every_tensor():
    delta = made_up()
    noise = delta.random_like(0)
    assert noise.tensors.keys() == delta.tensors.keys()
    for name, t in delta.tensors.items():
        found = noise.tensors[name]
        assert found.dtype == t.dtype and found.shape == t.shape
        assert float(found.double().norm()) == pytest.approx(float(t.double().norm()), rel=1e-6)
    assert not noise.tensors["blocks.0.ln1.bias"].any()
    assert abs(float(noise.tensors["blocks.0.attn.q.bias"])) == 2.0


def test_noise_is_gaussian_and_has_nothing_to_do_with_the_change_or_with_other_noise():
    delta = made_up()
    draws = [delta.random_like(seed).tensors for seed in (0, 1)]
    for name in ("embed.weight", "blocks.0.mlp.in.weight"):
        values = [of[name].double().flatten() for of in (*draws, delta.tensors)]
        size = len(values[0]) ** 0.5
        standard = (values[0] * size / values[0].norm()).numpy()
        assert kstest(standard, "norm").pvalue > 0.01
        for a, b in ((0, 1), (0, 2), (1, 2)):
            cosine = float(values[a] @ values[b] / (values[a].norm() * values[b].norm()))
            assert abs(cosine) < 4 / size
    both = [draws[0][name].double().flatten()[:2000] for name in ("embed.weight", "blocks.0.mlp.in.weight")]
    assert abs(float(torch.nn.functional.cosine_similarity(*both, dim=0))) < 4 / 2000**0.5


def test_the_seed_decides_about_the_noise_and_nothing_else_does():
    delta = made_up()
    turned = WeightDelta(dict(reversed(delta.tensors.items())))
    in_double = WeightDelta({name: t.double() for name, t in delta.tensors.items()})
    torch.manual_seed(1)
    state = torch.get_rng_state()
    expected, *others = (of.random_like(5).tensors for of in (delta, turned, in_double))
    assert torch.equal(torch.get_rng_state(), state)
    for name, t in expected.items():
        assert torch.equal(others[0][name], t)
        assert torch.equal(others[1][name].to(t.dtype), t)


def test_noise_keeps_tied_embeddings_tied():
    change = torch.arange(6.0).reshape(3, 2)
    tied = WeightDelta({"embed.weight": change, "unembed.weight": change.clone()}).random_like(0).tensors
    assert torch.equal(tied["embed.weight"], tied["unembed.weight"])
    untied = WeightDelta({"embed.weight": change, "unembed.weight": 2 * change}).random_like(0).tensors
    assert not torch.allclose(2 * untied["embed.weight"], untied["unembed.weight"])


def test_noise_says_what_it_is():
    assert made_up().random_like(4).metadata == {
        "before": "a",
        "before_fingerprint": "1",
        "after": "noise of the norms of b (seed 4)",
    }


# --- Shuffled facts ---


def test_every_fact_gets_the_answer_of_another():
    data = first_hop()
    orders = set()
    for seed in range(20):
        shuffled = data.shuffled(seed)
        assert shuffled.implications == data.implications and shuffled.name == "first-hop (shuffled)"
        answers = [p.answer for p in shuffled.facts]
        assert sorted(answers) == sorted(p.answer for p in data.facts)
        for old, new in zip(data.facts, shuffled.facts, strict=True):
            assert new.answer != old.answer
            assert (new.text, new.options, new.subject, new.template) == (
                (old.text, old.options, old.subject, old.template)
            )
        assert shuffled == data.shuffled(seed)
        orders.add(tuple(answers))
    assert len(orders) == 20


def test_all_ways_to_deal_are_about_as_likely():
    """Of four different answers there are 9."""
    data = FactSet([(f"{name} is", name) for name in "abcd"], ())
    counts = Counter("".join(p.answer for p in data.shuffled(seed).facts) for seed in range(900))
    assert len(counts) == 9
    assert min(counts.values()) > 50 and chisquare(list(counts.values())).statistic < 100


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sets(st.sampled_from("abcd"), min_size=2)),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 9),
)
def test_facts_are_shuffled_whenever_there_is_a_way(drawn, seed):
    """Against trying all orders; answers may be those of several facts, and options differ."""
    facts = [
        Prompt(f"fact {i}", answer, sorted(options | {answer})) for i, (answer, options) in enumerate(drawn)
    ]
    possible = any(
        all(answer != p.answer and answer in p.options for answer, p in zip(order, facts, strict=True))
        for order in permutations([p.answer for p in facts])
    )
    data = FactSet(facts, ())
    if possible:
        answers = [p.answer for p in data.shuffled(seed).facts]
        assert sorted(answers) == sorted(p.answer for p in facts)
        assert all(new != p.answer for new, p in zip(answers, facts, strict=True))
    else:
        with pytest.raises(InputError, match="cannot be dealt out"):
            data.shuffled(seed)


def test_facts_that_cannot_be_shuffled_are_named():
    data = FactSet([("a is", "x"), ("b is", "x"), ("c is", "y")], ())
    with pytest.raises(InputError, match=r"3 facts .* \('x' alone is that of 2\)"):
        data.shuffled(0)
