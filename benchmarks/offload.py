"""What scoring two checkpoints on disk takes, against loading both.

The models are random, in float32, and each is scored in a process of its own, from its folders to the
scores. Memory is the most that is resident beyond what Python and its libraries take, which is given, too;
the ratio is its share of the two checkpoints. A deeper model tells what grows with depth, and a mixture of
many experts that a layer's are not in memory together.

    python -m benchmarks.offload
"""

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.agreement import check_equal
from benchmarks.command import main
from benchmarks.memory import in_fresh_process, peak_during
from benchmarks.models import Shape, make_prompts, plain_pair, tokenizer
from benchmarks.setup import Setup
from benchmarks.table import Measured, Row
from ecstruct.scores.engine import score

SIZES = (("olmo", 16, 1536), ("olmo", 24, 1536), ("olmoe", 6, 512))


def scored(folder: str, setup: Setup, offload: bool) -> tuple[float, float, float, np.ndarray]:
    """Memory before, the most (MB), seconds, and the scores of the MLPs."""
    setup.prepare()
    found = []

    def run(of: str = folder) -> None:
        before, after = (f"{of}/{name}" for name in ("before", "after"))
        prompts = make_prompts(setup.n_prompts)
        found.append(score(before, after, prompts, offload=offload, device=setup.device, progress=False))

    run(f"{folder}/tiny")  # what libraries load when they are first used is theirs, not the models'
    start = time.perf_counter()
    before, most = peak_during(run, setup.device)
    return before, most, time.perf_counter() - start, found[-1].mlp.values


def save(shape: Shape, folder: str) -> float:
    """Both checkpoints; their size in MB."""
    for name, plain in zip(("before", "after"), plain_pair(shape, "cpu"), strict=True):
        plain.save_pretrained(f"{folder}/{name}")
        tokenizer().save_pretrained(f"{folder}/{name}")
    return sum(file.stat().st_size for file in Path(folder).glob("*/*.safetensors")) / 1e6


def rows(setup: Setup) -> Iterator[Row]:
    for shape in setup.shapes(*SIZES):
        with TemporaryDirectory() as folder:
            size = save(shape, folder)
            save(Shape(shape.family, 2, 64), f"{folder}/tiny")
            # The loaded one first: then both read files that the system has at hand.
            runs = {
                name: in_fresh_process(scored, folder, setup, name == "offload")
                for name in ("loaded", "offload")
            }
        check_equal("offloaded scores", runs["offload"][-1], runs["loaded"][-1], 1e-5)
        both = Measured("two checkpoints", size, "MB")
        for name, held_to in (("offload", "<= 0.25"), ("loaded", "")):
            before, most, *_ = runs[name]
            found = Measured(f"{name}, beyond {before:.0f} MB", most - before, "MB")
            yield Row("memory of scoring from disk", str(shape), found, both, held_to)
        slow, fast = (Measured(name, runs[name][2], "s") for name in ("offload", "loaded"))
        yield Row("time of scoring from disk", str(shape), slow, fast)


if __name__ == "__main__":
    main({"offload": rows})
