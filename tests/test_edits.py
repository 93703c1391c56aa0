"""Edits of what heads and MLPs write, against plain hooks on the Hugging Face model."""

import pytest
import torch
from helpers.oracle import blocks, ids_of
from helpers.tiny import D_HEAD, FAMILIES, N_HEADS, N_LAYERS, PROMPTS, hooked, plain_pair

from ecstruct.models.edits import editing
from ecstruct.models.hooked import HookedView

LAYER = 1


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_are_those_of_plain_hooks(family: str) -> None:
    plain, _ = plain_pair(family)
    ids = ids_of(PROMPTS[2])
    scale = torch.linspace(0, 1, N_HEADS).repeat_interleave(D_HEAD).double()
    block = blocks(plain)[LAYER]
    handles = [
        block.o.register_forward_pre_hook(lambda _m, args: (args[0] * scale, *args[1:])),
        block.out.register_forward_hook(lambda _m, _args, output: output.flip(-1)),
    ]
    with torch.no_grad():
        expected = plain(ids, use_cache=False).logits
        for handle in handles:
            handle.remove()
        as_ever = plain(ids, use_cache=False).logits
        view = HookedView(hooked(plain))
        weights = view.weights()
        trace, calls = view.embed(weights, ids, torch.ones_like(ids))
        resid = trace.output
        for layer in range(N_LAYERS):
            edits = ({"attn.o": lambda z: z * scale}, {"mlp.out": lambda y: y.flip(-1)})
            with editing(view.block_sites[layer], *(edits if layer == LAYER else ({}, {})), len(ids)):
                resid = view.block(layer, weights, calls[layer], resid).output
        edited = view.head(weights, resid).output
    torch.testing.assert_close(edited, expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(expected, as_ever, rtol=1e-3, atol=1e-3)
