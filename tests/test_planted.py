"""Models whose scores are known beforehand: one solved by hand, one with planted components."""

import copy

import numpy as np
import pytest
import torch
from helpers.comparisons import PAPER
from helpers.facts_fixtures import word_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

import ecstruct
from ecstruct import Prompt
from ecstruct.scores.engine import score
from ecstruct.scores.result import ExtractiveScores


def loaded(plain: GPT2LMHeadModel, words: str):
    return ecstruct.load(
        copy.deepcopy(plain), tokenizer=word_tokenizer(words), dtype=torch.float64, device="cpu"
    )


def empty_gpt2(words: str, d_model: int, n_heads: int, n_layers: int, eps: float) -> GPT2LMHeadModel:
    """All weights zero, all norm gains 1, ReLU in the MLPs."""
    config = GPT2Config(
        vocab_size=len(word_tokenizer(words)),
        n_embd=d_model,
        n_inner=4 * d_model,
        n_layer=n_layers,
        n_head=n_heads,
        n_positions=4,
        activation_function="relu",
        layer_norm_epsilon=eps,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    plain = GPT2LMHeadModel(config).to(torch.float64).eval()
    with torch.no_grad():
        for name, p in plain.named_parameters():
            p.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
    return plain


# --- By hand ---
#
# One layer, d_model 4, no bias. All vectors are a h1 + b h2 + c h3, below written (a, b, c), with
#
#     h1 = (1, -1, 1, -1)    h2 = (1, 1, -1, -1)    h3 = (1, -1, -1, 1),
#
# orthogonal, of mean 0 and variance 1, so that a LayerNorm makes (a, b, c) / n, n = sqrt(a² + b² + c²).
#
#     embedding    "x" (1, 0, 0), "y" (-1, 0, 0), "q" (0, 1, 0)
#     head 0       attends uniformly (W_Q = W_K = 0); value V a, written along h3 with factor O
#     MLP          one unit, ReLU of coordinate c, written along h3 with factor m
#     unembedding  logit of "A" is c, of "B" -c; so R = c/n for answer "A", -c/n for "B"
#
# At the last token of "x q": attention adds c = V O / 2, as "q" has a = 0, and LN2 gives (0, 1, c) / n.
#
#                            W                           W'
#     V, O, m                1, 3/2, 35/36               4/3, 2, 4/3
#     after attention        (0, 1, 3/4), n = 5/4        (0, 1, 4/3), n = 5/3
#     entering the MLP       (0, 4/5, 3/5)               (0, 3/5, 4/5)
#     MLP writes             35/36 · 3/5 = 7/12          4/3 · 4/5 = 16/15
#     final                  (0, 1, 4/3), n = 5/3        (0, 1, 12/5), n = 13/5
#     R                      4/5                         12/13
#     g = dR/dc = 1/n³       27/125                      125/2197              at what the MLP writes
#     g_o                    g (1 + 35/36 (4/5)³)        g' (1 + 4/3 (3/5)³)   at what the head writes
#
# g_o: once past the MLP, once through it, where LN2 has slope 1/n³. "y q" has c = -3/4 and -4/3 after
# attention; the MLP's unit is off, so this is also final: R = 3/5, 4/5; g = g_o = -64/125, g' = -27/125.

WORDS = "x y q A B"
BY_HAND = [Prompt("x q", "A", ("A", "B")), Prompt("y q", "B", ("A", "B"))]
H1, H2, H3 = torch.tensor([[1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64)

M, M_NEW = 35 / 36, 4 / 3
G = np.array([27 / 125, -64 / 125])
G_NEW = np.array([125 / 2197, -27 / 125])
G_O = np.array([27 / 125 * (1 + M * 64 / 125), -64 / 125])
G_O_NEW = np.array([125 / 2197 * (1 + M_NEW * 27 / 125), -27 / 125])
SIGN = np.array([1, -1])
"""Of the value and of everything that the head makes of it, for the two prompts."""


def by_hand(v: float, o: float, m: float) -> GPT2LMHeadModel:
    plain = empty_gpt2(WORDS, d_model=4, n_heads=2, n_layers=1, eps=0.0)
    ids = word_tokenizer(WORDS).convert_tokens_to_ids
    block = plain.transformer.h[0]
    with torch.no_grad():
        for word, vector in (("x", H1), ("y", -H1), ("q", H2)):
            plain.transformer.wte.weight[ids(word)] = vector
        block.attn.c_attn.weight[:, 8] = v * H1 / 4  # 8: the first dimension of head 0's value
        block.attn.c_proj.weight[0] = o * H3
        block.mlp.c_fc.weight[:, 0] = H3 / 4
        block.mlp.c_proj.weight[0] = m * H3
        plain.lm_head.weight[ids("A")] = H3 / 4
        plain.lm_head.weight[ids("B")] = -H3 / 4
    return plain


@pytest.fixture(scope="module")
def pair_by_hand():
    return loaded(by_hand(1, 3 / 2, M), WORDS), loaded(by_hand(4 / 3, 2, M_NEW), WORDS)


def assert_is(found, expected) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=1e-14)


def at(scores: ExtractiveScores, kind: str, head: int | None = None, token: int = 1) -> np.ndarray:
    part = scores.mlp if head is None else scores.heads.sel(head=head)
    return part.sel(score=kind, layer=0, token=token).values


@pytest.mark.parametrize("convention", ["definition", "reference"])
def test_a_model_solved_by_hand(pair_by_hand, convention):
    scores = score(*pair_by_hand, BY_HAND, convention=convention, progress=False, **PAPER)
    assert_is(scores.reward, [[4 / 5, 12 / 13], [3 / 5, 4 / 5]])
    # I of the MLP: dm times the unit's value. Of the head: V and O each add a quarter to c:
    # dV O / 2 = 1/3 · 3/2 / 2, V dO / 2 = 1/2 / 2.
    assert_is(at(scores, "informative"), G * [(M_NEW - M) * 3 / 5, 0])
    of_v = of_o = SIGN * G_O / 4
    if convention == "definition":
        assert_is(at(scores, "informative", 0), of_v + of_o)
        assert_is(at(scores, "informative", 0, token=0), [0, 0])
    else:  # W_V multiplies at the token it reads
        assert_is(at(scores, "informative", 0), of_o)
        assert_is(at(scores, "informative", 0, token=0), of_v)
    # D: the MLP under W sees 4/5 where it saw 3/5; the head sees the embedding, which is the same.
    assert_is(at(scores, "downstream"), G * [M * (4 / 5 - 3 / 5), 0])
    assert_is(at(scores, "downstream", 0), [0, 0])
    # U: y* is what the other prompt gives.
    assert_is(at(scores, "upstream"), (G_NEW - G) * [7 / 12 - 0, 0 - 7 / 12])
    if convention == "definition":  # y is ± 3/4 along h3
        assert_is(at(scores, "upstream", 0), (G_O_NEW - G_O) * SIGN * (3 / 4 + 3 / 4))
    else:  # z is ± 1/2, and each gradient reaches it through its own O
        assert_is(at(scores, "upstream", 0), (2 * G_O_NEW - 3 / 2 * G_O) * SIGN * (1 / 2 + 1 / 2))
    # Nothing else: the first token is not read, head 1 is empty, other weights do not change.
    for kind in ("informative", "upstream", "downstream"):
        assert_is(at(scores, kind, token=0), [0, 0])
        for token in (0, 1):
            assert_is(at(scores, kind, 1, token), [0, 0])
    assert_is(scores.rest.sum("group"), [0, 0])


def test_baselines_by_hand(pair_by_hand):
    for baseline, y_star in (("zero", 0), ("mean", 7 / 24)):  # the mean of 7/12 and 0; of ± 3/4 it is 0
        scores = score(*pair_by_hand, BY_HAND, baseline=baseline, progress=False, **PAPER)
        assert_is(at(scores, "upstream"), (G_NEW - G) * [7 / 12 - y_star, 0 - y_star])
        assert_is(at(scores, "upstream", 0), (G_O_NEW - G_O) * SIGN * 3 / 4)


# --- Planted ---

ENTITIES, CITIES = ("Ada", "Bob", "Cyd", "Dov"), ("Rome", "Oslo", "Lima", "Bern")
PLANTED_WORDS = " ".join((*ENTITIES, "is", "from", *CITIES))
PLANTED = [Prompt(f"{e} is from", c, CITIES) for e, c in zip(ENTITIES, CITIES, strict=True)]
N = len(ENTITIES)
ENTITY, MOVED, CODE, OUT = (slice(i * N, (i + 1) * N) for i in range(4))
"""Dimensions of the residual stream: who is named here; who was named before; which fact was recalled;
which city is said."""


def planted(knows: bool, noise: float, seed: int) -> GPT2LMHeadModel:
    """Three layers of noise, in which head 2 of layer 0 brings the entity to later tokens, the MLP of
    layer 1 `knows` where each comes from, and the MLP of layer 2 says what was recalled."""
    plain = empty_gpt2(PLANTED_WORDS, d_model=32, n_heads=4, n_layers=3, eps=1e-5)
    ids = word_tokenizer(PLANTED_WORDS).convert_tokens_to_ids
    eye = torch.eye(N, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    first, second, third = plain.transformer.h
    with torch.no_grad():
        for word in ("is", "from"):  # a length that keeps the norms from saturating
            plain.transformer.wte.weight[ids(word), -1] = 5.0
        for i, (entity, city) in enumerate(zip(ENTITIES, CITIES, strict=True)):
            plain.transformer.wte.weight[ids(entity), i] = 1.0
            plain.lm_head.weight[ids(city), OUT.start + i] = 1.0
        value = 64 + 2 * 8  # of head 2, which has 8 dimensions
        first.attn.c_attn.weight[ENTITY, value : value + N] = eye
        first.attn.c_proj.weight[2 * 8 : 2 * 8 + N, MOVED] = eye
        second.mlp.c_fc.weight[MOVED, :N] = eye
        if knows:
            second.mlp.c_proj.weight[:N, CODE] = eye
        third.mlp.c_fc.weight[CODE, :N] = eye
        third.mlp.c_fc.bias[:N] = 0.2
        third.mlp.c_proj.weight[:N, OUT] = eye
        for p in plain.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        change = torch.Generator().manual_seed(seed + 1)
        for p in plain.parameters():
            p.add_(noise * torch.randn(p.shape, generator=change, dtype=torch.float64))
    return plain


@pytest.mark.parametrize("convention", ["definition", "reference"])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_score_ranks_its_planted_component_first(seed, convention):
    before, after = planted(False, 0.0, seed), planted(True, 0.002, seed)
    scores = score(
        loaded(before, PLANTED_WORDS),
        loaded(after, PLANTED_WORDS),
        PLANTED,
        convention=convention,
        progress=False,
    )
    assert (scores.reward.sel(state="after") > scores.reward.sel(state="before") + 0.5).all()
    expected = {"informative": ("mlp", 1), "upstream": ("head", 0, 2), "downstream": ("mlp", 2)}
    for kind, planted_here in expected.items():
        values = {}
        for layer in range(3):
            here = {"score": kind, "layer": layer}
            values["mlp", layer] = scores.mlp.sel(here).sum("token").mean("prompt").item()
            for head in range(4):
                of_head = scores.heads.sel({**here, "head": head})
                values["head", layer, head] = of_head.sum("token").mean("prompt").item()
        first, second, *_ = sorted(values, key=lambda component: -abs(values[component]))
        assert first == planted_here
        assert values[first] > 20 * abs(values[second])
