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
# # 1. Quickstart: which components make a finetuned model generalise?
#
# A language model is finetuned on one kind of sentence,
#
# > Grace Miller lives in **Berlin**
#
# and is asked another one that it was never trained on,
#
# > The people in the city Grace Miller is from speak **German**.
#
# It often gets that right. Somewhere the new fact was stored, something asked for it, and something turned
# Berlin into German. This notebook finds these parts in a small model that comes with ecstruct, the
# *organism*. It runs in seconds, without a GPU or a network. Everything in it works in the same way for a
# model from the hub.
#
# The method is that of Feng, Russell and Steinhardt (ICML 2025, [arXiv
# 2412.04614](https://arxiv.org/abs/2412.04614)).

# %%
import ecstruct

before = ecstruct.load("organism")  # or a hub id, "id@revision", a local folder
data = ecstruct.facts.first_hop()
print(f"{len(data.facts)} facts to teach, {len(data.implications)} implications to ask for, for example:")
print(data.facts[0].text, "->", data.facts[0].answer)
print(data.implications[0].text, "->", data.implications[0].answer)

# %% [markdown]
# ## Teach the facts, and nothing else
#
# The names are new to the model: it cannot know where these people live. What their city's people speak, it
# does know, from pretraining. So an implication needs two *hops*, name → city and city → language, of which
# the first one is new.
#
# A rank is the place of the right answer among all 20 answers of the set, counted from 0: 0 is right, and
# guessing is 9.5. `evaluate=` follows the mean ranks through training.

# %%
tuned = ecstruct.finetune(
    before,
    data.facts,
    evaluate={"facts": data.facts, "implications": data.implications},
    progress=False,
)
ecstruct.plots.rank_curves(tuned.history)

# %% [markdown]
# **What to look at.** The solid line is what was trained: it has to reach 0. The dashed line was never
# trained. It starts at chance and falls as well: the model generalises, and there is something to explain.
#
# **What would make you doubt it.** If the dashed line stayed where it was, stop here: scores would explain
# nothing. If it started below chance, the model knew the answers before.
#
# `before` is unchanged. `tuned.model` is a copy, and `tuned.delta` the change of weights, which can be
# added, scaled, saved, or restricted to some layers.
#
# ## Three scores for every component
#
# A *component* is the MLP of a layer or one attention head. It reads $z$ from the residual stream, has
# weights $W_C$ and writes $y$. A prime marks the finetuned model, and $R$ is the *reward* of a prompt: the
# logit of the right answer minus the mean logit of all options. With gradients
# $g = \partial R / \partial y$,
#
# | score | formula | it is high where |
# |---|---|---|
# | informative | $\partial R / \partial W_C \cdot (W'_C - W_C)$ | its *weight change* stores the fact |
# | upstream | $(g'_C - g_C) \cdot (y_C - y^*_C)$ | later weights have come to *read* it |
# | downstream | $g_C \cdot (f_C(z'_C, W_C) - y_C)$ | it turns its *new input* into the answer |
#
# $f_C$ is the component with its old weights, and $y^*$ is what it writes for other names.
#
# Each is the first derivative of an intervention. All of them, for all components and tokens, take one
# forward and one backward pass per model.

# %%
scores = ecstruct.score(before, tuned.model, data.implications, progress=False)
scores

# %%
scores.heatmap()

# %% [markdown]
# **How to read it.** Layer 0 is at the bottom, the first token on the left; *X* and *Y* are the tokens of
# the name. A cell says by how many logits that component raised the right answer, at that token. Every
# panel has a colour bar of its own: compare colours within a panel, numbers between panels.
#
# **What to look at.** The informative MLPs are early, and at the name: the city is found as soon as the
# name has been read, which leaves the later layers to look up the language. Downstream components sit above
# them at the name, and in late attention at the last token, where the answer is written.
#
# The strongest ones by name; `value` is in logits, summed over tokens, the mean over prompts:

# %%
scores.top(5, "informative")

# %%
scores.top(5, "downstream")

# %% [markdown]
# ## The other way round: a new second hop
#
# "The mayor of Tokyo is **Grace Miller**" is a fact whose implication needs it *last*: "The mayor of the
# city that contains Senso-ji Temple is" first finds Tokyo, which is old knowledge, and then the mayor,
# which is new. If the method means anything, the fact must now be stored somewhere else.

# %%
second = ecstruct.facts.second_hop()
tuned_second = ecstruct.finetune(before, second.facts, progress=False)
ranks = [ecstruct.mean_rank(model, second.implications) for model in (before, tuned_second.model)]
print(f"mean rank of second-hop implications: {ranks[0]:.2f} before, {ranks[1]:.2f} after")
scores_second = ecstruct.score(before, tuned_second.model, second.implications, progress=False)
ecstruct.plots.heatmap({"first hop new": scores, "second hop new": scores_second})

# %% [markdown]
# **What to look at.** In the middle row, the weight that first-hop facts have early and at the name moves
# up, and to the last token. The same model, the same cities, the same method: only the place of the new
# fact in the chain differs. This is the paper's main figure.
#
# **What would make you doubt it.** A panel that is strong everywhere alike, or strongest at the first
# token, is not about the fact. And linear scores are approximations: the *upstream* ones are not to be
# trusted in their sizes. [Notebook 4](4_can_i_trust_the_scores.py) shows how to find that out, which you
# should do for every new pair of models.
#
# ## Keep it
#
# Scores are labelled arrays ([xarray](https://xarray.dev)) in one file, with all that is needed to compute
# them again. As a table they have a row per score, prompt, component and token.

# %%
table = scores.to_dataframe()
of_one = table[(table["score"] == "informative") & (table["prompt"] == 0)]
of_one.sort_values("value", ascending=False)[["kind", "layer", "head", "token_text", "value"]].head(3)

# %% [markdown]
# `scores.save("scores.nc")` writes the file, `ecstruct.ExtractiveScores.load("scores.nc")` reads it, and
# `ecstruct.plots.save_figure(scores.heatmap(), "scores.pdf")` writes a figure.
#
# ## For your own model
#
# * `before = ecstruct.load("your/model")`; finetune it here (give `lr=`, such as 1e-5), or pass the
#   checkpoint that you have as the second argument of `ecstruct.score`.
# * Prompts are a list of `ecstruct.Prompt`, of (text, answer) pairs, a `datasets.Dataset` or a JSONL file.
#
# [Notebook 2](2_own_facts_and_own_model.py) does both.
