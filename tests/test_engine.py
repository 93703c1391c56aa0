"""What must not change a score, the forms in which models and rewards may come, and bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.comparisons import CONVENTIONS, assert_same, of, scored
from helpers.oracle import first_ids, ids_of, reward_of
from helpers.tiny import (
    PROMPTS,
    SHAPES,
    assert_unchanged,
    hooked,
    hooked_pair,
    plain_pair,
    single_pair,
    state_of,
    tokenizer,
)
from helpers.untied import (
    along,
    rest_of,
)
from torch import Tensor
from transformers import PreTrainedModel

from ecstruct.errors import InputError
from ecstruct.models.bridge import named_weights
from ecstruct.models.delta import WeightDelta
from ecstruct.models.export import save_model
from ecstruct.scores import passes
from ecstruct.scores.engine import score
from ecstruct.scores.passes import Passes
from ecstruct.scores.result import ExtractiveScores

# --- What must not change the numbers ---

VARIABLES = ("mlp", "heads", "attribution_mlp", "attribution_heads", "rest", "reward")


def assert_scores_agree(found: ExtractiveScores, expected: ExtractiveScores, tolerance: float) -> None:
    for name in VARIABLES:
        a, b = found.dataset[name].values, expected.dataset[name].values
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        assert np.nanmax(np.abs(a - b)) <= tolerance * np.nanmax(np.abs(b))


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "gptj"])  # positions of all kinds
def test_batches_order_and_kept_graphs_change_nothing(family, monkeypatch):
    pair = single_pair(family)
    expected = score(*pair, PROMPTS, batch_size=1, progress=False)
    order = [3, 0, 4, 2, 1]
    shuffled = score(*pair, [PROMPTS[i] for i in order], progress=False)
    back = shuffled.dataset.isel(prompt=np.argsort(order))
    assert_scores_agree(ExtractiveScores(back), expected, 1e-5)
    monkeypatch.setattr(passes, "fits_in_memory", lambda *_: False)
    assert_scores_agree(score(*pair, PROMPTS, batch_size=2, progress=False), expected, 1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_longer_prompt_in_the_batch_changes_nothing(family):
    """Padding, and with it the other prompts' length, has no say in a prompt's scores."""
    pair, (short, *_) = single_pair(family), PROMPTS
    alone = score(*pair, [short], baseline="zero", progress=False)
    beside = score(*pair, PROMPTS, baseline="zero", progress=False).dataset.isel(prompt=[0])
    assert np.isnan(beside["mlp"].values[..., len(ids_of(short)[0]) :]).all()
    cut = beside.isel(token=slice(len(ids_of(short)[0])))
    assert_scores_agree(ExtractiveScores(cut), alone, 1e-5)


@pytest.mark.tl3
@pytest.mark.parametrize("family", SHAPES)
def test_without_a_change_every_score_is_exactly_zero(family):
    model, _ = single_pair(family)
    for same, convention in zip((model, WeightDelta({})), CONVENTIONS, strict=True):
        scores = score(model, same, PROMPTS, convention=convention, batch_size=2, progress=False)
        for part in ("mlp", "heads"):
            values = scores.dataset[part].values
            assert (values[~np.isnan(values)] == 0).all()
        assert scores.rest.size and (scores.rest.values == 0).all()
        assert (scores.reward.values[:, 0] == scores.reward.values[:, 1]).all()
        assert scores.reward.values.std() > 0.1


OUT_OF_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory."),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"),
}


@pytest.mark.parametrize("device", OUT_OF_MEMORY)
def test_out_of_memory_halves_the_batch(device, monkeypatch, caplog):
    pair = single_pair("llama")
    expected = score(*pair, PROMPTS, progress=False)
    tried = []
    plain_run = Passes.run

    def run(self, job):
        tried.append(max(map(len, job.rows)))
        if len(tried) < 3:
            raise OUT_OF_MEMORY[device]
        return plain_run(self, job)

    monkeypatch.setattr(Passes, "run", run)
    assert_scores_agree(score(*pair, PROMPTS, progress=False), expected, 1e-5)
    assert tried == [5, 2, 1]
    assert "batch_size=2" in caplog.text and "batch_size=1" in caplog.text


@pytest.mark.parametrize("error", [*OUT_OF_MEMORY.values(), RuntimeError("shapes")], ids=str)
def test_an_error_that_smaller_batches_cannot_mend_is_raised(error, monkeypatch):
    def run(self, job):
        raise error

    monkeypatch.setattr(Passes, "run", run)
    batch_size = 5 if str(error) == "shapes" else 1
    with pytest.raises(type(error)) as raised:
        score(*single_pair("llama"), PROMPTS, batch_size=batch_size, progress=False)
    assert raised.value is error


# --- The finetuned model in all its forms ---


@pytest.mark.tl3
def test_the_finetuned_model_may_be_a_model_a_delta_a_file_or_a_folder(tmp_path):
    model, model_after = single_pair("qwen2")
    expected = score(model, model_after, PROMPTS, progress=False)
    delta = WeightDelta.between(model, model_after)
    delta.save(tmp_path / "delta.safetensors")
    save_model(model_after, tmp_path / "after")
    by_delta = score(model, delta, PROMPTS, progress=False)
    assert_scores_agree(by_delta, expected, 1e-5)  # W + (W' - W) is rounded
    for path in (tmp_path / "delta.safetensors", str(tmp_path / "delta.safetensors")):
        assert_scores_agree(score(model, path, PROMPTS, progress=False), by_delta, 0)
    for folder in (tmp_path / "after", str(tmp_path / "after")):
        assert_scores_agree(score(model, folder, PROMPTS, progress=False), expected, 0)


# --- Rewards ---


def logprob_of(plain: PreTrainedModel, prompt, n_tokens: int) -> Tensor:
    """Log-probability of the first tokens of the answer, each after those before it."""
    ids = tokenizer()(f"{prompt.text} {prompt.answer}")["input_ids"]
    start = ids_of(prompt).shape[1]
    answer = ids[start : start + n_tokens]
    logits = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return sum(logits[start + i - 1].log_softmax(-1)[token] for i, token in enumerate(answer))


@pytest.mark.tl3
@pytest.mark.parametrize(("answer_tokens", "n_tokens"), [("first", 1), ("all", 9)])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_logprob_is_the_log_probability_of_the_answer(family, answer_tokens, n_tokens, double_everywhere):
    pair = plain_pair(family)
    scores = scored(family, reward="logprob", answer_tokens=answer_tokens)
    rewards, totals = np.zeros((len(PROMPTS), 2)), np.zeros(len(PROMPTS))
    for i, prompt in enumerate(PROMPTS):
        for state, plain in enumerate(pair):
            plain.zero_grad()
            reward = logprob_of(plain, prompt, n_tokens)
            reward.backward()
            rewards[i, state] = reward.detach()
        totals[i] = along(*pair)
    assert_same(scores.reward.values, rewards)
    everything = of(scores, "informative").sum((1, 2)) + of(scores, "informative", "heads").sum((1, 2, 3))
    assert_same(everything + sum(rest_of(scores).values()), totals)
    # The answer's tokens that are read have scores of their own.
    extra = [len(p.answer.split()) - 1 if answer_tokens == "all" else 0 for p in PROMPTS]
    lengths = scores.dataset["length"].values - scores.dataset["prompt_length"].values
    assert lengths.tolist() == extra


def test_prompts_may_differ_in_their_options(double_everywhere):
    """Each is compared with the mean of its own, in whatever batch it is."""
    few = [
        replace(p, options=tuple(dict.fromkeys((p.answer, *p.options)))[: 2 + i % 3])
        for i, p in enumerate(PROMPTS)
    ]
    scores = score(*hooked_pair("llama"), few, progress=False)
    expected = [[reward_of(plain, p).item() for plain in plain_pair("llama")] for p in few]
    assert_same(scores.reward.values, expected)


def test_a_function_as_reward_gives_what_the_named_one_gives(double_everywhere):
    first = {p.answer: first_ids(p)[p.options.index(p.answer)] for p in PROMPTS}
    options, by_length = first_ids(PROMPTS[0]), sorted(PROMPTS, key=lambda p: len(p.text.split()))

    def by_hand(logits, batch):
        answers = torch.tensor([first[p.answer] for p in by_length])
        return logits[torch.arange(len(logits)), answers] - logits[:, options].mean(1)

    found = score(*hooked_pair("llama"), by_length, reward=by_hand, progress=False)
    expected = score(*hooked_pair("llama"), by_length, progress=False)
    assert found.attrs["options"]["reward"] == "by_hand"
    for name in VARIABLES:
        np.testing.assert_allclose(
            found.dataset[name].values, expected.dataset[name].values, rtol=0, atol=1e-12
        )


# --- Bad input ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "accuracy"}, "reward='accuracy': it should be 'logit_diff' or 'logprob'"),
        ({"reward": lambda logits, batch: logits.sum()}, "one number per prompt"),
        ({"reward": lambda logits, batch: 0.0}, "one number per prompt"),
        ({"reward": lambda logits, batch: logits[:, 0] / 0}, "NaN or infinite before finetuning"),
        ({"answer_tokens": "last"}, "answer_tokens='last': it should be 'first' or 'all'"),
        ({"answer_tokens": "all"}, "goes with reward='logprob' only"),
        ({"baseline": "median"}, "baseline='median': it should be 'counterfactual'"),
        ({"upstream": "approximate"}, "upstream='approximate': it should be 'local'"),
        ({"convention": "own"}, "convention='own': it should be 'definition' or 'reference'"),
        ({"path_steps": 0}, "path_steps=0: it should be greater than or equal to 1"),
        ({"batch_size": 0}, "batch_size=0: it should be greater than or equal to 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_unusable_option_is_named(options, message):
    with pytest.raises(InputError, match=message):
        score(*single_pair("llama"), PROMPTS, progress=False, **options)


@pytest.mark.parametrize("state", ["before", "after"])
def test_nan_weights_are_found(state):
    plain, plain_after = plain_pair("llama")
    pair = {"before": hooked(plain, torch.float32), "after": hooked(plain_after, torch.float32)}
    with torch.no_grad():
        named_weights(pair[state])["blocks.1.mlp.out.weight"][0, 0] = torch.nan
    with pytest.raises(InputError, match=r"NaN or infinite values in blocks\.1\.mlp\.out\.weight"):
        score(*pair.values(), PROMPTS, progress=False)


def test_models_of_another_shape_are_refused():
    with pytest.raises(InputError, match="the models differ in"):
        score(single_pair("llama")[0], single_pair("qwen2")[1], PROMPTS, progress=False)


# --- Models come back as they were ---


def at_call(n: int, error: BaseException):
    """A forward hook that raises in its n-th call."""
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == n:
            raise error

    return hook


@pytest.mark.tl3
@pytest.mark.parametrize(("family", "call"), [*zip(SHAPES, 2 * (1, 5, 9), strict=True)])
def test_models_are_bit_identical_after_scoring_and_after_an_exception(family, call):
    """It comes on the way up, under W', or when a component runs alone."""
    error = ValueError("broken") if call == 5 else KeyboardInterrupt()
    pair = single_pair(family)
    expected = score(*pair, PROMPTS, batch_size=2, progress=False)
    states = [state_of(model) for model in pair]  # TransformerLens has set up hooks of its own
    handle = pair[0].blocks[1].mlp.register_forward_pre_hook(at_call(call, error))
    with pytest.raises(type(error)):
        score(*pair, PROMPTS, batch_size=2, progress=False)
    handle.remove()
    for model, state in zip(pair, states, strict=True):
        assert_unchanged(model, state)
    assert_scores_agree(score(*pair, PROMPTS, batch_size=2, progress=False), expected, 0)
    for model, state in zip(pair, states, strict=True):
        assert_unchanged(model, state)


def test_models_are_bit_identical_after_a_reward_that_fails():
    pair = single_pair("neox")
    score(*pair, PROMPTS, progress=False)
    states = [state_of(model) for model in pair]

    def failing(logits, batch):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        score(*pair, PROMPTS, reward=failing, progress=False)
    for model, state in zip(pair, states, strict=True):
        assert_unchanged(model, state)


@pytest.mark.tl3
def test_a_model_in_training_is_scored_without_dropout_and_stays_in_training():
    before, after = plain_pair("gpt2")
    pair = hooked(before, torch.float32), hooked(after, torch.float32)
    expected = score(*pair, PROMPTS, progress=False)
    pair[0].train()
    assert pair[0].original_model.transformer.drop.p > 0
    state = state_of(pair[0])
    assert_scores_agree(score(*pair, PROMPTS, progress=False), expected, 0)
    assert_unchanged(pair[0], state)
