import copy
import gc
import weakref

import pytest
import torch
from helpers.facts_fixtures import FACTS, hugging_face
from helpers.folders import FAMILIES, save
from helpers.tiny import OTHERS, SHAPES, hooked_pair, plain_pair, tokenizer
from torch import nn
from transformer_lens.model_bridge import TransformerBridge

import ecstruct
from ecstruct.errors import InputError
from ecstruct.models import HookedView, components, load
from ecstruct.models.boot import kept_as_is
from ecstruct.models.bridge import copy_of, named_weights
from ecstruct.models.fingerprint import fingerprint

IDS = torch.tensor([[4, 7, 5, 9, 3, 8, 6], [11, 5, 4, 3, 10, 6, 7]])


@pytest.fixture
def llama(tmp_path):
    return load(save(tmp_path), device="cpu")


def logits(model):
    with torch.no_grad():
        return model(IDS, return_type="logits", use_cache=False)


def test_a_plain_model_is_refused(tmp_path):
    hf = hugging_face(save(tmp_path))
    with pytest.raises(InputError, match=r"LlamaForCausalLM is no TransformerBridge: load it with ecstr"):
        HookedView(hf)
    with pytest.raises(InputError, match="is no TransformerBridge"):
        ecstruct.score(hf, hf, FACTS)


@pytest.mark.parametrize("family", [*SHAPES, *OTHERS])
def test_hooks_are_those_that_transformer_lens_finds_by_itself(family):
    """It is spared to look for some within hooks."""
    plain = copy.deepcopy(plain_pair(family)[0])
    plain.config.architectures = [type(plain).__name__]
    own = TransformerBridge.boot_transformers(
        family, hf_model=plain, tokenizer=kept_as_is(tokenizer()), device="cpu", dtype=plain.dtype
    )
    found, expected = (
        {name: hook.name for name, hook in m._hook_registry.items()} for m in (hooked_pair(family)[0], own)
    )
    assert found == expected and len(found) > 50


def test_folded_weights_are_refused(llama):
    llama.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(InputError, match=r"is in compatibility mode.*with ecstruct\.load"):
        HookedView(llama)


@pytest.mark.parametrize(
    ("part", "name"), [("attn", "q"), ("attn", "k"), ("attn", "v"), ("attn", "o"), ("mlp", "out")]
)
def test_a_model_without_a_hook_point_is_refused_in_one_sentence(llama, part, name):
    component = getattr(getattr(llama.blocks[1], part), name)
    for parameter in list(component.original_component._parameters):
        component.original_component._parameters[parameter] = None
    with pytest.raises(InputError) as caught:
        HookedView(llama)
    assert str(caught.value) == (
        f"layer 1 of this LlamaForCausalLM has no {part}.{name} with weights, without which heads and MLPs "
        "cannot be told apart: use another architecture."
    )


def test_a_pre_norm_of_attention_alone_is_refused(llama):
    del llama.blocks[0]._modules["ln2"]
    with pytest.raises(InputError, match="layer 0 of this LlamaForCausalLM has a pre-norm for one of"):
        HookedView(llama)


def test_weights_of_no_component_are_refused(llama, monkeypatch):
    monkeypatch.setattr(components, "_BLOCK_SITES", (*components._REQUIRED, "ln1"))
    with pytest.raises(InputError, match="layer 0 of this LlamaForCausalLM has weights in ln2, which"):
        HookedView(llama)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, of jvp
@pytest.mark.parametrize("family", FAMILIES)
def test_a_product_is_the_derivative_along_the_change(tmp_path, family):
    view = HookedView(load(save(tmp_path, family), device="cpu", dtype=torch.float64))
    generator = torch.Generator().manual_seed(4)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    checked = set()
    for sites in (*view.block_sites, view.head_sites, view.embed_sites):
        for name, site in sites.items():
            own = {here: p.detach() for here, p in site.module.named_parameters()}
            if isinstance(site.module, nn.Embedding):
                x = torch.tensor([[1, 5, 2]])
            elif "norm" in type(site.module).__name__.lower():
                x = random(2, 3, own["weight"].numel())
            else:
                x = random(2, 3, site.matrix(own_names(site, own)).shape[1])
            along = {here: random(*p.shape) for here, p in own.items()}
            _, expected = torch.func.jvp(
                lambda w, site=site, x=x: torch.func.functional_call(site.module, w, (x,)), (own,), (along,)
            )
            found = site.product(x, own_names(site, along))
            # Some norms compute in float32 whatever the weights are.
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            checked.add(name)
            bias = own_names(site, along).get(site.weights.get("bias", ""))
            if bias is not None and len(along) == 2:
                alone = site.product(x, {site.weights["bias"]: bias})
                torch.testing.assert_close(alone, bias.expand_as(alone), rtol=1e-5, atol=1e-5)
    assert {*components._REQUIRED, "mlp.in", "ln1", "unembed", "embed"} <= checked


def own_names(site, tensors):
    """Tensors by the names that the whole model has for them."""
    return {name: tensors[here] for here, name in site.weights.items()}


def test_where_nothing_changes_there_is_no_product(llama):
    site = HookedView(llama).block_sites[0]["attn.q"]
    assert site.product(torch.ones(1, 1, 32), {"blocks.1.attn.q.weight": torch.ones(32, 32)}) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_after_a_forward_shares_nothing(tmp_path, family):
    model = load(save(tmp_path, family), device="cpu")
    expected = logits(model)  # from now on TransformerLens has hooks of its own in every block
    twin = copy_of(model)
    owned = {p.data_ptr() for p in named_weights(model).values()}
    assert owned.isdisjoint(p.data_ptr() for p in named_weights(twin).values())
    assert {id(m) for m in model.modules()}.isdisjoint(id(m) for m in twin.modules())
    assert torch.equal(logits(twin), expected)

    was = fingerprint(named_weights(model))
    with torch.no_grad():
        for p in named_weights(twin).values():
            p.mul_(1.5)
    moved = logits(twin)
    assert not torch.allclose(moved, expected)
    assert torch.equal(logits(model), expected) and fingerprint(named_weights(model)) == was
    assert torch.equal(logits(twin), moved)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_copied_after_a_run_with_gradients(tmp_path, family):
    """Some attention keeps the pattern of its last run, and a tensor in a graph cannot be copied."""
    model = load(save(tmp_path, family), device="cpu")
    loss = model(IDS, return_type="logits", use_cache=False).sum()
    assert loss.requires_grad
    assert torch.equal(logits(copy_of(model)), logits(model))
    ecstruct.score(model, model, FACTS, path_steps=2, progress=False)  # its last block is run with a graph
    copy_of(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_of_a_copy_fire_in_the_copy_only(tmp_path, family):
    model = load(save(tmp_path, family), device="cpu")
    logits(model)
    twin = copy_of(model)
    seen = []

    def fresh(_module, _args, output):
        seen.append("twin")
        return output

    twin.blocks[0].attn.register_forward_hook(fresh)
    logits(model)
    assert seen == []
    logits(twin)
    assert seen == ["twin"]


def test_hook_points_are_copied_as_python_copies_them(llama):
    llama.blocks[0].hook_resid_pre.ctx["seen"] = [0]
    found, expected = (
        {
            (name, key): value if isinstance(value, dict | list | str) else type(value)
            for name, hook in m.hook_dict.items()
            for key, value in vars(hook).items()
        }
        for m in (copy_of(llama), copy.deepcopy(llama))
    )
    assert [*found] == [*expected] and found == expected
    for (name, key), value in found.items():
        assert value is not getattr(llama.hook_dict[name], key) or isinstance(value, str), (name, key)


def test_the_original_can_be_let_go_while_a_copy_lives(tmp_path):
    model = load(save(tmp_path), device="cpu")
    logits(model)
    twin = copy_of(model)
    attention = weakref.ref(model.blocks[0].attn)
    expected = logits(model)
    del model
    gc.collect()
    assert attention() is None, "a hook of the copy still points at the original"
    assert torch.equal(logits(twin), expected)


def test_a_model_can_be_ranked_finetuned_and_copied_again(llama):
    expected = logits(llama)
    rank = ecstruct.mean_rank(llama, FACTS)
    tuned = ecstruct.finetune(llama, FACTS, lr=1e-2, epochs=2, progress=False).model
    ecstruct.mean_rank(tuned, FACTS)
    again = copy_of(tuned)
    assert torch.equal(logits(again), logits(tuned))
    assert not torch.allclose(logits(again), expected)
    assert torch.equal(logits(copy_of(llama)), expected) and torch.equal(logits(llama), expected)
    assert ecstruct.mean_rank(copy_of(llama), FACTS) == rank
    second = ecstruct.finetune(again, FACTS, lr=1e-2, epochs=1, progress=False).model
    assert torch.equal(logits(again), logits(tuned)) and not torch.equal(logits(second), logits(tuned))


@pytest.mark.parametrize("family", FAMILIES)
def test_looking_at_a_model_leaves_it_as_it_was(tmp_path, family):
    model = load(save(tmp_path, family), device="cpu")
    expected, was, blocks = logits(model), fingerprint(named_weights(model)), list(model.blocks)
    view = HookedView(model)
    weights = {name: 2 * w for name, w in view.weights().items()}
    trace, calls = view.embed(weights, IDS, torch.ones_like(IDS))
    resid = trace.output
    for layer, call in enumerate(calls):
        resid = view.block(layer, weights, call, resid).output
    doubled = view.head(weights, resid).output
    assert not torch.allclose(doubled, expected)
    assert all(a is b for a, b in zip(model.blocks, blocks, strict=True))
    assert torch.equal(logits(model), expected) and fingerprint(named_weights(model)) == was


def test_an_exception_in_the_middle_leaves_the_model_as_it_was(llama):
    expected, blocks = logits(llama), list(llama.blocks)
    view = HookedView(llama)

    def stop(*_args):
        raise KeyboardInterrupt

    handle = view.blocks[0].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        view.embed(view.weights(), IDS, torch.ones_like(IDS))
    handle.remove()
    assert all(a is b for a, b in zip(llama.blocks, blocks, strict=True))
    assert torch.equal(logits(llama), expected)
