"""Programs compiled to transformers (`tests/data/programs/`), of which it is known what every component does.

Each is a pair of plain GPT-2 models, in which a table has other entries after than before, and a list of all
components that have a role in that, token by token; whatever is not listed has none. The truth is that of the
definitions, derived in the interpreter of the language that the programs are written in, without any model.

    python tests/programs.py

prints how well each way of scoring finds them.
"""

import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import ecstruct
from ecstruct import Prompt

FOLDER = Path(__file__).parent / "data" / "programs"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
STATES = ("before", "after")


@dataclass(frozen=True)
class Program:
    """A program by its name; `description` is what its file says."""

    name: str
    description: dict[str, Any]

    @property
    def prompts(self) -> list[Prompt]:
        """Those whose answers change."""
        return [Prompt(**prompt) for prompt in self.description["prompts"]]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Words are tokens, after one that begins every text."""
        words = self.description["vocabulary"]
        pad, bos = words[:2]
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=pad))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, words.index(bos))]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token=bos, pad_token=pad, unk_token=pad
        )

    def weights(self, state: str) -> dict[str, Tensor]:
        """All of them before; after, those that are others then."""
        stored = load_file(FOLDER / f"{self.name}.safetensors")
        shapes = {name: tensor.shape for name, tensor in _empty(self).state_dict().items()}
        of_state = {key.split("/")[1] for key in stored if key.startswith(f"{state}/")}
        tensors = {}
        for name in of_state:
            tensors[name] = torch.zeros(shapes[name].numel(), dtype=torch.float64)
            values = stored[f"{state}/{name}/value"].double()
            tensors[name][stored[f"{state}/{name}/index"].long()] = values
        return {name: tensor.view(shapes[name]) for name, tensor in tensors.items()}

    def plain(self, state: str) -> GPT2LMHeadModel:
        """The Hugging Face model of a state."""
        model = _empty(self)
        weights = self.weights("before") | (self.weights("after") if state == "after" else {})
        model.load_state_dict(weights, strict=False)
        return model

    def pair(self) -> tuple[TransformerBridge, TransformerBridge]:
        """Both states, as `ecstruct` takes them."""
        before, after = (
            ecstruct.load(self.plain(state), tokenizer=self.tokenizer, dtype=torch.float64, device="cpu")
            for state in STATES
        )
        return before, after


def _empty(program: Program) -> GPT2LMHeadModel:
    """Its architecture, all weights zero."""
    config = GPT2Config(
        vocab_size=len(program.description["vocabulary"]),
        **program.description["config"],
        activation_function="relu",
        layer_norm_epsilon=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    model = GPT2LMHeadModel(config).to(torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


@cache
def program(name: str) -> Program:
    return Program(name, json.loads((FOLDER / f"{name}.json").read_text()))
