"""Merge low-rank adapters, as peft saves them (LoRA, rsLoRA, DoRA), into the weights that they change."""

import copy
import logging
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from ecstruct.errors import InputError
from ecstruct.io.files import from_json
from ecstruct.models.adapter_config import check_config
from ecstruct.models.boot import cause, gist
from ecstruct.models.checkpoint import TensorFiles
from ecstruct.models.steps import resolved
from ecstruct.models.tied import retie, untie

_logger = logging.getLogger(__name__)

_TWICE = re.compile(r"\.(modules_to_save|original_module)\.(weight|bias)$")
"""Names under which peft saves again what it saves whole, beside it, if the vocabulary was extended."""

_OF_TOKENS = ".token_adapter.trainable_tokens_delta"
"""The end of the names of what peft trained of single tokens."""

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(path: str | Path) -> bool:
    """Return whether a folder, or a checkpoint given as `folder@step`, is an adapter and not a model.

    Raises:
        InputError: It is both.
    """
    folder = Path(resolved(path))
    if not (folder / _CONFIG).is_file():
        return False
    if any(folder.glob("model*.safetensors")):
        raise InputError(
            f"the folder {path} has an adapter and the weights of a model, into which it may be merged "
            f"already: move {_CONFIG} away to take the model, or the model's files to take the adapter."
        )
    return True


def check_no_adapter(hf: Any) -> None:
    """Raise `InputError` if a model in memory has an adapter that is not merged."""
    peft = sys.modules.get("peft")  # if peft was not imported, there is no adapter
    if peft and any(isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer) for m in hf.modules()):
        raise InputError(
            f"this {type(hf).__name__} has an adapter that is not merged: give what merge_and_unload() of "
            "its PeftModel returns or, after add_adapter(), save it with save_pretrained(), which writes "
            "the adapter alone, and load the model with adapter=FOLDER."
        )


def adapted_by(adapter: str | Path) -> str:
    """Return the source of the model that an adapter in a local folder says it changes.

    Raises:
        InputError: The adapter does not name its model.
    """
    if not (base := _base_of(Path(resolved(adapter)))):
        raise InputError(
            f"the folder {adapter} is an adapter: give the model that it changes, which its {_CONFIG} does "
            "not name, and this folder as adapter= (of ecstruct rank: --adapter)."
        )
    return base


def _base_of(folder: Path) -> str | None:
    """Return the source of the model that an adapter was made for, or `None` if its file names none. What
    else is wrong with the file is reported when it is read as a whole."""
    try:
        base = from_json((folder / _CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return base if isinstance(base, str) and base else None


def is_peft_model(model: Any) -> bool:
    """Return whether peft has wrapped this model in memory, without importing peft."""
    return any(
        of.__module__ == "peft.peft_model" and of.__name__ == "PeftModel" for of in type(model).__mro__
    )


def merged_copy(model: Any) -> Any:
    """Return a copy of the Hugging Face model inside a peft model, with the active adapter merged.

    Raises:
        InputError: The adapter is not a change of weights, or one of quantised weights.
    """
    if getattr(model.get_base_model(), "hf_quantizer", None) is not None:
        raise InputError(
            f"the adapter of this {type(model).__name__} is one of quantised weights, into which it cannot "
            "be merged without rounding: save it with save_pretrained(), and give its folder."
        )
    try:
        return _in_the_weights(copy.deepcopy(model))
    except (AttributeError, NotImplementedError, ValueError, TypeError) as error:
        raise InputError(
            f"the adapter of this {type(model).__name__} cannot be merged into the weights "
            f"({gist(error)}): give a model with LoRA."
        ) from error


def merged(hf: Any, adapter: str | Path) -> Any:
    """Merge an adapter from a local folder or the hub into a Hugging Face model: W + dW.

    Raises:
        InputError: There is no adapter, it has no safetensors weights, or it is for another architecture.
    """
    from peft import PeftModel  # importing peft takes seconds

    folder = _fetched(adapter)
    if not (folder / _WEIGHTS).is_file():
        raise InputError(f"the adapter {adapter} has no {_WEIGHTS}: save it with peft's save_pretrained().")
    _add_tokens(adapter, folder, hf)
    check_config(folder / _CONFIG, folder / _WEIGHTS, hf)
    _warn_of_another_base(adapter, folder, hf)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", ".*missing adapter keys")
            adapted = PeftModel.from_pretrained(hf, folder)
            if not hasattr(adapted, "merge_and_unload"):
                kind = adapted.peft_config["default"].peft_type
                raise InputError(
                    f"the adapter {adapter} ({getattr(kind, 'value', kind)}) adds to what a model "
                    "reads, and changes no weight of it, which could be compared: use one that peft "
                    "merges, as LoRA."
                )
            unread = adapted.load_adapter(str(folder), "default").unexpected_keys
            saved = TensorFiles.of_file(folder / _WEIGHTS)
            unread = [name for name in unread if not _is_there_twice(name, saved)]
            if not unread:
                return _in_the_weights(adapted)
    except InputError:
        raise
    except Exception as error:  # peft raises errors of any kind on what it does not know
        raise InputError(
            f"the adapter {adapter} does not fit this {type(hf).__name__} ({cause(error)}): use the model "
            "that it was trained on, and the adapter_config.json that was saved with it."
        ) from error
    raise InputError(
        f"the adapter {adapter} has {unread[0]}, for which this {type(hf).__name__} has no place: use the "
        "model that it was trained on, and the adapter_config.json that was saved with it."
    )


def _is_there_twice(name: str, saved: TensorFiles) -> bool:
    """Return whether an adapter's tensor is there under another name too: what peft saves whole, and the
    trained tokens of an unembedding that is tied to the embedding."""
    others = [other for other in saved if other.endswith(_OF_TOKENS) and other != name]
    if name.endswith(_OF_TOKENS):
        return any(torch.equal(saved[name], saved[other]) for other in others)
    return _TWICE.sub(r".\2", name) in saved.keys() - {name}


def _in_the_weights(adapted: Any) -> Any:
    """Return the Hugging Face model inside a peft model, with weights W + dW."""
    untie(adapted.get_base_model())  # an adapter of one of two tied weights must not change the other
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")  # until retie()
        whole = adapted.merge_and_unload(safe_merge=True)
    retie(whole)
    return whole.requires_grad_(True)  # peft froze the weights


def _add_tokens(adapter: str | Path, folder: Path, hf: Any) -> None:
    """Give a model the tokens that an adapter's file has embeddings of: the file has these as a whole.

    Raises:
        InputError: The adapter has fewer tokens than the model, or lacks one end of the new ones.
    """
    n_here = hf.get_input_embeddings().weight.shape[0]
    embedding, head = hf.get_input_embeddings(), hf.get_output_embeddings()
    tied = head is None or head.weight is embedding.weight
    ends = {embedding} if tied else {embedding, head}
    names = {name for name, module in hf.named_modules() if module in ends}
    counts: dict[str, int] = {}
    for tensor, shape in TensorFiles.of_file(folder / _WEIGHTS).shapes.items():
        name = tensor.removeprefix("base_model.model.").removesuffix(".weight").removesuffix(".base_layer")
        if name in names and shape:
            counts[name] = shape[0]
    n = max(counts.values(), default=n_here)
    if n == n_here and set(counts.values()) <= {n}:
        return
    if n < n_here or counts != dict.fromkeys(names, n):
        raise InputError(
            f"the adapter {adapter} was trained on a vocabulary of {n} tokens, and this "
            f"{type(hf).__name__} has {n_here}: give the model as many, with its "
            f"resize_token_embeddings({n}), save it, and use that."
        )
    hf.resize_token_embeddings(n, mean_resizing=False)  # the adapter's rows come in their place


def _warn_of_another_base(adapter: str | Path, folder: Path, hf: Any) -> None:
    base, here = _base_of(folder), str(hf.config.name_or_path)
    if base and here and Path(base).name.lower() != Path(here).name.lower():
        _logger.warning(
            "the adapter %s is of %s by its %s, and is merged into %s", adapter, base, _CONFIG, here
        )


def _fetched(adapter: str | Path) -> Path:
    if is_adapter(adapter):
        return Path(resolved(adapter))
    if several := sorted(path.parent.name for path in Path(adapter).glob(f"*/{_CONFIG}")):
        raise InputError(
            f"the folder {adapter} has several adapters: give one of them, as {Path(adapter) / several[0]} "
            f"(it has {', '.join(several)})."
        )
    if Path(adapter).exists() or str(adapter).count("/") != 1:
        raise InputError(f"{adapter} is no adapter: a folder with an {_CONFIG} is one.")
    try:
        return Path(snapshot_download(str(adapter), allow_patterns=[_CONFIG, _WEIGHTS]))
    except (OSError, ValueError) as error:
        raise InputError(
            f"the adapter {adapter} is no local folder and cannot be loaded from the hub: {gist(error)}."
        ) from error
