"""Classifiers against plain transformers: what they read, and what they give."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from helpers import classifiers as c
from helpers.classifiers import DECODERS, ENCODERS, LABELS, PROMPTS

import ecstruct
from ecstruct import Prompt
from ecstruct.engine.session import Session
from ecstruct.facts.tokens import collate
from ecstruct.subnetworks import Masks, reference_values
from ecstruct.subnetworks.running import GatedModel

KINDS = (*ENCODERS, *DECODERS)
SINGLE = [Prompt("ada knows bo", "no"), Prompt("bo sees nobody often", "maybe"), Prompt("cy", "yes")]


@pytest.mark.parametrize("prompts", [PROMPTS, SINGLE, [*PROMPTS, *SINGLE]], ids=["pairs", "texts", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_ranks_are_those_of_transformers(kind, prompts):
    model = c.hooked_pair(kind)[0]
    session = Session.of(model)
    tokenized = session.tokenize([replace(p, options=LABELS) for p in prompts])
    batch = collate(tokenized, "cpu", 0)
    found = model(batch.ids, attention_mask=batch.mask, return_type="logits")
    read = found[torch.arange(len(prompts)), batch.read]
    for row, prompt in enumerate(prompts):
        expected = c.logits(c.plain_pair(kind)[0], prompt, kind)
        torch.testing.assert_close(read[row], expected, rtol=1e-6, atol=1e-6)
    ranks = [(row > row[t.answer_ids[0]]).sum().item() for row, t in zip(read, tokenized, strict=True)]
    for size in (1, 2, 64):
        assert ecstruct.ranks(model, [t.prompt for t in tokenized], batch_size=size).tolist() == ranks
    assert ecstruct.ranks(model, [t.prompt for t in tokenized], answer_tokens="all").tolist() == ranks


@pytest.mark.parametrize("kind", c.OTHERS)
def test_decoders_of_other_families_are_read_as_transformers_reads_them(kind):
    model, plain = c.hooked_pair(kind)[0], c.plain_pair(kind)[0]
    gated = GatedModel(model, reference_values(model, PROMPTS, ablation="zero"))
    for prompt in PROMPTS:  # in a batch, transformers makes NaN of padding that is longer than the window
        batch = collate(gated.session.tokenize([prompt]), "cpu", 0)
        found = gated.logits(gated.embed(batch))[0]
        torch.testing.assert_close(found, c.logits(plain, prompt, kind), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_ends_with_padding_is_read_as_transformers_reads_it(kind):
    prompt = Prompt("ada knows bo [PAD]", "no", LABELS)
    model, plain = c.hooked_pair(kind)[0], c.plain_pair(kind)[0]
    batch = collate(Session.of(model).tokenize([prompt]), "cpu", 0)
    found = model(batch.ids, attention_mask=batch.mask, return_type="logits")[0, batch.read[0]]
    torch.testing.assert_close(found, c.logits(plain, prompt, kind), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ablation", ["mean", "zero"])
@pytest.mark.parametrize("kind", KINDS)
def test_subnetworks_are_runs_with_components_replaced(kind, ablation):
    plain, model = c.plain_pair(kind)[0], c.hooked_pair(kind)[0]
    rng = np.random.default_rng(0)
    heads, mlp = rng.random((1, c.N_LAYERS, c.N_HEADS)) < 0.5, rng.random((1, c.N_LAYERS)) < 0.5
    seen: dict[tuple[int, str], list[torch.Tensor]] = {}

    def note(key):
        return lambda x: (seen.setdefault(key, []).append(x[0].detach()), x)[1]

    for prompt in PROMPTS:
        every = range(c.N_LAYERS)
        c.run_with(
            plain,
            lambda prompt=prompt: c.logits(plain, prompt, kind),
            {layer: note((layer, "z")) for layer in every},
            {layer: note((layer, "y")) for layer in every},
        )
    scale = float(ablation == "mean")
    means = {key: scale * torch.cat(values).mean(0) for key, values in seen.items()}
    reference = reference_values(model, PROMPTS, ablation=ablation)
    gated = GatedModel.of(model, Masks.of(heads, mlp, reference=reference))
    batch = collate(gated.session.tokenize(PROMPTS), "cpu", 0)
    with torch.no_grad():
        found = gated.logits(gated.embed(batch), gated.gates(heads, mlp).each(len(PROMPTS)))

    def replaced(layer):
        kept = torch.from_numpy(heads[0, layer]).repeat_interleave(c.D_HEAD)
        return lambda z: torch.where(kept, z, means[layer, "z"])

    for row, prompt in enumerate(PROMPTS):
        expected = c.run_with(
            plain,
            lambda prompt=prompt: c.logits(plain, prompt, kind),
            {layer: replaced(layer) for layer in range(c.N_LAYERS)},
            {
                layer: lambda y, layer=layer: means[layer, "y"].expand_as(y)
                for layer in range(c.N_LAYERS)
                if not mlp[0, layer]
            },
        )
        torch.testing.assert_close(found[row], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gates_are_those_of_transformers(kind):
    plain, model = c.plain_pair(kind)[0], c.hooked_pair(kind)[0]
    gated = GatedModel(model, reference_values(model, PROMPTS, ablation="zero"))
    ones = gated.gates(np.ones((1, c.N_LAYERS, c.N_HEADS), bool), np.ones((1, c.N_LAYERS), bool))
    for gates in vars(ones).values():
        gates.requires_grad_()
    batch = collate(gated.session.tokenize(PROMPTS[:1]), "cpu", 0)
    found = torch.autograd.grad(gated.logits(gated.embed(batch), ones)[0, 0], [ones.heads, ones.mlp])
    z = torch.ones(c.N_LAYERS, c.N_HEADS, dtype=torch.float64, requires_grad=True)
    y = torch.ones(c.N_LAYERS, dtype=torch.float64, requires_grad=True)
    logit = c.run_with(
        plain,
        lambda: c.logits(plain, PROMPTS[0], kind)[0],
        {i: lambda x, i=i: x * z[i].repeat_interleave(c.D_HEAD) for i in range(c.N_LAYERS)},
        {i: lambda x, i=i: x * y[i] for i in range(c.N_LAYERS)},
    )
    for ours, theirs in zip(found, torch.autograd.grad(logit, [z, y]), strict=True):
        torch.testing.assert_close(ours[0], theirs, rtol=1e-6, atol=1e-8)


# --- Scores ---


@pytest.mark.parametrize("kind", KINDS)
def test_informative_scores_sum_to_the_gradient_along_the_change(kind):
    before, after = c.plain_pair(kind)
    scores = ecstruct.score(*c.hooked_pair(kind), PROMPTS, progress=False)
    trained = copy.deepcopy(before).requires_grad_()
    for i, prompt in enumerate(PROMPTS):
        r = c.reward(trained, prompt, kind)
        assert scores.reward.sel(state="before")[i].item() == pytest.approx(r.item(), abs=1e-6)
        of = torch.autograd.grad(r, list(trained.parameters()), allow_unused=True)
        pairs = zip(before.parameters(), after.parameters(), of, strict=True)
        total = sum(((w - v) * g).sum().item() for v, w, g in pairs if g is not None)
        ours = (
            sum(
                its.sel(score="informative").isel(prompt=i).sum().item()
                for its in (scores.mlp, scores.heads)
            )
            + scores.rest.isel(prompt=i).sum().item()
        )
        assert ours == pytest.approx(total, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("convention", ["definition", "reference"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_downstream_scores_of_an_encoder_are_slopes_times_new_inputs(kind, convention):
    """D of an MLP: its gradient times f(z') - f(z), with z and z' what it read under W and W'."""
    before, after = c.plain_pair(kind)
    scores = ecstruct.score(*c.hooked_pair(kind), PROMPTS, convention=convention, progress=False)
    found = scores.mlp.sel(score="downstream")
    for i, prompt in enumerate(PROMPTS):
        for layer in range(c.N_LAYERS):
            block = before.base_model.encoder.layer[layer]
            reward, _, old = _through_mlp(before, layer, prompt, kind)
            slope = torch.autograd.grad(reward, old)[0]
            _, new, _ = _through_mlp(after, layer, prompt, kind)
            moved = block.output.dense(block.intermediate(new)) - old
            expected = (slope * moved).sum(-1)[0].detach().numpy()
            ours = found.isel(prompt=i, layer=layer).values[: len(expected)]
            np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-8)


def _through_mlp(plain, layer, prompt, kind):
    """Return the reward, and what an MLP reads and writes on the way to it."""
    block, seen = plain.base_model.encoder.layer[layer], {}
    handles = [
        block.intermediate.register_forward_pre_hook(lambda _, args: seen.update(read=args[0])),
        block.output.dense.register_forward_hook(lambda _m, _a, y: seen.update(written=y)),
    ]
    reward = c.reward(plain, prompt, kind)
    for handle in handles:
        handle.remove()
    return reward, seen["read"], seen["written"]


@pytest.mark.parametrize("kind", ENCODERS)
def test_causal_scores_of_an_encoder_are_interventions(kind):
    before, after = c.plain_pair(kind)
    found = ecstruct.causal_scores(
        *c.hooked_pair(kind), PROMPTS, kinds=("informative", "upstream"), baseline="zero", progress=False
    )
    layer, head = 1, 2
    new = copy.deepcopy(before)
    mine, other = (m.base_model.encoder.layer[layer] for m in (new, after))
    for part in ("intermediate", "output"):
        getattr(mine, part).dense.load_state_dict(getattr(other, part).dense.state_dict())
    late = copy.deepcopy(before)  # all that comes after the head has its new weights
    for its, theirs in zip(
        late.base_model.encoder.layer[layer:], after.base_model.encoder.layer[layer:], strict=True
    ):
        if its is late.base_model.encoder.layer[layer]:
            its.attention.output.LayerNorm.load_state_dict(theirs.attention.output.LayerNorm.state_dict())
            its.intermediate.load_state_dict(theirs.intermediate.state_dict())
            its.output.load_state_dict(theirs.output.state_dict())
        else:
            its.load_state_dict(theirs.state_dict())
    late.classifier.load_state_dict(after.classifier.state_dict())
    if kind == "bert":
        late.bert.pooler.load_state_dict(after.bert.pooler.state_dict())

    def without(plain: Any, prompt: Prompt) -> float:
        columns = slice(head * c.D_HEAD, (head + 1) * c.D_HEAD)

        def zeroed(z: torch.Tensor) -> torch.Tensor:
            z = z.clone()
            z[..., columns] = 0
            return z

        return c.run_with(plain, lambda: c.reward(plain, prompt, kind), {layer: zeroed}, {}).item()

    for i, prompt in enumerate(PROMPTS):
        r = c.reward(before, prompt, kind).item()
        informative = c.reward(new, prompt, kind).item() - r
        ours = found.mlp.sel(score="informative").isel(prompt=i, layer=layer).item()
        assert ours == pytest.approx(informative, rel=1e-6, abs=1e-8)
        upstream = (
            c.reward(late, prompt, kind).item() - without(late, prompt) - (r - without(before, prompt))
        )
        ours = found.heads.sel(score="upstream").isel(prompt=i, layer=layer, head=head).item()
        assert ours == pytest.approx(upstream, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("kind", DECODERS)
def test_scores_of_a_decoder_are_those_of_the_language_model_with_its_head(kind):
    """A language model whose unembedding has the head's rows for the labels' words scores the same."""
    models = []
    for plain in c.plain_pair(kind):
        causal = c.build(kind, hf.AutoModelForCausalLM, tie_word_embeddings=False)
        causal.base_model.load_state_dict(plain.base_model.state_dict())
        rows = c.tokenizer(kind).convert_tokens_to_ids(list(LABELS))
        with torch.no_grad():
            causal.lm_head.weight.zero_()
            causal.lm_head.weight[rows] = plain.score.weight
        models.append(c.hooked(causal, kind))
    theirs = [Prompt(p.text, p.answer, LABELS) for p in SINGLE]
    both: tuple[Any, ...] = (ecstruct.score, ecstruct.causal_scores)
    for of in both:
        ours, expected = (
            of(*pair, prompts, progress=False)
            for pair, prompts in ((c.hooked_pair(kind), SINGLE), (models, theirs))
        )
        for name in ("mlp", "heads", "reward"):
            np.testing.assert_allclose(
                getattr(ours, name), getattr(expected, name), rtol=1e-6, atol=1e-9, equal_nan=True
            )
