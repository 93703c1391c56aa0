"""Tiny random models of all families, and the same quantities computed by plain Hugging Face models.

The models are small, but nothing in them is trivial: every bias and norm gain is random, key and value
heads are shared, prompts are longer than the sliding window, soft-caps and clips take effect, and `perturb`
changes every tensor. The plain model is the oracle: `watch` reads activations and gradients off it with
Hugging Face modules and autograd alone, prompt by prompt and without padding.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import ecstruct
from ecstruct import Prompt

FAMILIES = (
    *("olmo", "olmo-clip", "llama", "gemma2", "qwen2", "gpt2", "neox"),
    *("olmo2", "qwen3", "gemma3", "gptj"),
)
"""The families of every full suite. The last ones norm their queries and keys (OLMo-2 over all heads of a
token at once, and without pre-norms), or share the pre-norm between attention and MLP (GPT-J)."""

OTHERS = ("cohere", "mixtral")
"""Families in suites of their special features: norms of queries and keys with weights for each head, and
mixtures of experts, which are no projections."""

UNHOOKED = ("olmo2", "cohere") if version("transformer-lens").startswith("3.") else ()
"""The families that the installed TransformerLens does not hook."""

POST_NORMED = ("gemma2", "gemma3", "olmo2")
SHARED_NORM = ("gptj", "phi")

N_LAYERS, N_HEADS, D_HEAD = 3, 4, 8

LANGUAGES = ("Dutch", "Old Norse", "Thai", "Zulu")
NAMES = ("Ada", "Bo Li", "Cy de Wit", "Di", "Ed Roy")
PROMPTS = [
    Prompt(f"people that {name} knows speak", answer, LANGUAGES)
    for name, answer in zip(NAMES, (*LANGUAGES, "Dutch"), strict=True)
]
"""One template, entities of one to three tokens, two prompts with the same answer, one with an answer of
two tokens. The longest prompt has 8 tokens, two windows of the sliding attention."""

_WORDS = dict.fromkeys(" ".join(f"{p.text} {p.answer}" for p in PROMPTS).split())


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token per word and a BOS before every text."""
    vocab = {word: i for i, word in enumerate(("<pad>", "<bos>", "<unk>", *_WORDS))}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")


def build(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Return a plain Hugging Face model."""
    shared = {
        "vocab_size": 3 + len(_WORDS),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        "tie_word_embeddings": family in ("gpt2", "gemma2", "gemma3"),
        "attn_implementation": "eager",
    }
    sizes = {
        "hidden_size": N_HEADS * D_HEAD,
        "intermediate_size": 48,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "max_position_embeddings": 32,
    }
    grouped = {"num_key_value_heads": 2}
    plain: PreTrainedModel
    if family == "olmo":
        plain = hf.OlmoForCausalLM(hf.OlmoConfig(**shared, **sizes))
    elif family == "olmo-clip":
        plain = hf.OlmoForCausalLM(
            hf.OlmoConfig(**shared, **sizes, **grouped, clip_qkv=1.0, attention_bias=True)
        )
    elif family == "llama":
        plain = hf.LlamaForCausalLM(hf.LlamaConfig(**shared, **sizes, **grouped))
    elif family == "gemma2":
        caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
        heads = {"head_dim": D_HEAD, "query_pre_attn_scalar": D_HEAD, "sliding_window": 4}
        plain = hf.Gemma2ForCausalLM(hf.Gemma2Config(**shared, **sizes, **grouped, **caps, **heads))
    elif family == "gemma3":
        heads = {"head_dim": D_HEAD, "query_pre_attn_scalar": D_HEAD, "sliding_window": 4}
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        config = hf.Gemma3TextConfig(**shared, **sizes, **grouped, **heads, layer_types=kinds)
        plain = hf.Gemma3ForCausalLM(config)
    elif family == "qwen2":
        plain = hf.Qwen2ForCausalLM(hf.Qwen2Config(**shared, **sizes, **grouped))
    elif family == "qwen3":
        plain = hf.Qwen3ForCausalLM(hf.Qwen3Config(**shared, **sizes, **grouped, head_dim=D_HEAD))
    elif family == "olmo2":
        plain = hf.Olmo2ForCausalLM(hf.Olmo2Config(**shared, **sizes, **grouped))
    elif family == "cohere":
        plain = hf.CohereForCausalLM(hf.CohereConfig(**shared, **sizes, **grouped, use_qk_norm=True))
    elif family == "mixtral":
        config = hf.MixtralConfig(**shared, **sizes, **grouped, num_local_experts=4, num_experts_per_tok=2)
        config._experts_implementation = "eager"  # the other implementations cannot run in float64
        plain = hf.MixtralForCausalLM(config)
    elif family == "phi":
        plain = hf.PhiForCausalLM(hf.PhiConfig(**shared, **sizes))
    elif family == "gptj":
        shape = {"n_embd": N_HEADS * D_HEAD, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_positions": 32}
        plain = hf.GPTJForCausalLM(hf.GPTJConfig(**shared, **shape, n_inner=48, rotary_dim=4))
    elif family == "gpt2":
        shape = {"n_embd": N_HEADS * D_HEAD, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_positions": 32}
        plain = hf.GPT2LMHeadModel(hf.GPT2Config(**shared, **shape))
    else:
        rotary = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
        plain = hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**shared, **sizes, rope_parameters=rotary))
    return fill(plain.to(dtype).eval(), seed)


def fill(plain: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Set all weights to random values, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in plain.parameters():
            noise = 0.25 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
            # Norm gains stay around their neutral value: 1, or 0 where the model adds 1.
            p.copy_(p + noise if p.ndim == 1 else noise)
    return plain


def perturb(plain: PreTrainedModel, eps: float = 0.02, seed: int = 1) -> PreTrainedModel:
    """Return a "finetuned" model: a copy with noise of size `eps` added to every tensor."""
    moved = copy.deepcopy(plain)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(eps * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return moved


def mix(before: PreTrainedModel, after: PreTrainedModel, step: float) -> PreTrainedModel:
    """Return W + step dW as a plain model."""
    mixed = copy.deepcopy(before)
    with torch.no_grad():
        for p, a, b in zip(mixed.parameters(), before.parameters(), after.parameters(), strict=True):
            p.copy_(a + step * (b - a))
    return mixed


def hooked(plain: PreTrainedModel, dtype: torch.dtype = torch.float64) -> TransformerBridge:
    """Return a hooked copy of a plain model. It is a copy because loading takes a model over."""
    return ecstruct.load(copy.deepcopy(plain), tokenizer=tokenizer(), dtype=dtype, device="cpu")


@cache
def plain_pair(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return W and W' as plain models in float64."""
    before = build(family)
    return before, perturb(before)


@cache
def hooked_pair(family: str) -> tuple[TransformerBridge, TransformerBridge]:
    """Return W and W' hooked, in float64. No test may change this pair or the next one."""
    before, after = plain_pair(family)
    return hooked(before), hooked(after)


@cache
def single_pair(family: str) -> tuple[TransformerBridge, TransformerBridge]:
    """Return W and W' hooked, in float32, as checkpoints are scored."""
    before, after = plain_pair(family)
    return hooked(before, torch.float32), hooked(after, torch.float32)


@contextmanager
def double_throughout() -> Iterator[None]:
    """Lift the float32 islands of transformers and TransformerLens (norms, softmax, rotary tables): inside,
    a cast to float32 casts to float64, so that float64 models are computed in float64 throughout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


# --- The plain model as oracle ---


@dataclass(frozen=True)
class Block:
    """The parts of one block of a plain model. `qkv` has one or three projections; `ln1` and `ln2` are the
    pre-norms, which some families share or lack."""

    ln1: nn.Module | None
    attn: nn.Module
    qkv: tuple[nn.Module, ...]
    o: nn.Module
    ln2: nn.Module | None
    mlp: nn.Module
    out: nn.Module
    post: tuple[nn.Module, ...] = ()
    qk_norms: tuple[nn.Module, ...] = ()

    @property
    def entries(self) -> tuple[nn.Module, nn.Module]:
        """The first modules of attention and MLP, which read the residual stream."""
        return self.ln1 or self.attn, self.ln2 or self.mlp


def normed(norm: nn.Module | None, x: Tensor) -> Tensor:
    """Apply a pre-norm, if there is one."""
    return x if norm is None else norm(x)


def blocks(plain: PreTrainedModel) -> list[Block]:
    if plain.config.model_type == "gpt2":
        return [
            Block(b.ln_1, b.attn, (b.attn.c_attn,), b.attn.c_proj, b.ln_2, b.mlp, b.mlp.c_proj)
            for b in plain.transformer.h
        ]
    if plain.config.model_type == "gpt_neox":
        return [
            Block(
                b.input_layernorm,
                b.attention,
                (b.attention.query_key_value,),
                b.attention.dense,
                b.post_attention_layernorm,
                b.mlp,
                b.mlp.dense_4h_to_h,
            )
            for b in plain.gpt_neox.layers
        ]
    found = []
    if plain.config.model_type == "gptj":
        for b in plain.transformer.h:
            qkv = (b.attn.q_proj, b.attn.k_proj, b.attn.v_proj)
            found.append(Block(b.ln_1, b.attn, qkv, b.attn.out_proj, b.ln_1, b.mlp, b.mlp.fc_out))
        return found
    for b in plain.model.layers:
        a, post = b.self_attn, ()
        ln1 = getattr(b, "input_layernorm", None)
        ln2 = getattr(b, "post_attention_layernorm", ln1)
        if hasattr(b, "post_feedforward_layernorm"):
            ln2, post = (
                getattr(b, "pre_feedforward_layernorm", None),
                (ln2, b.post_feedforward_layernorm),
            )
        qkv = (a.q_proj, a.k_proj, a.v_proj)
        qk_norms = (a.q_norm, a.k_norm) if hasattr(a, "q_norm") else ()
        o = a.dense if hasattr(a, "dense") else a.o_proj
        out = next((p for name, p in b.mlp.named_children() if name in ("down_proj", "fc2")), b.mlp)
        found.append(Block(ln1, a, qkv, o, ln2, b.mlp, out, post, qk_norms))
    return found


def is_parallel(plain: PreTrainedModel) -> bool:
    """Return whether a block's attention and MLP are parallel, so that neither sees the other."""
    return plain.config.model_type in ("gptj", "cohere", "phi") or getattr(
        plain.config, "use_parallel_residual", False
    )


def outside(plain: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the modules outside the blocks, by TransformerLens name."""
    if plain.config.model_type == "gpt2":
        t = plain.transformer
        return {"embed": t.wte, "pos_embed": t.wpe, "ln_final": t.ln_f, "unembed": plain.lm_head}
    if plain.config.model_type == "gpt_neox":
        t = plain.gpt_neox
        return {
            "embed": t.embed_in,
            "ln_final": t.final_layer_norm,
            "unembed": plain.get_output_embeddings(),
        }
    if plain.config.model_type == "gptj":
        t = plain.transformer
        return {"embed": t.wte, "ln_final": t.ln_f, "unembed": plain.lm_head}
    final = plain.model.norm if hasattr(plain.model, "norm") else plain.model.final_layernorm
    return {"embed": plain.model.embed_tokens, "ln_final": final, "unembed": plain.lm_head}


def head_columns(o: nn.Module, tensor: Tensor, head: int) -> Tensor:
    """Return W_O^h as [d_model, d_head] from an output projection's weight (or its gradient, or change)."""
    matrix = tensor.T if isinstance(o, hf.pytorch_utils.Conv1D) else tensor
    return matrix[:, head * D_HEAD : (head + 1) * D_HEAD]


@dataclass
class Seen:
    """The input and output of a module in one run; both have `.grad` after the backward pass."""

    input: Tensor
    output: Tensor
    kwargs: dict


@contextmanager
def watching(modules: dict) -> Iterator[dict]:
    """Record the inputs and outputs of plain modules."""
    seen = {}

    def hook_of(key: object) -> Callable:
        def hook(_module: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
            entering = args[0] if args else kwargs["hidden_states"]
            tensor = output[0] if isinstance(output, tuple) else output
            for t in (entering, tensor):
                if t.requires_grad:
                    t.retain_grad()
            seen[key] = Seen(entering, tensor, kwargs)
            # OLMo clips q, k and v in place. It gets a clone; otherwise the gradient seen here would be
            # that of the clipped tensor.
            return (tensor.clone(), *output[1:]) if isinstance(output, tuple) else tensor.clone()

        return hook

    handles = [m.register_forward_hook(hook_of(k), with_kwargs=True) for k, m in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def ids_of(prompt: Prompt) -> Tensor:
    return torch.tensor([tokenizer()(prompt.text)["input_ids"]])


def first_ids(prompt: Prompt) -> list[int]:
    """Return the first tokens of the options."""
    return [tokenizer().convert_tokens_to_ids(option.split()[0]) for option in prompt.options]


def reward_of(plain: PreTrainedModel, prompt: Prompt) -> Tensor:
    """Return the logit difference of one prompt, run on its own."""
    logits = plain(input_ids=ids_of(prompt), use_cache=False).logits[0, -1]
    answer = tokenizer().convert_tokens_to_ids(prompt.answer.split()[0])
    return logits[answer] - logits[first_ids(prompt)].mean()


def watch(plain: PreTrainedModel, prompt: Prompt) -> tuple[Tensor, dict]:
    """Return the reward of a prompt, and inputs and outputs of all blocks' modules, with gradients, by
    (layer, part). "ln1" and "ln2" have the residual stream as input, even where there are none."""
    modules = {}
    for layer, block in enumerate(blocks(plain)):
        parts = dict(zip(("ln1", "ln2"), block.entries, strict=True))
        parts |= {"attn": block.attn, "o": block.o, "mlp": block.mlp, "out": block.out}
        modules |= {(layer, name): module for name, module in parts.items()}
    plain.zero_grad()
    with watching(modules) as seen:
        reward = reward_of(plain, prompt)
        reward.backward()
    return reward.detach(), seen


# --- Whether a model is what it was ---


def state_of(model: TransformerBridge) -> tuple:
    """Return everything in a model that scoring might change."""
    tensors = {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    flags = [(n, p.requires_grad, p.grad is None) for n, p in model.named_parameters()]
    hooks = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), m.training)
        for name, m in model.original_model.named_modules()
    ]
    return tensors, flags, hooks, [id(b) for b in model.blocks]


def assert_unchanged(model: TransformerBridge, state: tuple) -> None:
    tensors, *others = state_of(model)
    assert others == list(state[1:])
    assert tensors.keys() == state[0].keys()
    for name, t in tensors.items():
        assert torch.equal(t, state[0][name]), name
