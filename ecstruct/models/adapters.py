"""Low-rank adapters, as peft saves them (LoRA, rsLoRA, DoRA), merged into the weights that they change."""

import copy
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from ecstruct.errors import InputError
from ecstruct.files import from_json
from ecstruct.models.boot import gist
from ecstruct.models.steps import resolved

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(path: str | Path) -> bool:
    """Whether a folder, or a checkpoint by its step, is an adapter, not a model.

    Raises:
        InputError: it is both.
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


def adapted_by(adapter: str | Path) -> str:
    """The model that an adapter of a local folder says it changes.

    Raises:
        InputError: it does not say so.
    """
    path = Path(resolved(adapter)) / _CONFIG
    try:
        base = from_json(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise InputError(
            f"the folder {adapter} is an adapter: give the model that it changes, which its {_CONFIG} does "
            "not name, and this folder as adapter= (of ecstruct rank: --adapter)."
        )
    return base


def is_peft_model(model: Any) -> bool:
    """Whether a model in memory is one that peft has wrapped, told without importing peft."""
    return any(
        of.__module__ == "peft.peft_model" and of.__name__ == "PeftModel" for of in type(model).__mro__
    )


def merged_copy(model: Any) -> Any:
    """The Hugging Face model under a peft model, with the active adapter in its weights; a copy.

    Raises:
        InputError: an adapter that is no change of weights.
    """
    try:
        return copy.deepcopy(model).merge_and_unload(safe_merge=True).requires_grad_(True)
    except (AttributeError, NotImplementedError, ValueError, TypeError) as error:
        raise InputError(
            f"the adapter of this {type(model).__name__} cannot be merged into the weights "
            f"({gist(error)}): give a model with LoRA."
        ) from error


def merged(hf: Any, adapter: str | Path) -> Any:
    """A Hugging Face model with an adapter, of a local folder or the hub, in its weights: W + dW.

    Raises:
        InputError: no adapter, one without safetensors weights, or one of another architecture.
    """
    from peft import PeftModel  # takes seconds

    folder = _fetched(adapter)
    if not (folder / _WEIGHTS).is_file():
        raise InputError(f"the adapter {adapter} has no {_WEIGHTS}: save it with peft's save_pretrained().")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", ".*missing adapter keys")
            adapted = PeftModel.from_pretrained(hf, folder)
            unread = adapted.load_adapter(str(folder), "default").unexpected_keys
            if not unread:
                merged_in = adapted.merge_and_unload(safe_merge=True)
                return merged_in.requires_grad_(True)  # as before it was given an adapter
    except (ValueError, RuntimeError, KeyError, TypeError, OSError, UserWarning, SafetensorError) as error:
        raise InputError(
            f"the adapter {adapter} does not fit this {type(hf).__name__} ({gist(error)}): use the model "
            "that it was trained on."
        ) from error
    raise InputError(
        f"the adapter {adapter} has {unread[0]}, for which this {type(hf).__name__} has no place: use the "
        "model that it was trained on, and the adapter_config.json that was saved with it."
    )


def _fetched(adapter: str | Path) -> Path:
    if is_adapter(adapter):
        return Path(resolved(adapter))
    if Path(adapter).exists() or str(adapter).count("/") != 1:
        raise InputError(f"{adapter} is no adapter: a folder with an {_CONFIG} is one.")
    try:
        return Path(snapshot_download(str(adapter), allow_patterns=[_CONFIG, _WEIGHTS]))
    except (OSError, ValueError) as error:
        raise InputError(
            f"the adapter {adapter} is no local folder and cannot be loaded from the hub: {gist(error)}."
        ) from error
