"""Runs that prune subnetworks, evaluate them, and find what they have in common."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import xarray as xr
import xxhash
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ecstruct import commands
from ecstruct.engine.session import Session
from ecstruct.errors import InputError
from ecstruct.io import netcdf
from ecstruct.io.files import write_text
from ecstruct.io.store import FinishedPieces, Steps, stepping
from ecstruct.models.provenance import versions
from ecstruct.options import PruneOptions
from ecstruct.report.subnetworks import core_report, emergence_report, evaluation_report, pruning_report
from ecstruct.runs.configuration import finish, folder_locked, replay_command, session_of
from ecstruct.scores.components import component_names
from ecstruct.scores.result import ExtractiveScores
from ecstruct.subnetworks import (
    Core,
    Masks,
    attended,
    by_template,
    core,
    effective_size,
    emergence,
    evaluate,
    generalising,
    prune,
    with_scores,
)
from ecstruct.subnetworks.ablation import NothingToAblate, ablate_core, networks_of
from ecstruct.subnetworks.dependence_on_core import dependence, n_ablated

Evaluations = Mapping[str, Mapping[str, xr.Dataset]]
"""Measurements by set of prompts ("in-domain", "generalization"), then by sparsity."""

Result = TypeVar("Result")


@folder_locked
def run_prune(config: commands.Prune, out: Path, device: str | None, progress: bool) -> None:
    """Prune and write `masks.nc` and `report.html`; continue from `checkpoint.safetensors` if it exists.

    Raises:
        InputError: among other reasons, if pruning did not converge; everything is written before that.
    """
    model, found = session_of(config.model, device, config.fingerprint)
    checkpoint = out / "checkpoint.safetensors"
    options: dict[str, Any] = {**vars(PruneOptions.given(vars(config))), "reference": config.reference}
    masks = prune(model, config.prompts, **options, checkpoint=checkpoint, progress=progress)
    masks.save(out / "masks.nc")
    pruning_report(out / "report.html", masks, replay_command(out))
    finish(out, "subnetworks-prune", config, f"{masks!r}", progress, fingerprint=found)
    checkpoint.unlink(missing_ok=True)
    masks.check_converged()


@folder_locked
def run_evaluate(config: commands.Evaluate, out: Path, device: str | None, progress: bool) -> None:
    """Evaluate and write `evaluation.json`, all ranks as netCDF, and `report.html`. An interrupted run
    continues from the folder `unfinished`."""
    model, masks, prints = _model_and_masks(config, device)
    kept = FinishedPieces(out / "unfinished", _identity(config, masks, prints))
    with stepping(progress, _evaluation_runs(config, masks), "evaluation", kept) as steps:
        evaluations = _evaluations(config, model, masks, steps)
    table = evaluation_table(evaluations)
    in_domain = {float(name): of for name, of in evaluations["in-domain"].items()}
    size = effective_size(in_domain)
    for prompts, by_sparsity in evaluations.items():
        for name, measured in by_sparsity.items():
            netcdf.write(measured, out / f"{prompts}-{name}.nc", "ecstruct evaluation 1")
    templates = {
        prompts: {name: _records(by_template(found)) for name, found in by_sparsity.items()}
        for prompts, by_sparsity in evaluations.items()
    }
    result = {"effective_size": size, "subnetworks": _records(table), "templates": templates}
    write_text(out / "evaluation.json", json.dumps(result, indent=1, allow_nan=False))
    evaluation_report(out / "report.html", evaluations, table, size, replay_command(out))
    said = f"{table.round(3).to_string(index=False)}\neffective size: {size:.0f}%"
    finish(out, "subnetworks-evaluate", config, said, progress, fingerprints=prints)


@folder_locked
def run_core(config: commands.Core, out: Path, device: str | None, progress: bool) -> None:
    """Find the core, ablate it, and write `core.nc`, `core.json` and `report.html`. An interrupted run
    continues from the folder `unfinished`."""
    model, masks, prints = _model_and_masks(config, device)
    scores = ExtractiveScores.load(config.scores) if config.scores else None
    by_sparsity = {float(name): its for name, its in masks.items()}
    found = core(by_sparsity)
    draw: dict[str, Any] = {"draws": config.draws, "seed": config.seed}
    networks = _or_reason(lambda: networks_of(by_sparsity, **draw))
    asked = _prompt_sets(config)
    ablation_runs = 0 if isinstance(networks, str) else len(networks) * sum(map(len, asked.values()))
    dependence_runs = ablation_runs and n_ablated(draw["draws"]) * len(asked["generalization"])
    n_runs = _evaluation_runs(config, masks) + ablation_runs + dependence_runs
    kept = FinishedPieces(out / "unfinished", _identity(config, masks, prints))
    with stepping(progress, n_runs, "evaluation", kept) as steps:
        evaluations = _evaluations(config, model, masks, steps)
        ranks = {float(name): of["mean_rank"] for name, of in evaluations["generalization"].items()}
        thirds = generalising(by_sparsity, ranks, seed=draw["seed"])
        parts: dict[str, Any] = {"core": found, "generalising": thirds, "ablation": networks}
        if not isinstance(networks, str):
            parts["ablation"] = ablate_core(model, by_sparsity, *asked.values(), **draw, progress=steps)
        steps.bar.phase("dependence")
        options: dict[str, Any] = {"added": thirds.heads, **draw, "progress": steps}
        parts["dependence"] = _or_reason(
            lambda: dependence(model, by_sparsity, asked["generalization"], **options)
        )
        if isinstance(parts["dependence"], str):
            steps.bar.total -= dependence_runs
        steps.bar.phase("attention")
        none = networks if isinstance(networks, str) else None
        parts["attention"] = none or attended(model, asked["generalization"], found.heads)
    if scores is not None:
        parts["scores"] = with_scores(found, scores, added=thirds, seed=draw["seed"])
    found.save(out / "core.nc")
    write_text(out / "core.json", json.dumps(_results(parts), indent=1, allow_nan=False))
    core_report(out / "report.html", evaluations, parts, replay_command(out))
    table = found.table().to_string(index=False, float_format="{:.3g}".format)
    said = "\n".join([table, *(_conclusion(part) for part in parts.values())])
    finish(out, "subnetworks-core", config, said, progress, fingerprints=prints)


@folder_locked
def run_emergence(config: commands.Emergence, out: Path, device: str | None, progress: bool) -> None:
    """Follow a core through checkpoints, and write `emergence.csv` and `report.html`."""
    if len({*config.models}) < len(config.models):
        raise InputError("a checkpoint is given twice: name each once, in the order of the training.")
    models = _Checkpoints(config.models, device, config.fingerprints or {}, progress)
    core_of = Core.load(config.core)

    def pruned(model: TransformerBridge) -> dict[float, Masks]:
        options: dict[str, Any] = dict(vars(PruneOptions.given(vars(config) | {"kinds": core_of.kinds})))
        del options["sparsity"]
        kept = out / "unfinished"
        return {
            sparsity: prune(
                *(model, config.prompts),
                **options,
                sparsity=sparsity,
                checkpoint=kept / f"{len(models.found)}-{sparsity}.safetensors",
                progress=progress,
            )
            for sparsity in config.sparsities or ()
        }

    found = emergence(
        *(models, core_of, config.prompts, config.generalization),
        added=config.added,
        kinds=config.kinds,
        ablation=config.ablation,
        prune=pruned if config.sparsities else None,
    )
    write_text(out / "emergence.csv", found.frame.to_csv(index=False))
    if config.sparsities:
        write_text(out / "subnetworks.csv", found.subnetworks.to_csv(index=False))
        write_text(out / "sizes.csv", found.sizes().to_csv(index=False))
    emergence_report(out / "report.html", found, replay_command(out))
    finish(out, "subnetworks-emergence", config, found.conclusion(), progress, fingerprints=models.found)


class _Checkpoints(Mapping[str, Session]):
    """Models by source, each loaded when it is asked for; iterating shows progress.

    `expected` has fingerprints by source, with which a replay compares the weights it loads; `found` has
    those of the models that were loaded."""

    def __init__(
        self, sources: Sequence[str], device: str | None, expected: Mapping[str, str], progress: bool
    ) -> None:
        self._sources, self._device, self._expected, self._progress = sources, device, expected, progress
        self.found: dict[str, str] = {}

    def __getitem__(self, source: str) -> Session:
        session, self.found[source] = session_of(source, self._device, self._expected.get(source))
        return session

    def __iter__(self) -> Iterator[str]:
        return iter(tqdm(self._sources, "emergence", unit="checkpoint", disable=not self._progress))

    def __len__(self) -> int:
        return len(self._sources)


def evaluation_table(evaluations: Evaluations) -> pd.DataFrame:
    """Return a row for the full model and one per subnetwork: `rank` and `accuracy` on both sets of
    prompts, and the distance from the full model on the in-domain ones (`kl`, in nats, and `agreement`)."""
    measures = {"rank": "mean_rank", "accuracy": "accuracy"}
    full: dict[str, Any] = {"sparsity": 0.0, "seed": pd.array([None], "Int64")}
    for name, by_sparsity in evaluations.items():
        of = next(iter(by_sparsity.values()))
        full |= {f"{name} {said}": float(of[f"full_{measure}"]) for said, measure in measures.items()}
    frames = [pd.DataFrame({**full, "kl": 0.0, "agreement": 1.0})]
    for sparsity, in_domain in evaluations["in-domain"].items():
        columns: dict[str, Any] = {"sparsity": float(sparsity), "seed": in_domain["seed"].values}
        for name, by_sparsity in evaluations.items():
            of = by_sparsity[sparsity]
            columns |= {f"{name} {said}": of[measure].values for said, measure in measures.items()}
        columns |= {"kl": in_domain["mean_kl"].values, "agreement": in_domain["agreement"].values}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def _model_and_masks(
    config: commands.Evaluate, device: str | None
) -> tuple[Session, dict[str, Masks], dict[str, str]]:
    """Return the model, its masks by sparsity, and the fingerprints with which a replay checks both."""
    expected = config.fingerprints or {}
    masks, prints = {}, {}
    for path in config.masks:
        its = Masks.load(path)
        its.check_converged()
        sparsity = its.attrs.get("options", {}).get("sparsity", float(its.sparsity.mean()))
        if str(sparsity) in masks:
            raise InputError(
                f"two files have masks of the sparsity {sparsity}: give one for each sparsity."
            )
        masks[str(sparsity)] = its
        values = b"".join(its.dataset[kind].values.tobytes() for kind in ("heads", "mlp"))
        prints[path] = xxhash.xxh3_64_hexdigest(values)
        if expected.get(path, prints[path]) != prints[path]:
            raise InputError(
                f"the masks of {path} are not those that this configuration was run with: find them, or "
                "remove the fingerprints from the configuration."
            )
    model, prints["model"] = session_of(config.model, device, expected.get("model"))
    return model, masks, prints


def _prompt_sets(config: commands.Evaluate) -> dict[str, Any]:
    return {"in-domain": config.prompts, "generalization": config.generalization}


def _evaluation_runs(config: commands.Evaluate, masks: Mapping[str, Masks]) -> int:
    """Return the number of runs of one prompt under one mask."""
    return sum(map(len, masks.values())) * sum(map(len, _prompt_sets(config).values()))


def _evaluations(
    config: commands.Evaluate, model: Session, masks: Mapping[str, Masks], steps: Steps
) -> dict[str, dict[str, xr.Dataset]]:
    found: dict[str, dict[str, xr.Dataset]] = {}
    for name, prompts in _prompt_sets(config).items():
        steps.bar.phase(f"evaluation, {name}")
        found[name] = {
            sparsity: evaluate(model, its, prompts, progress=steps.of(f"{name} {sparsity}"))
            for sparsity, its in masks.items()
        }
    return found


def _identity(
    config: commands.Evaluate, masks: Mapping[str, Masks], prints: Mapping[str, str]
) -> dict[str, str]:
    """Return the fingerprints of everything that the numbers depend on, by names that suit a message."""
    values = [v.values.tobytes() for its in masks.values() for v in its.dataset.variables.values()]
    checksums = {
        "the masks": b"".join(values),
        **{f"the prompts {name}": repr(prompts).encode() for name, prompts in _prompt_sets(config).items()},
    }
    return {
        "the weights": prints["model"],
        **{name: xxhash.xxh3_64_hexdigest(content) for name, content in checksums.items()},
        **{name: str(getattr(config, name)) for name in ("draws", "seed") if hasattr(config, name)},
        **{f"{name}'s version": found for name, found in versions().items()},
    }


def _or_reason(measure: Callable[[], Result]) -> Result | str:
    """Return the measurement, or the reason why there is nothing to measure."""
    try:
        return measure()
    except NothingToAblate as error:
        return str(error)


def _results(parts: Mapping[str, Any]) -> dict[str, Any]:
    found = parts["core"]
    account: dict[str, Any] = {"components": {group: found.components(group) for group in found.groups}}
    account["table"] = _records(found.table())
    thirds = parts["generalising"]
    account["generalising"] = _records(thirds.frame)
    account["added"] = component_names(thirds.frame.loc[thirds.frame["added"]])
    for name in ("ablation", "dependence", "attention"):
        if not isinstance(parts[name], str):
            account[name] = _records(parts[name].table())
    if "scores" in parts:
        account["scores"] = _records(parts["scores"].correlations)
    return account | {"conclusions": {name: _conclusion(part) for name, part in parts.items()}}


def _conclusion(part: Any) -> str:
    return part if isinstance(part, str) else part.conclusion()


def _records(frame: pd.DataFrame) -> Sequence[dict[str, Any]]:
    """Return the rows as JSON types, with None for missing values."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
    return [{str(name): getattr(v, "item", lambda v=v: v)() for name, v in row.items()} for row in rows]
