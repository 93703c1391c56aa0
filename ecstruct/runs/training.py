"""Finetuning."""

import json
import shutil
from pathlib import Path

import xxhash
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ecstruct import distributed
from ecstruct.files import check_free, exclusive, write_text
from ecstruct.finetuning import discard, finetune_across
from ecstruct.finetuning.checkpoint import has_results, note_results
from ecstruct.finetuning.lora import save_adapter
from ecstruct.interruption import finishing
from ecstruct.models.bridge import named_weights
from ecstruct.models.export import save_model
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.load import load
from ecstruct.runs.configuration import Config, check_weights, write_config


def run_finetune(config: Config, out: Path, device: str | None, progress: bool) -> None:
    """Finetune and write `delta.safetensors` and `history.json`, with `save_model` the whole model, with
    `lora` the adapter; several processes share the model, and the first writes. Goes on from
    `checkpoint`, and writes again what it was stopped in the middle of."""
    arguments = dict(config)
    source, whole = arguments.pop("model"), arguments.pop("save_model")
    expected = arguments.pop("fingerprint", None)
    given: list[TransformerBridge] = []  # to the first process alone
    checkpoint = out / "checkpoint"
    run = {"run": xxhash.xxh3_128_hexdigest(json.dumps(config, sort_keys=True).encode())}

    def prepare() -> str:
        own = has_results(checkpoint, run)
        for folder in [out / "model"] * whole + [out / "adapter"] * bool(arguments.get("lora")):
            if own:
                shutil.rmtree(folder, ignore_errors=True)
            check_free(folder)
        # What several share has to fit into main memory, not on one of their devices.
        given.append(load(source, device=joined.device if joined.size == 1 else "cpu"))
        found = fingerprint(named_weights(given[0]))
        check_weights(source, found, expected)
        return found

    with distributed.ranks(device) as joined, exclusive(out):
        joined.agree({key: json.dumps(value) for key, value in config.items()} | {"out": str(out)})
        found = joined.on_first(prepare)
        with finishing():
            model = given[0] if given else None
            tuned = finetune_across(joined, model, **arguments, checkpoint=checkpoint, progress=progress)
            if tuned is None:
                return
            note_results(checkpoint, run)
            tuned.delta.save(out / "delta.safetensors")
            write_text(out / "history.json", json.dumps(tuned.history.to_dict(), indent=1))
            if tuned.adapter:
                save_adapter(tuned.adapter, out / "adapter")
            if whole:
                save_model(tuned.model, out / "model")
            described = {"model": source, "save_model": whole, **tuned.config, "fingerprint": found}
            write_config(out, "finetune", described)
            discard(checkpoint)
    if progress:
        tqdm.write(f"weight delta: {out / 'delta.safetensors'}")
