"""Masks, and models under them, against plain hooks on the Hugging Face model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.oracle import blocks, ids_of
from helpers.tiny import (
    D_HEAD,
    N_HEADS,
    N_LAYERS,
    OTHERS,
    PROMPTS,
    SHAPES,
    assert_unchanged,
    hooked_pair,
    plain_pair,
    single_pair,
    state_of,
    tokenizer,
)
from torch import Tensor
from transformers import PreTrainedModel

from ecstruct.engine.forward import Step, run_blocks
from ecstruct.errors import InputError
from ecstruct.facts.tokens import Batch, collate, tokenize
from ecstruct.models.calls import BlockCall
from ecstruct.subnetworks import Masks, Reference, reference_values
from ecstruct.subnetworks.running import GatedModel, Gates


def batch() -> Batch:
    return collate(tokenize(PROMPTS, tokenizer()), "cpu", 0)


def random_masks(n: int = 3) -> Masks:
    rng = np.random.default_rng(0)
    return Masks.of(rng.random((n, N_LAYERS, N_HEADS)) < 0.5, rng.random((n, N_LAYERS)) < 0.5)


def gates_of(masks: Masks, dtype: torch.dtype = torch.float64) -> Gates:
    return Gates(*(torch.from_numpy(part.values).to(dtype) for part in (masks.heads, masks.mlp)))


# --- The plain model, one prompt at a time, without padding ---


def seen_by_hooks(plain: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """The means of z and of what MLPs write, over all tokens of all prompts."""
    z: dict[int, list[Tensor]] = {layer: [] for layer in range(N_LAYERS)}
    y: dict[int, list[Tensor]] = {layer: [] for layer in range(N_LAYERS)}
    handles = []
    for layer, block in enumerate(blocks(plain)):
        handles += [
            block.o.register_forward_pre_hook(lambda _m, args, seen=z[layer]: seen.append(args[0][0])),
            block.out.register_forward_hook(lambda _m, _a, out, seen=y[layer]: seen.append(out[0])),
        ]
    with torch.no_grad():
        for prompt in PROMPTS:
            plain(ids_of(prompt), use_cache=False)
    for handle in handles:
        handle.remove()
    means = [torch.stack([torch.cat(seen[layer]).mean(0) for layer in seen]) for seen in (z, y)]
    return means[0].unflatten(1, (N_HEADS, D_HEAD)), means[1]


@contextmanager
def ablated(plain: PreTrainedModel, heads: np.ndarray, mlp: np.ndarray, by: tuple) -> Iterator[None]:
    def of_heads(layer: int):
        def hook(_module, args):
            z = args[0].clone()
            for head in np.flatnonzero(~heads[layer]):
                z[..., head * D_HEAD : (head + 1) * D_HEAD] = by[0][layer, head]
            return (z, *args[1:])

        return hook

    def of_mlp(layer: int):
        return lambda _m, _args, out: out if mlp[layer] else by[1][layer].expand_as(out)

    handles = []
    for layer, block in enumerate(blocks(plain)):
        handles.append(block.o.register_forward_pre_hook(of_heads(layer)))
        handles.append(block.out.register_forward_hook(of_mlp(layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("family", "ablation"),
    [*((family, "mean") for family in SHAPES + OTHERS), ("gpt2", "zero"), ("gemma3", "zero")],
)
def test_a_mask_is_an_ablation_by_plain_hooks(family: str, ablation: str) -> None:
    plain, model = plain_pair(family)[0], hooked_pair(family)[0]
    values = reference_values(model, PROMPTS, ablation=ablation)
    before = state_of(model)  # now that TransformerLens has set up hooks of its own
    expected_values = seen_by_hooks(plain)
    if ablation == "zero":
        expected_values = tuple(torch.zeros_like(value) for value in expected_values)
    for found, expected in zip((values.heads, values.mlp), expected_values, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    masks, gated, rows = random_masks(), GatedModel(model, values), batch()
    with torch.no_grad():
        under_all = gated.logits(gated.embed(rows.repeat(3)), gates_of(masks).each(len(PROMPTS)))
        found = under_all.unflatten(0, (3, -1))
        whole = gated.logits(gated.embed(rows))
        for seed in range(3):
            with ablated(plain, masks.heads.values[seed], masks.mlp.values[seed], expected_values):
                for i, prompt in enumerate(PROMPTS):
                    expected = plain(ids_of(prompt), use_cache=False).logits[0, -1]
                    torch.testing.assert_close(found[seed, i], expected, rtol=2e-5, atol=2e-5)
            assert not torch.allclose(found[seed], whole, rtol=1e-2, atol=1e-2)
    assert_unchanged(model, before)


@pytest.mark.parametrize("family", SHAPES + OTHERS)
def test_a_mask_of_ones_is_the_model_bit_for_bit(family: str) -> None:
    model, rows = single_pair(family)[0], batch()
    values = reference_values(model, PROMPTS)
    gated, ones = (
        GatedModel(model, values),
        Gates(torch.ones(5, N_LAYERS, N_HEADS), torch.ones(5, N_LAYERS)),
    )
    with torch.no_grad():
        embedded = gated.embed(rows)
        resid = run_blocks(gated.session, embedded.calls, embedded.resid, gated.gating(ones))
        whole = model(rows.ids, attention_mask=rows.mask, use_cache=False)
        assert torch.equal(gated.view.head(gated.session.weights, resid).output, whole)
        assert torch.equal(gated.logits(embedded, ones), gated.logits(embedded))


def test_an_ablated_component_writes_its_value_bit_for_bit() -> None:
    model = single_pair("llama")[0]
    gated = GatedModel(model, reference_values(model, PROMPTS))
    gates = Gates(torch.zeros(2, N_LAYERS, N_HEADS), torch.zeros(2, N_LAYERS))
    step = gated.gating(gates)(Step(1, BlockCall((), {}, False), torch.zeros(2, 3, N_HEADS * D_HEAD)))
    z, y = torch.randn(2, 3, N_HEADS * D_HEAD) * 1e4, torch.randn(2, 3, N_HEADS * D_HEAD) * 1e4
    assert torch.equal(step.inputs["attn.o"](z), gated.reference.heads[1].flatten().expand_as(z))
    assert torch.equal(step.outputs["mlp.out"](y), gated.reference.mlp[1].expand_as(y))


@pytest.mark.parametrize("family", ["olmo", "gemma2", "gptj", "mixtral"])
def test_gradients_of_gates_are_finite_differences(family: str, double_everywhere: None) -> None:
    model, rows = hooked_pair(family)[0], batch()
    gated = GatedModel(model, reference_values(model, PROMPTS))
    embedded, generator = gated.embed(rows), torch.Generator().manual_seed(0)
    shapes = ((5, N_LAYERS, N_HEADS), (5, N_LAYERS))
    heads, mlp = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    heads[:, 0, 0], mlp[:, 1] = 1.0, 1.0  # also where the gate is open

    def loss(heads: Tensor, mlp: Tensor) -> Tensor:
        return gated.logits(embedded, Gates(heads, mlp)).log_softmax(-1)[:, 3].sum()

    leaves = heads.clone().requires_grad_(), mlp.clone().requires_grad_()
    grads = torch.autograd.grad(loss(*leaves), leaves)
    eps = 1e-5
    for i, value in enumerate((heads, mlp)):
        for index in [(0, *where) for where in np.ndindex(*value.shape[1:])]:
            moved = []
            for sign in (1, -1):
                at = [heads.clone(), mlp.clone()]
                at[i][index] += sign * eps
                with torch.no_grad():
                    moved.append(loss(*at))
            difference = (moved[0] - moved[1]) / (2 * eps)
            torch.testing.assert_close(grads[i][index], difference, rtol=1e-5, atol=1e-7)
    assert grads[0][1:].abs().min() > 0  # every row has gates of its own


# --- Reference values ---


def test_reference_bad_input() -> None:
    model = hooked_pair("llama")[0]
    with pytest.raises(InputError, match="reference set is empty"):
        reference_values(model, [])
    with pytest.raises(InputError, match="ablation='median' is unknown"):
        reference_values(model, PROMPTS, ablation="median")  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"of a model with .*\(2, 4, 8, 32\), and this one has \(3, 4, 8, 32\)"
    ):
        GatedModel(model, Reference(torch.zeros(2, 4, 8), torch.zeros(2, 32)))


# --- Masks ---


def test_masks_come_back_from_their_file(tmp_path: Path) -> None:
    values = Reference(torch.randn(3, 4, 8, dtype=torch.float64), torch.randn(3, 32, dtype=torch.float64))
    attrs = {
        "options": {"kinds": ["heads", "mlp"], "sparsity": 0.5},
        "model": {"source": "a", "revision": None},
    }
    drawn = random_masks()
    masks = Masks.of(drawn.heads, drawn.mlp, seeds=[5, 0, 7], reference=values, attrs=attrs)
    masks.save(tmp_path / "masks.nc")
    loaded = Masks.load(tmp_path / "masks.nc")
    assert loaded.dataset.identical(masks.dataset) and loaded.attrs == attrs
    assert loaded.reference is not None and torch.equal(loaded.reference.mlp, values.mlp)
    chosen = loaded.select([7, 5])
    assert chosen.seeds == [7, 5]
    np.testing.assert_array_equal(chosen.heads, drawn.heads.values[[2, 0]])
    other = chosen.like(drawn.heads.values[:1], drawn.mlp.values[:1])
    assert other.seeds == [0] and other.reference is not None and other.attrs == attrs
    assert random_masks().reference is None
    assert "3 seeds" in repr(masks) and len(masks) == 3


def test_sparsity_is_of_what_was_pruned() -> None:
    heads, mlp = np.ones((2, 3, 4)), np.ones((2, 3))
    heads[0, 0] = heads[1, :2] = mlp[1, 0] = 0
    assert Masks.of(heads, mlp).sparsity.values.tolist() == [4 / 15, 9 / 15]
    masks = Masks.of(heads, mlp, attrs={"options": {"kinds": ["heads"]}})
    assert masks.sparsity.values.tolist() == [4 / 12, 8 / 12]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Masks.of(np.ones((2, 3, 4)), np.ones((2, 4))), "do not go together"),
        (lambda: Masks.of(np.full((2, 3, 4), 0.5), np.ones((2, 3))), "values other than 0 and 1"),
        (lambda: Masks.of(np.ones((2, 3, 4)), np.ones((2, 3)), seeds=[1]), "2 masks, but 1 seeds"),
        (lambda: Masks.of(np.ones((2, 3, 4)), np.ones((2, 3)), seeds=[1, 1]), "two masks have the seed 1"),
        (lambda: Masks.of(np.ones((0, 3, 4)), np.ones((0, 3))), "there are no masks"),
        (lambda: random_masks().select([4]), "no mask of seed 4"),
        (lambda: random_masks().select([]), "there are no masks"),
        (lambda: Masks(random_masks().dataset.drop_vars("mlp")), "no variable 'mlp'"),
        (lambda: Masks(random_masks().dataset.astype(float)), "not bool"),
    ],
)
def test_what_are_no_masks(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_files_that_are_no_masks(tmp_path: Path) -> None:
    path = tmp_path / "masks.nc"
    with pytest.raises(InputError, match="there is no file of masks"):
        Masks.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as masks"):
        Masks.load(path)
    random_masks().dataset.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(InputError, match="not one of ecstruct's masks"):
        Masks.load(path)
