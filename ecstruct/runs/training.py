"""Finetuning runs."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.commands import Finetune
from ecstruct.errors import InputError
from ecstruct.evaluate import rank_summary, ranks_of_tokenized
from ecstruct.facts import Prompt
from ecstruct.facts.tokens import tokenize
from ecstruct.finetuning import discard, finetune_across
from ecstruct.finetuning.checkpoint import has_results, note_results
from ecstruct.finetuning.lora import save_adapter
from ecstruct.io import distributed
from ecstruct.io.files import check_free, exclusive, write_text
from ecstruct.io.interruption import finishing
from ecstruct.models.bridge import named_weights
from ecstruct.models.delta import WeightDelta
from ecstruct.models.export import save_model
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.loading import load
from ecstruct.models.provenance import tokenizer_of
from ecstruct.runs.configuration import check_weights, described, write_config


def run_finetune(config: Finetune, out: Path, device: str | None, progress: bool) -> None:
    """Finetune and write `delta.safetensors` and `history.json`; with `save_model` also the whole model, as
    with `labels`, because no file has the new head; with `lora` the adapter; with `save_epochs` what is
    written of the weights, after each epoch. Several processes share the model, and the first writes. An
    interrupted run continues from `checkpoint`, and rewrites results that it was stopped in the middle of
    writing."""
    source, whole = config.model, config.save_model or config.labels is not None
    apart = ("model", "labels", "save_model", "save_epochs", "fingerprint")
    arguments = {name: value for name, value in vars(config).items() if name not in apart}
    given: list[TransformerBridge] = []  # filled on the first process only
    checkpoint = out / "checkpoint"
    run = {"run": xxhash.xxh3_128_hexdigest(json.dumps(vars(config), sort_keys=True).encode())}

    def prepare() -> str:
        own = has_results(checkpoint, run)
        for folder in [out / "model"] * whole + [out / "adapter"] * bool(config.lora):
            if own:
                shutil.rmtree(folder, ignore_errors=True)
            check_free(folder)
        # A model that several processes share has to fit into main memory, not on one of their devices.
        where = joined.device if joined.size == 1 else "cpu"
        given.append(load(source, device=where, labels=config.labels, head_seed=config.seed))
        found = fingerprint(named_weights(given[0]))
        check_weights(source, found, config.fingerprint)
        return found

    def keep(epoch: int, delta: WeightDelta) -> None:
        (out / "epochs").mkdir(exist_ok=True)
        if whole:
            shutil.rmtree(out / "epochs" / str(epoch), ignore_errors=True)  # of a run that was stopped
            save_model(delta.apply_to(given[0]), out / "epochs" / str(epoch))
        else:
            delta.save(out / "epochs" / f"{epoch}.safetensors")

    with distributed.ranks(device) as joined, exclusive(out):
        joined.agree(described(config, out))
        found = joined.on_first(prepare)
        with finishing():
            model = given[0] if given else None
            tuned = finetune_across(
                *(joined, model),
                **arguments,
                checkpoint=checkpoint,
                after_epoch=keep if config.save_epochs else None,
                progress=progress,
            )
            if tuned is None:
                return
            note_results(checkpoint, run)
            tuned.delta.save(out / "delta.safetensors")
            write_text(out / "history.json", json.dumps(tuned.history.to_dict(), indent=1))
            if tuned.adapter:
                save_adapter(tuned.adapter, out / "adapter")
            if whole:
                save_model(tuned.model, out / "model")
            told = {**tuned.config, "checkpoint_every": None, "fingerprint": found}
            write_config(out, "finetune", config, **told)
            discard(checkpoint)
    if progress:
        before, after = given[0], tuned.model
        sets = {"facts": config.facts, **(config.evaluate or {})}
        for name, prompts in sets.items():
            tqdm.write(f"{name}: {_learnt(before, after, prompts)}\n")
        tqdm.write(f"weight delta: {out / 'delta.safetensors'}")


def _learnt(before: TransformerBridge, after: TransformerBridge, prompts: Sequence[Any]) -> str:
    """Tell by ranks before and after whether finetuning worked, or why there are no ranks."""
    asked = [Prompt.from_record(record) for record in prompts]
    try:
        tokenized = tokenize(asked, tokenizer_of(before), n_ctx=before.cfg.n_ctx)
        models = {"before": before, "after": after}
        found = {state: ranks_of_tokenized(its, tokenized) for state, its in models.items()}
    except InputError as error:
        return f"no ranks, as {error}"
    table = rank_summary(tokenized, found).to_string(index=False, float_format="{:.2f}".format)
    return f"{len(asked)} prompts, rank of the answer among its options (0 is best)\n{table}"
