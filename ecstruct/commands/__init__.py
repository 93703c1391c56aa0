"""What a command's `config.json` holds: the options of its method, and the models and prompts that these
are applied to.

A configuration has everything that determines the numbers, prompts included, so that it can be replayed
wherever the checkpoints can be found. Devices and progress bars are not part of it. The command line has
its docstring as the help, and an option for every field with a `Doc`; `ecstruct.runs` has a run for every
command.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from typing_extensions import Doc

from ecstruct.commands.fields import (
    JSONL,
    SOURCE,
    Fingerprint,
    Fingerprints,
    PairOptions,
    Prompts,
    Records,
    Source,
    TwoModels,
)
from ecstruct.commands.subnetworks import Core, Emergence, Evaluate, Prune
from ecstruct.io.values import Count, Seed, Text, Whole
from ecstruct.options import (
    AlignmentOptions,
    CausalOptions,
    EdgeOptions,
    FidelityOptions,
    FinetuneOptions,
    Flag,
    Form,
    FreezeRecord,
    LoraRecord,
    Options,
    RecallOptions,
    RewardName,
    ScoreOptions,
    SuggestOptions,
)


@dataclass(frozen=True, kw_only=True)
class Score(ScoreOptions, PairOptions):
    """Informative, upstream and downstream scores; writes scores.nc and report.html.

    Goes on where it was stopped. Under torchrun all processes share the prompts.
    """

    @classmethod
    def upgraded(cls, record: Mapping[str, Any]) -> Mapping[str, Any]:
        # Version 0.1.0 had gradients only.
        return {"propagation": "gradient", **record} if "upstream" in record else record


@dataclass(frozen=True, kw_only=True)
class Alignment(AlignmentOptions):
    """What a step on each fact would do to each implication, before any finetuning; writes alignment.nc and
    report.html."""

    model: Source
    facts: Prompts
    implications: Annotated[
        Records, Doc(f"What follows from the facts: one from each, in their order. {JSONL}")
    ]
    fingerprint: Fingerprint = None


@dataclass(frozen=True, kw_only=True)
class Causal(CausalOptions, PairOptions):
    """The scores by intervention, without any approximation; writes scores.nc and report.html."""

    components: Annotated[
        Sequence[str] | None,
        Doc("A component, as 'MLP 4' or 'head 5.2'; repeatable, all if not given."),
        Flag("--component"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Controls(ScoreOptions, PairOptions):
    """The scores where there is nothing to be found; writes all scores, controls.json, changes.csv and
    report.html; with --steering also steering.csv.

    Goes on where it was stopped.
    """

    unrelated: Annotated[
        Records | None, Doc(f"Prompts for which the facts are irrelevant, as a control. {JSONL}")
    ] = None
    preserved: Annotated[
        Records | None, Doc(f"Prompts whose answers finetuning should leave as they were. {JSONL}")
    ] = None
    steering: Annotated[bool, Doc("Also add a constant vector in place of the change.")] = False
    facts: Records | None = None
    tune: dict[str, Any] | None = None
    projections: Literal[False] = False
    verify: Literal[0] = 0
    offload: Literal[False] = False
    seed: Annotated[Seed, Doc("Seed of the random change and of the shuffled facts.")] = 0


@dataclass(frozen=True, kw_only=True)
class Diagnose(TwoModels):
    """Why a finetuning did not take: unchanged, not learnt, a string, not read, outvoted, saturated or
    forgotten elsewhere; writes diagnosis.nc, diagnosis.csv and report.html.
    """

    facts: Prompts
    implications: Annotated[Records | None, Doc(f"What follows from the facts. {JSONL}")] = None
    variants: Annotated[
        Records | None,
        Doc(f"The facts in other words; by default every fact is asked after another one. {JSONL}"),
    ] = None
    known: Annotated[
        Records | None,
        Doc(f"Facts that the model before knows, with subjects: they show where facts are read. {JSONL}"),
    ] = None
    preserved: Annotated[
        Records | None,
        Doc(f"Prompts whose answers finetuning should leave as they were; --known by default. {JSONL}"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Edges(EdgeOptions, PairOptions):
    """How much of the strongest components' scores goes through one another; writes edges.nc, edges.csv and
    report.html."""

    scores: Annotated[
        Text | None,
        Doc("scores.nc of the same models, which chooses the components; computed if not given."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Suggest(SuggestOptions):
    """Where to train, edit or merge, from informative scores of a finetuning or, with --facts, of the step
    that one would begin with; writes suggestion.nc, suggestion.csv, lora.json,
    lora-by-score.json, mergekit.yaml, easyedit.yaml and report.html."""

    before: Source
    prompts: Prompts
    after: Annotated[Text | None, Doc(f"{SOURCE}; --facts take its place before any finetuning.")] = None
    facts: Annotated[
        Records | None, Doc(f"Facts to finetune on: one for each prompt, in their order. {JSONL}")
    ] = None
    scores: Annotated[Text | None, Doc("scores.nc of the same models; computed if not given.")] = None
    fingerprints: Fingerprints = None


@dataclass(frozen=True, kw_only=True)
class Graft(PairOptions):
    """What the finetuned weights do in sets of components, at chosen positions; writes graft.nc, graft.csv
    and report.html.
    """

    components: Annotated[
        Sequence[Text] | None,
        Doc(
            "A set of weights, as 'mlps', 'heads 20-29', 'mlp 4 + head 5.2', 'mlp.out 0-9' or, with "
            "--scores, 'informative top 8'; repeatable, all components if not given."
        ),
        Flag("--set"),
    ] = None
    positions: Annotated[
        Sequence[Text] | None,
        Doc("A group of positions, as 'subject-last' or 'last'; repeatable, all if not given."),
        Flag("--position"),
    ] = None
    projections: Annotated[
        Sequence[Text] | None,
        Doc("Only this projection: q, k, v, o, in, gate, out or norm; repeatable."),
        Flag("--projection"),
    ] = None
    complement: Annotated[bool, Doc("Everything but the sets at the positions has new weights.")] = False
    scores: Annotated[Text | None, Doc("scores.nc of the same models, for the strongest components.")] = (
        None
    )
    random_seeds: Annotated[Whole, Doc("How often each set is replaced by a random one.")] = 0
    control: Annotated[
        Text | None,
        Doc("A model that was finetuned on something else, as on shuffled facts, to graft in its place."),
    ] = None
    reward: Annotated[RewardName, Doc("What the shares are shares of.")] = "logit_diff"


@dataclass(frozen=True, kw_only=True)
class Grafts(PairOptions):
    """Ranks when the change of the strongest components is grafted or reverted; writes grafts.csv,
    report.html and, with --random-sets, random_sets.csv.

    Goes on where it was stopped.
    """

    scores: Annotated[Text, Doc("scores.nc of the same models, which ranks the components.")]
    ks: Annotated[
        Sequence[Whole] | None,
        Doc("A number of components; repeatable, 1, 2, 4... if not given."),
        Flag("--k"),
    ] = None
    random_seeds: Annotated[Count, Doc("How often components are drawn at random.")] = 5
    random_sets: Annotated[
        Whole, Doc("Also test how well summed scores predict what so many random sets of components do.")
    ] = 0


@dataclass(frozen=True, kw_only=True)
class Fidelity(FidelityOptions, PairOptions):
    """How far the scores can be trusted: each beside the intervention it stands for."""

    @classmethod
    def upgraded(cls, record: Mapping[str, Any]) -> Mapping[str, Any]:
        # Version 0.1.0 computed every form, on all components if no sample was given.
        return {"forms": get_args(Form), "sample": None, **record} if "forms" not in record else record


@dataclass(frozen=True, kw_only=True)
class Recall(RecallOptions):
    """Attention knockout, subject enrichment and attribute extraction; writes arrays and report.html.

    Prompts need a subject. With --after, both models side by side, and beside their extractive scores.
    Goes on where it was stopped.
    """

    before: Source
    after: Annotated[Text | None, Doc(f"The finetuned model to compare with: {SOURCE}")] = None
    prompts: Prompts
    known: Annotated[
        bool, Doc("Leave out prompts whose answer the model, or that of --after, does not predict.")
    ] = False
    attributes: Annotated[
        Text | Mapping[str, Any] | None,
        Doc(
            "What there is to know of subjects: a JSONL file with the keys subject and text, 'facts' (the "
            "prompts' answers; refused where these are one word each), 'answers' (the same; left out "
            "there), 'world' for the organism, or 'none'."
        ),
    ] = "answers"
    fingerprints: Fingerprints = None

    @classmethod
    def upgraded(cls, record: Mapping[str, Any]) -> Mapping[str, Any]:
        # In version 0.1.0 the first model was called `model`.
        return {"before" if name == "model" else name: value for name, value in record.items()}


@dataclass(frozen=True, kw_only=True)
class Finetune(FinetuneOptions):
    """Finetune on the answers of facts; writes delta.safetensors and history.json.

    Goes on where it was stopped. Under torchrun all processes share the model.
    """

    model: Source
    facts: Prompts
    freeze: FreezeRecord | None = None
    evaluate: dict[str, Records] | None = None
    lora: LoraRecord | None = None
    checkpoint_every: Annotated[
        Whole | None, Doc("Steps between checkpoints; ten minutes if not given.")
    ] = None
    labels: Annotated[
        Sequence[Text] | None,
        Doc(
            "A label, to make a classifier of the model, with a new head that the seed draws; repeatable. "
            "The whole model is written to OUT/model."
        ),
        Flag("--label"),
    ] = None
    save_model: Annotated[bool, Doc("Write the whole model to OUT/model too.")] = False
    save_epochs: Annotated[
        bool,
        Doc(
            "After each epoch, write the weight delta to OUT/epochs, or the whole model if that is written."
        ),
    ] = False
    fingerprint: Fingerprint = None


@dataclass(frozen=True, kw_only=True)
class Demo(Options):
    """A small model learns facts, generalises, and shows which components did it."""

    model: str = "organism"
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Reproduce(Options):
    """The experiments of the paper; goes on where it stopped. Writes results.json and report.html."""

    experiments: list[str]
    setup: dict[str, Any]
    options: dict[str, dict[str, Any]] = field(default_factory=dict)


COMMANDS: Mapping[str, type[Options]] = {
    "alignment": Alignment,
    "causal": Causal,
    "controls": Controls,
    "demo": Demo,
    "diagnose": Diagnose,
    "edges": Edges,
    "fidelity": Fidelity,
    "finetune": Finetune,
    "graft": Graft,
    "grafts": Grafts,
    "recall": Recall,
    "reproduce": Reproduce,
    "score": Score,
    "subnetworks-core": Core,
    "subnetworks-emergence": Emergence,
    "subnetworks-evaluate": Evaluate,
    "subnetworks-prune": Prune,
    "suggest": Suggest,
}
