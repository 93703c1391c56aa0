"""Tied embeddings: an embedding and an unembedding that are one tensor.

One rule holds everywhere. Weights are read, compared and changed by name, and tied embeddings have two
names. A model's configuration says that the two are tied if, and only if, they are one parameter. They are
two parameters if a checkpoint has its own unembedding although its config.json ties it, and if an adapter
or a change of weights changes only one of them.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.models.plain import without_values


def note_what_is_tied(hf: Any) -> None:
    """Set `tie_word_embeddings` of a Hugging Face model to whether its embeddings are one parameter."""
    head, embedding = hf.get_output_embeddings(), hf.get_input_embeddings()
    if hasattr(hf.config, "tie_word_embeddings"):
        hf.config.tie_word_embeddings = head is not None and head.weight is embedding.weight


def untie(hf: Any) -> None:
    """Untie a Hugging Face model in place: give every name of a tied parameter a parameter of its own."""
    seen: set[int] = set()
    for module in hf.modules():
        for name, p in module._parameters.items():
            if p is not None and id(p) in seen:
                module._parameters[name] = nn.Parameter(p.detach().clone(), p.requires_grad)
            elif p is not None:
                seen.add(id(p))


def retie(hf: Any) -> None:
    """Tie the embeddings of a Hugging Face model again, in place, if no number differs."""
    head, embedding = hf.get_output_embeddings(), hf.get_input_embeddings()
    if head is not None and torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight


def untie_hooked(model: TransformerBridge) -> None:
    """Untie a hooked model in place: give its unembedding a parameter of its own."""
    unembed: Any = model.unembed
    hf: Any = model.original_model
    head = unembed.original_component
    head.weight = nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
    hf.config.tie_word_embeddings = False


def with_untied_embeddings(config: Any) -> Any:
    """Return a copy of a Hugging Face configuration that does not tie the embeddings."""
    own = copy.deepcopy(config)
    own.tie_word_embeddings = False
    return own


def second_names(config: Any) -> dict[str, str]:
    """Return the tensors that a Hugging Face configuration ties: from the name of each tensor that a
    checkpoint may lack to the name of the tensor with which it is identical."""
    plain = without_values(config)
    first = {id(p): name for name, p in plain.named_parameters()}
    names = plain.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in names if first[id(p)] != name}
