"""What it costs to check scores by interventions, against the scores themselves.

`fidelity` has interventions on a sample of the components, and includes the scores; with `verify=2`, as on
the command line, scoring adds those on the two strongest components by each score. The model is as deep as
SmolLM2; with fewer layers, interventions cost relatively more.

    python -m benchmarks.checking
"""

from collections.abc import Iterator
from functools import partial

from benchmarks.command import main
from benchmarks.models import Shape, hooked_pair, make_prompts
from benchmarks.setup import Setup
from benchmarks.table import Row
from benchmarks.timing import Side
from ecstruct.checks import fidelity
from ecstruct.scores.engine import ScoreEngine
from ecstruct.scores.pair import Pair

SIZES = (("olmo", 32, 256),)
BOUNDS = {"fidelity": 4, "score, verify=2": 2}


def sides(setup: Setup, shape: Shape) -> dict[str, Side]:
    prompts, pair = make_prompts(setup.n_prompts), Pair.of(*hooked_pair(shape, setup.device))
    engine, verifying = (ScoreEngine(*pair.sessions, verify=k, progress=False) for k in (0, 2))
    return {
        "fidelity": partial(fidelity, *pair.sessions, prompts, progress=False),
        "score, verify=2": partial(verifying.score, prompts),
        "score": partial(engine.score, prompts),
    }


def rows(setup: Setup) -> Iterator[Row]:
    for shape in setup.shapes(*SIZES):
        found = setup.compared(sides(setup, shape))
        for name, bound in BOUNDS.items():
            yield Row("checked / scored", str(shape), found[name], found["score"], f"<= {bound}")


if __name__ == "__main__":
    main({"checking": rows})
