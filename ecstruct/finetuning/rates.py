"""Learning rates: the known ones of models that have a name, and a starting value for any other."""

from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.io.values import FASTEST
from ecstruct.models.bridge import named_weights
from ecstruct.models.provenance import provenance, source_of
from ecstruct.named_models import named


def learning_rate(model: TransformerBridge, lr: float | None) -> float:
    """Return the rate that was given, or the one that is known for the model.

    Raises:
        InputError: the value is not a learning rate, or none is known for the model.
    """
    if lr is not None:
        if not 0 < lr <= FASTEST:
            raise InputError(f"lr={lr} is no learning rate: use a positive number such as 1e-5.")
        return float(lr)
    if known := named(provenance(model).source):  # also if it is finetuned already
        return known.learning_rate
    n_weights = sum(p.numel() for p in {id(p): p for p in named_weights(model).values()}.values())
    raise InputError(
        f"no learning rate is known for {source_of(model)}: pass lr= (--lr), for example "
        f"{starting_learning_rate(n_weights):g}, a starting value for its {n_weights:,} weights."
    )


def starting_learning_rate(n_weights: int) -> float:
    """Return a learning rate to try first, by the size of the model. This rule of thumb ends in the
    paper's 3e-6 for OLMo-7B. The right rate is the largest at which the facts are learned and other
    prompts keep their answers.

    >>> [starting_learning_rate(n) for n in (25_000_000, 124_000_000, 1_200_000_000, 7_000_000_000)]
    [0.0001, 3e-05, 1e-05, 3e-06]
    """
    for at_most, lr in ((50_000_000, 1e-4), (500_000_000, 3e-5), (3_000_000_000, 1e-5)):
        if n_weights <= at_most:
            return lr
    return 3e-6


def schedule_factor(schedule: str, step: int, n_steps: int) -> float:
    """Return the factor of the learning rate in a step, counted from 0."""
    if schedule == "constant":
        return 1.0
    n_warmup = n_steps // 10
    if step < n_warmup:
        return step / n_warmup
    return (n_steps - step) / (n_steps - n_warmup)
