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
# # 3. The paper's experiments
#
# Feng, Russell and Steinhardt (ICML 2025, [arXiv 2412.04614](https://arxiv.org/abs/2412.04614)) make three
# claims that can be tested by training alone, without any score:
#
# 1. **Freezing.** New first-hop facts have to be stored in early layers to serve implications, new
#    second-hop facts in late ones.
# 2. **Ordering.** The structures that read facts are learned in pretraining when implications are met
#    *after* their facts are known.
# 3. **Grafting.** What a model learns there is in its weights, and can be carried over to other facts.
#
# `ecstruct.experiments` has a function for each of the paper's results. All take a `Setup` (which model,
# how it is finetuned, how often) and return figure, table, rows and a conclusion. Here everything runs once
# (`repeats=1`) on the embedded model, so that it takes about a minute; the numbers in the documentation are
# means over five pretrained models with five repeats each.

# %%
from ecstruct.experiments import Setup, freezing, grafting, ordering

setup = Setup("organism", repeats=1)
setup

# %% [markdown]
# Ranks are places of the right answer among the options, counted from 0; guessing is 9.5.
#
# ## Freezing: which layers have to change?
#
# The model is finetuned on facts. Then early or late layers are put back to what they were ("post"), or
# they are frozen from the start, so that the others have to learn the facts alone ("pre"). The first two
# thirds of the layers count as early (`Setup(early=...)`).

# %%
frozen = freezing(setup, progress=False)
frozen.figure

# %% [markdown]
# **What to look at.** Compare bars of *implications* between "Early" and "Late". First-hop ones should need
# the early layers: putting these back should spoil them, and putting the late ones back should not.
# Second-hop ones should be the other way round. Diamonds are the paper's numbers, on a model of seven
# billion parameters.
#
# Then look at the *facts* under "pre": they are learned, more or less, whatever is frozen. So the model
# *can* store a fact anywhere, but only what is stored in the right place serves the implication. That is
# the point of the experiment.
#
# **What would make you doubt it.** Facts that are not learned under "pre": then nothing follows from
# implications that are not known either. And on the organism, part of the second-hop contrast is built in:
# its pretraining makes early layers attend locally. The documentation measures how much.

# %%
print(frozen.conclusion())
frozen.table()

# %% [markdown]
# ## Ordering: must facts come before their implications?
#
# The model is trained on, as a continuation of its pretraining, 80 facts with two made-up relations ("Grace
# Miller dax" → a city, "Grace Miller zong is the" → the animal of that city), and on their implications, in
# three orders: both mixed ("joint"), facts first, implications first. Then it is finetuned on the facts of
# 20 *other* people, and asked for *their* implications. All three have seen the same sentences equally
# often; only the order differs.

# %%
ordered = ordering(setup, progress=False)
ordered.figure

# %% [markdown]
# **What to look at.** The panels of test finetuning: where do the lines end? A model that met the
# implications first had no facts to read them from, and has learned them by heart. The panels of continued
# pretraining show it: where the phase of the implications ends (the dotted line), it knows them as well as
# the others do, but they do not hang together with the facts, and learning these afterwards spoils them. It
# can make least use of new facts. "Known words" has a fact relation that the model knows from pretraining
# ("lives in"), "novel words" the paper's invented one.
#
# **What would make you doubt it.** An order that ends high because it has not learned its training
# documents: look where its training line is at the end of the phase that is about implications. And a
# difference between orders that is no larger than the one between repeats, which a single repeat cannot
# show.

# %%
print(ordered.conclusion())
ordered.table()

# %% [markdown]
# ## Grafting: can what was learned be carried over?
#
# Let $F$ be facts and $F'$ facts of the same people with *other* cities. What learning the implications of
# $F$ changes *after* the facts are known is taken as a vector and added to a model that knows $F'$; the
# control is what learning them changes *before*:
#
# $$W_\text{graft} = W_{F'} + (W_{F, \text{Impl} F} - W_F)$$
#
# $$W_\text{control} = W_{F'} + (W_{\text{Impl} F} - W)$$
#
# If that change is "read the city of a person, and name its animal", the graft knows the implications of
# $F'$, which nobody taught it. If it is a list of people and animals, it knows those of $F$.

# %%
grafted = grafting(setup, progress=False)
grafted.figure

# %%
print(grafted.conclusion())
grafted.table()

# %% [markdown]
# **What to look at.** The bars of Impl F': graft against control. And those of Impl F, where the control
# should be the better one, because it knows by heart.
#
# **What would make you doubt it.** Compare with the row of $W_{F'}$, which has learned no implications: it
# should be at chance. And look at $F'$ itself: a graft that destroys the facts which it is to read cannot
# be expected to do well.
#
# ## From rows to your own statistics
#
# Every result is a table of rows, one per measured value, with the seed and the repeat that it belongs to.

# %%
frozen.frame.head()

# %% [markdown]
# ## For your own model
#
# ```python
# from ecstruct.experiments import Rates, Setup, freezing
#
# setup = Setup("your/model", seeds=3, repeats=3, rates=Rates.same(1e-5), early=0.75)
# result = freezing(setup, out="results")  # finished cells are kept, a run goes on where it was
# ```
#
# or all of them from the command line, with one page of figures beside the paper's numbers:
#
# ```sh
# ecstruct reproduce all --model your/model --lr 1e-5 --out results
# ```
#
# Choose learning rates first (`ecstruct.experiments.rates`, on people that no experiment uses): a rate at
# which facts are not learned makes every row look like chance. One repeat is for looking around; report
# several, with their spread.
