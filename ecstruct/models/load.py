"""Loading a checkpoint as a hooked model whose weights are exactly the checkpoint's.

Nothing is folded, centred or compiled: a weight change must stay the change of a weight of the
checkpoint. Weights come from safetensors files only, no code from a checkpoint is run, and everything
local works without a network.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ecstruct.errors import InputError
from ecstruct.models.adapters import is_adapter, merged
from ecstruct.models.boot import boot, gist, without_bars
from ecstruct.models.bridge import named_weights
from ecstruct.models.delta import WeightDelta
from ecstruct.models.export import to_hugging_face
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.hooked import HookedView
from ecstruct.models.hooked_transformer import is_hooked_transformer, origin, plain_of
from ecstruct.models.provenance import Provenance, mark, tokenizer_of
from ecstruct.models.steps import instead, resolved
from ecstruct.models.support import check_runs

_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)
"""What transformers raises when it reads files that are not what they should be, or too deep."""


def load(
    source: str | Path | nn.Module,
    *,
    revision: str | None = None,
    adapter: str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> TransformerBridge:
    """Load a causal language model as an unprocessed TransformerBridge in eval mode.

    Args:
        source: `"organism"` (the embedded model), a local Hugging Face folder, a hub id, `"id@revision"`,
            `"folder@step"` (see `ecstruct.checkpoints`), the `.safetensors` file of a `WeightDelta`, which
            says what model it changes, or a model already in memory. A Hugging Face model is taken over:
            its modules become part of the hooked model and its weights are shared with it. Of a
            HookedTransformer (of TransformerLens 3) the weights are copied; configuration and tokenizer are
            those of the checkpoint that it was made from, which its `cfg.tokenizer_name` says.
        revision: branch, tag or commit on the hub, or step; the same as after the `@`.
        adapter: folder or hub id of a low-rank adapter (peft's: LoRA, rsLoRA, DoRA), which is merged into
            the weights before they get their `dtype`.
        tokenizer: needed with a model in memory, whose own it must be; refused otherwise.
        device: a CUDA device if there is one, else the CPU, when not given.
        dtype: dtype of the weights. Scores are computed in float32 (float64 for float64).

    Raises:
        InputError: unknown id or folder, no network, no safetensors weights, a truncated file, tensors
            that the configuration does not explain, NaN or infinite weights, quantised weights, an
            unsupported architecture, an adapter that does not fit, a HookedTransformer whose weights were
            processed.
    """
    device = device_of(device)
    if is_hooked_transformer(source):
        name = origin(source)
        hf: Any = plain_of(source, read_config(name, name, {}))
        tokenizer = tokenizer or read_tokenizer(name, name, {})
    elif isinstance(source, PreTrainedModel):
        if tokenizer is None:
            raise InputError("a model in memory needs its tokenizer: pass tokenizer=...")
        name = source.config.name_or_path or type(source).__name__
        hf = source
    elif isinstance(source, nn.Module):
        raise InputError(
            f"a {type(source).__name__} is no Hugging Face model: give the path of a checkpoint, or a "
            "PreTrainedModel with its tokenizer."
        )
    else:
        if tokenizer is not None:
            raise InputError(f"tokenizer= goes with a model in memory; {source!r} brings its own.")
        if Path(source).suffix == ".safetensors" and adapter is revision is None:
            return _changed(source, device, dtype)
        name, revision = named(source, revision)
        hf, tokenizer = _read(name, revision, dtype if adapter is None else torch.float32)
    if adapter is not None:
        hf = merged(hf, adapter)
        name = f"{name} (with the adapter {adapter})"
    hf = hf.to(device, dtype)
    model = boot(name, hf, tokenizer)
    try:
        view = HookedView(model)  # refuses an architecture that could not be scored later
        check_runs(view)
    except (AttributeError, KeyError) as error:
        raise InputError(
            f"{name} is a {type(hf).__name__}, in which heads and MLPs cannot be told apart: use another "
            "architecture."
        ) from error
    for weight, p in view.named_weights.items():
        if not torch.isfinite(p).all():
            raise InputError(f"{name} has NaN or infinite values in {weight}: use another checkpoint.")
    return mark(model, Provenance(name, revision, tokenizer))


def _changed(path: str | Path, device: torch.device, dtype: torch.dtype) -> TransformerBridge:
    """The model that a saved delta was made from, with the delta."""
    change = WeightDelta.load(path)
    base, expected = (change.metadata.get(key) for key in ("before", "before_fingerprint"))
    if not base or base.endswith(")"):
        raise InputError(
            f"{path} changes {base or 'a model that it does not name'}, which is in no file: load that "
            "model and apply the delta to it, with WeightDelta.load(...).apply_to(model)."
        )
    model = load(base, device=device, dtype=dtype)
    if dtype == torch.float32 and expected not in (None, fingerprint(named_weights(model))):
        raise InputError(f"{path} was made from other weights than those of {base}: find that checkpoint.")
    return mark(change.apply_to(model), Provenance(str(path), None, tokenizer_of(model)))


def load_after(
    source: str | Path, before: TransformerBridge, *, device: Any = None, dtype: torch.dtype = torch.float32
) -> TransformerBridge:
    """The model that `before` was finetuned to: the file of a change of its weights, the folder of an
    adapter of it, or a source of its own."""
    if Path(source).suffix == ".safetensors":
        return WeightDelta.load(source).apply_to(before)
    if is_adapter(source):
        plain, tokenizer = to_hugging_face(before), tokenizer_of(before)
        return load(plain, adapter=source, tokenizer=tokenizer, device=device, dtype=dtype)
    return load(source, device=device, dtype=dtype)


def named(source: str | Path, revision: str | None = None) -> tuple[str, str | None]:
    """A source without its revision, and that; of a checkpoint by its step, the folder."""
    name = resolved(source)
    if revision is not None and Path(name).expanduser().is_dir():
        return resolved(f"{name}@{revision}"), None
    if "@" not in name or Path(name).exists():
        return name, revision
    name, _, at = name.partition("@")
    if revision is not None and revision != at:
        raise InputError(f"two revisions are given, {at!r} and {revision!r}: give one.")
    return name, at


def device_of(name: str | torch.device | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"there is no device {str(name)!r} here: use 'cpu', or 'cuda' with a GPU."
        ) from error


def _read(name: str, revision: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    path = local_folder(name)
    where = str(path or name)
    options: dict[str, Any] = {} if path else {"revision": revision}
    read_config(name, where, options)
    try:
        with without_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **options,
            )
        hf, info = loaded
    except SafetensorError as error:
        raise InputError(
            f"a safetensors file of {name} is corrupt or truncated ({gist(error)}): fetch or save it again."
        ) from error
    except _DAMAGED as error:
        raise InputError(unreadable(name, path, error)) from error
    if info["missing_keys"] or info["mismatched_keys"]:
        lacking = sorted([*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])])[0]
        raise InputError(
            f"{name} has no weights of the right shape for {lacking}, which its config.json asks for: "
            "the folder is incomplete or mixes two models."
        )
    # Buffers that older versions saved (masks, rotary frequencies) are no loss; a weight is.
    if unasked := sorted(key for key in info["unexpected_keys"] if key.endswith(".weight")):
        raise InputError(
            f"{name} has weights in {unasked[0]} that its config.json does not ask "
            "for: the two belong to different models."
        )
    return hf, read_tokenizer(name, where, options)


def read_config(name: str, where: str, options: dict[str, Any]) -> Any:
    """The configuration of a source, unless its weights are quantised."""
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False, **options)
    except _DAMAGED as error:
        raise InputError(unreadable(name, local_folder(name), error)) from error
    if getattr(config, "quantization_config", None):
        raise InputError(
            f"{name} is quantised, and what changed in its weights cannot be told: use the checkpoint that "
            "it was made from, or save a dequantised one."
        )
    return config


def read_tokenizer(name: str, where: str, options: dict[str, Any]) -> Any:
    """The tokenizer beside the weights of a source."""
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)
    except _DAMAGED as error:
        raise InputError(f"{name} has no usable tokenizer: save it beside the weights.") from error


def local_folder(name: str) -> Path | None:
    """The local folder that `name` stands for; `None` for a hub id."""
    if name == "organism":
        from ecstruct import organism  # the organism's package builds on this one

        return organism.checkpoint()
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"the folder {name} has no config.json: {instead(name)}.")
        if not any(path.glob("*.safetensors")):
            raise InputError(
                f"the folder {name} has no *.safetensors weights: save the model with "
                "save_pretrained(), which writes them."
            )
        return path
    if path.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"{name} is no folder: give a Hugging Face folder, a hub id or 'organism'.")
    return None


def unreadable(name: str, path: Path | None, error: Exception) -> str:
    """Why a source could not be loaded, in a sentence."""
    if path:
        return f"the folder {name} cannot be loaded as a causal language model: {gist(error)}."
    return (
        f"{name!r} is no local folder and could not be loaded from the hub: check the spelling, the "
        f"network and, for a gated model, your login ({gist(error)})."
    )
