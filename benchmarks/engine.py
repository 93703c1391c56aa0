"""What the three linear scores cost, against the passes that any such method needs.

The bare bound is one forward and one backward pass with respect to activations, parameters frozen, under
the original and under the finetuned weights: by the hooked models themselves, without any hook, logits
read at the last prompt token only. The plain Hugging Face models, whose attention is fused, are timed
beside them. `ecstruct.score` also reads and fingerprints both sets of weights.

    python -m benchmarks.engine
"""

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from benchmarks.command import main
from benchmarks.models import (
    LENGTH,
    PAPER,
    Shape,
    bare_pass,
    hooked_pair,
    ids_of,
    make_prompts,
    padded_ids,
    plain_pair,
    smollm2_pair,
)
from benchmarks.setup import Setup
from benchmarks.table import Measured, Row
from benchmarks.timing import Side, alternate
from ecstruct.facts import Prompt
from ecstruct.facts.invented_people import people
from ecstruct.models.provenance import tokenizer_of
from ecstruct.scores.engine import ScoreEngine, score

SIZES = (("olmo", 20, 256), ("olmo", 8, 512), ("olmo", 32, 256), ("llama", 8, 1024))
SMOLLM2 = "SmolLM2"
AS_IN_THE_PAPER = ", upstream as in the paper"
HELD_TO = {
    (SMOLLM2, "ScoreEngine.score"): 1.4,
    ("llama 8x1024", "ScoreEngine.score"): 1.5,
    ("olmo 8x512", "ScoreEngine.score"): 1.6,
    ("olmo 20x256", "ecstruct.score"): 1.75,
}
"""Of the times with upstream scores as in the paper, in those of the bare passes."""


def sides(setup: Setup, shape: Shape, n_prompts: int, length: int = LENGTH) -> dict[str, Side]:
    prompts = make_prompts(n_prompts, length)
    ids, answers = ids_of(prompts, setup.device)
    plain, hooked = plain_pair(shape, setup.device), hooked_pair(shape, setup.device)
    return {
        **of_pair(hooked, prompts, ids, answers),
        "plain": lambda: [bare_pass(model, ids, answers) for model in plain],
    }


def of_smollm2(setup: Setup) -> dict[str, Side]:
    hooked, prompts = smollm2_pair(setup.device), people().implications
    return of_pair(hooked, prompts, *padded_ids(prompts, tokenizer_of(hooked[0]), setup.device))


def of_pair(
    hooked: tuple[TransformerBridge, TransformerBridge],
    prompts: Sequence[Prompt],
    ids: Tensor,
    answers: Tensor,
) -> dict[str, Side]:
    found: dict[str, Side] = {
        "bare": lambda: [bare_pass(model.original_model, ids, answers) for model in hooked]
    }
    for suffix, options in (("", {}), (AS_IN_THE_PAPER, PAPER)):
        engine = ScoreEngine(*hooked, **options, progress=False)
        found[f"ScoreEngine.score{suffix}"] = partial(engine.score, prompts)
        found[f"ecstruct.score{suffix}"] = partial(score, *hooked, prompts, **options, progress=False)
    return found


def rows(setup: Setup) -> Iterator[Row]:
    for shape in setup.shapes(*SIZES):
        yield from _rows(setup, str(shape), sides(setup, shape, setup.n_prompts))
    if not setup.small:
        yield from _rows(setup, SMOLLM2, of_smollm2(setup))


def _rows(setup: Setup, model: str, sides: dict[str, Side]) -> Iterator[Row]:
    costs = alternate(sides, setup.repeats, setup.device)
    found = {name: setup.measured(name, cost) for name, cost in costs.items()}
    held_to = {f"{side}{AS_IN_THE_PAPER}": f"<= {n}" for (of, side), n in HELD_TO.items() if of in model}
    what = "three scores / bare passes"
    for name in [*found][1:]:
        yield Row(what, model, found[name], found["bare"], held_to.get(name, ""))
    products = {name: Measured(name, cost.gflop, "GFLOP") for name, cost in costs.items()}
    for suffix in ("", AS_IN_THE_PAPER):
        ours = products[f"ScoreEngine.score{suffix}"]
        yield Row(f"{what}, matrix products", model, ours, products["bare"])


if __name__ == "__main__":
    main({"engine": rows})
