"""The configurations of `ecstruct subnetworks`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Lt, MinLen
from typing_extensions import Doc

from ecstruct.commands.fields import JSONL, SOURCE, Fingerprint, Fingerprints, Prompts, Records, Source
from ecstruct.io.values import Count, Seed, Text
from ecstruct.options import Flag, Options, Positive, PruneOptions, Times


@dataclass(frozen=True, kw_only=True)
class Prune(PruneOptions):
    """Find subnetworks that say what the model says; writes masks.nc and report.html.

    Goes on where it was stopped. Ends with status 2 where pruning did not converge.
    """

    model: Source
    prompts: Prompts
    reference: Annotated[
        Records | None, Doc(f"Prompts whose mean ablated components write; --prompts by default. {JSONL}")
    ] = None
    fingerprint: Fingerprint = None


@dataclass(frozen=True, kw_only=True)
class Evaluate(Options):
    """Ranks and accuracy of every subnetwork; writes evaluation.json, all ranks and report.html."""

    model: Source
    masks: Annotated[
        Annotated[list[Text], MinLen(1)],
        Doc("masks.nc of a pruning; again for each further sparsity."),
        Flag("--masks"),
    ]
    prompts: Prompts
    generalization: Annotated[Records, Doc(f"What follows from the prompts. {JSONL}")]
    fingerprints: Fingerprints = None


@dataclass(frozen=True, kw_only=True)
class Core(Evaluate):
    """What all subnetworks keep, and what is left without it; writes core.nc, core.json and report.html."""

    scores: Annotated[Text | None, Doc("scores.nc of the same model, to put beside the core.")] = None
    draws: Annotated[Count, Doc("Draws of random components to compare each network with.")] = 20
    seed: Annotated[Seed, Doc("Seed of everything random.")] = 0


@dataclass(frozen=True, kw_only=True)
class Emergence(Options):
    """From which checkpoint of a training on the core is needed; writes emergence.csv and report.html.

    With --sparsity, subnetworks of every checkpoint are found too, and its effective size.
    """

    models: Annotated[
        Annotated[list[Text], MinLen(1)],
        Doc(f"A checkpoint, as folder@step; again for each later one. {SOURCE}"),
        Flag("--model"),
    ]
    core: Annotated[Text, Doc("core.nc of the trained model, from ecstruct subnetworks core.")]
    prompts: Prompts
    generalization: Annotated[Records | None, Doc(f"What follows from the prompts. {JSONL}")] = None
    kinds: Annotated[
        Annotated[Sequence[Literal["heads", "mlp"]], MinLen(1)],
        Doc("What of the core is ablated, heads or mlp; repeatable, heads if not given."),
        Flag("--kinds"),
    ] = ("heads",)
    ablation: Annotated[Literal["mean", "zero"], Doc("What an ablated component writes.")] = "mean"
    added: Annotated[
        list[Text] | None, Doc("A component that is added to the core, as 'head 5.2'; repeatable.")
    ] = None
    sparsities: Annotated[
        Annotated[list[Annotated[float, Gt(0), Lt(1)]], MinLen(1)] | None,
        Doc("Prune each checkpoint to this share, for its effective size; repeatable."),
        Flag("--sparsity"),
    ] = None
    seeds: Annotated[Count, Doc("With --sparsity: how many subnetworks.")] = 4
    steps: Annotated[Times, Doc("With --sparsity: optimisation steps.")] = 500
    batch_size: Annotated[Positive, Doc("With --sparsity: prompts per step and seed.")] = 32
    fingerprints: Fingerprints = None
