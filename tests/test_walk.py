"""The walk up and down the blocks against the hooked model's own forward and plain autograd."""

import copy

import pytest
import torch
from helpers.oracle import blocks, ids_of, normed, watch, watching
from helpers.tiny import (
    FAMILIES,
    N_LAYERS,
    PROMPTS,
    SHAPES,
    SHARED_NORM,
    assert_unchanged,
    hooked_pair,
    plain_pair,
    single_pair,
    state_of,
    tokenizer,
)

from ecstruct.facts.tokens import collate, tokenize
from ecstruct.models.hooked import HookedView
from ecstruct.scores.reward import logit_diff
from ecstruct.scores.walk import Descent, Visit, Walk

pytestmark = pytest.mark.tl3

LAYERS = range(N_LAYERS)
INPUTS, OUTPUTS = ("attn.o", "mlp.out"), ("attn.o", "mlp.out", "attn.q", "attn.k", "attn.v")
ROWS = ([3, 0], [1, 4, 2])
"""Two batches, the second with padding."""
MLP_READS_AT = {"olmo2": "mlp", "gptj": "ln1"}
"""Where the residual stream enters the MLP, if that is no pre-norm of its own."""


def batches():
    tokenized = tokenize(PROMPTS, tokenizer())
    return [collate([tokenized[i] for i in rows], "cpu", pad_id=0) for rows in ROWS]


def walked(model, keep_graphs: bool = True, weights=None) -> Walk:
    view = HookedView(model)
    walk = Walk(view, view.weights() if weights is None else weights, batches(), keep_graphs)
    walk.up()
    return walk


def logits_of(walk: Walk, b: int) -> torch.Tensor:
    with torch.no_grad():
        return walk.view.head(walk.weights, walk.resid(N_LAYERS, b)).output


def walked_down(walk: Walk) -> dict[tuple[int, int], Visit]:
    descent = Descent(walk)
    for b, batch in enumerate(walk.batches):
        descent.read_out(
            b, batch.last[:, None], lambda logits, batch=batch: logit_diff(logits[:, 0], batch)
        )
    return {
        (layer, b): descent.down(layer, b, INPUTS, OUTPUTS)
        for layer in reversed(LAYERS)
        for b in range(len(walk.batches))
    }


def own_logits(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model(batch.ids, attention_mask=batch.mask, use_cache=False)


@pytest.mark.parametrize("pair_of", [hooked_pair, single_pair], ids=["float64", "float32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_hooked_models_own_bit_for_bit(family, pair_of):
    model, _ = pair_of(family)
    walk = walked(model)
    for b, batch in enumerate(walk.batches):
        real = batch.mask.bool()
        assert torch.equal(logits_of(walk, b)[real], own_logits(model, batch)[real])


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_under_other_weights_are_the_other_models_own(family):
    model, model_after = single_pair(family)
    walk = walked(model, weights=HookedView(model_after).weights())
    for b, batch in enumerate(walk.batches):
        real = batch.mask.bool()
        assert torch.equal(logits_of(walk, b)[real], own_logits(model_after, batch)[real])


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_hugging_faces_own(family):
    plain = copy.deepcopy(plain_pair(family)[0]).float()
    walk = walked(single_pair(family)[0])
    for b, rows in enumerate(ROWS):
        logits = logits_of(walk, b)
        for row, i in enumerate(rows):
            with torch.no_grad():
                expected = plain(input_ids=ids_of(PROMPTS[i]), use_cache=False).logits[0]
            error = (logits[row, : len(expected)] - expected).abs().max()
            assert error <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("keep_graphs", [True, False], ids=["graphs kept", "run again"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_plain_autograd(family, keep_graphs, double_everywhere):
    """At every component's output and at the input of both output projections, of every block; an MLP
    and attention that write into a post-norm are seen before it."""
    plain, _ = plain_pair(family)
    visits = walked_down(walked(hooked_pair(family)[0], keep_graphs))
    for b, rows in enumerate(ROWS):
        for row, i in enumerate(rows):
            _, seen = watch(plain, PROMPTS[i])
            for layer in LAYERS:
                visit, o, out = visits[layer, b], seen[layer, "o"], seen[layer, "out"]
                for found, expected in (
                    (visit.d_input["attn.o"], o.input.grad),
                    (visit.d_output["attn.o"], o.output.grad),
                    (visit.d_input["mlp.out"], out.input.grad),
                    (visit.d_output["mlp.out"], out.output.grad),
                    (visit.input("attn.o"), o.input),
                    (visit.output("attn.o"), o.output),
                    (visit.output("mlp.out"), out.output),
                    (visit.input(MLP_READS_AT.get(family, "ln2")), seen[layer, "ln2"].input),
                ):
                    scale = expected.abs().max()
                    assert scale > 1e-5
                    n_tokens = expected.shape[1]
                    assert (found[row, :n_tokens] - expected[0]).abs().max() <= 1e-11 * scale
                    if found is visit.d_output["mlp.out"]:  # nothing comes from padding
                        assert (found[row, n_tokens:] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_under_other_weights_is_the_other_models_own_block(family):
    """Not only with its own inputs: on any residual stream."""
    model, model_after = single_pair(family)
    walk, other = walked(model), walked(model_after)
    resid = 1.5 * walk.resid(1, 1)
    for layer in LAYERS:
        under = walk.view.block(layer, other.weights, walk.call(layer, 1), resid)
        own = other.view.block(layer, other.weights, other.call(layer, 1), resid)
        args, kwargs = other.call(layer, 1).bind(resid)
        bare = other.view.blocks[layer](*args, **kwargs)
        assert torch.equal(under.output, own.output)
        assert torch.equal(under.output, bare[0] if isinstance(bare, tuple) else bare)
        assert not torch.equal(
            under.output, walk.view.block(layer, walk.weights, walk.call(layer, 1), resid).output
        )


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in SHARED_NORM])
def test_the_mlp_can_be_given_another_input_past_the_residual_stream(family):
    """It reads what it is given; the heads go on as they were."""
    view = HookedView(single_pair(family)[0])
    walk = walked(view.model)
    resid, call = walk.resid(1, 1), walk.call(1, 1)
    plain = view.block(1, walk.weights, call, resid)
    other = torch.randn(resid.shape, generator=torch.Generator().manual_seed(0))
    entry = MLP_READS_AT.get(family, "ln2")
    assert view.given_to_mlp(1, plain.taps).keys() == {entry}
    z, hidden = view.writer_inputs(1, walk.weights, call, resid, view.given_to_mlp(1, plain.taps))
    assert torch.equal(z, plain.taps["attn.o"].input)
    assert torch.equal(hidden, plain.taps["mlp.out"].input)
    z, hidden = view.writer_inputs(1, walk.weights, call, resid, {entry: other})
    assert torch.equal(z, plain.taps["attn.o"].input)
    block = blocks(copy.deepcopy(plain_pair(family)[0]).float())[1]
    with torch.no_grad(), watching({"out": block.out}) as seen:
        block.mlp(normed(block.ln2, other))
    torch.testing.assert_close(hidden, seen["out"].input)


@pytest.mark.parametrize("writer", ["attn.o", "mlp.out"])
@pytest.mark.parametrize("family", SHAPES)
def test_what_is_put_in_is_passed_on(family, writer):
    """As a hook on the plain module would: to post-norms, to the MLP after attention, to the next block."""
    walk = walked(hooked_pair(family)[0])
    resid, call = walk.resid(1, 0), walk.call(1, 0)
    value = torch.randn(resid.shape, generator=torch.Generator().manual_seed(0), dtype=resid.dtype)
    plain = walk.view.block(1, walk.weights, call, resid).output
    assert torch.equal(walk.view.through(1, walk.weights, call, resid), plain)
    moved = walk.view.through(1, walk.weights, call, resid, {writer: value})
    block = blocks(walk.view.model.original_model)[1]
    module = block.o if writer == "attn.o" else block.out
    handle = module.register_forward_hook(lambda _module, _args, output: value)
    try:
        again = walk.view.block(1, walk.weights, call, resid).output
    finally:
        handle.remove()
    assert not torch.equal(moved, plain)
    torch.testing.assert_close(moved, again, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("writers", [(), ("attn.o",), ("mlp.out",), ("attn.o", "mlp.out")])
@pytest.mark.parametrize("family", SHAPES)
def test_a_block_that_is_read_at_some_positions_writes_them_as_ever(family, writers):
    walk = walked(hooked_pair(family)[0])
    resid, call, at = walk.resid(2, 1), walk.call(2, 1), torch.tensor([[4, 1], [0, 0], [6, 2]])
    rows = torch.arange(3)[:, None]
    value = torch.randn(resid.shape, generator=torch.Generator().manual_seed(0), dtype=resid.dtype)
    written = dict.fromkeys(writers, value)
    whole = walk.view.through(2, walk.weights, call, resid, written)
    some = walk.view.through(2, walk.weights, call, resid, written, at)
    torch.testing.assert_close(some[rows, at], whole[rows, at], rtol=1e-12, atol=1e-12)
    assert writers == ("attn.o", "mlp.out") or not torch.allclose(some, whole)


@pytest.mark.parametrize("family", SHAPES)
def test_walking_leaves_the_model_as_it_was(family):
    model, model_after = single_pair(family)
    other = HookedView(model_after).weights()
    walked(model)  # TransformerLens sets up hooks of its own in the first forward
    state = state_of(model)
    logits = [own_logits(model, batch) for batch in batches()]
    for weights in (None, other):
        walked_down(walked(model, weights=weights))
    assert_unchanged(model, state)
    for batch, before in zip(batches(), logits, strict=True):
        assert torch.equal(own_logits(model, batch), before)


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
@pytest.mark.parametrize("part", ["embed", "blocks.1.attn", "blocks.2.mlp", "ln_final"])
def test_an_exception_in_the_middle_leaves_the_model_as_it_was(family, part):
    model, model_after = single_pair(family)
    other = HookedView(model_after).weights()
    walked(model)
    state = state_of(model)

    def interrupt(*_):
        raise KeyboardInterrupt

    module = model
    for name in part.split("."):
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    handle = module.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        walked_down(walked(model, weights=other))
    handle.remove()
    assert_unchanged(model, state)
