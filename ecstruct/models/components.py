"""Check that ecstruct can tell the components of a hooked model apart, by the sites of its blocks."""

from collections.abc import Mapping, Sequence

from torch import nn

from ecstruct.errors import InputError
from ecstruct.models.sites import LATENT, QK_NORMS, SINKS, Site, Weights, of_heads

_NORMS = ("ln1", "ln2", "ln1_post", "ln2_post", *QK_NORMS)
_BLOCK_SITES = ("attn.q", "attn.k", "attn.v", "attn.o", SINKS, *LATENT, *_NORMS)
_REQUIRED = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.in", "mlp.out")


def check_components(
    architecture: str,
    blocks: Sequence[nn.Module],
    block_sites: Sequence[Mapping[str, Site]],
    weights: Weights,
    *,
    n_heads: int,
    d_head: int,
    shared_norm: bool,
) -> None:
    """Raise `InputError` for an architecture that lacks a site that is needed, or has an unknown one.

    `block_sites` has the sites of each block by name; `shared_norm` says that attention and MLP of a block
    read one norm's output.
    """
    for layer, (block, sites) in enumerate(zip(blocks, block_sites, strict=True)):
        others = sorted({name.partition(".")[0] for name in sites if name not in _BLOCK_SITES} - {"mlp"})
        if others and not of_heads(sites):
            raise InputError(
                f"layer {layer} of this {architecture} has no heads of attention, but "
                f"{', '.join(others)}: use another architecture."
            )
        latent = {"attn.q", "attn.k", "attn.v"} if "attn.kv_b_proj" in sites else ()
        for name in _REQUIRED:
            if name not in sites and name not in latent:
                raise InputError(
                    f"layer {layer} of this {architecture} has no {name} with weights, without which heads "
                    "and MLPs cannot be told apart: use another architecture."
                )
        norms = [hasattr(block, name) for name in ("ln1", "ln2")]
        if norms[0] != norms[1] and not shared_norm:
            raise InputError(
                f"layer {layer} of this {architecture} has a pre-norm for one of attention and MLP, and it "
                "is not known what the other one reads: use another architecture."
            )
        width = sites["attn.o"].matrix(weights)
        if width is None or width.shape[1] != n_heads * d_head:
            raise InputError(
                f"layer {layer} of this {architecture} has other than {n_heads} heads of size "
                f"{d_head}, as the model is said to have: use another architecture."
            )
        for name in sites:
            if name not in _BLOCK_SITES and not name.startswith("mlp."):
                raise InputError(
                    f"layer {layer} of this {architecture} has weights in {name}, which belong to no "
                    "component that ecstruct knows: use another architecture."
                )
