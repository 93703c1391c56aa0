"""Parts that few architectures have (sinks, activations with weights, MLPs that see all prompts in one row
or write a tuple), each against the plain model."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from helpers.architectures import ARCHITECTURES, N_LAYERS
from helpers.comparisons import CONVENTIONS, of
from helpers.oracle import reward_of
from helpers.tiny import PROMPTS, double_throughout, hooked

from ecstruct import InputError, causal_scores, score
from ecstruct.engine.attention import attention_pattern
from ecstruct.engine.forward import embed
from ecstruct.engine.session import Session
from ecstruct.facts.tokens import collate
from ecstruct.grafting import graft
from ecstruct.grafting.rankings import change_norms
from ecstruct.models.delta import WeightDelta
from ecstruct.models.hooked import HookedView
from ecstruct.scores.relevance import Relevance

PROMPT = PROMPTS[2]


@cache
def plain_model(name):
    return next(a for a in ARCHITECTURES if a.name == name).build()


def changed_in(plain, change):
    """A copy of a plain model in which `change` was called on its layers."""
    after = copy.deepcopy(plain)
    with torch.no_grad():
        for layer in layers_of(after):
            change(layer)
    return after


def layers_of(plain):
    return plain.model.decoder.layers if hasattr(plain.model, "decoder") else plain.model.layers


def noisy(p):
    generator = torch.Generator().manual_seed(3)
    p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def informative(before, after, part, convention):
    """Of the only prompt, [layer, (head)], summed over tokens."""
    scores = score(
        hooked(before), hooked(after), [PROMPT], convention=convention, baseline="zero", progress=False
    )
    return of(scores, "informative", part)[0].sum(-1)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_sink_belongs_to_its_head(convention):
    plain = plain_model("GptOssForCausalLM")
    after = changed_in(plain, lambda layer: noisy(layer.self_attn.sinks))
    with double_throughout():
        found = informative(plain, after, "heads", convention)
        sinks = [layer.self_attn.sinks for layer in layers_of(plain)]
        gradients = torch.autograd.grad(reward_of(plain, PROMPT), sinks)
    moved = [layer.self_attn.sinks for layer in layers_of(after)]
    expected = torch.stack([g * (b - a) for g, a, b in zip(gradients, sinks, moved, strict=True)]).detach()
    np.testing.assert_allclose(found, expected, atol=1e-12 * abs(expected).max())


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_weights_of_an_activation_belong_to_its_mlp(convention):
    def change(layer):
        layer.mlp.act_fn.alpha_p.add_(0.1)
        layer.mlp.act_fn.alpha_n.sub_(0.2)

    plain = plain_model("ApertusForCausalLM")
    after = changed_in(plain, change)
    with double_throughout():
        found = informative(plain, after, "mlp", convention)
        slopes = [p for layer in layers_of(plain) for p in layer.mlp.act_fn.parameters()]
        gradients = torch.cat(torch.autograd.grad(reward_of(plain, PROMPT), slopes))
    expected = (gradients * torch.tensor([0.1, -0.2] * N_LAYERS)).view(N_LAYERS, 2).sum(1)
    np.testing.assert_allclose(found, expected, atol=1e-12 * abs(expected).max())


def test_the_slope_of_a_large_step_through_xielu():
    act = copy.deepcopy(plain_model("ApertusForCausalLM").model.layers[0].mlp.act_fn).requires_grad_(False)
    x = torch.linspace(-3, 3, 40, dtype=torch.float64, requires_grad=True)
    y, rules = act(x), Relevance()
    rules.prepare(y)
    with rules.followed():
        (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, (y / x).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "writer", "weight"),
    [
        ("OPTForCausalLM", "fc2", "weight"),
        ("ApertusForCausalLM", "mlp", "act_fn.alpha_n"),
        ("GptOssForCausalLM", "mlp", "experts.down_proj"),
        ("Llama4ForCausalLM", "feed_forward", "shared_expert.up_proj.weight"),
    ],
)
@pytest.mark.parametrize("layer", [0, 1])
def test_causal_scores_of_such_mlps_are_interventions_on_the_plain_model(name, writer, weight, layer):
    plain = plain_model(name)
    after = changed_in(plain, lambda of: noisy(of.get_submodule(writer).get_parameter(weight)))
    module, new = (layers_of(model)[layer].get_submodule(writer) for model in (plain, after))
    with double_throughout(), torch.no_grad():
        usual = reward_of(plain, PROMPT)
        handle = module.register_forward_hook(lambda _module, args, _output: new.forward(*args))
        expected = float(reward_of(plain, PROMPT) - usual)
        handle.remove()
        found = causal_scores(hooked(plain), hooked(after), [PROMPT], baseline="zero", progress=False)
    assert of(found, "informative")[0, layer] == pytest.approx(expected, rel=1e-9)


def test_the_causal_score_of_a_head_has_its_new_sink():
    plain = plain_model("GptOssForCausalLM")
    after, head = changed_in(plain, lambda layer: noisy(layer.self_attn.sinks)), 2
    alone = copy.deepcopy(plain)
    with torch.no_grad():
        alone.model.layers[1].self_attn.sinks[head] = after.model.layers[1].self_attn.sinks[head]
    with double_throughout(), torch.no_grad():
        expected = float(reward_of(alone, PROMPT) - reward_of(plain, PROMPT))
        found = causal_scores(hooked(plain), hooked(after), [PROMPT], baseline="zero", progress=False)
    assert of(found, "informative", "heads")[0, 1, head] == pytest.approx(expected, rel=1e-9)


def test_a_set_of_weights_has_the_sinks_of_its_heads_but_they_cannot_be_grafted_at_positions():
    plain = plain_model("GptOssForCausalLM")
    after = changed_in(plain, lambda layer: noisy(layer.self_attn.sinks))
    delta, view = WeightDelta.between(hooked(plain), hooked(after)), HookedView(hooked(plain))
    moved = [
        (new.self_attn.sinks - old.self_attn.sinks).detach().abs()
        for new, old in zip(layers_of(after), layers_of(plain), strict=True)
    ]
    norms = np.split(change_norms(view, delta), [view.n_layers])
    assert not norms[0].any()
    np.testing.assert_allclose(norms[1], torch.cat(moved), rtol=1e-12)
    with pytest.raises(InputError, match="sinks"):
        graft(hooked(plain), hooked(after), PROMPTS, progress=False)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_rows_of_the_latents_matrix_count_for_their_heads(convention):
    """Of the matrix that makes keys and values of the latent, each head has rows of its own."""
    plain = plain_model("DeepseekV3ForCausalLM")
    after = changed_in(plain, lambda layer: noisy(layer.self_attn.kv_b_proj.weight))
    with double_throughout():
        found = informative(plain, after, "heads", convention)
        weights = [layer.self_attn.kv_b_proj.weight for layer in layers_of(plain)]
        gradients = torch.autograd.grad(reward_of(plain, PROMPT), weights)
    moved = [layer.self_attn.kv_b_proj.weight for layer in layers_of(after)]
    expected = [(g * (b - a)).detach() for g, a, b in zip(gradients, weights, moved, strict=True)]
    by_head = torch.stack([e.unflatten(0, (4, -1)).sum((1, 2)) for e in expected])
    np.testing.assert_allclose(found, by_head, atol=1e-12 * abs(by_head).max())


def test_the_attention_of_latents_cannot_be_read():
    session = Session.of(hooked(plain_model("DeepseekV3ForCausalLM")))
    embedded = embed(session, collate(session.tokenize([PROMPT]), "cpu", pad_id=0))
    with pytest.raises(InputError, match="keys and values of latents that its heads share"):
        attention_pattern(session, embedded.calls[0], embedded.resid, layer=0)
