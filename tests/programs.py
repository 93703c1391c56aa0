"""Programs compiled to transformers (`tests/data/programs/`), whose components have known roles.

Each is a pair of plain GPT-2 models, in which a table has other entries after than before, and a list of
all components that have a role in that change, token by token; unlisted components have none. The roles
follow the definitions and come from the interpreter of the programs' own language, without any model.

    python tests/programs.py

prints how well each way of scoring finds these components.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
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
"""A score names its component if it exceeds this share of the program's largest score."""

UPSTREAM = {
    "relevance": {},
    "surrogate": {"upstream": "surrogate", "propagation": "gradient"},
    "exact": {"upstream": "exact", "propagation": "gradient"},
}
"""Forms of upstream scores; the first is the default."""
PLACE = ["score", "component", "token"]
Places = pd.Series
"""A number per role, component and token; `PLACE` names these levels of its index."""


# --- The programs ---


@dataclass(frozen=True)
class Program:
    """A compiled program, identified by its name."""

    name: str

    @cached_property
    def description(self) -> dict[str, Any]:
        """The contents of the program's JSON file."""
        return json.loads((FOLDER / f"{self.name}.json").read_text("utf-8"))

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts whose answers change."""
        return [Prompt(**prompt) for prompt in self.description["prompts"]]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer with a token per word, after one token that begins every text."""
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
        """Return the Hugging Face model of a state; all weights that its file does not have are 0."""
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

    @cache  # noqa: B019 (for the whole session)
    def pair(self) -> tuple[TransformerBridge, TransformerBridge]:
        """Return both states as hooked models, which no test may change."""
        before, after = (
            ecstruct.load(self.plain(state), tokenizer=self.tokenizer, dtype=torch.float64, device="cpu")
            for state in STATES
        )
        return before, after

    @property
    def roles(self) -> pd.DataFrame:
        """All non-zero scores, indexed by `PLACE`, with a column per prompt."""
        roles = pd.DataFrame(self.description["roles"]).rename(columns={"role": "score"})
        return pd.DataFrame(roles["scores"].tolist(), pd.MultiIndex.from_frame(roles[PLACE]))


# --- What each way of scoring says of them ---


def by_prompt(scores: ExtractiveScores) -> pd.DataFrame:
    """Return scores per token, indexed by `PLACE`, with a column per prompt."""
    frame = scores.to_dataframe()
    frame = frame.assign(component=component_names(frame))
    return frame.pivot(index=PLACE, columns="prompt", values="value")


def by_place(scores: ExtractiveScores) -> Places:
    """Return the means of the scores over prompts."""
    return by_prompt(scores).mean(axis=1)


def attribution(scores: ExtractiveScores) -> Places:
    """Return the attribution to each component in the model after, which is equal for all roles."""
    after = scores.attribution.sel(state="after", drop=True)
    dataset = scores.dataset.drop_vars(["mlp", "heads"])
    same = {name: after[name].expand_dims(score=[*SCORES]) for name in ("mlp", "heads")}
    return by_place(ExtractiveScores(dataset.assign(same)))


def weight_change(program: Program, places: pd.MultiIndex) -> Places:
    """Return |dW| of each component, which is equal for all roles and tokens. Heads do not change here."""
    old, new = (dict(program.plain(state).named_parameters()) for state in STATES)
    norms = dict.fromkeys(places.unique("component"), 0.0)
    for name in program.description["changed"]:
        _, _, layer, part, *_ = name.split(".")
        assert part == "mlp"
        norms[f"MLP {layer}"] = float((new[name] - old[name]).detach().norm())
    return pd.Series(places.get_level_values("component").map(norms), places)


def found(program: Program) -> dict[str, Places]:
    """Return, for each way of scoring, its value for every role, component and token."""
    pair, prompts = program.pair(), program.prompts
    causal = by_place(ecstruct.causal_scores(*pair, prompts, per_token=True, progress=False))
    linear = {
        f"linear, {form} upstream": ecstruct.score(*pair, prompts, **options, progress=False)
        for form, options in UPSTREAM.items()
    }
    return {
        "causal": causal,
        **{way: by_place(scores) for way, scores in linear.items()},
        "attribution": attribution(linear["linear, surrogate upstream"]),
        "|dW|": weight_change(program, causal.index),
    }


# --- How right that is ---


def judged(program: Program, ways: Mapping[str, Places], level: list[str]) -> pd.DataFrame:
    """Return whether a way of scoring has `named` a component for a role (at a token, if the `level`
    includes tokens), and whether it is `right`. "random" names as many components as are right, among those
    that the program uses: there, `named` is the probability."""
    right = program.roles.index.to_frame()[level].drop_duplicates().apply(tuple, axis=1)
    by_way = {}
    for way, of_places in ways.items():
        scores = of_places.groupby(level=level).sum()
        share = scores / scores.abs().max()
        by_way[way] = pd.DataFrame(
            {"share": share, "named": share > SHARE, "right": scores.index.isin(right)}, dtype=float
        )
        used = scores.index.get_level_values("component").isin(program.description["components"])
        among = by_way[way][used]
        by_way["random"] = among.assign(named=among.groupby(level="score")["right"].transform("mean"))
    return pd.concat(by_way, names=["way"])


def precision_and_recall(judged_ones: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Return both by way and role, over all programs; precision is NaN if nothing is named."""
    rows = pd.concat([*judged_ones])
    rows["both"] = rows["named"] * rows["right"]
    summed = rows.groupby(level=["way", "score"]).sum()
    return pd.DataFrame(
        {"precision": summed["both"] / summed["named"], "recall": summed["both"] / summed["right"]}
    )


def table(found_in: Mapping[Program, Mapping[str, Places]]) -> pd.DataFrame:
    """Return "precision / recall" by way of scoring (rows), level and role (columns), over all programs."""
    cells = {
        level: precision_and_recall(judged(program, ways, keys) for program, ways in found_in.items())
        .apply(lambda row: f"{row['precision']:.2f} / {row['recall']:.2f}", axis=1)
        .unstack("score")[[*SCORES]]
        for level, keys in (("component", PLACE[:2]), ("at its token", PLACE))
    }
    ways = next(iter(found_in.values()))
    return pd.concat(cells, axis=1).reindex([*ways, "random"])


def mistakes(found_in: Mapping[Program, Mapping[str, Places]]) -> pd.DataFrame:
    """Return what linear scores name wrongly and what they miss, with the score as a share of the largest
    one of the program."""
    rows = []
    for program, ways in found_in.items():
        fast = {way: places for way, places in ways.items() if way.startswith("linear")}
        of_program = judged(program, fast, PLACE).drop("random").reset_index()
        rows.append(of_program[of_program["named"] != of_program["right"]].assign(program=program.name))
    columns = ["way", "program", *PLACE, "share"]
    return pd.concat(rows)[columns].sort_values(columns[:2], kind="stable")


def sizes(found_in: Mapping[Program, Mapping[str, Places]]) -> pd.DataFrame:
    """Return the range of linear over causal scores where a role is right, by way and role."""
    rows = []
    for program, ways in found_in.items():
        right = program.roles.index
        for way in filter(lambda way: way.startswith("linear"), ways):
            rows.append((ways[way] / ways["causal"])[right].rename("share").reset_index().assign(way=way))
    return pd.concat(rows).groupby(["way", "score"])["share"].agg(["min", "max"])


def left_over(program: Program, steps: Iterable[int] = (1, 2, 4, 8)) -> pd.Series:
    """Return, by path steps, the share of the reward's change that the informative scores miss."""
    pair, prompts, missed = program.pair(), program.prompts, {}
    for k in steps:
        scores = ecstruct.score(*pair, prompts, path_steps=k, progress=False)
        change = scores.reward.sel(state="after") - scores.reward.sel(state="before")
        missed[k] = float(abs(scores.completeness / change).mean())
    return pd.Series(missed, name=program.name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    everything = {program: found(program) for program in map(Program, NAMES)}
    print(table(everything).to_string())
    print("\nMistakes of linear scores, as shares of the largest score of the program:")
    print(mistakes(everything).to_string(index=False, float_format="{:.2f}".format))
    print("\nLinear scores as shares of causal ones, where a role is right:")
    print(sizes(everything).to_string(float_format="{:.2f}".format))
    print("\nWhat informative scores miss of the change of the reward, by path steps:")
    print(pd.DataFrame(map(left_over, everything)).to_string(float_format="{:.3f}".format))
