"""What heads attend to, exactly and without knowing the architecture.

With values that are one-hot by position, what a head writes is its attention pattern.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ecstruct.engine.forward import Step, run_blocks
from ecstruct.engine.session import Session
from ecstruct.errors import InputError
from ecstruct.models.calls import BlockCall


def attention_pattern(
    session: Session, call: BlockCall, resid: Float[Tensor, "batch pos d_model"], layer: int
) -> Float[Tensor, "batch head query key"]:
    """Return the attention pattern of a layer whose block is called so on `resid`, on the CPU.

    Raises:
        InputError: the attention's values cannot be replaced.
    """
    if "attn.v" not in session.view.block_sites[layer]:
        raise InputError(
            "this model makes keys and values of latents that its heads share, so the attention of its "
            "heads cannot be read: use a model whose attention has values."
        )
    width, n = session.view.d_head, resid.shape[1]
    parts: list[Tensor] = []
    for start in range(0, n, width):
        keys = torch.arange(start, min(start + width, n), device=resid.device)

        def by_position(values: Tensor, keys: Tensor = keys, start: int = start) -> Tensor:
            if values[0, 0].numel() % width:
                raise InputError(
                    f"the values of layer {layer} are {values[0, 0].numel()} wide, which is no multiple "
                    f"of the {width} of a head: its attention cannot be read."
                )
            one_hot = values.new_zeros(*values.shape[:2], values[0, 0].numel() // width, width)
            one_hot[:, keys, :, keys - start] = 1
            return one_hot.reshape(values.shape)

        def see(z: Tensor, keys: Tensor = keys) -> Tensor:
            by_head = rearrange(z, "b q (h d) -> b h q d", d=width)
            parts.append(by_head[..., : len(keys)].detach().double().cpu())
            return z

        def reading(step: Step) -> Step:
            return Step(step.layer, step.call, step.resid, {"attn.o": see}, {"attn.v": by_position})

        run_blocks(session, [call] * (layer + 1), resid, reading, start=layer)
    return torch.cat(parts, dim=-1)
