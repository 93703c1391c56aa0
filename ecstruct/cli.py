"""The command line, `ecstruct demo` and the others that `ecstruct --help` lists.

It only turns words into a configuration; `ecstruct.runs` does the work. Bad input ends with one sentence
and status 2, without a traceback unless `--debug` asks for it.
"""

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ecstruct.errors import InputError, LostRank
from ecstruct.facts_command import facts_app
from ecstruct.interruption import STATUS, Terminated, listening

app = typer.Typer(
    help="Which MLPs and attention heads make a finetuned language model generalise.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
organism_app = typer.Typer(help="The embedded model and its synthetic world.", no_args_is_help=True)
app.add_typer(organism_app, name="organism")
app.add_typer(facts_app, name="facts")

SOURCE = "'organism', a Hugging Face folder, a hub id or id@revision"
JSONL = "JSONL with the keys prompt, answer and optionally options, subject, template"


Source = Annotated[str, typer.Option(help=SOURCE)]
After = Annotated[str, typer.Option(help=f"{SOURCE}, or a delta.safetensors")]
Prompts = Annotated[Path, typer.Option(help=JSONL)]
Reward = Annotated[Literal["logit_diff", "logprob"], typer.Option(help="What the scores are changes of.")]
Baseline = Annotated[
    Literal["counterfactual", "mean", "zero"],
    typer.Option(help="What upstream scores compare a component's output with."),
]
Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars, nothing printed but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@contextmanager
def _session(quiet: bool, debug: bool, again: str = "run the same command again") -> Iterator[None]:
    """Library chatter off, and errors that are the user's to mend as one sentence."""
    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    logging.basicConfig(format="%(message)s", level=logging.ERROR if quiet else logging.WARNING)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not debug:
        warnings.simplefilter("ignore")
    try:
        with listening():
            yield
    except InputError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except LostRank as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None
    except Terminated:
        typer.echo(f"terminated: {again} to go on", err=True)
        raise typer.Exit(STATUS) from None


@app.command()
def demo(
    out: Out = Path("ecstruct-demo"),
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The embedded model learns facts, generalises, and shows which components did it."""
    with _session(quiet, debug):
        from ecstruct.runs import run_demo

        run_demo({"seed": seed}, out, device, not quiet)


@app.command()
def finetune(
    model: Source,
    facts: Annotated[Path, typer.Option(help=JSONL)],
    out: Out,
    lr: Annotated[float | None, typer.Option(help="Learning rate; known for the organism.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes through the facts.")] = 8,
    batch_size: Annotated[int, typer.Option(help="Facts per step.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Parts in which a batch is run.")] = 1,
    schedule: Annotated[
        Literal["constant", "linear"], typer.Option(help="Course of the rate.")
    ] = "constant",
    freeze_layers: Annotated[str, typer.Option(help="Layers to keep, as 0-3,7.")] = "",
    freeze_kinds: Annotated[str, typer.Option(help="Kinds to keep, as attn,mlp.")] = "",
    train_embeddings: Annotated[bool, typer.Option(help="Train (un)embeddings too.")] = False,
    evaluate: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE: prompts to rank after each epoch; repeatable.")
    ] = None,
    lora: Annotated[
        str, typer.Option(help="Low-rank adapters, as r=16,alpha=32,targets=q_proj+v_proj,dora=true.")
    ] = "",
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Run blocks again instead of keeping their activations.")
    ] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints; ten minutes if not given.")
    ] = None,
    save_model: Annotated[bool, typer.Option(help="Write the whole model to OUT/model too.")] = False,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Finetune on the answers of facts; writes delta.safetensors and history.json.

    Goes on where it was stopped. Under torchrun all processes share the model.
    """
    with _session(quiet, debug):
        from ecstruct.runs import records, run_finetune

        layers, kinds = _layers(freeze_layers), [k for k in freeze_kinds.split(",") if k] or None
        config: dict[str, Any] = {
            "model": model,
            "facts": records(facts),
            "lr": lr,
            "epochs": epochs,
            "batch_size": batch_size,
            "accumulate": accumulate,
            "schedule": schedule,
            "freeze": {"layers": layers, "kinds": kinds} if layers or kinds else None,
            "train_embeddings": train_embeddings,
            "evaluate": {name: records(path) for name, path in map(_named, evaluate or [])} or None,
            "seed": seed,
            "lora": _lora(lora),
            "recompute": recompute,
            "checkpoint_every": checkpoint_every,
            "save_model": save_model,
        }
        run_finetune(config, out, device, not quiet)


@app.command()
def rank(
    model: Source,
    prompts: Prompts,
    out: Annotated[Path | None, typer.Option(help="JSON file to write the ranks to.")] = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Rank of every answer among its options, 0 being best, and their mean."""
    with _session(quiet, debug):
        from ecstruct.runs import rank_table

        table = rank_table(model, prompts, device, out)
        if not quiet:
            typer.echo(table.to_string(index=False))
        typer.echo(f"mean rank {table['rank'].mean():.3f}")


@app.command()
def score(
    before: Source,
    after: After,
    prompts: Prompts,
    out: Out,
    reward: Reward = "logit_diff",
    answer_tokens: Annotated[
        Literal["first", "all"], typer.Option(help="With logprob: tokens of the answer that count.")
    ] = "first",
    baseline: Baseline = "counterfactual",
    upstream: Annotated[
        Literal["surrogate", "exact"],
        typer.Option(help="Upstream gradients with all weights new, or with later ones only."),
    ] = "surrogate",
    convention: Annotated[
        Literal["definition", "reference"],
        typer.Option(help="To which token a score is booked: as defined, or as in the published code."),
    ] = "definition",
    path_steps: Annotated[
        int, typer.Option(help="Points between both models at which informative gradients are taken.")
    ] = 1,
    batch_size: Annotated[int | None, typer.Option(help="Prompts per batch; chosen if not given.")] = None,
    offload: Annotated[
        bool, typer.Option("--offload", help="Leave both models on disk, and read one block at a time.")
    ] = False,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Informative, upstream and downstream scores; writes scores.nc and report.html.

    Goes on where it was stopped. Under torchrun all processes share the prompts.
    """
    with _session(quiet, debug):
        from ecstruct.runs import records, run_score

        config: dict[str, Any] = {
            "before": before,
            "after": after,
            "prompts": records(prompts),
            "reward": reward,
            "answer_tokens": answer_tokens,
            "baseline": baseline,
            "upstream": upstream,
            "convention": convention,
            "path_steps": path_steps,
            "batch_size": batch_size,
            "offload": offload,
        }
        run_score(config, out, device, not quiet)


@app.command()
def fidelity(
    before: Source,
    after: After,
    prompts: Prompts,
    out: Out,
    reward: Reward = "logit_diff",
    baseline: Baseline = "counterfactual",
    top: Annotated[int, typer.Option(help="How many components count as the strongest.")] = 5,
    memory: Annotated[int | None, typer.Option(help="Bytes for interventions at once.")] = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """How far the scores can be trusted: each beside the intervention it stands for."""
    with _session(quiet, debug):
        from ecstruct.runs import records, run_fidelity

        config: dict[str, Any] = {
            "before": before,
            "after": after,
            "prompts": records(prompts),
            "reward": reward,
            "baseline": baseline,
            "top": top,
            "memory": memory,
        }
        run_fidelity(config, out, device, not quiet)


@app.command()
def reproduce(
    experiments: Annotated[
        list[str],
        typer.Argument(
            help="ocr, scores, freezing, ordering, grafting, localization, sensitivity, or all. Beyond the "
            "paper: built_in, origin, shortcut, domains, prompts, editing, or beyond. And rates."
        ),
    ],
    out: Out,
    model: Source = "organism",
    seeds: Annotated[int, typer.Option(help="Seeds 0 to N - 1; each organism is a seed's own.")] = 1,
    repeats: Annotated[int, typer.Option(help="Pairings of people and cities per seed.")] = 5,
    lr: Annotated[
        float | None, typer.Option(help="One learning rate for everything; known for some models.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="How often every document is seen.")] = 8,
    batch_size: Annotated[int, typer.Option(help="Documents per step.")] = 8,
    early: Annotated[float | None, typer.Option(help="Share of the layers that count as early.")] = None,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The experiments of the paper; goes on where it stopped. Writes results.json and report.html."""
    with _session(quiet, debug):
        from ecstruct.experiments import Rates, Setup
        from ecstruct.runs import run_reproduce

        given: dict[str, Any] = {"rates": None if lr is None else Rates.same(lr), "early": early}
        setup = Setup(
            model=model, seeds=seeds, repeats=repeats, epochs=epochs, batch_size=batch_size, **given
        )
        config = {"experiments": experiments, "setup": setup.to_dict()}
        run_reproduce(config, out, device, not quiet)


@app.command()
def sweep(
    grid: Annotated[Path | None, typer.Argument(help="GRID.yaml; docs/sweeps.md has its keys.")] = None,
    out: Out = Path("sweep"),
    executor: Annotated[Literal["local", "slurm"], typer.Option(help="Where jobs run.")] = "local",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Jobs at a time; locally one per GPU, or one.")
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(help="Options of sbatch, as partition=gpu,time=120,gpus_per_node=1; repeatable."),
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often a cell that failed is tried again.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in OUT.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Only show what has become of OUT.")] = False,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Experiments on a grid of models, rates, epochs and seeds, each cell a job; see docs/sweeps.md."""
    with _session(quiet, debug, again="run it again with --resume"):
        from ecstruct.grids import run_sweep, show_status

        if status:
            typer.echo(show_status(out))
            return
        failed = run_sweep(grid, out, executor, jobs, slurm or [], retries, resume, device, not quiet)
        if failed:
            typer.echo(f"failed: {', '.join(failed)}", err=True)
            raise typer.Exit(1)


@app.command()
def replay(
    config: Annotated[Path, typer.Argument(help="The config.json of an earlier run.")],
    out: Out,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run again what an earlier run's config.json describes."""
    with _session(quiet, debug):
        from ecstruct import runs

        runs.replay(config, out, device, not quiet)


@organism_app.command()
def pretrain(
    out: Out,
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; by default the recipe's.")] = None,
    local_layers: Annotated[
        int, typer.Option(min=0, max=6, help="Layers whose attention is local half of the time.")
    ] = 4,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default all.")] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Pretrain the embedded model from scratch, in minutes on a CPU."""
    with _session(quiet, debug):
        from ecstruct.organism import Recipe, local_windows
        from ecstruct.organism import pretrain as run

        recipe = Recipe(local_windows=local_windows(local_layers))
        if steps is not None:
            recipe = replace(recipe, steps=steps)
        report = run(out, seed=seed, recipe=recipe, threads=threads, progress=not quiet)
        if not quiet:
            typer.echo(json.dumps(report["held_out_accuracy"]))


def _layers(text: str) -> list[int] | None:
    """Layers from text as "0-3,7"."""
    layers: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise InputError(f"--freeze-layers takes layers as 0-3,7, not {text!r}.")
        layers += range(int(first), int(last or first) + 1)
    return layers or None


def _lora(text: str) -> dict[str, Any] | None:
    """What peft is told, from text as "r=16,alpha=32"."""
    given: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            given[name] = value.split("+") if name == "targets" else json.loads(value)
        except ValueError:
            raise InputError(f"--lora takes r=16,alpha=32,dora=true, not {text!r}.") from None
    return given or None


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise InputError(f"--evaluate takes NAME=FILE, not {text!r}.")
    return name, Path(path)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
