"""Two checkpoints of one architecture, and how two models differ."""

import torch

from ecstruct.models import load
from helpers.folders import edit_weights, save

IDS = torch.tensor([[4, 7, 5, 9, 3, 8, 6]])


def pair(folder, family, *, tied=False):
    """Save two checkpoints that differ slightly in every tensor."""
    before = load(save(folder / "before", family, tied=tied), device="cpu")
    after = save(folder / "after", family, tied=tied)
    generator = torch.Generator().manual_seed(1)
    edit_weights(
        after,
        lambda tensors: [
            t.add_(0.01 * torch.randn(t.shape, generator=generator)) for t in tensors.values()
        ],
    )
    return before, load(after, device="cpu")


def logits(model):
    with torch.no_grad():
        return model(IDS, return_type="logits", use_cache=False)
