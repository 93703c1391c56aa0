"""What all causal scores cost, against one whole forward pass per component and intervention.

The slow way takes one forward pass for each value that a component is given: by its own new weights (I), of
its new input (D), and the baseline, under the old and under the later new weights (U). It is timed as plain
Hugging Face models, whose attention is fused, and as TransformerLens' hooked models with one hook, some
prompts per pass. Computing the values and exchanging weights, which it would have to do as well, are not
counted. Of its passes, which are all alike, some are timed; runs are so long that each is timed once.

The ratio of matrix products is what less of them gains, whatever the machine: layers before a component are
not run again, nor what the prompts share, nor what is not read.

    python -m benchmarks.causal
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.command import main
from benchmarks.models import N_HEADS, Shape, hooked_pair, ids_of, make_prompts, plain_pair
from benchmarks.passes import SAMPLE, against_passes
from benchmarks.setup import Setup
from benchmarks.table import Row
from benchmarks.timing import Side, alternate
from ecstruct.scores import causal_scores

SIZES = (("olmo", 8, 512), ("llama", 8, 512), ("olmo", 32, 256))
OURS = "causal_scores"


def sides(setup: Setup, shape: Shape) -> dict[str, Side]:
    prompts = make_prompts(setup.n_prompts)
    ids, _ = ids_of(prompts, setup.device)
    plain, _ = plain_pair(shape, setup.device)
    before, after = hooked_pair(shape, setup.device)

    @torch.no_grad()
    def in_plain(some: Tensor) -> None:
        plain.lm_head(plain.model(input_ids=some, use_cache=False).last_hidden_state[:, -1])

    @torch.no_grad()
    def in_hooked(some: Tensor) -> None:
        hook = ("blocks.0.attn.hook_z", lambda z, hook: z)
        before.run_with_hooks(some, fwd_hooks=[hook], prepend_bos=False, use_cache=False)

    def slowly(run: Callable[[Tensor], None], at_once: int) -> Side:
        return lambda: [run(some) for _ in range(SAMPLE) for some in ids.split(at_once)]

    slow = {
        f"{name}, {k} a pass": slowly(run, k)
        for name, run in (("plain", in_plain), ("hooked", in_hooked))
        for k in (1, 2, 4)
    }
    return {**slow, OURS: lambda: causal_scores(before, after, prompts, progress=False)}


def rows(setup: Setup) -> Iterator[Row]:
    for shape in setup.shapes(*SIZES):
        n_passes = 4 * shape.n_layers * (N_HEADS + 1)  # I, D, and U under both
        costs = alternate(sides(setup, shape), 1, setup.device)
        what = "causal scores"
        yield from against_passes(setup, shape, OURS, costs, what, n_passes, "interventions", ">= 5")


if __name__ == "__main__":
    main({"causal": rows})
