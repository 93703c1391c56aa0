"""A constant steering vector in place of finetuning, and prompts that finetuning should leave alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.oracle import first_ids, token_id
from helpers.recall_cases import SUBJECTS, edited, layers_of, parts_of, states
from helpers.tiny import (
    N_LAYERS,
    PROMPTS,
    assert_unchanged,
    double_throughout,
    hooked_pair,
    plain_pair,
    state_of,
    tokenizer,
)

import ecstruct
from ecstruct import InputError, WeightDelta
from ecstruct.checks import control_models, controls
from ecstruct.checks.constant_steering import POSITIONS, Steering, steering_of
from ecstruct.scores.pair import Pair
from ecstruct.scores.permutation import above_control
from ecstruct.scores.reward import Reward


def steered_by_hand(family: str, answer_tokens: str) -> np.ndarray:
    """Return reward and rank [2, position, layer, prompt] with hooks on plain models, prompt by prompt."""
    before, after = plain_pair(family)
    found = np.empty((2, len(POSITIONS), N_LAYERS, len(SUBJECTS)))
    at = [(parts_of(p)["subject-last"][0], parts_of(p)["last"][0]) for p in SUBJECTS]
    old, new = ([states(plain, p)[0] for p in SUBJECTS] for plain in (before, after))
    for place in range(len(POSITIONS)):
        for layer in range(N_LAYERS):
            moved = [
                new[i][layer][at[i][place]] - old[i][layer][at[i][place]] for i in range(len(SUBJECTS))
            ]
            for i, prompt in enumerate(SUBJECTS):
                others = [moved[j] for j, q in enumerate(SUBJECTS) if q.answer != prompt.answer]
                assert len(others) == (3 if prompt.answer == "Dutch" else 4)
                vector = torch.stack(others).mean(0)

                def add(output, vector=vector, position=at[i][place]):
                    tensor = (output[0] if isinstance(output, tuple) else output).clone()
                    tensor[0, position] += vector
                    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

                answer = tokenizer()(prompt.answer, add_special_tokens=False)["input_ids"]
                ids = torch.tensor([tokenizer()(prompt.text)["input_ids"] + answer[:-1]])
                with edited([(layers_of(before)[layer], "output", add)]), torch.no_grad():
                    logits = before(input_ids=ids, use_cache=False).logits[0]
                first = logits[at[i][1]]
                own, options = first[token_id(prompt.answer.split()[0])], first[first_ids(prompt)]
                reward = own - options.mean()
                if answer_tokens == "all":
                    read = logits[at[i][1] :].log_softmax(-1)
                    reward = sum(read[k, token] for k, token in enumerate(answer))
                found[:, place, layer, i] = float(reward), int((options > own).sum())
    return found


@pytest.mark.parametrize("answer_tokens", ["first", "all"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_steering_against_hooks_on_plain_models(family, answer_tokens):
    reward = Reward.of("logprob" if answer_tokens == "all" else "logit_diff", answer_tokens)
    with double_throughout():
        pair = Pair.of(*hooked_pair(family))
        steering_of(pair, SUBJECTS[:2], reward)  # TransformerLens sets up hooks of its own in the first run
        state = state_of(pair.view.model)
        found = steering_of(pair, SUBJECTS, reward)
        expected = steered_by_hand(family, answer_tokens)
    np.testing.assert_allclose(found["reward"], expected[0], rtol=0, atol=1e-11)
    np.testing.assert_array_equal(found["rank"], expected[1])
    assert np.ptp(expected[0], axis=1).min() > 1e-3  # every layer is another vector
    assert_unchanged(pair.view.model, state)


def test_the_share_is_of_the_change_of_the_mean_reward():
    checked = controls(*hooked_pair("gpt2"), SUBJECTS, steering=True, progress=False)
    assert checked.steering is not None
    rewards = checked.scores.reward
    change = float((rewards.sel(state="after") - rewards.sel(state="before")).mean())
    for position in POSITIONS:
        for layer in range(N_LAYERS):
            steered = checked.steering.dataset["reward"].sel(position=position, layer=layer)
            gained = float((steered - rewards.sel(state="before")).mean())
            assert float(checked.steering.share.sel(position=position, layer=layer)) == pytest.approx(
                gained / change
            )
    frame = checked.steering.frame()
    best = frame.loc[frame.groupby("position")["share"].idxmax()].set_index("position")
    changes = checked.changes()
    for position in POSITIONS:
        row = changes.loc[f"steering, {position}, layer {best.loc[position, 'layer']}"]
        assert row["share"] == pytest.approx(best.loc[position, "share"])
        assert row["rank after"] == pytest.approx(best.loc[position, "rank"])
        assert row["rank before"] == changes.loc["finetuned", "rank before"]
    assert f"at most {best['share'].max():.0%} of the change" in checked.conclusion()
    lines = {trace.name: np.array(trace.y) for trace in checked.steering.figure.data}
    np.testing.assert_allclose(lines["at the last token"], checked.steering.share.sel(position="last"))


def test_the_same_shift_of_all_prompts_is_regained_whole():
    """A change of the last layer's output bias adds one vector to every prompt, and steering is that."""
    before, after = hooked_pair("gpt2")
    bias = f"blocks.{N_LAYERS - 1}.mlp.out.bias"
    change = WeightDelta.between(before, after).tensors[bias]
    checked = controls(before, WeightDelta({bias: 30 * change}), SUBJECTS, steering=True, progress=False)
    assert checked.steering is not None
    share = checked.steering.share.sel(layer=N_LAYERS - 1)
    assert float(share.sel(position="last")) == pytest.approx(1, abs=1e-5)
    assert float(share.sel(position="entity")) == pytest.approx(0, abs=1e-5)
    assert "regains at most 100% of the change" in checked.conclusion()


def test_a_model_that_did_not_change_preserves_everything(recwarn):
    before, _ = hooked_pair("gpt2")
    checked = controls(before, before, SUBJECTS, preserved=PROMPTS[1:], steering=True, progress=False)
    row = checked.changes().loc["preserved prompts"]
    assert row["reward after"] == row["reward before"] and row["rank after"] == row["rank before"]
    assert (row[["informative", "upstream", "downstream"]] == 0).all()
    assert checked.steering is not None and checked.steering.share.isnull().all()
    steered = checked.steering.dataset["reward"]
    np.testing.assert_allclose(steered - checked.scores.reward.sel(state="before"), 0, atol=1e-6)
    assert "steering has nothing to regain" in checked.conclusion()
    assert not recwarn.list


def test_preserved_prompts_are_a_control_with_rewards_ranks_and_scores():
    pair = hooked_pair("llama")
    asked, preserved = PROMPTS[:3], PROMPTS[2:]
    checked = controls(*pair, asked, preserved=preserved, progress=False)
    changes = checked.changes()
    for name, prompts in {"finetuned": asked, "preserved prompts": preserved}.items():
        scores = ecstruct.score(*pair, prompts, progress=False)
        for state, model in zip(("before", "after"), pair, strict=True):
            row = changes.loc[name]
            assert row[f"rank {state}"] == pytest.approx(ecstruct.mean_rank(model, prompts))
            assert row[f"reward {state}"] == pytest.approx(float(scores.reward.sel(state=state).mean()))
        for score in ("informative", "upstream", "downstream"):
            parts = [getattr(scores, part).sel(score=score).sum("token") for part in ("mlp", "heads")]
            every = np.concatenate([np.abs(part.values).reshape(len(prompts), -1) for part in parts], 1)
            assert changes.loc[name, score] == pytest.approx(every.mean())
    assert changes.loc["finetuned", "share"] == 1
    assert "preserved prompts" in set(checked.above("informative")["against"])
    assert "mean reward of the preserved prompts" in checked.conclusion()
    expected = above_control(checked.scores, ecstruct.score(*pair, preserved, progress=False), "downstream")
    found = checked.above("downstream").query("against == 'preserved prompts'")
    np.testing.assert_allclose(found["p"], expected["p"])


def test_prompts_without_options_have_no_ranks():
    how = {"reward": "logprob", "baseline": "mean", "progress": False}
    checked = controls(*hooked_pair("gpt2"), PROMPTS, preserved=[("Ada knows", "Thai")], **how)
    row = checked.changes().loc["preserved prompts"]
    assert np.isnan(row[["rank before", "rank after"]].astype(float)).all()
    assert "rank" not in checked.conclusion()
    assert not np.isnan(checked.changes().loc["finetuned", "rank after"])


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (SUBJECTS[:1], {"steering": True}, r"all prompts of template '.* \{\} .*' have the answer 'Dutch'"),
        ([SUBJECTS[0], SUBJECTS[4]], {"steering": True}, "comes from prompts of the template with other"),
        (PROMPTS[:1], {"steering": True}, "all prompts have the answer 'Dutch', but a steering vector"),
        (
            [replace(PROMPTS[0], template="one"), replace(PROMPTS[1], template="two")],
            {"steering": True},
            "all prompts of template 'one' have the answer",
        ),
        (
            PROMPTS,
            {"preserved": [("Ada speaks", "Thai")]},
            "'Ada speaks' has no other option than its answer",
        ),
        (PROMPTS, {"preserved": []}, "the list of prompts is empty"),
        (PROMPTS, {"steering": True, "offload": True}, "offload=True leaves no model to run with steering"),
    ],
)
def test_bad_input(prompts, options, message):
    with pytest.raises(InputError, match=message):
        controls(*hooked_pair("gpt2"), prompts, progress=False, **options)


def test_steering_is_not_computed_again(tmp_path, monkeypatch):
    how = {"steering": True, "folder": tmp_path / "kept", "progress": False}
    first = controls(*hooked_pair("gpt2"), SUBJECTS, **how)
    monkeypatch.setattr(control_models, "steering_of", lambda *_: pytest.fail("it is computed again"))
    again = controls(*hooked_pair("gpt2"), SUBJECTS, **how)
    assert isinstance(again.steering, Steering) and isinstance(first.steering, Steering)
    assert again.steering.dataset.identical(first.steering.dataset)
