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
# # 5. Recall before and after finetuning
#
# How does a model recall a fact that it learned in pretraining? Geva, Bastings, Filippova and Globerson
# (EMNLP 2023, [arXiv 2304.14767](https://arxiv.org/abs/2304.14767)) found a road of three parts:
#
# 1. **Enrichment.** Early MLPs write attributes of the subject to its last token.
# 2. **Propagation.** The last token of the prompt receives the relation, and then the subject.
# 3. **Extraction.** Attention at the last token picks the attribute out of the enriched subject.
#
# Does a *finetuned* fact travel the same road? This notebook puts three cases side by side:
#
# | | model | prompts |
# |---|---|---|
# | pretrained | before finetuning | homes of people whom it knows from pretraining |
# | new, before | before finetuning | homes of new people, of whom it knows nothing |
# | new, after | after finetuning on them | the same |

# %%
import ecstruct
from ecstruct import recall
from ecstruct.organism import World
from ecstruct.plots import attributes_rate_lines, extraction_lines

before = ecstruct.load("organism")
data = ecstruct.facts.first_hop()
after = ecstruct.finetune(before, data.facts, progress=False).model

# %% [markdown]
# As in the paper, only prompts count whose answer the model gets right: of a fact that is not recalled
# there is nothing to dissect. `subject` says whom a prompt is about; the method needs it.

# %%
people = [person for person in World.build().people if not person.held_out][:60]
homes = [
    ecstruct.Prompt(f"{person.name} lives in", person.home.name, subject=person.name, template="home")
    for person in people
]
old = ecstruct.keep_known(before, homes).kept
new = ecstruct.keep_known(after, data.facts).kept
print(f"{len(old)} of {len(homes)} pretrained facts and {len(new)} of {len(data.facts)} new ones are known")
cases = {"pretrained": (before, old), "new, before": (before, new), "new, after": (after, new)}

# %% [markdown]
# ## Which tokens must be seen, and where? Attention knockout
#
# For every layer, attention from the last position to a group of tokens is cut in a window of layers around
# it. With $p_0$ and $p$ the probability of the answer without and with the cut, the effect is
# $100 (p - p_0) / p_0$: −100% where nothing of the answer is left.
#
# "New, before" is left out: the model gives the right city no probability to lose.

# %%
blocked = {
    name: recall.knockout(model, prompts, window=2, token="answer", progress=False)
    for name, (model, prompts) in cases.items()
    if name != "new, before"
}
ecstruct.plots.knockout_lines(blocked)

# %% [markdown]
# **What to look at.** In which layers does cutting off the subject cost the answer, and is that the same on
# both sides? If the new fact were stored at the last token, as late layers could, cutting off the subject
# would cost less. *last*, the last token cut off from itself, should cost nothing here: of people, this
# model knows homes and what follows from them, so that "in" adds little to the name.
#
# **What would make you doubt it.** Windows are cut off at the first and the last layer, so that these have
# narrower ones. And a window of two layers out of six is wide; on a large model take the paper's
# `window=9`, and look whether another width tells the same story.
#
# One prompt, token by token, here a two-hop implication of a new fact:

# %%
tokens = recall.knockout_tokens(after, data.implications[0], window=2, token="answer", progress=False)
ecstruct.plots.knockout_heatmap(tokens)

# %% [markdown]
# **What to look at.** Two things must be seen: the end of the name, in the late layers, and "speak", which
# says what is asked, by itself in the early ones.
#
# ## Are subjects enriched?
#
# Take what is in the residual stream at the subject's last token, and ask which words it is most like. The
# *attributes rate* is the share of these words that have to do with the subject. What those are,
# `Attributes` says: here from the organism's world (the city, and what its people speak, eat, pay with and
# work as); for a real model from paragraphs about each subject (`Attributes.from_corpus`) or from a fact
# set (`Attributes.from_facts`).
#
# `onto="embedding"` compares with the words as they are *read*. This model's unembedding is another matrix;
# where both are one, it makes no difference. *By chance* is the control: the new subjects with each other's
# attributes.

# %%
attributes = recall.Attributes.of_organism(before, data.facts)


def rate(model, prompts, its):
    return recall.attributes_rate(
        model, prompts, its, positions=("subject-last", "last"), onto="embedding", progress=False
    )


rates = {name: rate(model, prompts, attributes) for name, (model, prompts) in cases.items()}
rates["new, by chance"] = rate(after, new, attributes.about(new).shuffled())
attributes_rate_lines(rates)

# %% [markdown]
# **What to look at.** At the subject's last token the rate should rise over the layers for pretrained
# facts; for new ones it should be nothing before, and after finetuning lie between chance and the
# pretrained ones. Then finetuning on *one* sentence about a person has enriched the person, as pretraining
# does.
#
# **What would make you doubt it.** A rate that is no higher than by chance. Rates are low on this model,
# whose vocabulary is so small that only a handful of words are looked at; the bands are intervals over
# prompts.
#
# ## Where is the answer extracted?
#
# There is an *extraction event* in a layer when what its attention, or its MLP, adds at the last position
# is most like the answer, of all words of the vocabulary. The rate is the share of prompts with an event.

# %%
events = {
    name: recall.extraction(model, prompts, token="answer", progress=False)
    for name, (model, prompts) in cases.items()
}
extraction_lines(events)

# %% [markdown]
# **What to look at.** Which line rises, attention or MLP, and in which layers? If both outer panels have
# the same lines, the new fact is read off by the same layers that read off old ones. The panel in the
# middle is the control: what is not known cannot be extracted.
#
# ## Beside the extractive scores
#
# Two independent methods have now said something about the same layers. Extractive scores say which MLPs
# *store* the new fact (are informative at the subject) and what is *downstream* of it; recall says which
# MLPs enrich the subject and where the answer is extracted. `compare` runs all of it on both models and
# correlates.

# %%
compared = recall.compare(before, after, new, attributes, window=2, token="answer", progress=False)
compared.agreement().round(2)

# %% [markdown]
# `rho` is Spearman's rank correlation over `n` layers or heads, and `chance` the share of random pairings
# that agree at least as much. **Six layers say little**: even a perfect order is reached by chance once in
# 360 pairings. Take this table as a question to a deeper model.
#
# `compared.difference()` has every part as after minus before, prompt by prompt, for instance by how much
# more of the answers attention extracts than before:

# %%
extracted = compared.difference()["extraction"].sel(condition="none").mean("prompt")
(100 * extracted[["attention", "mlp"]].to_dataframe()[["attention", "mlp"]]).round(0)

# %% [markdown]
# ## For your own model
#
# * `before` and `after` are any pair that `ecstruct.load` reads; prompts need a `subject`.
# * For a large model, `window=9` and attributes from a corpus: a JSONL file with `{"subject": "...",
#   "text": "..."}`.
# * `ecstruct recall --before MODEL --after MODEL --prompts prompts.jsonl --out recall` does all of this and
#   writes a report.
# * Ask for second-hop facts too (`ecstruct.facts.second_hop()`): their answers are looked up late, and the
#   road is another.
