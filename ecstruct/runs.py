"""The runs of the command line: from a configuration to a folder with results, and with the
configuration that makes them again.

A configuration is a JSON object with all that decides the numbers, prompts included, so `config.json`
replays wherever the checkpoints can be found. Devices and progress bars are not part of it.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xxhash
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ecstruct import distributed
from ecstruct.checks.fidelity import fidelity
from ecstruct.demo import demo
from ecstruct.errors import InputError
from ecstruct.evaluate import ranks
from ecstruct.experiments import Result, Setup, reproduce
from ecstruct.facts import read_jsonl
from ecstruct.files import exclusive, write_text
from ecstruct.finetuning import discard, finetune_across
from ecstruct.finetuning.lora import save_adapter
from ecstruct.interruption import finishing
from ecstruct.models.export import check_free, save_model
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.hooked import named_weights
from ecstruct.models.load import load
from ecstruct.report.experiments import experiments_report
from ecstruct.report.pages import fidelity_report, score_report
from ecstruct.scores.engine import ScoreEngine

Config = dict[str, Any]
Run = Callable[[Config, Path, str | None, bool], None]
"""What is run, the folder it writes to, on which device, and whether to show progress."""


def _alone(run: Run) -> Run:
    """A run that is the only one to write to its folder, and knows before the work that it can."""

    @wraps(run)
    def alone(config: Config, out: Path, device: str | None, progress: bool) -> None:
        with exclusive(out):
            run(config, out, device, progress)

    return alone


def records(path: Path) -> list[dict[str, Any]]:
    """Prompts of a JSONL file as records for a configuration."""
    return [prompt.to_record() for prompt in read_jsonl(path)]


def rank_table(source: str, path: Path, device: str | None, out: Path | None) -> pd.DataFrame:
    """Rank of every answer of a JSONL file; written to `out`, with what was ranked, when given."""
    prompts = read_jsonl(path)
    table = pd.DataFrame(
        {
            "prompt": [prompt.text for prompt in prompts],
            "answer": [prompt.answer for prompt in prompts],
            "rank": ranks(load(source, device=device), prompts),
        }
    )
    if out:
        result = {
            "model": source,
            "mean_rank": np.mean(table["rank"]).item(),
            "ranks": table.to_dict("records"),
            "prompts": [prompt.to_record() for prompt in prompts],
        }
        write_text(out, json.dumps(result, indent=1))
    return table


@_alone
def run_demo(config: Config, out: Path, device: str | None, progress: bool) -> None:
    """The organism learns facts and generalises; see `ecstruct.demo`."""
    result = demo(seed=config["seed"], device=device, progress=progress)
    result.write(out, replay=f"ecstruct replay {out / 'config.json'} --out DIR")
    _write_config(out, "demo", config)
    if progress:
        tqdm.write(f"{result.table()}\nreport: {out / 'report.html'}")


def run_finetune(config: Config, out: Path, device: str | None, progress: bool) -> None:
    """Finetune and write `delta.safetensors` and `history.json`, with `save_model` the whole model, with
    `lora` the adapter; several processes share the model, and the first writes. Goes on from
    `checkpoint`."""
    arguments = dict(config)
    source, whole = arguments.pop("model"), arguments.pop("save_model")
    expected = arguments.pop("fingerprint", None)
    given: list[TransformerBridge] = []  # to the first process alone

    def prepare() -> str:
        for folder in [out / "model"] * whole + [out / "adapter"] * bool(arguments.get("lora")):
            check_free(folder)
        # What several share has to fit into main memory, not on one of their devices.
        given.append(load(source, device=joined.device if joined.size == 1 else "cpu"))
        found = fingerprint(named_weights(given[0]))
        _check_weights(source, found, expected)
        return found

    with distributed.ranks(device) as joined, exclusive(out):
        joined.agree({key: json.dumps(value) for key, value in config.items()} | {"out": str(out)})
        found = joined.on_first(prepare)
        checkpoint = out / "checkpoint"
        with finishing():
            model = given[0] if given else None
            tuned = finetune_across(joined, model, **arguments, checkpoint=checkpoint, progress=progress)
            if tuned is None:
                return
            tuned.delta.save(out / "delta.safetensors")
            write_text(out / "history.json", json.dumps(tuned.history.to_dict(), indent=1))
            if tuned.adapter:
                save_adapter(tuned.adapter, out / "adapter")
            if whole:
                save_model(tuned.model, out / "model")
            described = {"model": source, "save_model": whole, **tuned.config, "fingerprint": found}
            _write_config(out, "finetune", described)
            discard(checkpoint)
    if progress:
        tqdm.write(f"weight delta: {out / 'delta.safetensors'}")


def run_score(config: Config, out: Path, device: str | None, progress: bool) -> None:
    """Score and write `scores.nc` and `report.html`; of several processes the first does, and all score."""
    arguments = dict(config)
    before, after, prompts = (arguments.pop(name) for name in ("before", "after", "prompts"))
    expected = arguments.pop("fingerprints", None) or {}
    with distributed.ranks(device) as joined, exclusive(out):
        joined.agree(_described(config, out))
        engine = ScoreEngine(before, after, **arguments, device=joined.device, progress=progress)
        fingerprints = {state: engine.attrs[state]["fingerprint"] for state in ("before", "after")}
        for state, source in (("before", before), ("after", after)):
            _check_weights(source, fingerprints[state], expected.get(state))
        scores = engine.shared(prompts, joined, out / "shards")
        if scores is None:
            return
        scores.save(out / "scores.nc")
        score_report(out / "report.html", scores, f"ecstruct replay {out / 'config.json'} --out DIR")
        _write_config(out, "score", {**config, "fingerprints": fingerprints})
        shutil.rmtree(out / "shards", ignore_errors=True)
    if progress:
        tqdm.write(f"report: {out / 'report.html'}")


def _described(config: Config, out: Path) -> dict[str, str]:
    """A configuration in words, for processes to compare."""
    options = {key: json.dumps(value) for key, value in config.items() if key != "prompts"}
    checksum = xxhash.xxh3_64_hexdigest(json.dumps(config["prompts"]).encode())
    return {**options, "prompts": f"{len(config['prompts'])} with checksum {checksum}", "out": str(out)}


@_alone
def run_fidelity(config: Config, out: Path, device: str | None, progress: bool) -> None:
    """Hold fast scores against interventions; write `fidelity.json`, `report.html` and all scores."""
    arguments = dict(config)
    before, after, prompts = (arguments.pop(name) for name in ("before", "after", "prompts"))
    expected = arguments.pop("fingerprints", None) or {}
    model = load(before, device=device)
    _check_weights(before, fingerprint(named_weights(model)), expected.get("before"))
    result = fidelity(model, after, prompts, **arguments, progress=progress)
    fingerprints = {state: result.linear.attrs[state]["fingerprint"] for state in ("before", "after")}
    _check_weights(after, fingerprints["after"], expected.get("after"))
    for how, scores in result.scores().items():
        scores.save(out / f"scores-{how}.nc")
    write_text(out / "fidelity.json", json.dumps(result.results(), indent=1, allow_nan=False))
    fidelity_report(out / "report.html", result, f"ecstruct replay {out / 'config.json'} --out DIR")
    _write_config(out, "fidelity", {**config, "fingerprints": fingerprints})
    if progress:
        table = result.table().to_string(index=False, float_format="{:.2f}".format)
        tqdm.write(f"{table}\n{result.verdict()}\nreport: {out / 'report.html'}")


@_alone
def run_reproduce(config: Config, out: Path, device: str | None, progress: bool) -> None:
    """Experiments of the paper; `results.json` and `report.html` grow with every one that is finished."""
    setup = replace(Setup.from_dict(config["setup"]), device=device)
    options = config.get("options", {})
    results = reproduce(config["experiments"], setup, options, out=out, progress=progress)
    # Only now: what is refused leaves the folder's configuration as it was.
    _write_config(out, "reproduce", {**config, "setup": replace(setup, device=None).to_dict()})
    done: list[Result] = []
    for result in results:
        done.append(result)
        entries = {key: value for each in done for key, value in each.results().items()}
        write_text(out / "results.json", json.dumps(entries, indent=1, allow_nan=False))
        experiments_report(out / "report.html", done, f"ecstruct replay {out / 'config.json'} --out DIR")
        if progress:
            tqdm.write(f"\n{result.title}\n{result.table().to_string(index=False)}\n{result.conclusion()}")
    if progress:
        tqdm.write(f"\nreport: {out / 'report.html'}")


RUNS: Mapping[str, Run] = {
    "demo": run_demo,
    "fidelity": run_fidelity,
    "finetune": run_finetune,
    "reproduce": run_reproduce,
    "score": run_score,
}

_KEYS = {
    "demo": ({"seed"}, set()),
    "fidelity": ({"before", "after", "prompts"}, {"reward", "baseline", "top", "memory", "fingerprints"}),
    "finetune": (
        {"model", "facts", "save_model"},
        {
            *("lr", "epochs", "batch_size", "schedule", "seed", "freeze", "train_embeddings", "evaluate"),
            *("accumulate", "lora", "recompute", "checkpoint_every", "fingerprint"),
        },
    ),
    "reproduce": ({"experiments", "setup"}, {"options"}),
    "score": (
        {"before", "after", "prompts"},
        {
            *("reward", "answer_tokens", "baseline", "upstream", "convention", "path_steps", "batch_size"),
            *("offload", "fingerprints"),
        },
    ),
}
"""What a configuration must and may have."""


def replay(path: Path, out: Path, device: str | None, progress: bool) -> None:
    """Run what a `config.json` describes once more.

    Raises:
        InputError: the file is missing or is no configuration of ecstruct; what the run itself raises.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        run, arguments = RUNS[config["command"]], dict(config["arguments"])
        _check_keys(path, config["command"], arguments)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no configuration of a run: give a config.json.") from error
    run(arguments, out, device, progress)


def _check_keys(path: Path, command: str, arguments: Config) -> None:
    required, optional = _KEYS[command]
    for name in sorted(required - set(arguments)):
        raise InputError(f"{path} lacks {name!r}: give a config.json as {command} wrote it.")
    for name in sorted(set(arguments) - required - optional):
        raise InputError(f"{path} has {name!r}, which {command} does not know: remove it.")


def _check_weights(source: str, found: str, expected: str | None) -> None:
    if expected and expected != found:
        raise InputError(
            f"the weights of {source} are not those that this configuration was run with: find that "
            "checkpoint, or remove the fingerprints from the configuration."
        )


def _write_config(out: Path, command: str, arguments: Config) -> None:
    config = {"command": command, "ecstruct": version("ecstruct"), "arguments": arguments}
    write_text(out / "config.json", json.dumps(config, indent=1, ensure_ascii=False))
