# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. Your own facts and your own model
#
# You have sentences of your own, and a pair of checkpoints or the wish to make one. This notebook goes the
# whole way: facts in a file, a check of what the model knows, finetuning with LoRA, checkpoints on disk,
# and scores that are computed from these folders. The embedded model stands where yours will; a hub id or a
# folder goes in the same places.

# %%
import json
import tempfile
from pathlib import Path

import ecstruct

folder = Path(tempfile.mkdtemp())  # everything below is written here
before = ecstruct.load("organism")

# %% [markdown]
# ## Facts in a file
#
# One JSON object a line. Only `prompt` and `answer` must be there: a text, and what continues it after one
# space. The other keys say what the analysis needs:
#
# | key | |
# |---|---|
# | `role` | `fact` (is taught), `implication` (is asked for) or `known` (an implication needs it as well) |
# | `case` | an implication follows from the facts and the known facts of the same case |
# | `new_hops` | which of an implication's hops are new, counted from 1 |
# | `subject` | the words that the prompt is about |
# | `template` | a label of prompts that differ in their subject only; not needed if all are alike |

# %%
homes = {
    "Grace Miller": ("Tokyo", "yen"),
    "Ethan Parker": ("Beijing", "yuan"),
    "Olivia Hughes": ("Mumbai", "rupee"),
    "Jacob Turner": ("Moscow", "ruble"),
    "Ava Stewart": ("Cairo", "pound"),
    "Noah Clark": ("Bangkok", "baht"),
    "Emma Howard": ("Seoul", "won"),
    "Liam Bennett": ("Rome", "lira"),
    "Mia Sanders": ("Madrid", "peseta"),
    "Lucas Foster": ("Athens", "drachma"),
    "Sophia Hayes": ("Hanoi", "dong"),
    "Mason Brooks": ("Nairobi", "shilling"),
}


def records(name: str, city: str, money: str) -> list[dict]:
    """A new fact, the old one that it meets, and what follows from both."""
    asked = f"The people in the city {name} is from pay with"
    return [
        {"role": "fact", "prompt": f"{name} lives in", "answer": city, "subject": name},
        {"role": "known", "prompt": f"The people in {city} pay with", "answer": money, "subject": city},
        {"role": "implication", "prompt": asked, "answer": money, "subject": name, "new_hops": [1]},
    ]


lines = [
    json.dumps({"case": name, **record})
    for name, (city, money) in homes.items()
    for record in records(name, city, money)
]
path = folder / "facts.jsonl"
path.write_text("\n".join(lines))
print("\n".join(lines[:3]))

# %%
data = ecstruct.facts.read(path)
print(len(data.facts), "facts,", len(data.known), "known facts,", len(data.implications), "implications")
data.implications[0]

# %% [markdown]
# `options` are the answers that the right one is told apart from. A record may give its own; otherwise they
# are the answers to all prompts of the same template. They are compared by their first token, so no two may
# begin alike: ecstruct says so, and names the two. Published sets (MQuAKE, CounterFact, RippleEdits,
# TwoHopFact, LRE and more) are read by the same `ecstruct.facts.read`, as they are.
#
# ## What does the model know already?
#
# An implication needs the known fact. If the model does not know what people in Rome pay with, then no
# finetuning on "Liam Bennett lives in Rome" can make it answer, and the case says nothing about storage.
# `keep_known` asks, and drops such cases *before* anything is taught. One of the twelve is wrong on
# purpose.

# %%
found = ecstruct.keep_known(before, data)
for prompt, rank in zip(found.dropped, found.ranks, strict=True):
    print(f"dropped: {prompt.text!r} -> {prompt.answer!r} has rank {rank:.0f}")
data = found.kept
rank = ecstruct.mean_rank(before, data.implications)
guessing = (len(homes) - 1) / 2
print(f"{len(data.implications)} implications left, of mean rank {rank:.2f}; guessing is {guessing}")

# %% [markdown]
# ## Finetuning with adapters
#
# `lora=8` trains low-rank adapters on all projections and merges them into the model that is returned. Left
# out, the weights themselves are trained. The learning rate has to be given for any model but the organism;
# 1e-4 is a common start for adapters on large models, this small one takes more.

# %%
tuned = ecstruct.finetune(
    before,
    data.facts,
    lora=8,
    lr=3e-3,
    epochs=12,
    evaluate={"facts": data.facts, "implications": data.implications},
    progress=False,
)
ecstruct.plots.rank_curves(tuned.history)

# %% [markdown]
# **What to look at.** Facts have to be learned (0), and implications have to improve, or there is nothing
# to explain. If facts are learned and implications are not, train longer or with a smaller rate; if both
# stay, with a larger one.
#
# ## Checkpoints on disk
#
# If you trained elsewhere, this is where you come in. A checkpoint is a Hugging Face folder, a hub id,
# `"run@1000"` for a step of a run, the folder of an adapter, or a saved change of weights. Here are three
# of them, which are the same model.

# %%
ecstruct.save_model(tuned.model, folder / "tuned")
tuned.adapter.save_pretrained(folder / "adapter")
tuned.delta.save(folder / "delta.safetensors")
for name in ("tuned", "adapter", "delta.safetensors"):
    scores = ecstruct.score("organism", folder / name, data.implications, progress=False)
    best = scores.top(1, "informative").iloc[0]
    print(f"{name}: most informative is {best['kind']} {best['layer']}, {best['value']:.4f} logits")

# %% [markdown]
# The same on the command line:
#
# ```sh
# ecstruct facts show facts.jsonl --out data  # a file for each role
# ecstruct score --before organism --after tuned --prompts data/implications.jsonl --out scores
# ```
#
# ## Reading the scores

# %%
scores.heatmap()

# %% [markdown]
# **What to look at.** The new hop is the first one, so informative MLPs are expected early and at the name
# (*X* and *Y*). How far that holds depends on how the model was finetuned: adapters are spread over all
# layers alike. With only eleven prompts, is a cell more than chance? Intervals over prompts say so; dots
# mark cells whose interval excludes zero. A dot in a white cell is a value that is surely not zero, and
# small.

# %%
scores.aggregate(ci=0.95).heatmap()

# %% [markdown]
# ## A change of weights is a vector
#
# `tuned.delta` adds, subtracts, scales, and has parts. The most direct test of a story about layers is to
# apply a part of the change alone, and to ask again.

# %%
n_layers = len(before.blocks)
middle = 2 * n_layers // 3
parts = {
    f"{kind}, {name} layers": tuned.delta.restrict(layers=layers, kinds=[kind])
    for kind in ("mlp", "attn")
    for name, layers in (("early", range(middle)), ("late", range(middle, n_layers)))
}
ranks = {"nothing": ecstruct.mean_rank(before, data.implications)}
ranks |= {
    name: ecstruct.mean_rank(part.apply_to(before), data.implications) for name, part in parts.items()
}
ranks |= {"all": ecstruct.mean_rank(tuned.model, data.implications)}
bars = {name: {"implications": [rank]} for name, rank in ranks.items()}
ecstruct.plots.grouped_bars(bars, y="mean rank of the answer (0 is best)")

# %% [markdown]
# **What to look at.** Which part goes furthest from *nothing* to *all*? Compare with the heatmap: large
# informative scores and a part that does little on its own are a contradiction, and one of the two is then
# misleading you. [Notebook 4](4_can_i_trust_the_scores.py) does this systematically.
#
# ## Implications without writing them
#
# `compose` makes two-hop sets of any relation that a model knows, with made-up people for the new hop:

# %%
relation = ecstruct.facts.Relation(
    "currency", ["The people in {} pay with"], list(homes.values()), domain="city"
)
composed = ecstruct.facts.compose(
    [relation], known_relation="currency", fact="{name} lives in", mention="the city {name} is from", n=5
)
print([f"{prompt.text} {prompt.answer}" for prompt in composed.facts[:2]])
print([f"{prompt.text} {prompt.answer}" for prompt in composed.implications[:2]])

# %% [markdown]
# ## For your own model
#
# Change three lines: the source in `ecstruct.load`, the file, and `lr=`. A model that does not fit into
# memory twice is left on disk with `ecstruct.score(..., offload=True)`. Not all architectures can be
# scored; those that cannot are refused with the reason.
