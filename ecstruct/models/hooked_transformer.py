"""Convert HookedTransformers of TransformerLens 3 back to the Hugging Face models that they were made from.

A HookedTransformer has the numbers of a checkpoint in another order, some of them scaled or shifted (a
gain w as 1 + w). TransformerLens' conversion code for the architecture does this, and it is affine:

    hooked = scale * P(checkpoint) + shift

where P permutes entries. Converting checkpoints of zeros and of ones gives shift and scale. The transpose
of P is its inverse, so the gradient of the conversion is the way back; no table of architectures is needed.
"""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.models.plain import plain_model
from ecstruct.models.tied import with_untied_embeddings

_SAME = 1e-3
"""How much the float32 logits of two implementations of one model may differ, relative to the largest."""
_CENTRED = 1e-4
"""The largest mean of centred weights, relative to their spread; that of others is orders larger."""


def is_hooked_transformer(model: object) -> bool:
    """Return whether a model is a HookedTransformer, a class that TransformerLens 4 no longer has."""
    return any(
        cls.__name__ == "HookedTransformer" and cls.__module__.startswith("transformer_lens.")
        for cls in type(model).__mro__
    )


def origin(model: Any) -> str:
    """Return the hub id or folder of the checkpoint that a HookedTransformer was made from."""
    name = model.cfg.tokenizer_name or getattr(model.tokenizer, "name_or_path", None)
    if not name:
        raise InputError(
            "this HookedTransformer does not say which checkpoint it was made from: set its "
            "cfg.tokenizer_name to a hub id or to a folder with config.json and tokenizer."
        )
    return name


def plain_of(model: Any, config: Any) -> Any:
    """Return a Hugging Face model with the weights of a HookedTransformer; its embeddings are not tied.

    `config` is that of the checkpoint that the HookedTransformer was made from.

    Raises:
        InputError: The weights were folded, centred or refactored, they are not those of a checkpoint of
            this architecture, or the two models do not compute the same logits.
    """
    config = with_untied_embeddings(config)
    found = {name: p.detach() for name, p in model.state_dict().items()}
    dtype = torch.float64 if model.cfg.dtype == torch.float64 else torch.float32
    shift, one = (_converted(model.cfg, _filled(config, dtype, value)) for value in (0.0, 1.0))
    scale = {name: one[name].to(dtype) - shift[name].to(dtype) for name in one}
    if done := _processing(found, scale):
        raise InputError(
            f"this HookedTransformer has {done}, so that its weights are no longer the checkpoint's: load "
            f'it with HookedTransformer.from_pretrained_no_processing("{model.cfg.model_name}").'
        )
    wanted = {}
    for name, moved in scale.items():
        shape = tuple(found[name].shape) if name in found else "absent"
        if shape != tuple(moved.shape):
            raise InputError(
                f"{name} of this HookedTransformer is {shape}, but {tuple(moved.shape)} by the "
                f"configuration of {origin(model)}: give the two of one model."
            )
        value = found[name].to("cpu", dtype)
        if moved.any():
            wanted[name] = (value - shift[name]) / moved
        elif not torch.equal(value, shift[name].to(dtype)):
            raise InputError(
                f"{name} of this HookedTransformer was trained, but a checkpoint of {origin(model)} has no "
                "such weight: train without it."
            )
    given = _filled(config, dtype, 0.0)
    tensors = _as_attributes(given)
    hooked = _converted(model.cfg, given)
    outputs, inputs = [hooked[name] for name in wanted], list(tensors.values())

    def back(values: Mapping[str, Tensor]) -> Iterable[Tensor]:
        """Return hooked values at their places in the checkpoint."""
        grads = [values[name] / scale[name] for name in wanted]  # the gradient multiplies by scale again
        return torch.autograd.grad(outputs, inputs, grads, retain_graph=True, materialize_grads=True)

    ones = {name: torch.ones_like(value) for name, value in wanted.items()}
    for name, counts in zip(tensors, back(ones), strict=True):
        if not torch.allclose(counts, torch.ones_like(counts)):
            raise InputError(
                f"this HookedTransformer has no weights for {name} of {origin(model)}: load that "
                "checkpoint with ecstruct.load(...) instead."
            )
    weights = dict(zip(tensors, back(wanted), strict=True))
    plain = plain_model(config, model.cfg.dtype, "cpu", lambda name, _: weights[name].to(model.cfg.dtype))
    _check_computes_the_same(model, plain)
    return plain


def _converted(cfg: Any, plain: Any) -> dict[str, Tensor]:
    """Return the weights of a Hugging Face model by the names, and in the layout, of a
    HookedTransformer."""
    loading = importlib.import_module("transformer_lens.loading_from_pretrained")  # only in version 3
    architecture = cfg.original_architecture or type(plain).__name__
    here = replace(cfg, original_architecture=architecture, device="cpu", from_checkpoint=False)
    try:
        return loading.get_pretrained_state_dict(".", here, hf_model=plain)
    except ValueError as error:
        raise InputError(
            f"TransformerLens cannot make a HookedTransformer of a {architecture}: load its checkpoint "
            "with ecstruct.load(...) instead."
        ) from error


def _filled(config: Any, dtype: torch.dtype, value: float) -> Any:
    """Return a plain model whose tensors are all one number, expanded to their shapes."""
    return plain_model(config, dtype, "cpu", lambda _, p: torch.tensor(value, dtype=dtype).expand(p.shape))


def _as_attributes(plain: Any) -> dict[str, Tensor]:
    """Turn the parameters of a model into plain attributes, and return them by name. TransformerLens would
    switch off the gradients of parameters."""
    tensors = dict(plain.named_parameters())
    for module in plain.modules():
        for name in [name for name, p in module._parameters.items() if p is not None]:
            module.__dict__[name] = module._parameters.pop(name)
    return tensors


def _processing(found: Mapping[str, Tensor], scale: Mapping[str, Tensor]) -> str | None:
    """Return what was done to the weights, or `None`; norms without weights cannot have been folded."""
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
