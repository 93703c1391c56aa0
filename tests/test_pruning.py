"""Pruning: a planted circuit, the optimisation of one seed and of many, and going on after a kill."""

import logging
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import PROMPTS, assert_unchanged, hooked_pair, state_of, tokenizer
from safetensors.torch import load_file
from test_planted import PLANTED, PLANTED_WORDS, loaded, planted
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ecstruct import Prompt, subnetworks
from ecstruct.engine import plan
from ecstruct.errors import InputError
from ecstruct.facts.tokens import tokenize
from ecstruct.io import interruption
from ecstruct.subnetworks import Masks, prune, pruning, reference_values
from ecstruct.subnetworks.gates import BETA, GAMMA, ZETA, hard_concrete, probability_of_zero
from ecstruct.subnetworks.progress import Progress
from ecstruct.subnetworks.running import GatedModel


@pytest.fixture(scope="module")
def circuit() -> TransformerBridge:
    """Head 2 of layer 0, the MLP of layer 1 and that of layer 2 know the answers; all else is noise."""
    plain = planted(True, 0.0, 0)
    with torch.no_grad():
        plain.lm_head.weight.mul_(8)  # so that the answer is nearly certain
    model = loaded(plain, PLANTED_WORDS)
    reference_values(model, PLANTED)  # TransformerLens sets up hooks of its own
    return model


QUICK = {"steps": 100, "lr": 0.3, "progress": False}


def assert_same(one: Masks, other: Masks) -> None:
    for found, expected in ((one.heads, other.heads), (one.mlp, other.mlp)):
        np.testing.assert_array_equal(found.values, expected.values)


# --- What is found ---


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_a_planted_circuit_is_all_that_is_kept(circuit: TransformerBridge, ablation: str) -> None:
    state = state_of(circuit)
    masks = prune(circuit, PLANTED, sparsity=0.8, seeds=2, ablation=ablation, **QUICK)
    heads, mlp = np.zeros((3, 4), dtype=bool), np.zeros(3, dtype=bool)
    heads[0, 2] = mlp[1] = mlp[2] = True
    for seed in range(2):
        np.testing.assert_array_equal(masks.heads.sel(seed=seed), heads)
        np.testing.assert_array_equal(masks.mlp.sel(seed=seed), mlp)
    assert_unchanged(circuit, state)


def test_only_what_is_asked_for_is_pruned(circuit: TransformerBridge) -> None:
    masks = prune(circuit, PLANTED, sparsity=0.9, seeds=2, kinds=["heads"], **QUICK)
    assert masks.mlp.all() and masks.heads.sum() == 2 and masks.heads.sel(layer=0, head=2).all()
    assert masks.sparsity.values.tolist() == [11 / 12] * 2
    assert masks.attrs["options"]["kinds"] == ["heads"]
    masks = prune(circuit, PLANTED, sparsity=0.34, seeds=2, kinds=["mlp"], **QUICK)
    assert masks.heads.all() and not masks.mlp.sel(layer=0).any() and masks.mlp.sum() == 4


@pytest.mark.parametrize(
    ("sparsity", "kinds"),
    [(0.1, ("heads", "mlp")), (0.35, ("heads",)), (0.5, ("heads", "mlp")), (0.77, ("heads",))],
)
def test_sparsity_is_reached_within_one_gate(sparsity: float, kinds: tuple) -> None:
    masks = prune(
        hooked_pair("llama")[0], PROMPTS, sparsity=sparsity, seeds=2, steps=10, kinds=kinds, progress=False
    )
    n = 15 if len(kinds) == 2 else 12
    assert np.abs(masks.sparsity.values - sparsity).max() < 1 / n


def test_the_optimisation_itself_ends_near_the_target(tmp_path: Path) -> None:
    file = tmp_path / "state"
    prune(hooked_pair("llama")[0], PROMPTS, seeds=2, steps=150, lr=0.2, checkpoint=file, progress=False)
    expected = probability_of_zero(load_file(file)["log_alpha"]).mean(1)
    np.testing.assert_allclose(expected, 0.5, atol=1.5 / 15)


def test_masks_of_too_few_steps_are_refused_by_all_that_builds_on_them(
    circuit: TransformerBridge, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    few = prune(circuit, PLANTED, sparsity=0.8, seeds=3, steps=40, progress=False)
    assert "40 steps at lr=0.1 will hardly converge" in caplog.text
    assert not few.converged.any() and (few.dataset["expected_sparsity"] < 0.01).all()
    assert "3 of the seeds did not converge" in repr(few)
    few.save(tmp_path / "masks.nc")
    message = (
        r"did not converge for 3 of 3 seeds \(0, 1, 2\): after 40 steps their gates expect 0% .* not 80%"
    )
    for use in (
        subnetworks.core,
        lambda masks: subnetworks.core({0.8: masks}),
        lambda masks: subnetworks.evaluate(circuit, masks, PLANTED, progress=False),
        lambda masks: subnetworks.ablate_core(circuit, masks, PLANTED, PLANTED, progress=False),
        lambda masks: subnetworks.dependence(circuit, masks, PLANTED, progress=False),
        lambda masks: subnetworks.generalising(masks, np.zeros(3)),
    ):
        for masks in (few, few.select([0, 1, 2]), Masks.load(tmp_path / "masks.nc")):
            with pytest.raises(InputError, match=message):
                use(masks)
    caplog.clear()
    enough = prune(circuit, PLANTED, sparsity=0.8, seeds=2, **QUICK)
    assert enough.converged.all() and "converge" not in caplog.text + repr(enough)
    subnetworks.core(enough)
    # Masks that no optimisation found have nothing that could fail to converge.
    subnetworks.core(few.like(few.heads.values, few.mlp.values))


def test_log_alpha_says_which_are_kept() -> None:
    heads = torch.tensor([[9.0, -9.0, 8.0], [-8.0, 7.0, -7.0]])  # expects 3 zeros, of 2 by 3
    mlp = torch.tensor([10.0, -6.0])  # and 1 of 2
    kept = [part.tolist() for part in pruning.binary([heads, mlp], 0.5)]
    assert kept == [[[True, False, True], [False, True, False]], [True, False]]
    # What is missing is made up by the next, of any kind.
    more = [part.tolist() for part in pruning.binary([heads, mlp], 0.75)]
    assert more == [[[True, False, False], [False, False, False]], [True, False]]
    less = [part.tolist() for part in pruning.binary([heads, mlp], 0.25)]
    assert less == [[[True, False, True], [False, True, True]], [True, True]]


# --- Gates and losses ---


def test_gates_are_hard_concrete() -> None:
    log_alpha, u = torch.tensor([-1.0, 0.5, 3.0]).double(), torch.tensor([0.3, 0.6, 0.9]).double()
    for a, v, z in zip(log_alpha.tolist(), u.tolist(), hard_concrete(log_alpha, u).tolist(), strict=True):
        s = 1 / (1 + math.exp(-(math.log(v / (1 - v)) + a) / BETA))
        assert z == pytest.approx(min(1.0, max(0.0, s * (ZETA - GAMMA) + GAMMA)), abs=1e-12)
    draws = torch.from_numpy(np.random.default_rng(0).uniform(1e-6, 1 - 1e-6, (200_000, 3)))
    zeros = (hard_concrete(log_alpha.expand(200_000, 3), draws) == 0).double().mean(0)
    torch.testing.assert_close(zeros, probability_of_zero(log_alpha), rtol=0, atol=5e-3)


def test_the_gradient_of_the_loss_is_that_of_finite_differences(double_everywhere: None) -> None:
    model = hooked_pair("gemma2")[0]
    prompts = tokenize(PROMPTS, tokenizer())
    options = pruning.Schedule(steps=10)
    losses = pruning.Pruning(GatedModel(model, reference_values(model, PROMPTS)), prompts, options).losses
    log_alpha = torch.randn(2, 15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(at: Tensor) -> Tensor:
        kl, sparsity = losses(at, [3, 8], 5)
        return (kl + 2 * sparsity + 3 * sparsity**2).sum()

    leaf = log_alpha.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(leaf), leaf)
    for index in np.ndindex(2, 15):
        step = torch.zeros_like(log_alpha)
        step[index] = 1e-5
        with torch.no_grad():
            difference = (loss(log_alpha + step) - loss(log_alpha - step)) / 2e-5
        torch.testing.assert_close(grad[index], difference, rtol=1e-5, atol=1e-7)


# --- Seeds ---


def test_seeds_do_not_see_one_another(tmp_path: Path) -> None:
    model, options = hooked_pair("qwen2")[0], {"steps": 20, "batch_size": 3, "progress": False}
    together = prune(model, PROMPTS, seeds=[7, 0, 4], checkpoint=tmp_path / "all", **options)
    assert together.seeds == [7, 0, 4]
    for i, seed in enumerate(together.seeds):
        alone = prune(model, PROMPTS, seeds=[seed], checkpoint=tmp_path / str(seed), **options)
        assert_same(alone, together.select([seed]))
        # One step does not know how many rows there were, but for rounding.
        found, expected = (load_file(tmp_path / name)["log_alpha"] for name in (str(seed), "all"))
        torch.testing.assert_close(found[0], expected[i], rtol=1e-6, atol=1e-6)
    assert not torch.equal(expected[0], expected[1])


def test_seeds_that_do_not_fit_into_memory_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hooked_pair("llama")[0]
    together = prune(model, PROMPTS, seeds=3, steps=20, progress=False)
    monkeypatch.setattr(plan, "free_bytes", lambda device: 1)
    assert_same(prune(model, PROMPTS, seeds=3, steps=20, progress=False), together)


# --- Going on ---


def stopping(monkeypatch: pytest.MonkeyPatch, step: int, stop) -> None:
    real = pruning.Pruning.losses

    def losses(self, log_alpha, seeds, at):
        if at == step:
            stop()
        return real(self, log_alpha, seeds, at)

    monkeypatch.setattr(pruning.Pruning, "losses", losses)


def killed() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("by", ["kill", "SIGTERM"])
def test_pruning_goes_on_where_it_was(tmp_path: Path, by: str) -> None:
    model, file = hooked_pair("llama")[0], tmp_path / "state"
    options = {"seeds": 3, "steps": 20, "batch_size": 3, "progress": False}
    expected = prune(model, PROMPTS, checkpoint=tmp_path / "whole", **options)
    with pytest.MonkeyPatch.context() as patch:
        if by == "kill":
            patch.setattr(Progress, "due", lambda self: True)
            stopping(patch, 11, killed)
            with pytest.raises(KeyboardInterrupt):
                prune(model, PROMPTS, checkpoint=file, **options)
        else:
            stopping(patch, 11, lambda: os.kill(os.getpid(), signal.SIGTERM))
            with interruption.listening(), pytest.raises(interruption.Terminated):
                prune(model, PROMPTS, checkpoint=file, **options)
    assert load_file(file)["done"].tolist() == [11 if by == "kill" else 12] * 3
    with pytest.MonkeyPatch.context() as patch:
        stopping(patch, 10, killed)  # which is not run again
        assert_same(prune(model, PROMPTS, checkpoint=file, **options), expected)
        stopping(patch, 19, killed)  # nor is what is finished
        assert_same(prune(model, PROMPTS, checkpoint=file, **options), expected)
    one, other = load_file(file), load_file(tmp_path / "whole")
    for name in other:
        assert torch.equal(one[name], other[name]), name


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    model, file = hooked_pair("llama")[0], tmp_path / "state"
    prune(model, PROMPTS, seeds=2, steps=2, checkpoint=file, progress=False)
    changed = {
        "steps was 2, now 3": {"steps": 3},
        r"seeds was \[0, 1\], now \[0, 1, 2\]": {"seeds": 3},
        "sparsity was 0.5, now 0.4": {"sparsity": 0.4},
        "ablation was mean, now zero": {"ablation": "zero"},
        "reference was 5 with checksum .*, now 4": {"reference": PROMPTS[:4]},
    }
    for message, options in changed.items():
        with pytest.raises(InputError, match=message):
            prune(
                model, PROMPTS, **{"seeds": 2, "steps": 2, "progress": False, "checkpoint": file, **options}
            )
    with pytest.raises(InputError, match=r"model\.fingerprint was"):
        prune(hooked_pair("llama")[1], PROMPTS, seeds=2, steps=2, checkpoint=file, progress=False)
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match="is no checkpoint of ecstruct"):
        prune(model, PROMPTS, seeds=2, steps=2, checkpoint=file, progress=False)


# --- Bad input ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.0}, "sparsity=0.0: it should be greater than 0"),
        ({"sparsity": 1}, "sparsity=1: it should be less than 1"),
        ({"sparsity": math.nan}, "sparsity=nan: it should be less than 1"),
        ({"seeds": 0}, "seeds=0 are no seeds"),
        ({"seeds": []}, r"seeds=\[\] are no seeds"),
        ({"seeds": [1, 1]}, "the seed 1 is there twice"),
        ({"seeds": [-1]}, "the seed -1 is negative"),
        ({"kinds": ["neurons"]}, "kinds.0='neurons': it should be 'heads' or 'mlp'"),
        ({"kinds": []}, r"kinds=\(\): .* at least 1 item"),
        ({"steps": 0}, "steps=0: it should be greater than or equal to 1"),
        ({"lr": 0.0}, "lr=0.0: it should be greater than 0"),
        ({"batch_size": 0}, "batch_size=0: it should be greater than or equal to 1"),
        ({"reference": []}, "reference set is empty"),
        ({"ablation": "noise"}, "ablation='noise': it should be 'mean' or 'zero'"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prune(hooked_pair("llama")[0], PROMPTS, **{"steps": 2, "progress": False, **options})


def test_a_loss_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hooked_pair("llama")[0]
    values = reference_values(model, PROMPTS)
    values.mlp.fill_(math.nan)
    monkeypatch.setattr(pruning, "reference_values", lambda *args, **options: values)
    with pytest.raises(InputError, match="the loss of seed 4 is not finite in step 0"):
        prune(model, PROMPTS, seeds=[4], steps=2, progress=False)


def test_a_model_that_does_not_solve_the_prompts(
    circuit: TransformerBridge, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = [Prompt(p.text, PLANTED[(i + 1) % 4].answer, p.options) for i, p in enumerate(PLANTED)]
    with caplog.at_level(logging.WARNING):
        prune(circuit, PLANTED, seeds=1, steps=1, progress=False)
        assert "solves" not in caplog.text
        prune(circuit, wrong, seeds=1, steps=1, progress=False)
    assert "solves 0% of 4 prompts (mean rank " in caplog.text


def test_progress_is_shown(circuit: TransformerBridge, capsys: pytest.CaptureFixture[str]) -> None:
    prune(circuit, PLANTED, seeds=2, steps=3)
    shown = capsys.readouterr().err
    assert "pruning: 100%" in shown and "6/6" in shown
