"""Low-rank adapters (Hu et al. 2021) by peft, to finetune a large model on one GPU.

The Hugging Face model below the hooks is adapted. Where a checkpoint keeps query, key and value apart, its
weights are the hooked model's own, not copies; they are never changed. Only the adapters have gradients and
Adam's averages. At the end each is merged, as W + dW in the dtype of W, into a copy of the model.
"""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers.pytorch_utils import Conv1D

from ecstruct.errors import InputError
from ecstruct.finetuning.learner import Learner
from ecstruct.finetuning.options import Lora
from ecstruct.io.files import write_folder
from ecstruct.models.bridge import copy_of, named_weights, unembedding
from ecstruct.models.delta import WeightDelta
from ecstruct.models.export import plain_view
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.names import WeightSelection, layer_of
from ecstruct.models.provenance import derived, provenance, source_of, tokenizer_of
from ecstruct.models.skeleton import Place, Skeleton


class Adapted:
    """A hooked model's weights with adapters on the projections of its blocks.

    Raises:
        InputError: `lora` names no projection of the blocks, or `frozen` leaves none, or only part of one.
    """

    def __init__(
        self, model: TransformerBridge, lora: Lora, frozen: WeightSelection | None, seed: int
    ) -> None:
        self._model = model
        device = next(model.parameters()).device
        # Building models draws random numbers, and the first factor of each adapter is random.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            config = model.original_model.config
            places = Skeleton.of(source_of(model), config, tokenizer_of(model)).places
            targets = _targets(places, lora, frozen)
            plain = plain_view(model, places)
            torch.manual_seed(seed)
            self.adapter = _adapted(plain, targets, lora, provenance(model).revision)
        self.blocks = _blocks(plain, model.cfg.n_layers)
        weights = {name: p for name, p in self.adapter.named_parameters() if p.requires_grad}
        whole = {f"{target}.weight" for target in targets}
        self._places = {name: place for name, place in places.items() if place.tensor in whole}
        self.learner = Learner(partial(_logits, self.adapter), weights, device)

    @torch.no_grad()
    def collect(self) -> tuple[TransformerBridge, WeightDelta]:
        """Return a copy of the model with the adapters merged, and the change of its weights on the CPU."""
        tuned = derived(copy_of(self._model), self._model, "finetuned")
        old, new = named_weights(self._model), named_weights(tuned)
        changes: dict[str, Tensor] = {}
        for name, place in self._places.items():
            layer = self.adapter.get_submodule(f"base_model.model.{_module(place)}")
            base = layer.base_layer.weight
            own = base.data
            layer.merge(safe_merge=True)  # writes a new tensor, so that the model keeps its own
            new[name].copy_(place.take(base.data))
            base.data = own
            layer.merged_adapters.clear()
            changes[name] = (new[name] - old[name]).cpu()
        before = fingerprint(old)
        return tuned, WeightDelta.of_changes(changes, provenance(self._model), before, tuned)


def _adapted(plain: Any, targets: list[str], lora: Lora, revision: str | None) -> Any:
    from peft import LoraConfig, get_peft_model  # takes seconds

    described = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=targets,
        fan_in_fan_out=any(isinstance(plain.get_submodule(name), Conv1D) for name in targets),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        revision=revision,
    )
    with warnings.catch_warnings():
        # The warning is about a name that one of the two libraries has changed and the other still uses.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(plain, described).eval()


def save_adapter(adapter: Any, folder: Path) -> None:
    """Write peft's own folder with config and safetensors; it appears when it is whole."""
    config = adapter.peft_config["default"]
    config.target_modules = sorted(config.target_modules)  # a set has a random order
    write_folder(folder, lambda whole: adapter.save_pretrained(whole, save_embedding_layers=False))


def _logits(
    adapter: Any,
    read: Bool[Tensor, "batch pos"],
    ids: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
) -> Float[Tensor, "read d_vocab"]:
    with unembedding(adapter.get_output_embeddings(), read):
        return adapter(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]


def _module(place: Place) -> str:
    return place.tensor.rpartition(".")[0]


def _targets(places: dict[str, Place], lora: Lora, frozen: WeightSelection | None) -> list[str]:
    """Return the modules to adapt: projections of the blocks that are not frozen."""
    if frozen is not None:
        frozen.check_names(places)
    of_module: dict[str, list[str]] = {}
    for name, place in places.items():
        if layer_of(name) is not None and len(place.shape) == 2 and name.endswith(".weight"):
            of_module.setdefault(_module(place), []).append(name)
    if lora.targets is not None:
        known = sorted({module.rpartition(".")[2] for module in of_module})
        for target in lora.targets:
            if not any(_named(module, target) for module in of_module):
                raise InputError(
                    f"lora has the target {target!r}, which is no projection of the blocks: choose among "
                    f"{', '.join(known)}."
                )
        of_module = {m: w for m, w in of_module.items() if any(_named(m, t) for t in lora.targets)}
    chosen = []
    for module, weights in of_module.items():
        kept = [name for name in weights if frozen is not None and frozen.matches(name)]
        if kept and len(kept) < len(weights):
            raise InputError(
                f"freeze={frozen} keeps {kept[0]} but not all of {module}, which an adapter changes as a "
                "whole: freeze all of it, or finetune without lora."
            )
        if not kept:
            chosen.append(module)
    if not chosen:
        raise InputError(f"freeze={frozen} leaves nothing to adapt: freeze less.")
    return chosen


def _named(module: str, target: str) -> bool:
    """Return whether a target means this module, by peft's rule."""
    return module == target or module.endswith(f".{target}")


def _blocks(plain: nn.Module, n_layers: int) -> list[nn.Module]:
    return next(list(m) for m in plain.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers)
