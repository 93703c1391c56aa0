"""HookedTransformers of TransformerLens 3 give the numbers of the bridge, or are refused.

They are made by TransformerLens itself from tiny Hugging Face models. Where TransformerLens 4 is installed
there are none, and nothing here is run.
"""

import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import PROMPTS, UNHOOKED, build, hooked, perturb, single_pair, tokenizer
from transformers import AutoTokenizer, PreTrainedModel

import ecstruct
from ecstruct.errors import InputError
from ecstruct.models.hooked import HookedView

if not version("transformer-lens").startswith("3."):
    pytest.skip("HookedTransformer is of TransformerLens 3", allow_module_level=True)

pytestmark = [
    pytest.mark.tl3,
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning"),
]

FAMILIES = ("olmo", "llama", "gemma2", "qwen3", "gpt2", "neox")

PROCESSED = {
    "fold_ln": False,
    "center_writing_weights": False,
    "center_unembed": False,
    "fold_value_biases": False,
    "refactor_factored_attn_matrices": False,
}
"""What TransformerLens may do to weights, and is not to."""


def folder_of(plain: PreTrainedModel, folder: Path) -> Path:
    """With configuration and tokenizer only."""
    config = copy.deepcopy(plain.config)
    config.architectures = [type(plain).__name__]
    config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def hooked_transformer(plain: PreTrainedModel, folder: Path, **processing: bool) -> Any:
    """Of a folder made by `folder_of`, with the weights of `plain`."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.loading_from_pretrained import get_pretrained_state_dict

    described = _config(plain, folder)
    described |= {
        "model_name": "tiny",
        "tokenizer_name": str(folder),
        "device": "cpu",
        "init_weights": False,
        "dtype": plain.dtype,
        "original_architecture": type(plain).__name__,
    }
    cfg = HookedTransformerConfig.from_dict(described)
    model = HookedTransformer(cfg, tokenizer=AutoTokenizer.from_pretrained(folder))
    state = get_pretrained_state_dict(".", cfg, hf_model=copy.deepcopy(plain))
    model.load_and_process_state_dict(
        {name: tensor.clone() for name, tensor in state.items()}, **PROCESSED | processing
    )
    return model.to(plain.dtype).eval()


def _config(plain: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """TransformerLens reads that of some families off a folder; of others it knows the published sizes."""
    from transformer_lens.loading_from_pretrained import convert_hf_model_config

    c: Any = plain.config
    of_family = {
        "gpt2": {
            "act_fn": "gelu_new",
            "normalization_type": "LN",
            "scale_attn_by_inverse_layer_idx": False,
        },
        "olmo": {
            "act_fn": "silu",
            "normalization_type": "LN",
            "gated_mlp": True,
            "positional_embedding_type": "rotary",
            "rotary_base": 10000,
            "rotary_dim": 8,
            "rotary_adjacent_pairs": False,
            "eps": 1e-5,
        },
        "gemma2": {
            "act_fn": "gelu_pytorch_tanh",
            "normalization_type": "RMS",
            "gated_mlp": True,
            "final_rms": True,
            "positional_embedding_type": "rotary",
            "rotary_base": 10000,
            "rotary_dim": 8,
            "use_normalization_before_and_after": True,
            "n_key_value_heads": getattr(c, "num_key_value_heads", None),
            "attn_types": ["local", "global"] * 2,
            "use_local_attn": True,
            "eps": getattr(c, "rms_norm_eps", None),
            "attn_scale": getattr(c, "query_pre_attn_scalar", 1) ** 0.5,
            "attn_scores_soft_cap": getattr(c, "attn_logit_softcapping", None),
            "output_logits_soft_cap": getattr(c, "final_logit_softcapping", None),
            "window_size": getattr(c, "sliding_window", None),
        },
    }
    if c.model_type not in of_family:
        return convert_hf_model_config(str(folder))
    heads = c.num_attention_heads
    return {
        "d_model": c.hidden_size,
        "d_head": getattr(c, "head_dim", None) or c.hidden_size // heads,
        "n_heads": heads,
        "d_mlp": getattr(c, "intermediate_size", None) or getattr(c, "n_inner", None),
        "n_layers": c.num_hidden_layers,
        "n_ctx": c.max_position_embeddings,
        "d_vocab": c.vocab_size,
        "eps": getattr(c, "layer_norm_epsilon", 1e-5),
    } | of_family[c.model_type]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_bridge(family: str, tmp_path: Path) -> None:
    plain = build(family)
    folder = folder_of(plain, tmp_path)
    before, after = (hooked_transformer(p.float(), folder) for p in (plain, perturb(plain)))
    states = [{name: p.clone() for name, p in model.state_dict().items()} for model in (before, after)]
    expected = ecstruct.score(*single_pair(family), PROMPTS, progress=False)
    scores = ecstruct.score(before, after, PROMPTS, progress=False)
    for name in ("mlp", "heads", "rest", "reward"):
        ours, theirs = (getattr(s, name).fillna(0) for s in (scores, expected))
        assert abs(ours - theirs).max() <= 1e-5 * abs(theirs).max() > 0
    assert scores.attrs["before"]["source"] == str(folder)
    for model, state in zip((before, after), states, strict=True):
        assert not model.training
        assert all(torch.equal(p, state[name]) for name, p in model.state_dict().items())


def test_interventions_are_those_of_the_bridge(tmp_path: Path) -> None:
    plain = build("llama")
    folder = folder_of(plain, tmp_path)
    before, after = (hooked_transformer(p.float(), folder) for p in (plain, perturb(plain)))
    expected = ecstruct.causal_scores(*single_pair("llama"), PROMPTS, progress=False)
    scores = ecstruct.causal_scores(before, after, PROMPTS, progress=False)
    for name in ("mlp", "heads"):
        ours, theirs = (getattr(s, name) for s in (scores, expected))
        assert abs(ours - theirs).max() <= 1e-5 * abs(theirs).max()


def test_a_loaded_one_is_a_bridge_with_the_checkpoints_weights(tmp_path: Path) -> None:
    plain = build("gpt2", dtype=torch.float32)
    model = ecstruct.load(hooked_transformer(plain, folder_of(plain, tmp_path)), device="cpu")
    expected = HookedView(single_pair("gpt2")[0]).named_weights
    weights = HookedView(model).named_weights
    assert weights.keys() == expected.keys()
    assert all(torch.equal(p, expected[name]) for name, p in weights.items())
    assert ecstruct.mean_rank(model, PROMPTS) == ecstruct.mean_rank(single_pair("gpt2")[0], PROMPTS)


@pytest.mark.parametrize(
    ("family", "processing", "what"),
    [
        ("gpt2", "fold_ln", "folded layer norms"),
        ("llama", "fold_ln", "folded layer norms"),
        ("neox", "center_writing_weights", "centred writing weights"),
        ("gpt2", "center_writing_weights", "centred writing weights"),
        ("llama", "center_unembed", "a centred unembedding"),
        ("gpt2", "fold_value_biases", "folded value biases"),
        ("llama", "refactor_factored_attn_matrices", "refactored attention matrices"),
    ],
)
def test_processed_weights_are_refused(family: str, processing: str, what: str, tmp_path: Path) -> None:
    plain = build(family, dtype=torch.float32)
    folder = folder_of(plain, tmp_path)
    if processing.startswith("refactor"):  # of heads with keys of their own, and without rotary positions
        plain, folder = _plain_heads(tmp_path)
    model = hooked_transformer(plain, folder, **{processing: True})
    with pytest.raises(InputError, match=f'{what}.*from_pretrained_no_processing."tiny"'):
        ecstruct.score(model, model, PROMPTS, progress=False)


def _plain_heads(folder: Path) -> tuple[PreTrainedModel, Path]:
    plain = build("gpt2", dtype=torch.float32)
    for block in plain.transformer.h:
        torch.nn.init.zeros_(block.attn.c_attn.bias)  # as refactoring wants it
    return plain, folder_of(plain, folder / "gpt2")


def test_a_trained_bias_that_the_checkpoint_lacks_is_refused(tmp_path: Path) -> None:
    plain = build("llama", dtype=torch.float32)
    model = hooked_transformer(plain, folder_of(plain, tmp_path))
    model.blocks[1].attn.b_Q.data[0, 0] = 0.1
    with pytest.raises(InputError, match=r"blocks\.1\.attn\.b_Q .*was trained"):
        ecstruct.load(model)


def test_one_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    plain = build("olmo-clip", dtype=torch.float32)  # which HookedTransformers do not clip
    folder = folder_of(plain, tmp_path)
    plain.config.clip_qkv = None
    unlike = build("olmo", dtype=torch.float32)
    unlike.config.clip_qkv = 0.1
    model = hooked_transformer(unlike, folder_of(unlike, folder))
    with pytest.raises(InputError, match=r"does not compute what .* differ by"):
        ecstruct.load(model)


def test_one_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    plain = build("llama", dtype=torch.float32)
    model = hooked_transformer(plain, folder_of(plain, tmp_path))
    plain.config.intermediate_size = 40
    folder_of(plain, tmp_path)
    with pytest.raises(InputError, match=r"W_in of this HookedTransformer is \(32, 48\), but \(32, 40\)"):
        ecstruct.load(model)


def test_one_that_does_not_say_where_it_is_from_is_refused(tmp_path: Path) -> None:
    plain = build("llama", dtype=torch.float32)
    model = hooked_transformer(plain, folder_of(plain, tmp_path))
    model.cfg.tokenizer_name = model.tokenizer = None
    with pytest.raises(InputError, match="does not say which checkpoint"):
        ecstruct.load(model)


def test_other_functions_say_to_load_it(tmp_path: Path) -> None:
    plain = build("llama", dtype=torch.float32)
    model = hooked_transformer(plain, folder_of(plain, tmp_path))
    with pytest.raises(InputError, match=r"HookedTransformer is no TransformerBridge.*ecstruct\.load"):
        ecstruct.mean_rank(model, PROMPTS)


@pytest.mark.parametrize("family", UNHOOKED)
def test_architectures_that_this_version_does_not_hook_are_refused(family: str) -> None:
    with pytest.raises(InputError, match=r"cannot hook|does not read what enters the block"):
        hooked(build(family))
