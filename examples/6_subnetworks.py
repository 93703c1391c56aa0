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
# # 6. Subnetworks: what is enough, and what is shared
#
# Scores ask of each component what its change contributes. Pruning asks another question: which components
# can the finetuned model *do without*, and still say what it says about the facts? Prune several times from
# different random seeds, and there are several subnetworks. Bhaskar, Friedman and Chen (*The Heuristic
# Core*, ACL 2024) found with such subnetworks that some generalise and some do not, although all solve the
# training task, and that all share a *core*. This notebook does the same for finetuned facts:
#
# 1. Prune to several subnetworks, on the facts alone.
# 2. Do they know the implications, for which they were not chosen?
# 3. What do all of them keep, and is that more than chance?
# 4. Is the core needed, and is it enough?
# 5. Are these the components with high scores?
#
# To take under a minute it prunes six seeds with 250 steps; take `seeds=12, steps=500` (the defaults) for
# results.

# %%
import ecstruct
from ecstruct import subnetworks
from ecstruct.plots import spread

before = ecstruct.load("organism")
data = ecstruct.facts.first_hop()
tuned = ecstruct.finetune(before, data.facts, lr=2.3e-4, progress=False)
model = tuned.model

# %% [markdown]
# ## 1. Prune
#
# Every head and every MLP gets a gate. Where it is closed, the component writes its mean over the prompts,
# always the same, instead of what it would have written. With the model's weights frozen, gates minimise
#
# $$\mathrm{KL}(\text{full model} \,\|\, \text{gated model}) + \lambda_1 (t - s) + \lambda_2 (t - s)^2$$
#
# on the facts, where $s$ is the share of closed gates, $t$ the sparsity asked for, and the multipliers
# $\lambda$ rise until it is reached. Seeds differ in the random draws on the way. Here are two sparsities:
# three tenths, and half of all components closed.

# %%
sparsities = (0.3, 0.5)
masks = {
    sparsity: subnetworks.prune(model, data.facts, sparsity=sparsity, seeds=6, steps=250, progress=False)
    for sparsity in sparsities
}
masks[0.5]

# %% [markdown]
# ## 2. What the subnetworks can do
#
# Each point below is a subnetwork: to the right, its mean rank on the facts on which it was pruned
# (*in-domain*); upwards, on their implications (*generalization*). The star is the full model; 0 is best,
# and guessing 9.5.

# %%
in_domain = {s: subnetworks.evaluate(model, m, data.facts, progress=False) for s, m in masks.items()}
beyond = {s: subnetworks.evaluate(model, m, data.implications, progress=False) for s, m in masks.items()}
spread(
    {f"{s:.0%} pruned": found for s, found in in_domain.items()},
    {f"{s:.0%} pruned": found for s, found in beyond.items()},
)

# %% [markdown]
# **What to look at.** Is there a cloud, or a line? Subnetworks that lie above one another know the facts
# equally well, and generalise differently: pruning has kept what the facts need and cut away, in some, what
# the implications need on top. Subnetworks along a rising line lose both alike: here, whatever stores a
# fact serves its implication as well.
#
# **What would make you doubt it.** Points far to the right: these do not know the facts, so that nothing
# follows from how they generalise. Prune less or longer.
#
# ## 3. The core
#
# What do all subnetworks keep? Colours are the share of the subnetworks that keep a component; a dot marks
# what all of them keep.

# %%
core = subnetworks.core(masks)
core.figure

# %% [markdown]
# Some overlap is there by chance alone. If each subnetwork kept as many heads and MLPs as it does, but
# drawn at random, then the *expected* number would be in all of them; `p` is how often chance would leave
# as many.

# %%
print(core.conclusion())
print("The core:", ", ".join(core.components()))
core.table().round(3)

# %% [markdown]
# **What to look at.** `core` against `expected`. Of MLPs few are cut, so that many are shared whatever they
# do. `distinct` should be near `subnetworks`: seeds that all end in the same subnetwork agree trivially.
#
# ## 4. Is the core needed, and is it enough?
#
# The core's heads are taken away from the full model, and from every subnetwork; and the core's heads are
# left as the only heads, beside all MLPs. Beside it as many random heads, drawn several times, also from
# the core's own layers: early heads reach more of the model, so that a core might look important for being
# early.

# %%
ablated = subnetworks.ablate_core(model, masks, data.facts, data.implications, draws=5, progress=False)
ablated.figure

# %%
print(ablated.conclusion())

# %% [markdown]
# **What to look at.** "Without the core" against both kinds of random ones: it should cost far more. "The
# core alone" says whether it suffices. If it nearly suffices for the facts and not for the implications,
# something beyond the core does the generalising.
#
# Is there a component that generalising subnetworks keep and others do not? The best and the worst third
# are compared, with a permutation test that is adjusted for the number of components.

# %%
thirds = subnetworks.generalising(masks, {s: found["mean_rank"] for s, found in beyond.items()})
print(thirds.conclusion())
thirds.frame.sort_values("difference", ascending=False).head(5).round(2)

# %% [markdown]
# With so few subnetworks only a component that separates the thirds nearly perfectly could be significant.
# "None is" then means "not found", and not "there is none".
#
# ## 5. The core beside the scores
#
# Two methods that share no step: one prunes and asks what is left, the other differentiates and asks what
# has changed. Do they point at the same components?

# %%
scores = ecstruct.score(before, model, data.implications, progress=False)
beside = subnetworks.with_scores(core, scores, added=thirds)
beside.figure

# %%
print(beside.conclusion())
beside.correlations.round(3)

# %% [markdown]
# **What to look at.** Points that rise from left to right: what has a large score is kept often. And the
# exceptions: a component that is always kept and has no score was needed before finetuning, and was not
# changed by it, as heads that pass the name on. A large score that is never kept is what the model can do
# without, being stored elsewhere as well.
#
# ## For your own model
#
# * Prune on prompts that the model solves. If it does not, there is nothing to imitate, and ecstruct says
#   so.
# * `masks.save("masks.nc")`; with `checkpoint="pruning.checkpoint"` a long pruning goes on where it was
#   stopped.
# * `subnetworks.dependence` asks whether what the other heads write depends on the core,
#   `subnetworks.emergence` when in training the core appears.
# * On the command line: `ecstruct subnetworks prune`, `evaluate` and `core`.
