"""What all causal scores cost, against one whole forward pass per component and intervention.

The slow way takes one forward pass for each value that a component is given: by its own new weights (I), of
its new input (D), and the baseline, under the old and under the later new weights (U). It is timed as plain
Hugging Face models, whose attention is fused, and as TransformerLens' hooked models with one hook, some
prompts per pass. Computing the values and exchanging weights, which it would have to do as well, are not
counted. All sides run in turn in this process; times are CPU times, which other processes disturb least.

The ratio of matrix products is what less of them gains, whatever the machine: layers before a component are
not run again, nor what the prompts share, nor what is not read.

    python benchmarks/causal.py --threads 1
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from engine import make_pair, make_prompts, tokenizer
from torch.utils.flop_counter import FlopCounterMode

from ecstruct.models.load import load
from ecstruct.scores import causal_scores

SAMPLE = 10
"""How many passes of the slow way are timed: all of them are alike."""


def cpu_time(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def flops(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prompts, words = make_prompts(args.prompts), tokenizer()
    ids = torch.tensor([words(p.text)["input_ids"] for p in prompts])
    print(f"{args.prompts} prompts of 11 tokens, {args.threads} threads, median of {args.repeats}")
    for family, n_layers, d_model in (("olmo", 8, 512), ("llama", 8, 512), ("olmo", 32, 256)):
        plain, _ = make_pair(family, n_layers, d_model)
        before, after = (load(m, tokenizer=words) for m in make_pair(family, n_layers, d_model))
        n_passes = 4 * n_layers * (plain.config.num_attention_heads + 1)  # I, D, and U under both

        @torch.no_grad()
        def in_plain(some: torch.Tensor, plain=plain) -> None:
            plain.lm_head(plain.model(input_ids=some, use_cache=False).last_hidden_state[:, -1])

        @torch.no_grad()
        def in_hooked(some: torch.Tensor, before=before) -> None:
            hook = ("blocks.0.attn.hook_z", lambda z, hook: z)
            before.run_with_hooks(some, fwd_hooks=[hook], prepend_bos=False, use_cache=False)

        def ours(before=before, after=after) -> None:
            causal_scores(before, after, prompts, progress=False)

        def slowly(run: Callable[[torch.Tensor], None], at_once: int) -> Callable[[], None]:
            return lambda: [run(some) for _ in range(SAMPLE) for some in ids.split(at_once)]

        sides = {
            f"{name}, {k} a pass": slowly(run, k)
            for name, run in (("plain", in_plain), ("hooked", in_hooked))
            for k in (1, 2, 4)
        }
        times: dict[str, list[float]] = {name: [] for name in (*sides, "ours")}
        for repeat in range(args.repeats + 1):
            for name, side in sides.items():
                times[name].append(cpu_time(side) * n_passes / SAMPLE)
            times["ours"].append(cpu_time(ours))
            if not repeat:  # the first round warms up
                times = {name: [] for name in times}
        medians = {name: statistics.median(values) for name, values in times.items()}
        fewer = flops(slowly(in_plain, 4)) * n_passes / SAMPLE / flops(ours)
        n_parameters = sum(p.numel() for p in plain.parameters()) / 1e6
        faster = ", ".join(f"{medians[name] / medians['ours']:.1f} ({name})" for name in sides)
        print(
            f"{family}, {n_layers} layers, {n_parameters:.1f}M parameters, {n_passes} interventions: "
            f"{medians['ours']:.1f} s; {fewer:.2f} times fewer matrix products; times faster: {faster}"
        )


if __name__ == "__main__":
    main()
