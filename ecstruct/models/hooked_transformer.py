"""HookedTransformers, of TransformerLens 3, as the Hugging Face models that they were made from.

A HookedTransformer holds the numbers of a checkpoint in another order, some of them scaled or shifted (a
gain w as 1 + w), put there by code of TransformerLens for its architecture. The way back is found by asking
that code: it is given checkpoints filled with zeros, with ones, with the number of each tensor, and with
the index along each of its dimensions. So an entry of the HookedTransformer is known to be

    w = scale * tensor[index] + shift

and the tensor is filled from that. No table of architectures is kept here.
"""

import copy
import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ecstruct.errors import InputError
from ecstruct.models.plain import plain_model

_Fill = Callable[[int, tuple[int, ...]], Tensor]
"""From the number and the shape of a tensor to what it is filled with, broadcast."""

_SAME = 1e-3
"""How much logits may differ, relative to the largest, of two implementations of one model in float32."""
_CENTRED = 1e-4
"""Means of centred weights, relative to their spread; those of others are larger by orders."""


def is_hooked_transformer(model: object) -> bool:
    """Whether a model is one; TransformerLens 4 does not have the class any more."""
    return any(
        cls.__name__ == "HookedTransformer" and cls.__module__.startswith("transformer_lens.")
        for cls in type(model).__mro__
    )


def origin(model: Any) -> str:
    """The hub id or folder of the checkpoint that a HookedTransformer was made from."""
    name = model.cfg.tokenizer_name or getattr(model.tokenizer, "name_or_path", None)
    if not name:
        raise InputError(
            "this HookedTransformer does not say which checkpoint it was made from: set its "
            "cfg.tokenizer_name to a hub id or to a folder with config.json and tokenizer."
        )
    return name


def plain_of(model: Any, config: Any) -> Any:
    """The Hugging Face model with the weights of a HookedTransformer; embeddings are not tied.

    `config` is that of the checkpoint which it was made from.

    Raises:
        InputError: its weights were folded, centred or refactored, it has others than a checkpoint of this
            architecture, or it does not compute the same.
    """
    config = copy.deepcopy(config)
    config.tie_word_embeddings = False
    found = {name: p.detach() for name, p in model.state_dict().items()}
    shapes = {}

    def shape_of(name: str, p: nn.Parameter) -> Tensor:
        shapes[name] = tuple(p.shape)
        return p.detach()

    plain_model(config, torch.float32, "cpu", shape_of)
    numbers = {name: number for number, name in enumerate(shapes)}

    def converted(fill: _Fill) -> dict[str, Tensor]:
        def weight(name: str, p: nn.Parameter) -> Tensor:
            return fill(numbers[name], shapes[name]).to(torch.float64).expand(shapes[name])

        return _converted(model.cfg, plain_model(config, torch.float64, "cpu", weight))

    shift = converted(lambda *_: torch.tensor(0.0))
    one = converted(lambda *_: torch.tensor(1.0))
    scale = {name: one[name].double() - shift[name].double() for name in one}
    _check_unprocessed(model, found, scale)

    def entry(name: str, of: Mapping[str, Tensor]) -> Tensor:
        return (of[name].double() - shift[name].double()) / scale[name]

    number = converted(lambda number, _: torch.tensor(number))
    dimensions = range(max(map(len, shapes.values())))
    indices = [converted(lambda _, shape, d=d: _index(shape, d)) for d in dimensions]
    tensors = {name: torch.zeros(shape, dtype=model.cfg.dtype) for name, shape in shapes.items()}
    missing = {name: tensor.numel() for name, tensor in tensors.items()}
    for name, moved in scale.items():
        value = found[name].cpu()
        if value.shape != moved.shape:
            raise InputError(
                f"{name} of this HookedTransformer is {tuple(value.shape)}, but {tuple(moved.shape)} by "
                f"the configuration of {origin(model)}: give the two of one model."
            )
        if not moved.any():
            _check_constant(model, name, value, shift[name])
            continue
        tensor = list(numbers)[int(entry(name, number).flatten()[0].round())]
        index = tuple(entry(name, of).round().long() for of in indices[: len(shapes[tensor])])
        tensors[tensor][index] = ((value.double() - shift[name]) / moved).to(tensors[tensor].dtype)
        missing[tensor] -= value.numel()
    if left := [name for name, n in missing.items() if n]:
        raise InputError(
            f"this HookedTransformer has no weights for {left[0]} of {origin(model)}: load that checkpoint "
            "with ecstruct.load(...) instead."
        )
    plain = plain_model(config, model.cfg.dtype, "cpu", lambda name, _: tensors[name])
    _check_computes_the_same(model, plain)
    return plain


def _converted(cfg: Any, plain: Any) -> dict[str, Tensor]:
    loading = importlib.import_module("transformer_lens.loading_from_pretrained")  # of version 3 alone
    architecture = cfg.original_architecture or type(plain).__name__
    here = replace(cfg, original_architecture=architecture, device="cpu", from_checkpoint=False)
    try:
        return loading.get_pretrained_state_dict(".", here, hf_model=plain)
    except ValueError as error:
        raise InputError(
            f"TransformerLens cannot make a HookedTransformer of a {architecture}: load its checkpoint "
            "with ecstruct.load(...) instead."
        ) from error


def _index(shape: tuple[int, ...], dimension: int) -> Tensor:
    if dimension >= len(shape):
        return torch.tensor(0)
    return torch.arange(shape[dimension]).view(-1, *[1] * (len(shape) - 1 - dimension))


def _check_unprocessed(model: Any, found: Mapping[str, Tensor], scale: Mapping[str, Tensor]) -> None:
    done = _processing(found, scale)
    if done:
        raise InputError(
            f"this HookedTransformer has {done}, so that its weights are no longer the checkpoint's: load "
            f'it with HookedTransformer.from_pretrained_no_processing("{model.cfg.model_name}").'
        )


def _processing(found: Mapping[str, Tensor], scale: Mapping[str, Tensor]) -> str | None:
    """What was done to the weights; norms without weights of their own are never folded."""
    if any(name not in found for name in scale if ".ln" in f".{name}"):
        return "folded layer norms"
    if _centred(found, ".attn.W_O", -1):
        return "centred writing weights"
    if _centred(found, "unembed.W_U", -1):
        return "a centred unembedding"
    queries = [w for name, w in found.items() if name.endswith("attn.W_Q")]
    products = [w.double().transpose(-1, -2) @ w.double() for w in queries if w.shape[-1] > 1]
    if products and all(_off_diagonal(p) < _CENTRED * p.abs().max() for p in products):
        return "refactored attention matrices"
    values = [found[name] for name, moved in scale.items() if name.endswith("b_V") and moved.any()]
    written = [found[name] for name, moved in scale.items() if name.endswith("b_O") and moved.any()]
    if values and not any(b.any() for b in values) and any(b.any() for b in written):
        return "folded value biases"
    return None


def _centred(found: Mapping[str, Tensor], ending: str, dim: int) -> bool:
    chosen = [w.double() for name, w in found.items() if name.endswith(ending)]
    return all(w.mean(dim).abs().max() < _CENTRED * w.std() for w in chosen)


def _off_diagonal(product: Tensor) -> Tensor:
    return (product - torch.diag_embed(product.diagonal(dim1=-2, dim2=-1))).abs().max()


def _check_constant(model: Any, name: str, value: Tensor, constant: Tensor) -> None:
    if not torch.equal(value.double(), constant.double()):
        raise InputError(
            f"{name} of this HookedTransformer was trained, but a checkpoint of "
            f"{origin(model)} has no such weight: train without it."
        )


def _check_computes_the_same(model: Any, plain: Any) -> None:
    ids = torch.arange(min(16, model.cfg.n_ctx))[None] % model.cfg.d_vocab
    was_training = model.training
    with torch.no_grad():
        try:
            hooked = model.eval()(ids.to(model.cfg.device)).double().cpu()
        finally:
            model.train(was_training)
        expected = plain(ids, use_cache=False).logits.double()
    difference = ((hooked - expected).abs().max() / expected.abs().max()).item()
    if not difference < _SAME:
        raise InputError(
            f"this HookedTransformer does not compute what {origin(model)} does, whose logits differ by "
            f"{difference:.2g} of the largest: load that checkpoint with ecstruct.load(...) instead."
        )
