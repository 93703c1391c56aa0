"""The plain Hugging Face model as oracle: its parts by name, and what goes through them.

`watch` reads activations and gradients off a model with Hugging Face modules and autograd alone, prompt by
prompt and without padding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers import PreTrainedModel

from ecstruct import Prompt
from helpers.tiny import D_HEAD, tokenizer


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


def blocks(plain: Any) -> list[Block]:
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
        a: Any = b.self_attn
        post: tuple[nn.Module, ...] = ()
        ln1 = getattr(b, "input_layernorm", None)
        ln2: Any = getattr(b, "post_attention_layernorm", ln1)
        if hasattr(b, "post_feedforward_layernorm"):
            post = (ln2, b.post_feedforward_layernorm)
            ln2 = getattr(b, "pre_feedforward_layernorm", None)
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


def outside(plain: Any) -> dict[str, nn.Module]:
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
        def hook(_module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
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


def token_id(word: str) -> int:
    return tokenizer().get_vocab()[word]


def first_ids(prompt: Prompt) -> list[int]:
    """Return the first tokens of the options."""
    return [token_id(option.split()[0]) for option in prompt.options or ()]


def rewards_of(plain: PreTrainedModel, prompt: Prompt, rows: int) -> Tensor:
    """Return the logit differences of a batch of copies of one prompt, [row]."""
    logits = plain(input_ids=ids_of(prompt).expand(rows, -1), use_cache=False).logits[:, -1]
    answer = token_id(prompt.answer.split()[0])
    return logits[:, answer] - logits[:, first_ids(prompt)].mean(-1)


def reward_of(plain: PreTrainedModel, prompt: Prompt) -> Tensor:
    """Return the logit difference of one prompt, run on its own."""
    return rewards_of(plain, prompt, 1)[0]


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
