"""What holds for any prompts, options, lengths and batches, on a tiny model in double."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from helpers.oracle import reward_of
from helpers.tiny import LANGUAGES, hooked_pair, plain_pair, tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecstruct import ExtractiveScores, Prompt, WeightDelta, WeightSelection, ranks, score
from ecstruct.facts import read_jsonl, write_jsonl
from ecstruct.models.bridge import named_weights
from ecstruct.models.names import KINDS

FAMILY = "llama"
quick = settings(max_examples=50, deadline=None, derandomize=True)
with_model = settings(
    max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)

WORDS = sorted(word for word in tokenizer().get_vocab() if not word.startswith("<"))
FIRST = {language: language.split()[0] for language in LANGUAGES}


@st.composite
def known_prompts(draw: st.DrawFn) -> Prompt:
    """One to ten words that the tokenizer knows, an answer and two to four options in any order."""
    text = " ".join(draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=10)))
    options = draw(st.lists(st.sampled_from(LANGUAGES), min_size=2, max_size=4, unique=True))
    return Prompt(text, draw(st.sampled_from(options)), options)


sets = st.lists(known_prompts(), min_size=1, max_size=6)


def scored(prompts: list[Prompt], **options: object) -> ExtractiveScores:
    return score(*hooked_pair(FAMILY), prompts, progress=False, **options)


def assert_same(a: np.ndarray, b: np.ndarray) -> None:
    """Up to 1e-5 of the largest; what is no token here is none there."""
    assert np.array_equal(np.isnan(a), np.isnan(b))
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


def assert_same_scores(a: ExtractiveScores, b: ExtractiveScores) -> None:
    for name in ("mlp", "heads", "rest"):
        assert_same(np.asarray(getattr(a, name)), np.asarray(getattr(b, name)))
    assert_same(np.asarray(a.reward), np.asarray(b.reward))


@with_model
@given(
    sets, st.integers(1, 7), st.sampled_from(["mean", "zero"]), st.sampled_from(["logit_diff", "logprob"])
)
def test_scores_do_not_depend_on_batches(
    prompts: list[Prompt], batch_size: int, baseline: str, reward: str
) -> None:
    options = {"baseline": baseline, "reward": reward}
    assert_same_scores(
        scored(prompts, batch_size=1, **options), scored(prompts, batch_size=batch_size, **options)
    )


@with_model
@given(sets, st.randoms(use_true_random=False), st.sampled_from(["mean", "zero"]))
def test_scores_do_not_depend_on_the_order_of_prompts(
    prompts: list[Prompt], random: object, baseline: str
) -> None:
    order = list(range(len(prompts)))
    random.shuffle(order)
    there, here = scored(prompts, baseline=baseline), scored([prompts[i] for i in order], baseline=baseline)
    for name in ("mlp", "heads", "rest", "reward"):
        assert_same(np.asarray(getattr(there, name).isel(prompt=order)), np.asarray(getattr(here, name)))


@with_model
@given(known_prompts(), known_prompts())
def test_scores_of_a_prompt_do_not_depend_on_a_longer_one_beside_it(one: Prompt, other: Prompt) -> None:
    alone, beside = scored([one], baseline="zero"), scored([one, other], baseline="zero", batch_size=2)
    n_tokens = alone.mlp.sizes["token"]
    for name in ("mlp", "heads"):
        both = getattr(beside, name).isel(prompt=[0])
        assert_same(np.asarray(getattr(alone, name)), np.asarray(both.isel(token=slice(n_tokens))))
        assert np.isnan(np.asarray(both.isel(token=slice(n_tokens, None)))).all()


@with_model
@given(known_prompts())
def test_informative_scores_of_all_tokens_and_components_sum_to_the_derivative(prompt: Prompt) -> None:
    """<dR/dW, W' - W> by plain autograd of the plain model."""
    before, after = plain_pair(FAMILY)
    before.zero_grad()
    reward_of(before, prompt).backward()
    moved = zip(before.parameters(), after.parameters(), strict=True)
    expected = sum(float((p.grad * (new - p).detach()).sum()) for p, new in moved if p.grad is not None)
    scores = scored([prompt], baseline="zero")
    parts = [scores.mlp.sel(score="informative"), scores.heads.sel(score="informative"), scores.rest]
    largest = max(float(np.abs(part).max()) for part in parts)
    assert abs(sum(float(part.sum()) for part in parts) - expected) <= 1e-5 * largest


@with_model
@given(sets, st.randoms(use_true_random=False))
def test_ranks_do_not_depend_on_the_order_of_options_or_prompts(
    prompts: list[Prompt], random: object
) -> None:
    model, _ = hooked_pair(FAMILY)
    order = list(range(len(prompts)))
    random.shuffle(order)
    mixed = [
        replace(prompts[i], options=random.sample(prompts[i].options, len(prompts[i].options)))
        for i in order
    ]
    found = list(ranks(model, prompts))
    assert list(ranks(model, mixed)) == [found[i] for i in order]
    assert all(0 <= rank <= len(p.options) - 1 for rank, p in zip(found, prompts, strict=True))


# Prompts as files

any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
"""Of any script, with combining marks, controls and what turns the direction of writing."""
texts = any_text.map(str.rstrip).filter(bool)
answers = any_text.map(str.strip).filter(bool)
SPECIAL = (
    "مرحبا بالعالم",
    "שלום",
    "👩‍👩‍👧‍👦 🇩🇪",
    "a\u2028b\u2029c",
    "\ufeffx",
    "é e\u0301",
    "\u202eabc",
    "x\x85 y",
    '"\\',
    "{}",
)


@st.composite
def any_prompts(draw: st.DrawFn) -> Prompt:
    text = draw(texts | st.sampled_from(SPECIAL))
    found = draw(st.lists(answers | st.sampled_from(SPECIAL), min_size=3, max_size=7, unique=True))
    cut = draw(st.integers(2, len(found)))
    start = draw(st.integers(0, len(text) - 1))
    subject = text[start : draw(st.integers(start + 1, len(text)))]
    return Prompt(
        text,
        draw(st.sampled_from(found[:cut])),
        found[:cut] if draw(st.booleans()) else None,
        subject if subject.strip() and draw(st.booleans()) else None,
        draw(st.none() | texts),
        found[cut:],
    )


@settings(quick, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_prompts(), min_size=1, max_size=5))
def test_what_is_written_is_read_again(tmp_path, prompts: list[Prompt]) -> None:
    write_jsonl(prompts, tmp_path / "p.jsonl")
    assert list(read_jsonl(tmp_path / "p.jsonl")) == prompts


# Selections and deltas

N_LAYERS = 5
modules = st.builds(
    "blocks.{}.{}".format, st.integers(0, N_LAYERS - 1), st.sampled_from(["mlp", "attn.q", "ln1"])
)
selections = st.builds(
    WeightSelection,
    st.none() | st.sets(st.integers(0, N_LAYERS - 1)),
    st.none() | st.sets(st.sampled_from(KINDS)),
    st.none() | st.sets(modules | st.sampled_from(["embed", "unembed", "ln_final"])),
)
NAMES = [
    *(f"blocks.{i}.{part}.weight" for i in range(N_LAYERS) for part in ("mlp.in", "attn.q", "ln1")),
    *("embed.weight", "pos_embed.weight", "ln_final.weight", "unembed.weight"),
]


@quick
@given(selections)
def test_a_selection_comes_back_as_it_was(selection: WeightSelection) -> None:
    again = WeightSelection.of(selection.to_dict(), N_LAYERS)
    assert [again.matches(name) for name in NAMES] == [selection.matches(name) for name in NAMES]
    assert again.to_dict() == selection.to_dict()


@st.composite
def deltas(draw: st.DrawFn) -> WeightDelta:
    names = draw(st.sets(st.sampled_from(NAMES)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.floats(1e-6, 1e3))
    tensors = {
        name: scale * torch.randn(3, generator=generator, dtype=torch.float64) for name in sorted(names)
    }
    return WeightDelta(tensors)


def assert_same_deltas(a: WeightDelta, b: WeightDelta, scale: float) -> None:
    for name in {*a.tensors, *b.tensors}:  # one that is absent is zero
        zero = torch.zeros(3, dtype=torch.float64)
        error = (a.tensors.get(name, zero) - b.tensors.get(name, zero)).abs().max()
        assert error <= 1e-12 * scale


def largest(*given: WeightDelta) -> float:
    return max((float(t.abs().max()) for each in given for t in each.tensors.values()), default=0.0)


@quick
@given(deltas(), deltas(), deltas(), st.floats(-10, 10))
def test_deltas_are_added_and_scaled_as_numbers_are(
    a: WeightDelta, b: WeightDelta, c: WeightDelta, factor: float
) -> None:
    scale = largest(a, b, c) * max(1.0, abs(factor))
    assert_same_deltas((a - b) + b, a, scale)
    assert_same_deltas(a + b, b + a, scale)
    assert_same_deltas((a + b) + c, a + (b + c), scale)
    assert_same_deltas(factor * (a + b), factor * a + b * factor, scale)
    assert_same_deltas(a - a, WeightDelta({}), scale)
    assert_same_deltas(-a, WeightDelta({}) - a, scale)


@quick
@given(deltas(), selections)
def test_a_delta_is_what_is_in_a_selection_and_what_is_not(a: WeightDelta, chosen: WeightSelection) -> None:
    inside = a.restrict(chosen.layers, chosen.kinds)
    outside = a - inside
    assert_same_deltas(inside + outside, a, 0.0)
    by_both = WeightSelection(chosen.layers, chosen.kinds)
    assert {*inside.tensors} == {name for name in a.tensors if by_both.matches(name)}


@with_model
@given(st.floats(-2, 2), st.floats(-2, 2))
def test_deltas_of_a_model_are_applied_one_after_the_other_or_at_once(x: float, y: float) -> None:
    model, other = hooked_pair(FAMILY)
    delta = WeightDelta.between(model, other)
    one = named_weights((y * delta).apply_to((x * delta).apply_to(model)))
    once = named_weights(((x + y) * delta).apply_to(model))
    for name, p in once.items():
        assert (one[name] - p).abs().max() <= 1e-12 * p.abs().max()
