"""Load a checkpoint as a hooked model whose weights are exactly the checkpoint's.

Nothing is folded, centred or compiled: a weight change must stay the change of a weight of the
checkpoint. Weights come from safetensors files only, no code from a checkpoint is run, and everything
local works without a network.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ecstruct.errors import InputError
from ecstruct.models.adapters import (
    adapted_by,
    check_no_adapter,
    is_adapter,
    is_peft_model,
    merged,
    merged_copy,
)
from ecstruct.models.boot import boot, cause, gist, without_bars
from ecstruct.models.checkpoint import check_all_read, lacking, wrapper_of
from ecstruct.models.classifiers import (
    auto_class,
    fill_head,
    is_classifier,
    is_encoder,
    is_of_head,
    tokenizer_for,
    with_labels,
)
from ecstruct.models.delta import WeightDelta, base_of, is_delta
from ecstruct.models.export import to_hugging_face
from ecstruct.models.finite import check_weights
from ecstruct.models.hooked import HookedView
from ecstruct.models.hooked_transformer import is_hooked_transformer, origin, plain_of
from ecstruct.models.provenance import Provenance, mark, tokenizer_of
from ecstruct.models.quantised import ask_to_dequantise, dequantised, quantisation_of
from ecstruct.models.sources import (
    DAMAGED,
    Located,
    located,
    read_config,
    read_tokenizer,
    usable_tokenizer,
)
from ecstruct.models.support import check_runs

_logger = logging.getLogger(__name__)

_DEQUANTISED_FROM = "_ecstruct_dequantised_from"


def load(
    source: str | Path | nn.Module,
    *,
    revision: str | None = None,
    adapter: str | Path | None = None,
    labels: Sequence[str] | None = None,
    head_seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> TransformerBridge:
    """Load a causal language model, or a classifier, as an unprocessed TransformerBridge in eval mode.

    A `...ForSequenceClassification` checkpoint is a classifier, whose options and answers are the labels of
    its config.json; it may be an encoder (BERT, RoBERTa) or a decoder.

    Args:
        source: `"organism"` (the model in the package), `"smollm2"` or `"minilm"` (a pretrained language
            model and an encoder, fetched on first use), a local Hugging Face folder, a GGUF file or a
            folder with one (which is dequantised), a hub id, `"id@revision"`, `"folder@step"` (see
            `ecstruct.checkpoints`), the `.safetensors` file of a `WeightDelta` or the folder of an adapter,
            which both name the model they change, or a model in memory. A Hugging Face model is taken over:
            its modules become part of the hooked model, and the two share weights. A peft model is copied
            and merged. The weights of a HookedTransformer (TransformerLens 3) are copied; its configuration
            and tokenizer are read from the checkpoint it was made from, named by `cfg.tokenizer_name`.
        revision: Branch, tag or commit on the hub, or step; the same as after the `@`.
        adapter: Folder or hub id of a low-rank adapter (of peft: LoRA, rsLoRA, DoRA), which is merged into
            the weights before they are cast to `dtype`.
        labels: Names of labels. A checkpoint without a classifier, such as a language model or an encoder
            alone, becomes one with these labels and a new head, to be finetuned: its matrices are normal,
            with the standard deviation of the configuration's `initializer_range`, and its biases zero. A
            classifier that has no names for as many labels of its own (LABEL_0, ...) gets these.
        head_seed: The seed of a new head.
        tokenizer: The own tokenizer of a model in memory, which requires it; refused with a path or an id.
        device: By default a CUDA device if there is one, else the CPU.
        dtype: The dtype of the weights. Scores are computed in float32 (float64 for float64).

    Raises:
        InputError: unknown id or folder, no network, no safetensors weights, a truncated file, tensors
            that the configuration does not explain, NaN or infinite weights, weights that are quantised in
            a format that cannot be dequantised here, an unsupported architecture, an adapter that does not
            fit, a HookedTransformer whose weights were processed, labels that cannot be used.
    """
    device, weights = device_of(device), ""
    if isinstance(source, nn.Module) and revision is not None:
        raise InputError(f"revision={revision!r} goes with a source; a model in memory has none.")
    if isinstance(source, nn.Module) and labels is not None:
        raise InputError(f"labels={labels!r} go with a source; a model in memory has a head already.")
    made: tuple[str, ...] = ()
    if is_hooked_transformer(source):
        name = origin(source)
        hf: Any = plain_of(source, read_config(Located(name)))
        tokenizer = tokenizer or read_tokenizer(Located(name))
    elif isinstance(source, PreTrainedModel) or is_peft_model(source):
        if tokenizer is None:
            raise InputError("a model in memory needs its tokenizer: pass tokenizer=...")
        if isinstance(source, PreTrainedModel):
            check_no_adapter(source)
            hf = dequantised(source)
        else:
            hf = merged_copy(source)
        name = hf.config.name_or_path or type(hf).__name__
    elif isinstance(source, nn.Module):
        raise InputError(
            f"a {type(source).__name__} is no Hugging Face model: give the path of a checkpoint, or a "
            "PreTrainedModel with its tokenizer; of a PeftModel, what its merge_and_unload() returns."
        )
    else:
        if tokenizer is not None:
            raise InputError(f"tokenizer= goes with a model in memory; {source!r} brings its own.")
        if is_delta(source) and adapter is revision is labels is None:
            return _changed(source, device, dtype)
        if adapter is revision is labels is None and is_adapter(source):
            return load(adapted_by(source), adapter=source, device=device, dtype=dtype)
        at = located(source, revision)
        name, revision = at.name, at.revision
        hf, made = _read_labelled(at, dtype if adapter is None else torch.float32, labels, head_seed)
        weights, tokenizer = _weights_of(at, hf), read_tokenizer(at)
    if adapter is not None:
        hf = merged(hf, adapter)
        made = (*made, f"with the adapter {adapter}")
    return _hooked(hf.to(device, dtype), Provenance(name, revision, tokenizer, made, weights))


def _hooked(hf: Any, origin: Provenance) -> TransformerBridge:
    """Hook a Hugging Face model, and check that it can be scored."""
    model, name = boot(origin.source, hf, origin.tokenizer), origin.source
    origin = replace(origin, tokenizer=tokenizer_for(model.original_model.config, origin.tokenizer))
    try:
        view = HookedView(model)  # raises if the architecture cannot be scored
        check_runs(view)
    except InputError:
        raise
    except (AttributeError, KeyError) as error:
        raise InputError(
            f"{name} is a {type(hf).__name__}, in which heads and MLPs cannot be told apart: use another "
            "architecture."
        ) from error
    except DAMAGED as error:
        raise InputError(
            f"{name} is a {type(hf).__name__} that cannot be run ({cause(error)}): see "
            "whether its configuration is the one that its weights were trained with."
        ) from error
    check_weights(name, view.named_weights)
    return mark(model, origin)


def _changed(path: str | Path, device: torch.device, dtype: torch.dtype) -> TransformerBridge:
    """Load the model that a saved delta was made from, and add the delta."""
    change, base = WeightDelta.load(path), base_of(path)
    model = load(base, device=device)
    if not change.starts_at(model):
        raise InputError(f"{path} was made from other weights than those of {base}: find that checkpoint.")
    if dtype != torch.float32:
        model = load(base, device=device, dtype=dtype)
    return mark(change.apply_to(model), Provenance(str(path), None, tokenizer_of(model)))


def load_after(
    source: str | Path, before: TransformerBridge, *, device: Any = None, dtype: torch.dtype = torch.float32
) -> TransformerBridge:
    """Load the model after. `source` is the file of a delta or the folder of an adapter, both applied to
    `before`, or a checkpoint, which gets the tokenizer of `before` if it has no usable one: all prompts are
    read with that one anyway."""
    if is_delta(source):
        return delta_onto(source, before).apply_to(before)
    if is_adapter(source):
        plain, tokenizer = to_hugging_face(before), tokenizer_of(before)
        return load(plain, adapter=source, tokenizer=tokenizer, device=device, dtype=dtype)
    at = located(source)
    hf = _read(at, dtype).to(device_of(device), dtype)
    tokenizer = usable_tokenizer(at) or tokenizer_of(before)
    return _hooked(hf, Provenance(at.name, at.revision, tokenizer, weights=_weights_of(at, hf)))


def delta_onto(path: str | Path, model: TransformerBridge) -> WeightDelta:
    """Read a saved delta to be added to `model`; log a warning if it was made from other weights."""
    change = WeightDelta.load(path)
    if not change.starts_at(model):
        of = change.metadata.get("before", "another model")
        _logger.warning("%s is the change of other weights (of %s) than those it is added to", path, of)
    return change


def device_of(name: str | torch.device | None) -> torch.device:
    """Return the device of this name; by default the GPU if there is one, otherwise the CPU.

    Raises:
        InputError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        made = torch.zeros(1, device=name)
        made.cpu()  # some devices (meta) hold no numbers
        return made.device
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(
            f"there is no device {str(name)!r} here: use 'cpu', or 'cuda' with a GPU."
        ) from error


def _read_labelled(
    at: Located, dtype: torch.dtype, labels: Sequence[str] | None, seed: int
) -> tuple[Any, tuple[str, ...]]:
    """Read the Hugging Face model of a checkpoint, as a classifier with these labels if there are any;
    return it, and how it was made from the checkpoint."""
    if labels is None:
        return _read(at, dtype), ()
    config, new = with_labels(read_config(at), labels, at.name)
    named = f"for the labels {', '.join(labels)}"
    if not new:
        return _read(at, dtype, config), (f"with names {named}",)
    hf, info = _from_pretrained(at, dtype, config=config)
    filled = lacking(info)
    _check_none_lacking(at, [name for name in filled if not is_of_head(name)])
    check_all_read(at.name, [name for name in info["unexpected_keys"] if not is_of_head(name)])
    fill_head(hf, filled, seed)
    _logger.warning(
        "%s gets a new head %s, which is random (seed %d): %s. Finetune it before it is used.",
        *(at.name, named, seed, ", ".join(filled)),
    )
    return hf, (f"with a new head {named}, seed {seed}",)


def _check_none_lacking(at: Located, weights: Sequence[str]) -> None:
    if weights:
        raise InputError(
            f"{at.name} has no weights of the right shape for {weights[0]}, which its config.json asks "
            "for: the folder is incomplete or mixes two models."
        )


def _read(at: Located, dtype: torch.dtype, config: Any = None) -> Any:
    """Read the Hugging Face model of a checkpoint; check that all weights and all tensors are used."""
    config = config or read_config(at)
    if is_encoder(config) and not is_classifier(config):
        raise InputError(
            f"{at.name} is an encoder ({config.model_type}), which continues no text: give it labels, with "
            "load(..., labels=[...]) or ecstruct finetune --label, to finetune it as a classifier."
        )
    hf, info = _from_pretrained(at, dtype, config=config)
    nothing_read = all(name in info["missing_keys"] for name, _ in hf.named_parameters())
    if nothing_read and (wrapper := wrapper_of(at.name, info["unexpected_keys"])):
        renamed = {f"^{re.escape(wrapper)}": ""}
        hf, info = _from_pretrained(at, dtype, config=config, key_mapping=renamed)
    _check_none_lacking(at, lacking(info))
    check_all_read(at.name, info["unexpected_keys"])
    return hf


def _weights_of(at: Located, hf: Any) -> str:
    """Return how the weights of a checkpoint were converted, or which of several they are."""
    method = hf.__dict__.get(_DEQUANTISED_FROM)
    return f"dequantised from {method}" if method else at.weights


def _from_pretrained(
    at: Located, dtype: torch.dtype, config: Any, **options: Any
) -> tuple[Any, dict[str, Any]]:
    try:
        with at.explaining_errors(), without_bars():
            method = quantisation_of(config)
            ask_to_dequantise(at.name, config)
            loaded: Any = auto_class(config).from_pretrained(
                at.where,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused in `_read`, with their names
                **at.options,
                **options,
            )
            hf = dequantised(loaded[0])
        hf.__dict__[_DEQUANTISED_FROM] = method
        return hf, loaded[1]
    except SafetensorError as error:
        raise InputError(
            f"a safetensors file of {at.name} is corrupt or truncated ({gist(error)}): fetch or save it "
            "again."
        ) from error
