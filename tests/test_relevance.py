"""The rules of relevance, against plain models into which they are written by hand, and against what they
are to conserve."""

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from helpers import oracle, tiny
from helpers.comparisons import HEADS, LAYERS, assert_same, of, padded, runs, scored, split
from helpers.interventions import baseline_value
from helpers.oracle import blocks, head_columns, outside, watch
from helpers.tiny import (
    FAMILIES,
    N_LENGTHS,
    OTHERS,
    PROMPTS,
    SHAPES,
    double_throughout,
    hooked,
    hooked_pair,
    plain_pair,
)
from torch import nn
from torch.nn import functional

from ecstruct import InputError, score
from ecstruct.models.hooked import HookedView
from ecstruct.scores.relevance import Relevance

pytestmark = pytest.mark.tl3


# --- The rules by hand ---


def held_norm(norm):
    """x / s(x), s detached; of a layer norm x has lost its mean."""

    def forward(x):
        centred = x if "RMS" in type(norm).__name__ else x - x.mean(-1, keepdim=True)
        eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", 1e-5))  # OLMo has it in its code
        normed = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt().detach()
        gain, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
        if "Gemma" in type(norm).__name__:
            gain = 1 + gain
        return (normed if gain is None else gain * normed) + (0 if bias is None else bias)

    return forward


def held_quotient(f):
    return lambda x: x * (f(x) / x).detach()


def half_each(a, b):
    return 0.5 * a * b.detach() + 0.5 * a.detach() * b


def gated(mlp):
    act = held_quotient(mlp.act_fn)
    return lambda x: mlp.down_proj(half_each(act(mlp.gate_proj(x)), mlp.up_proj(x)))


def clipped(project, bound):
    clip = held_quotient(lambda x: x.clamp(-bound, bound))
    return lambda x: clip(project(x))


def by_hand(plain):
    """A copy of a plain model whose backward pass follows the rules."""
    plain = copy.deepcopy(plain)
    for module in plain.modules():
        if "Norm" in type(module).__name__:
            module.forward = held_norm(module)
    for block in blocks(plain):
        if hasattr(block.mlp, "gate_proj"):
            block.mlp.forward = gated(block.mlp)
        else:
            act = getattr(block.mlp, "act", None) or block.mlp.activation_fn
            act.forward = held_quotient(act.forward)
        if bound := getattr(plain.config, "clip_qkv", None):
            block.attn.v_proj.forward = clipped(block.attn.v_proj.forward, bound)
    return plain


@contextmanager
def held_functions():
    """Attention patterns are detached, soft-caps have their quotient held."""
    softmax, tanh = functional.softmax, torch.tanh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "softmax", lambda *args, **kwargs: softmax(*args, **kwargs).detach())
        patch.setattr(torch, "tanh", held_quotient(tanh))
        yield


@contextmanager
def on_the_residual_stream_of(old, plain):
    """Every block and the final norm of a plain model get the values that they got in another run; what
    they pass back goes on as ever."""

    def put_in(value):
        def hook(_module, args, kwargs):
            x = args[0] if args else kwargs["hidden_states"]
            given = value.detach() + (x - x.detach())
            return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": given})

        return hook

    stack = next(m for m in plain.modules() if isinstance(m, nn.ModuleList) and len(m) == tiny.N_LAYERS)
    modules = [*stack, outside(plain)["ln_final"]]
    handles = [
        module.register_forward_pre_hook(put_in(value), with_kwargs=True)
        for module, value in zip(modules, old, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def entering_blocks(plain, prompt):
    """What enters every block, and the final norm."""
    seen = []
    stack = next(m for m in plain.modules() if isinstance(m, nn.ModuleList) and len(m) == tiny.N_LAYERS)
    handles = [
        m.register_forward_pre_hook(
            lambda _m, args, kwargs: seen.append((args or [kwargs["hidden_states"]])[0].detach()),
            with_kwargs=True,
        )
        for m in (*stack, outside(plain)["ln_final"])
    ]
    with torch.no_grad():
        oracle.reward_of(plain, prompt)
    for handle in handles:
        handle.remove()
    return seen


def slopes(family, upstream):
    """By prompt: what `watch` sees under W and under W', backward passes following the rules."""
    before, after = (by_hand(plain) for plain in plain_pair(family))
    found = []
    with double_throughout():
        for prompt in PROMPTS[:N_LENGTHS]:
            old = entering_blocks(plain_pair(family)[0], prompt)
            with held_functions():
                early = watch(before, prompt)[1]
                if upstream == "local":
                    with on_the_residual_stream_of(old, after):
                        late = watch(after, prompt)[1]
                else:
                    late = watch(after, prompt)[1]
            found.append((early, late))
    return found


def expected(family, upstream, convention="definition"):
    """U of MLPs and heads, from those slopes."""
    u_mlps, u_heads = [[] for _ in range(N_LENGTHS)], [[] for _ in range(N_LENGTHS)]
    seen = slopes(family, upstream)
    for layer in LAYERS:
        o = blocks(plain_pair(family)[0])[layer].o
        all_z = [old[layer, "o"].input.detach()[0] for old, _ in runs(family)]
        all_y = [old[layer, "mlp"].output.detach()[0] for old, _ in runs(family)]
        for i, (early, late) in enumerate(seen):
            y = all_y[i] - baseline_value("counterfactual", i, all_y)
            z = split(all_z[i][None]) - split(baseline_value("counterfactual", i, all_z)[None])
            d_mlp = late[layer, "mlp"].output.grad[0] - early[layer, "mlp"].output.grad[0]
            d_o = late[layer, "o"].output.grad[0] - early[layer, "o"].output.grad[0]
            if convention == "definition":
                d_z = torch.stack([d_o @ head_columns(o, o.weight.detach(), head) for head in HEADS])
            else:
                d_z = split(late[layer, "o"].input.grad - early[layer, "o"].input.grad)
            u_mlps[i].append((d_mlp * y).sum(-1))
            u_heads[i].append((d_z * z).sum(-1))
    return padded([torch.stack(u) for u in u_mlps]), padded([torch.stack(u) for u in u_heads])


@pytest.mark.parametrize(
    ("family", "upstream"),
    [*((family, "local") for family in (*FAMILIES, "phi")), *((f, "surrogate") for f in SHAPES)],
)
def test_upstream_scores_follow_the_rules_written_by_hand(family, upstream):
    mlps, heads = expected(family, upstream)
    with double_throughout():
        scores = scored(family, upstream=upstream)
    assert_same(of(scores, "upstream")[:N_LENGTHS], mlps, 1e-9)
    assert_same(of(scores, "upstream", "heads")[:N_LENGTHS], heads, 1e-9)


@pytest.mark.parametrize("family", ["olmo", "gptj"])
def test_the_reference_convention_takes_slopes_at_z(family):
    _, heads = expected(family, "local", "reference")
    with double_throughout():
        scores = scored(family, convention="reference")
    assert_same(of(scores, "upstream", "heads")[:N_LENGTHS], heads, 1e-9)


# --- What they conserve, and what they leave alone ---


def without_biases(family):
    plain = copy.deepcopy(plain_pair(family)[0])
    with torch.no_grad():
        for name, p in plain.named_parameters():
            if name.endswith("bias"):
                p.zero_()
    return hooked(plain)


@pytest.mark.parametrize("family", FAMILIES + OTHERS)
def test_what_leaves_a_block_comes_from_what_enters_it(family):
    """As a linear model says all of its output by its input: sum of x d_x is that of y d_y. But for clipped
    queries and keys, which make no difference, this needs biases of zero."""
    with double_throughout():
        view = HookedView(without_biases(family))
        weights = view.weights()
        ids = oracle.ids_of(PROMPTS[2])
        trace, calls = view.embed(weights, ids, torch.ones_like(ids))
        for layer in LAYERS:
            leaf = trace.output.detach().requires_grad_()
            trace = view.block(layer, weights, calls[layer], leaf)
            rules = Relevance()
            rules.prepare(trace.output)
            d_output = torch.randn(trace.output.shape, generator=torch.Generator().manual_seed(layer))
            d_output = d_output.to(trace.output)
            with rules.followed():
                (d_leaf,) = torch.autograd.grad(trace.output, leaf, d_output, retain_graph=True)
            (gradient,) = torch.autograd.grad(trace.output, leaf, d_output)
            whole = (trace.output * d_output).sum().item()
            assert (leaf * d_leaf).sum().item() == pytest.approx(whole, rel=1e-10)
            assert abs((leaf * gradient).sum().item() - whole) > 1e-3 * abs(whole)


@pytest.mark.parametrize("family", SHAPES)
def test_nothing_else_depends_on_them(family):
    ruled, plain = (scored(family, propagation=way) for way in ("relevance", "gradient"))
    for kind in ("informative", "downstream"):
        for part in ("mlp", "heads"):
            np.testing.assert_array_equal(of(ruled, kind, part), of(plain, kind, part))
    for part in ("reward", "rest", "attribution_mlp", "attribution_heads"):
        np.testing.assert_array_equal(ruled.dataset[part].values, plain.dataset[part].values)
    assert np.abs(of(ruled, "upstream") - of(plain, "upstream")).max() > 1e-3


@pytest.mark.parametrize(
    "f", ["silu", "gelu", "gelu_new", "quick_gelu", "relu", "relu2", "gelu_pytorch_tanh"]
)
def test_activations_have_their_quotient_held_however_they_are_written(f):
    from transformers.activations import ACT2FN

    x = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    entering = 2 * x
    y = ACT2FN[f](entering)
    rules = Relevance()
    rules.prepare(y)
    with rules.followed():
        (d_x,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    quotient = torch.where(x == 0, gradient, y / x)
    torch.testing.assert_close(d_x, quotient.detach(), atol=1e-12, rtol=0)


def test_an_operation_without_a_rule_is_named():
    plain = copy.deepcopy(plain_pair("llama")[0])
    plain.config.hidden_act = "laplace"
    other = type(plain)(plain.config).double().eval()
    other.load_state_dict(plain.state_dict())
    pair = hooked(other), hooked(tiny.perturb(other))
    with pytest.raises(InputError, match=r"without a rule of relevance \(ErfBackward0\).*'gradient'"):
        score(*pair, PROMPTS, progress=False)
    assert np.isfinite(of(score(*pair, PROMPTS, propagation="gradient", progress=False), "upstream")).all()


@pytest.mark.parametrize("option", ["upstream", "propagation"])
def test_unknown_options_are_named(option):
    with pytest.raises(InputError, match=f"{option}='lrp': it should be"):
        score(*hooked_pair("llama"), PROMPTS, progress=False, **{option: "lrp"})
