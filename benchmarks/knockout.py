"""What attention knockout costs, against one whole forward pass per window and group.

The slow way is timed as a plain Hugging Face model, whose attention is fused, with some or all prompts in a
pass. Making its masks is not counted, and of its passes, which are all alike, some are timed.

The ratio of matrix products is what less of them gains, whatever the machine: only the last token is run
for a knockout, and only from the first layer of its window on.

    python -m benchmarks.knockout
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.command import main
from benchmarks.models import Shape, hooked_pair, ids_of, make_prompts, plain_pair
from benchmarks.passes import SAMPLE, against_passes
from benchmarks.setup import Setup
from benchmarks.table import Row
from benchmarks.timing import Side, alternate
from ecstruct import recall

SIZES = (("llama", 8, 512), ("olmo", 32, 256))
GROUPS = {"subject": slice(5, 7), "non-subject": [0, 1, 2, 3, 4, 7, 8, 9], "last": -1}
OURS = "recall.knockout"


def sides(setup: Setup, shape: Shape, window: int) -> dict[str, Side]:
    prompts = make_prompts(setup.n_prompts)
    ids, _ = ids_of(prompts, setup.device)
    plain, _ = plain_pair(shape, setup.device)
    hooked, _ = hooked_pair(shape, setup.device)

    @torch.no_grad()
    def in_plain(some: Tensor) -> None:
        hidden = plain.model(input_ids=some, use_cache=False).last_hidden_state[:, -1]
        plain.lm_head(hidden).softmax(-1)

    def slowly(at_once: int) -> None:
        for _ in range(SAMPLE):
            for some in ids.split(at_once):
                in_plain(some)

    options = {"window": window, "groups": GROUPS, "progress": False}
    slow = {f"plain, {k} a pass": partial(slowly, k) for k in (1, 4, len(prompts))}
    return {**slow, OURS: partial(recall.knockout, hooked, prompts, **options)}


def rows(setup: Setup) -> Iterator[Row]:
    for shape in setup.shapes(*SIZES):
        window = max(1, min(9, shape.n_layers // 2))
        n_passes = shape.n_layers * len(GROUPS)
        costs = alternate(sides(setup, shape, window), setup.repeats, setup.device)
        what = "windows and groups"
        yield from against_passes(setup, shape, OURS, costs, "knockout", n_passes, what, ">= 3")


if __name__ == "__main__":
    main({"knockout": rows})
