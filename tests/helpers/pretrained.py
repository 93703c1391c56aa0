"""SmolLM2 for the tests: the model, a reproducible change of its weights, and a plain Llama with hooks.

`python tests/pretrained.py` writes tests/data/smollm2.npz, the scores of that change.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformer_lens.model_bridge import TransformerBridge

import ecstruct
from ecstruct import Prompt
from ecstruct.models.bridge import named_weights
from ecstruct.models.provenance import tokenizer_of

GOLDEN = Path(__file__).parents[1] / "data" / "smollm2.npz"
PEOPLE = ecstruct.facts.people()
N_HEADS, N_KV_HEADS, D_HEAD = 9, 3, 64


@cache
def smollm2() -> TransformerBridge:
    return ecstruct.load("smollm2", device="cpu")


def gradient_step(model: TransformerBridge, size: float = 3e-3) -> ecstruct.WeightDelta:
    """Return a gradient step on the facts for every weight of the blocks, of `size` times its norm. Unlike
    Adam's, it does not jump where a gradient is nearly zero, so rounding does not grow."""
    tokenizer = tokenizer_of(model)
    weights = {name: p for name, p in named_weights(model).items() if name.startswith("blocks.")}
    loss = torch.zeros(())
    with torch.enable_grad():
        for fact in PEOPLE.facts[:4]:
            ids = tokenizer(fact.text, return_tensors="pt").input_ids
            answer = tokenizer(f"{fact.text} {fact.answer}").input_ids[ids.shape[1]]
            loss = loss - model(ids)[0, -1].log_softmax(-1)[answer]
        gradients = torch.autograd.grad(loss, [*weights.values()])
    return ecstruct.WeightDelta(
        {
            name: -size * (p.detach().norm() / g.norm()) * g
            for (name, p), g in zip(weights.items(), gradients, strict=True)
        }
    )


def slot_scores() -> dict[str, np.ndarray]:
    """Return scores of the step, averaged onto the slots of the template: `mlp` [score, layer, slot] and
    `heads` [score, layer, head, slot]."""
    model = smollm2()
    scores = ecstruct.score(model, gradient_step(model), PEOPLE.implications[:6], progress=False)
    dataset = scores.aggregate().dataset
    return {part: dataset[part].values.astype(np.float32) for part in ("mlp", "heads")}


# --- The plain model ---


class Plain:
    """A plain Llama under some weights, which computes the reward of one prompt with values replaced."""

    def __init__(self, hf: Any, tokenizer: Any, weights: Mapping[str, Tensor] | None = None) -> None:
        self.hf, self.tokenizer = hf, tokenizer
        self.weights = dict(weights if weights is not None else hf.state_dict())
        self.layers = hf.model.layers

    def reward(self, prompt: Prompt) -> Tensor:
        ids = self.tokenizer(prompt.text, return_tensors="pt").input_ids
        first = [self.tokenizer(f"{prompt.text} {o}").input_ids[ids.shape[1]] for o in prompt.options or ()]
        logits = functional_call(self.hf, self.weights, (ids,), {"use_cache": False}, tie_weights=False)
        logits = logits.logits[0, -1]
        return logits[first[(prompt.options or ()).index(prompt.answer)]] - logits[first].mean()

    def under(self, other: "Plain", late: Callable[[str], bool]) -> "Plain":
        """Return the model with another's weights for all names that `late` accepts."""
        mixed = {name: (other if late(name) else self).weights[name] for name in self.weights}
        return Plain(self.hf, self.tokenizer, mixed)

    def written(
        self, prompt: Prompt, layer: int, inputs: tuple[Tensor, Tensor] | None = None
    ) -> tuple[dict[int | None, Tensor], tuple[Tensor, Tensor]]:
        """Return what each head of a layer and its MLP (None) write, [token, d_model], and the inputs of
        its two norms; `inputs` replace the latter if they are given."""
        block, seen = self.layers[layer], {}
        norms = (block.input_layernorm, block.post_attention_layernorm)

        def entering(i: int) -> Callable:
            def hook(_module: nn.Module, args: tuple) -> tuple:
                seen[i] = args[0] if inputs is None else inputs[i]
                return (seen[i],)

            return hook

        def reading(key: str, of: int) -> Callable:
            def hook(_module: nn.Module, args: tuple, output: Tensor) -> None:
                seen[key] = (args[0], output)[of]

            return hook

        handles = [norm.register_forward_pre_hook(entering(i)) for i, norm in enumerate(norms)]
        handles += [
            block.self_attn.o_proj.register_forward_hook(reading("z", 0)),
            block.mlp.register_forward_hook(reading("mlp", 1)),
        ]
        with _removed(handles):
            self.reward(prompt)
        w_o = self.weights[f"model.layers.{layer}.self_attn.o_proj.weight"]
        shares: dict[int | None, Tensor] = {None: seen["mlp"][0]}
        for head in range(N_HEADS):
            own = slice(head * D_HEAD, (head + 1) * D_HEAD)
            shares[head] = seen["z"][0][:, own] @ w_o[:, own].T
        return shares, (seen[0], seen[1])

    def reward_with(self, prompt: Prompt, layer: int, change: Tensor, head: int | None) -> Tensor:
        """Return R with `change` added to what a component writes."""
        block = self.layers[layer]
        module = block.mlp if head is None else block.self_attn.o_proj
        handle = module.register_forward_hook(lambda _module, _args, output: output + change)
        with _removed([handle]):
            return self.reward(prompt)


def causal(before: Plain, after: Plain, prompt: Prompt, layer: int, head: int | None) -> dict[str, float]:
    """Return I, D and U of a component on one prompt, with y* = 0 (paper eq. 1 to 4)."""

    def late(name: str) -> bool:
        if not name.startswith("model.layers."):
            return name in ("model.norm.weight", "lm_head.weight")
        its, part = int(name.split(".")[2]), name.split(".")[3]
        return its > layer or (
            its == layer and head is not None and part in ("mlp", "post_attention_layernorm")
        )

    with torch.no_grad():
        old, inputs = before.written(prompt, layer)
        _, new_inputs = after.written(prompt, layer)
        new_weights, _ = after.written(prompt, layer, inputs)
        new_input, _ = before.written(prompt, layer, new_inputs)
        y = old[head]

        def effects(of: Plain, *changes: Tensor) -> list[float]:
            reward = of.reward(prompt)
            return [float(of.reward_with(prompt, layer, change, head) - reward) for change in changes]

        informative, downstream, gone = effects(before, new_weights[head] - y, new_input[head] - y, -y)
        (gone_after,) = effects(before.under(after, late), -y)
        return {"informative": informative, "downstream": downstream, "upstream": gone - gone_after}


@contextmanager
def _removed(handles: list) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    torch.set_num_threads(1)
    scores: dict[str, Any] = dict(slot_scores())
    np.savez_compressed(GOLDEN, **scores)
