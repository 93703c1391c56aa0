"""What the three linear scores cost, against the passes that any such method needs.

The bare bound is one forward and one backward pass with respect to activations, parameters frozen, under
the original and under the finetuned weights: by the hooked models themselves, without any hook, logits
read at the last prompt token only. The plain Hugging Face models, whose attention is fused, are timed
beside them. `ecstruct.score` also reads and fingerprints both sets of weights.

    python -m benchmarks.engine
"""

from collections.abc import Iterator
from functools import partial

from benchmarks.command import main
from benchmarks.models import LENGTH, PAPER, Shape, bare_pass, hooked_pair, ids_of, make_prompts, plain_pair
from benchmarks.setup import Setup
from benchmarks.table import Row
from benchmarks.timing import Side
from ecstruct.scores.engine import ScoreEngine, score

SIZES = (("olmo", 8, 512), ("olmo", 32, 256), ("llama", 8, 1024))


def sides(setup: Setup, shape: Shape, n_prompts: int, length: int = LENGTH) -> dict[str, Side]:
    prompts = make_prompts(n_prompts, length)
    ids, answers = ids_of(prompts, setup.device)
    plain, hooked = plain_pair(shape, setup.device), hooked_pair(shape, setup.device)
    return {
        "bare": lambda: [bare_pass(model.original_model, ids, answers) for model in hooked],
        "plain": lambda: [bare_pass(model, ids, answers) for model in plain],
        "ScoreEngine.score": partial(ScoreEngine(*hooked, progress=False).score, prompts),
        "ScoreEngine.score, upstream as in the paper": partial(
            ScoreEngine(*hooked, **PAPER, progress=False).score, prompts
        ),
        "ecstruct.score": lambda: score(*hooked, prompts, progress=False),
    }


def rows(setup: Setup) -> Iterator[Row]:
    for shape in setup.shapes(*SIZES):
        found = setup.compared(sides(setup, shape, setup.n_prompts))
        for name in [*found][1:]:
            held_to = "<= 1.55" if name.endswith("as in the paper") else ""
            yield Row("three scores / bare passes", str(shape), found[name], found["bare"], held_to)


if __name__ == "__main__":
    main({"engine": rows})
