"""A hooked model as a whole: its weights by name, its logits, copies of it, and its train and eval modes.

The module `hooked` runs the parts of a model; all other use of TransformerLens' bridge is here.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.models.hook_points import as_leaves
from ecstruct.models.provenance import check_hooked
from ecstruct.models.sites import others_of, whole_mlp


def _check_unprocessed(model: object) -> None:
    check_hooked(model)
    if getattr(model, "compatibility_mode", False):
        raise InputError(
            "this TransformerBridge is in compatibility mode, where folded weights are no longer "
            "the checkpoint's: load the model with ecstruct.load(...) instead."
        )


def named_weights(model: TransformerBridge) -> dict[str, nn.Parameter]:
    """Return the live parameters of a hooked model by TransformerLens name.

    Where a checkpoint fuses query, key and value, the three are separate here, and the fused tensor,
    which the hooked model no longer reads, is left out. Tied embeddings appear under both names. The
    weights of an MLP without the usual projections keep their own names.
    """
    _check_unprocessed(model)
    tensors = model.state_dict(keep_vars=True)
    named = {name: p for name, p in tensors.items() if isinstance(p, nn.Parameter)}
    blocks: Any = model.blocks
    for layer, block in enumerate(blocks):
        named |= others_of(block, f"blocks.{layer}.")
        prefix = f"blocks.{layer}.mlp."
        if hasattr(block, "mlp") and f"{prefix}in.weight" not in named:
            named = {name: p for name, p in named.items() if not name.startswith(prefix)}
            own = dict(block.mlp.original_component.named_parameters())
            weights = whole_mlp(block.mlp, prefix)["mlp.in"].weights
            named |= {name: own[here] for here, name in weights.items()}
    return named


def saved_buffers(hf: nn.Module) -> dict[str, Tensor]:
    """Return what checkpoints of a Hugging Face model have besides weights, such as the biases by which
    DeepSeek-V3 balances its experts."""
    return {
        f"{path}.{name}" if path else name: b
        for path, module in hf.named_modules()
        for name, b in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


def copy_of(model: TransformerBridge) -> TransformerBridge:
    """Return an independent copy, which shares no tensor with the original.

    After its first forward, a block has hooks that point at its own attention. Copies of these hooks would
    point at the original's attention, so they are removed first; the next forward adds them again.
    """
    for block in model.blocks:
        block._teardown_capture_hooks()
        drop_pattern(block)
    with as_leaves():
        return copy.deepcopy(model)


def drop_pattern(block: nn.Module) -> None:
    """Delete the pattern of the last run, which attention with fused projections keeps. Nothing reads it;
    it holds the graph of that run in memory and cannot be copied."""
    attention: Any = block.attn
    if getattr(attention, "_pattern", None) is not None:
        attention._pattern = None


def logits_at(
    model: TransformerBridge,
    read: Bool[Tensor, "batch pos"],
    ids: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
) -> Float[Tensor, "read d_vocab"]:
    """Run a model, which `mask` lets see its tokens and no padding; return its logits where `read` says so,
    row by row."""
    with unembedding(model.unembed, read):
        return model(ids, attention_mask=mask, return_type="logits", use_cache=False)[0]


@contextmanager
def unembedding(unembed: nn.Module, read: Bool[Tensor, "batch pos"]) -> Iterator[None]:
    """Let a model's unembedding, a large matrix, run only at the positions that are `read`, for logits
    [1, read, d_vocab]."""
    handle = unembed.register_forward_pre_hook(lambda _, args: (args[0][read][None], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def eval_mode(model: TransformerBridge) -> Iterator[None]:
    """Put the model in eval mode (no dropout); restore the mode of every module afterwards."""
    _check_unprocessed(model)
    # A bridge keeps the Hugging Face model outside its own tree of modules.
    training = {m for part in (model, model.original_model) for m in part.modules() if m.training}
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def still(model: TransformerBridge) -> Iterator[None]:
    """Turn dropout, TF32 and autocast off and gradients on in this context. The rounding of TF32 and
    autocast would hide the difference of two close states, and a notebook may have switched gradients
    off."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    device = next(model.parameters()).device.type
    try:
        with eval_mode(model), torch.enable_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
