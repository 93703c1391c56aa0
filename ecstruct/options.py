"""The options of every method, each declared once: its type and bounds, its default, and its help.

A class of options says what the function of its method takes as keywords, what its command offers, what
`config.json` holds, and what a result has in its attributes. The functions repeat names and defaults in
their signatures, for editors; their docstrings have the formulas.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Self, get_args, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen
from typing_extensions import Doc, TypedDict

from ecstruct.errors import InputError
from ecstruct.io.values import Count, Natural, Number, Rate, Seed, Whole, check

Positive = Annotated[int, Ge(1), Lt(2**63)]
Times = Annotated[int, Ge(1), Le(10**6)]
PathSteps = Annotated[int, Ge(1), Le(1000)]

RewardName = Literal["logit_diff", "logprob"]
AnswerTokens = Literal["first", "all"]
BaselineKind = Literal["counterfactual", "mean", "zero"]
Upstream = Literal["local", "surrogate", "exact"]
Propagation = Literal["relevance", "gradient"]
Convention = Literal["definition", "reference"]
Form = Literal["path", "surrogate", "exact"]
Kind = Literal["informative", "upstream", "downstream", "patching"]
KINDS = get_args(Kind)


@dataclass(frozen=True)
class Flag:
    """The name of an option on the command line, such as `--kind`, where it is not that of the field."""

    name: str


SAME_NUMBERS = "same numbers"
"""Marks an option on which the results do not depend, only how they are computed."""

BatchSize = Annotated[Positive | None, Doc("Prompts per batch; chosen if not given."), SAME_NUMBERS]
Memory = Annotated[Whole | None, Doc("Bytes for interventions at once."), SAME_NUMBERS]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that are checked against their types.

    Raises:
        InputError: an option does not have its type, or is out of its bounds.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Integral | Real) and not isinstance(value, bool):
                plain = int(value) if isinstance(value, Integral) else float(value)  # of numpy, perhaps
                object.__setattr__(self, field.name, plain)
        self.check(vars(self), "the call")

    @classmethod
    def check(cls, values: Mapping[str, Any], of: str) -> None:
        """Check values against the options' types; `of` says in messages where they come from."""
        check(values, types_of(cls), of)

    @classmethod
    def given(cls, values: Mapping[str, Any]) -> Self:
        """Make options from those of these values that have the name of an option; `values` may be the
        `locals()` of a function whose arguments they are."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    @classmethod
    def upgraded(cls, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a record that an earlier version wrote as this version would write it."""
        return record

    @classmethod
    def read(cls, record: Mapping[str, Any], of: str, command: str) -> Self:
        """Make options from a record, such as the arguments in `config.json`. It must have all options that
        lack a default, and no unknown ones; `of` and `command` name record and command in messages.

        Raises:
            InputError: an option is missing, unknown, or not of its type.
        """
        record = cls.upgraded(record)
        required = {each.name for each in fields(cls) if each.default is each.default_factory is MISSING}
        for name in sorted(required - set(record)):
            raise InputError(f"{of} lacks {name!r}: give a config.json as {command} wrote it.")
        for name in sorted(set(record) - {field.name for field in fields(cls)}):
            raise InputError(f"{of} has {name!r}, which {command} does not know: remove it.")
        cls.check(record, of)
        return cls(**record)

    def identity(self) -> dict[str, str]:
        """Return the options on which results depend, as texts by name."""
        types = types_of(type(self))
        return {
            name: str(value)
            for name, value in vars(self).items()
            if SAME_NUMBERS not in getattr(types[name], "__metadata__", ())
        }


@cache
def types_of(options: type[Options]) -> dict[str, Any]:
    """Return the annotated types of options by name."""
    return get_type_hints(options, include_extras=True)


@dataclass(frozen=True, kw_only=True)
class AlignmentOptions(Options):
    """The options of `ecstruct.alignment`: the reward, of which effects are changes."""

    reward: Annotated[RewardName | Callable[..., Any], Doc("What the scores are changes of.")] = (
        "logit_diff"
    )
    answer_tokens: Annotated[AnswerTokens, Doc("With logprob: tokens of the answer that count.")] = "first"


@dataclass(frozen=True, kw_only=True)
class BaselineOptions(AlignmentOptions):
    """The options that all scores share: the reward, and the baseline of upstream scores."""

    baseline: Annotated[BaselineKind, Doc("What upstream scores compare a component's output with.")] = (
        "counterfactual"
    )


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(BaselineOptions):
    """The options of `ecstruct.score`."""

    upstream: Annotated[
        Upstream,
        Doc(
            "Upstream slopes under new weights: on old activations, on new ones, or with only later "
            "weights new."
        ),
    ] = "local"
    propagation: Annotated[
        Propagation,
        Doc("How these slopes are computed: by the rules of relevance, or as gradients, as in the paper."),
    ] = "relevance"
    convention: Annotated[
        Convention, Doc("To which token a score is assigned: as defined, or as in the published code.")
    ] = "definition"
    path_steps: Annotated[
        PathSteps, Doc("Points between both models at which informative gradients are taken.")
    ] = 1
    projections: Annotated[bool, Doc("Also split informative scores by projection.")] = False
    verify: Annotated[
        Natural,
        Doc("Run the interventions on so many of the strongest components by each score."),
        SAME_NUMBERS,
    ] = 0
    batch_size: BatchSize = None
    offload: Annotated[
        bool, Doc("Leave both models on disk, and read one block at a time."), SAME_NUMBERS
    ] = False


@dataclass(frozen=True, kw_only=True)
class CausalOptions(BaselineOptions):
    """The options of `ecstruct.causal_scores`."""

    kinds: Annotated[
        Annotated[Sequence[Kind], MinLen(1)], Doc("Which scores; repeatable."), Flag("--kind")
    ] = KINDS[:3]
    per_token: Annotated[bool, Doc("Intervene at each token separately.")] = False
    memory: Memory = None


@dataclass(frozen=True, kw_only=True)
class SuggestOptions(Options):
    """The options of `ecstruct.suggest`."""

    share: Annotated[
        Annotated[float, Gt(0), Lt(1)],
        Doc("Which share of all sublayers (attention and MLPs of layers) is suggested."),
    ] = 1 / 3


@dataclass(frozen=True, kw_only=True)
class EdgeOptions(BaselineOptions):
    """The options of `ecstruct.edges`."""

    top: Annotated[Positive, Doc("How many components have each role.")] = 5


@dataclass(frozen=True, kw_only=True)
class FidelityOptions(BaselineOptions):
    """The options of `ecstruct.fidelity`."""

    forms: Annotated[
        Sequence[Form],
        Doc("Another way to score, to compare: path, surrogate or exact; repeatable."),
        Flag("--form"),
    ] = ()
    path_steps: Annotated[
        Annotated[Sequence[PathSteps], MinLen(1)],
        Doc("With path: numbers of points; repeatable."),
        Flag("--path-steps"),
    ] = (1, 2, 4, 8)
    top: Annotated[Positive, Doc("How many components count as the strongest.")] = 5
    sample: Annotated[
        Annotated[int, Ge(2), Le(10**6)] | None, Doc("How many components to intervene on.")
    ] = 12
    seed: Annotated[Seed, Doc("Seed of the sample.")] = 0
    batch_size: BatchSize = None
    memory: Memory = None


class FreezeRecord(TypedDict, total=False):
    """What finetuning leaves as it is, as `config.json` has it."""

    layers: list[Whole] | None
    kinds: list[str] | None
    names: list[str] | None


class LoraRecord(TypedDict, total=False):
    """The adapter of a finetuning, as `config.json` has it."""

    r: Annotated[int, Lt(2**20)]
    alpha: Number
    targets: list[str] | None
    rslora: bool
    dora: bool


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(Options):
    """The options of `ecstruct.finetune`, except for those of its checkpoints."""

    lr: Annotated[Rate | None, Doc("Learning rate; known for organism, smollm2 and minilm.")] = None
    epochs: Annotated[Times, Doc("Passes through the facts.")] = 8
    batch_size: Annotated[Positive, Doc("Facts per step.")] = 8
    accumulate: Annotated[Positive, Doc("Micro-batches into which a batch is split.")] = 1
    schedule: Annotated[Literal["constant", "linear"], Doc("Schedule of the learning rate.")] = "constant"
    train_embeddings: Annotated[bool, Doc("Train (un)embeddings too.")] = False
    recompute: Annotated[bool, Doc("Run blocks again instead of keeping their activations.")] = False
    seed: Annotated[Seed, Doc("Seed of everything random.")] = 0


@dataclass(frozen=True, kw_only=True)
class RecallOptions(Options):
    """The options of `ecstruct.recall.dissect` and `compare`."""

    window: Annotated[Whole | None, Doc("Layers blocked at once; 9, or all of a model that has fewer.")] = (
        None
    )
    token: Annotated[
        Literal["predicted", "answer"] | None,
        Doc("Token whose probability and extraction are measured; answer with --after, else predicted."),
    ] = None
    onto: Annotated[
        Literal["unembedding", "embedding"],
        Doc("Matrix that projects hidden states on the vocabulary, to look for attributes."),
    ] = "unembedding"
    normed: Annotated[
        bool, Doc("Apply the final norm before every projection on the vocabulary; the paper does not.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class PruneOptions(Options):
    """The options of `ecstruct.subnetworks.prune`."""

    sparsity: Annotated[float, Gt(0), Lt(1), Doc("Share of the components that is ablated.")] = 0.5
    seeds: Annotated[Count | Sequence[Seed], Doc("How many subnetworks.")] = 12
    steps: Annotated[Times, Doc("Optimisation steps; fewer than 150 do not converge.")] = 500
    kinds: Annotated[
        Annotated[Sequence[Literal["heads", "mlp"]], MinLen(1)],
        Doc("What may be ablated, heads or mlp; both if not given."),
        Flag("--kinds"),
    ] = ("heads", "mlp")
    ablation: Annotated[Literal["mean", "zero"], Doc("What an ablated component writes.")] = "mean"
    lr: Annotated[Rate, Gt(0), Doc("Learning rate of the masks.")] = 0.1
    batch_size: Annotated[Positive, Doc("Prompts per step and seed.")] = 32
