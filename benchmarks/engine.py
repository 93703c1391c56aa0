"""What the three linear scores cost, against the passes that any such method needs.

The bare bound is one forward and one backward pass with respect to activations, parameters frozen, under
the original and under the finetuned weights: by the hooked models themselves, without any hook, logits
read at the last prompt token only. The plain Hugging Face models, whose attention is fused, are timed
beside them. All sides run in turn in this process, on the same prompts in the same batch; the ratio of
the medians is what counts, as absolute times depend on the machine.

    python benchmarks/engine.py
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    PreTrainedTokenizerFast,
)

from ecstruct.facts import Prompt
from ecstruct.models.load import load
from ecstruct.scores.engine import ScoreEngine, score

N_WORDS = 2000
FAMILIES = {"olmo": (OlmoConfig, OlmoForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, N_WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<eos>", eos_token="<eos>"
    )


def make_prompts(n: int) -> list[Prompt]:
    """Eleven tokens each, as "The people in the city X Y is from speak"."""
    return [Prompt(f"w2 w3 w4 w5 w6 w{100 + i} w{300 + i} w7 w8 w9 w10", f"w{500 + i}") for i in range(n)]


def make_pair(family: str, n_layers: int, d_model: int):
    config_class, model_class = FAMILIES[family]
    torch.manual_seed(0)
    config = config_class(
        vocab_size=N_WORDS,
        hidden_size=d_model,
        intermediate_size=256 * round(d_model / 96),
        num_hidden_layers=n_layers,
        num_attention_heads=8,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    before, after = model_class(config), model_class(config)
    after.load_state_dict(before.state_dict())
    with torch.no_grad():
        for p in after.parameters():
            p.add_(3e-3 * p.std().nan_to_num(0.0) * torch.randn_like(p))
    return before.eval().requires_grad_(False), after.eval().requires_grad_(False)


def bare_pass(model, ids: torch.Tensor, answers: torch.Tensor) -> None:
    embedded = model.get_input_embeddings()(ids).requires_grad_()
    hidden = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, -1]
    logits = model.lm_head(hidden)
    reward = logits.gather(1, answers[:, None]).sum() - logits[:, answers].mean(1).sum()
    torch.autograd.grad(reward, embedded)


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prompts = make_prompts(args.prompts)
    words = tokenizer()
    print(f"{args.prompts} prompts of 11 tokens, {args.threads} threads, median of {args.repeats}")
    for family, n_layers, d_model in (
        ("olmo", 8, 512),
        ("olmo", 32, 256),
        ("olmo", 8, 1024),
        ("llama", 8, 1024),
    ):
        plain = make_pair(family, n_layers, d_model)
        hooked = [load(m, tokenizer=words) for m in make_pair(family, n_layers, d_model)]
        n_parameters = sum(p.numel() for p in plain[0].parameters())
        ids = torch.tensor([words(p.text)["input_ids"] for p in prompts])
        answers = torch.tensor([words(p.answer)["input_ids"][0] for p in prompts])
        engine = ScoreEngine(*hooked, progress=False)
        unhooked = [model.original_model.requires_grad_(False) for model in hooked]
        sides: dict[str, Callable[[], object]] = {
            "bare": lambda models=unhooked, ids=ids, answers=answers: [
                bare_pass(model, ids, answers) for model in models
            ],
            "plain": lambda models=plain, ids=ids, answers=answers: [
                bare_pass(model, ids, answers) for model in models
            ],
            "engine": lambda engine=engine: engine.score(prompts),
            "score()": lambda hooked=hooked: score(*hooked, prompts, progress=False),
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(args.repeats + 1):
            for name, function in sides.items():
                elapsed = timed(function)
                if repeat:  # the first round warms up
                    times[name].append(elapsed)
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(
            f"{family}, {n_layers} layers, {n_parameters / 1e6:.1f}M parameters: "
            f"bare {medians['bare']:.3f} s, plain {medians['plain'] / medians['bare']:.2f} x bare, "
            f"ScoreEngine.score {medians['engine'] / medians['bare']:.2f} x bare, "
            f"ecstruct.score {medians['score()'] / medians['bare']:.2f} x bare"
        )


if __name__ == "__main__":
    main()
