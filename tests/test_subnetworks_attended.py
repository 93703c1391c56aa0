"""Where heads attend to, against the attention weights of plain Hugging Face models."""

import numpy as np
import pytest
import torch
from helpers import classifiers
from helpers.oracle import ids_of
from helpers.tiny import N_HEADS, N_LAYERS, PROMPTS, hooked_pair, plain_pair

from ecstruct.errors import InputError
from ecstruct.subnetworks import attended
from ecstruct.subnetworks.attended_tokens import KINDS

HEADS = np.zeros((N_LAYERS, N_HEADS), bool)
HEADS[1, 2] = HEADS[0, 1] = True


def kind_of(query: int, key: int, ids: list[int]) -> str:
    if key == query:
        return "the token itself"
    if ids[key] == ids[query]:
        return "the same token"
    if key == 0:
        return "the first token"
    return {-1: "the previous token", 1: "the next token"}.get(key - query, "other tokens")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_shares_are_those_of_the_models_own_attention(family: str) -> None:
    model, plain = hooked_pair(family)[0], plain_pair(family)[0]
    found = attended(model, PROMPTS, HEADS)
    shares = np.zeros((N_LAYERS, N_HEADS, len(KINDS)))
    uniform = np.zeros(len(KINDS))
    plain.set_attn_implementation("eager")
    for prompt in PROMPTS:
        ids = ids_of(prompt)
        with torch.no_grad():
            patterns = plain(ids, output_attentions=True).attentions
        n, tokens = ids.shape[1], ids[0].tolist()
        for query in range(n):
            for key in range(query + 1):
                kind = KINDS.index(kind_of(query, key, tokens))
                uniform[kind] += 1 / (query + 1) / n / len(PROMPTS)
                for layer, pattern in enumerate(patterns):
                    shares[layer, :, kind] += pattern[0, :, query, key].numpy() / n / len(PROMPTS)
    np.testing.assert_allclose(found.shares.values, shares, atol=1e-6)
    np.testing.assert_allclose(found.uniform.values, uniform, atol=1e-12)
    table = found.table().set_index("kind")
    assert table["heads"].tolist() == pytest.approx(shares[HEADS].mean(0).tolist(), abs=1e-6)
    assert table["others"].tolist() == pytest.approx(shares[~HEADS].mean(0).tolist(), abs=1e-6)
    assert "The 2 heads attend to" in found.conclusion()
    assert len(found.figure.data)


def test_words_that_both_texts_of_a_pair_share_are_the_same_token() -> None:
    model, plain = classifiers.hooked_pair("bert")[0], classifiers.plain_pair("bert")[0]
    found = attended(model, classifiers.PROMPTS, HEADS)
    tokenizer, share = classifiers.tokenizer("bert"), np.zeros((N_LAYERS, N_HEADS))
    special = set(tokenizer.all_special_ids)
    plain.set_attn_implementation("eager")
    for prompt in classifiers.PROMPTS:
        read = tokenizer(prompt.text, prompt.second, return_tensors="pt")
        with torch.no_grad():
            patterns = plain(**read, output_attentions=True).attentions
        ids = read["input_ids"][0].tolist()
        for query, token in enumerate(ids):
            for key, other in enumerate(ids):
                if key != query and token == other and token not in special:
                    for layer, pattern in enumerate(patterns):
                        share[layer] += (
                            pattern[0, :, query, key].numpy() / len(ids) / len(classifiers.PROMPTS)
                        )
    assert share.min() > 0.01
    np.testing.assert_allclose(found.shares.sel(kind="the same token").values, share, atol=1e-6)
    np.testing.assert_allclose(found.shares.sum("kind").values, 1, atol=1e-6)


def test_what_cannot_be_compared() -> None:
    model = hooked_pair("llama")[0]
    with pytest.raises(InputError, match=r"heads= are of \(2, 4\)"):
        attended(model, PROMPTS, HEADS[:2])
    with pytest.raises(InputError, match="all heads or none"):
        attended(model, PROMPTS, np.zeros_like(HEADS))
