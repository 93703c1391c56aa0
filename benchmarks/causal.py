"""What all causal scores cost, against one whole forward pass per component and intervention.

The slow way is the plain Hugging Face models (their attention fused), a few prompts at a time, one forward
pass for each value that a component takes: with its own new weights (I), of its new input (D), and the
baseline, under the old and under the later new weights (U). Whatever else it would have to do (computing
these values, exchanging weights) is not counted. Both sides run in turn in this process.

The compute-bound ratio is how many block runs the slow way needs, in token-blocks, for one of ours: what is
gained by running only the layers after a component, whatever the machine. The rest is gained by stacking.

    python benchmarks/causal.py --threads 1
"""

import argparse
import statistics

import torch
from engine import make_pair, make_prompts, timed, tokenizer

from ecstruct.models.load import load
from ecstruct.scores import causal_scores

SAMPLE = 40
"""How many passes of the slow way are timed: all of them are alike."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=4, help="Prompts per forward pass of the slow way.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prompts, words = make_prompts(args.prompts), tokenizer()
    print(f"{args.prompts} prompts of 11 tokens, {args.threads} threads, median of {args.repeats}")
    for family, n_layers, d_model in (("olmo", 8, 512), ("llama", 8, 512), ("olmo", 32, 256)):
        plain, _ = make_pair(family, n_layers, d_model)
        before, after = (load(m, tokenizer=words) for m in make_pair(family, n_layers, d_model))
        n_parameters = sum(p.numel() for p in plain.parameters())
        n_heads = plain.config.num_attention_heads
        passes = 4 * n_layers * (n_heads + 1)  # I, D, and U under both
        ids = torch.tensor([words(p.text)["input_ids"] for p in prompts])

        @torch.no_grad()
        def slow(n: int = SAMPLE, plain=plain, ids=ids) -> None:
            for _ in range(n):
                for some in ids.split(args.at_once):
                    hidden = plain.model(input_ids=some, use_cache=False).last_hidden_state
                    plain.lm_head(hidden[:, -1])

        def fast(before=before, after=after) -> None:
            causal_scores(before, after, prompts, progress=False)

        slows, fasts = [], []
        for repeat in range(args.repeats + 1):
            times = timed(slow) * passes / SAMPLE, timed(fast)
            if repeat:  # the first round warms up
                slows.append(times[0])
                fasts.append(times[1])
        one_each, ours = statistics.median(slows), statistics.median(fasts)
        # Each intervention runs its own block and those after it; so does one reference per block and part.
        runs = sum((4 * (n_heads + 1) + 2) * (n_layers - layer) for layer in range(n_layers))
        print(
            f"{family}, {n_layers} layers, {n_parameters / 1e6:.1f}M parameters, {passes} interventions: "
            f"{one_each:.1f} s with one forward pass each, {ours:.1f} s with causal_scores, "
            f"{one_each / ours:.1f} times faster; {passes * n_layers / runs:.2f} by count of block runs"
        )


if __name__ == "__main__":
    main()
