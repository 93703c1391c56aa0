"""Tied embeddings: an embedding and a head that are one tensor.

One rule holds in every path. Weights are read, compared and changed by their names, of which tied
embeddings have two; and a model's configuration says that the two are tied if, and only if, they are one
parameter. They are not where a checkpoint has a head of its own although its config.json ties it, and where
an adapter or a change of weights moves one of the two.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.models.plain import plain_model


def note_what_is_tied(hf: Any) -> None:
    """Let the configuration of a Hugging Face model say whether its embeddings are one parameter."""
    head, embedding = hf.get_output_embeddings(), hf.get_input_embeddings()
    if hasattr(hf.config, "tie_word_embeddings"):
        hf.config.tie_word_embeddings = head is not None and head.weight is embedding.weight


def part(hf: Any) -> None:
    """Give every name of a tied parameter of a Hugging Face model a parameter of its own."""
    seen: set[int] = set()
    for module in hf.modules():
        for name, p in module._parameters.items():
            if p is not None and id(p) in seen:
                module._parameters[name] = nn.Parameter(p.detach().clone(), p.requires_grad)
            elif p is not None:
                seen.add(id(p))


def join(hf: Any) -> None:
    """Make embeddings one parameter again if no number differs."""
    head, embedding = hf.get_output_embeddings(), hf.get_input_embeddings()
    if torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight


def part_hooked(model: TransformerBridge) -> None:
    """Give the head of a hooked model with tied embeddings a parameter of its own."""
    unembed: Any = model.unembed
    hf: Any = model.original_model
    head = unembed.original_component
    head.weight = nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
    hf.config.tie_word_embeddings = False


def parted(config: Any) -> Any:
    """A copy of a configuration that ties no embeddings."""
    own = copy.deepcopy(config)
    own.tie_word_embeddings = False
    return own


def second_names(config: Any) -> dict[str, str]:
    """What a Hugging Face configuration ties: the name of each tensor that a checkpoint may lack, and that
    of the tensor that it is."""
    plain = plain_model(config, torch.float32, "cpu", lambda _, p: p.detach())
    first = {id(p): name for name, p in plain.named_parameters()}
    names = plain.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in names if first[id(p)] != name}
