"""Attributions against TransformerLens' own attribution patching, which nobody here wrote."""

import numpy as np
import pytest
from helpers.oracle import first_ids, ids_of
from helpers.tiny import (
    LANGUAGES,
    N_HEADS,
    N_LAYERS,
    double_throughout,
    hooked,
    hooked_pair,
    plain_pair,
    tokenizer,
)

from ecstruct import Prompt, score

PAIR = [
    Prompt(f"people that {name} knows speak", answer, LANGUAGES)
    for name, answer in (("Ada", "Dutch"), ("Di", "Thai"))
]


@pytest.mark.parametrize("family", ["olmo", "llama", "gpt2", "neox"])
def test_they_are_those_of_transformer_lens(family):
    """Each prompt's y* is what the other one writes. There the difference points from y to y*."""
    analysis = pytest.importorskip("transformer_lens.tools.analysis")
    model = hooked(plain_pair(family)[0])
    model.set_use_attn_result(True)
    clean, corrupt = (ids_of(prompt) for prompt in PAIR)
    answer = tokenizer().convert_tokens_to_ids(PAIR[1].answer)

    def metric(logits):
        return logits[..., -1, answer].sum() - logits[..., -1, first_ids(PAIR[1])].mean()

    with double_throughout():
        found = score(*hooked_pair(family), PAIR, progress=False).attribution.sel(state="before")
        theirs = analysis.attribution_patch(model, clean, corrupt, metric).node_scores
    heads = np.zeros((N_LAYERS, N_HEADS, corrupt.shape[1]))
    mlps = np.zeros((N_LAYERS, corrupt.shape[1]))
    for node, value in theirs.items():
        if node.kind == "attn_head_out":
            heads[node.layer, node.head, node.position] = -value
        elif node.kind == "mlp_out":
            mlps[node.layer, node.position] = -value
    for part, expected in (("heads", heads), ("mlp", mlps)):
        ours = found[part].isel(prompt=1).values
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
