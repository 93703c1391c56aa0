"""Adapters that train whole modules, embeddings or single tokens, and several adapters, against peft."""

import copy
import warnings

import peft
import pytest
import torch
from helpers.tiny import build, tokenizer
from transformers import AutoModelForCausalLM

import ecstruct
from ecstruct import InputError

IDS = torch.arange(3, 11)[None]

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's own, when adapters are made

UNTIED = {
    "norms whole": {"modules_to_save": ["input_layernorm", "norm"]},
    "an MLP's matrix whole": {"modules_to_save": ["down_proj"]},
    "both embeddings whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens of both": {"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [4]}},
    "one whole, one of low rank": {"target_modules": ["lm_head"], "modules_to_save": ["embed_tokens"]},
    "biases": {"bias": "all"},
}
TIED = {
    "the embedding alone": {"modules_to_save": ["embed_tokens"]},
    "tokens": {"trainable_token_indices": [3, 5]},
    "tokens, saved with the unembedding": {
        "trainable_token_indices": [3, 5],
        "save_embedding_layers": True,
    },
    "tokens of the unembedding": {"trainable_token_indices": {"lm_head": [4]}},
    "the unembedding, of low rank": {"target_modules": ["q_proj", "lm_head"]},
    "both, tied by peft": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of an untied and of a tied model."""
    plain = build("llama", dtype=torch.float32)
    config = copy.deepcopy(plain.config)
    config.tie_word_embeddings = True
    tied = AutoModelForCausalLM.from_config(config)
    tied.load_state_dict(plain.state_dict(), strict=False)
    folders = [tmp_path_factory.mktemp("base") for _ in range(2)]
    for its, folder in zip((plain, tied), folders, strict=True):
        its.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return folders


def read(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def trained(model, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def assert_same(model, expected):
    torch.testing.assert_close(logits(model.original_model), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("tied", "options"),
    [*((False, options) for options in UNTIED.values()), *((True, options) for options in TIED.values())],
    ids=[*UNTIED, *TIED],
)
def test_logits_are_those_of_peft(bases, tmp_path, tied, options):
    options = dict(options)
    saving = {"save_embedding_layers": options.pop("save_embedding_layers", "auto")}
    plain = read(bases[tied])
    as_ever = logits(plain)
    config = peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options})
    model = trained(peft.get_peft_model(plain, config))
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter", **saving)
    assert (expected - as_ever).abs().max() > 0.1
    assert_same(ecstruct.load(bases[tied], adapter=tmp_path / "adapter", device="cpu"), expected)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*no longer tied")  # of a copy that is nobody's business
        assert_same(ecstruct.load(model, tokenizer=tokenizer(), device="cpu"), expected)


def test_several_adapters(bases, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(read(bases[0]), config, adapter_name="first")
    model.add_adapter("second", config)
    expected = {}
    for seed, name in enumerate(("first", "second")):
        model.set_adapter(name)
        expected[name] = logits(trained(model, seed))
    model.save_pretrained(tmp_path / "adapters")
    for name, its in expected.items():
        adapter = tmp_path / "adapters" / name
        assert_same(ecstruct.load(bases[0], adapter=adapter, device="cpu"), its)
    with pytest.raises(InputError, match=r"several adapters: .*adapters/first \(it has first, second\)"):
        ecstruct.load(bases[0], adapter=tmp_path / "adapters")
    model.base_model.set_adapter(["first", "second"])
    assert_same(ecstruct.load(model, tokenizer=tokenizer(), device="cpu"), logits(model))
