"""Programs compiled to transformers (`tests/data/programs/`), of which it is known what every component does.

Each is a pair of plain GPT-2 models, in which a table has other entries after than before, and a list of all
components that have a role in that, token by token; whatever is not listed has none. The truth is that of the
definitions, found in the interpreter of the language that the programs are written in, without any model.

    python tests/programs.py

prints how well each way of scoring finds them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import ecstruct
from ecstruct import Prompt
from ecstruct.scores import SCORES, ExtractiveScores
from ecstruct.scores.components import component_names

FOLDER = Path(__file__).parent / "data" / "programs"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
STATES = ("before", "after")
SHARE = 0.1
"""Of the largest score of a program, for any component to be named."""

PLACE = ["score", "component", "token"]
Places = pd.Series
"""Numbers by role, component and token, indexed by `PLACE`."""


# --- The programs ---


@dataclass(frozen=True)
class Program:
    """A program by its name; `description` is what its file says."""

    name: str

    @cached_property
    def description(self) -> dict[str, Any]:
        return json.loads((FOLDER / f"{self.name}.json").read_text("utf-8"))

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

    def plain(self, state: str) -> GPT2LMHeadModel:
        """The Hugging Face model of a state: all weights that are not in its file are 0."""
        config = GPT2Config(
            vocab_size=len(self.description["vocabulary"]),
            **self.description["config"],
            activation_function="relu",
            layer_norm_epsilon=0.0,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="eager",
        )
        model = GPT2LMHeadModel(config).to(torch.float64).eval()
        stored = load_file(FOLDER / f"{self.name}.safetensors")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                both = [key for key in STATES[: 1 + STATES.index(state)] if f"{key}/{name}/index" in stored]
                parameter.zero_()
                if both:
                    index, values = (stored[f"{both[-1]}/{name}/{part}"] for part in ("index", "value"))
                    parameter.view(-1)[index.long()] = values.double()
        return model

    def pair(self) -> tuple[TransformerBridge, TransformerBridge]:
        """Both states, as `ecstruct` takes them."""
        before, after = (
            ecstruct.load(self.plain(state), tokenizer=self.tokenizer, dtype=torch.float64, device="cpu")
            for state in STATES
        )
        return before, after

    def truth(self) -> Places:
        """The scores that are not 0, means over prompts."""
        roles = pd.DataFrame(self.description["roles"]).rename(columns={"role": "score"})
        return roles.set_index(PLACE)["scores"].map(np.mean)


# --- What each way of scoring says of them ---


def by_place(scores: ExtractiveScores) -> Places:
    """The means over prompts of scores that are per token."""
    frame = scores.to_dataframe()
    return frame.assign(component=component_names(frame)).groupby(PLACE)["value"].mean()


def attribution(scores: ExtractiveScores) -> Places:
    """How much the answer owes a component in the model after, which is the same for every role."""
    after = scores.attribution.sel(state="after", drop=True)
    dataset = scores.dataset.drop_vars(["mlp", "heads"])
    same = {name: after[name].expand_dims(score=[*SCORES]) for name in ("mlp", "heads")}
    return by_place(ExtractiveScores(dataset.assign(same)))


def weight_change(program: Program, places: pd.MultiIndex) -> Places:
    """|dW| of a component, which is the same for every role and token. Heads do not change here."""
    old, new = (dict(program.plain(state).named_parameters()) for state in STATES)
    norms = dict.fromkeys(places.unique("component"), 0.0)
    for name in program.description["changed"]:
        _, _, layer, part, *_ = name.split(".")
        assert part == "mlp"
        norms[f"MLP {layer}"] = float((new[name] - old[name]).detach().norm())
    return pd.Series(places.get_level_values("component").map(norms), places)


def found(program: Program) -> dict[str, Places]:
    """By way of scoring, what it says of every role, component and token."""
    pair, prompts = program.pair(), program.prompts
    causal = by_place(ecstruct.causal_scores(*pair, prompts, per_token=True, progress=False))
    by_upstream = {
        upstream: ecstruct.score(*pair, prompts, upstream=upstream, progress=False) for upstream in UPSTREAM
    }
    return {
        "causal": causal,
        **{f"score, {upstream}": by_place(scores) for upstream, scores in by_upstream.items()},
        "attribution": attribution(by_upstream[UPSTREAM[0]]),
        "weight change": weight_change(program, causal.index),
    }
