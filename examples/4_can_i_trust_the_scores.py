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
# # 4. Can I trust the scores?
#
# Scores are derivatives: they say what an infinitely small intervention would do. Whether that says
# anything about the real one depends on the model and on the finetuning, so it is measured, on the pair at
# hand. This notebook asks five questions, in the order in which to ask them of your own models:
#
# 1. Is there anything to explain?
# 2. Do the scores add up?
# 3. Do they agree with the interventions that they stand for?
# 4. Are they larger than where there is nothing to be found?
# 5. Do the components that they name do the work?

# %%
import pandas as pd

import ecstruct
from ecstruct.checks import controls
from ecstruct.grafting import grafts

HOP = "first-hop"  # or "second-hop"
make, lr = {
    "first-hop": (ecstruct.facts.first_hop, 2.3e-4),
    "second-hop": (ecstruct.facts.second_hop, 4e-4),
}[HOP]

before = ecstruct.load("organism")
data = make()
tuned = ecstruct.finetune(before, data.facts, lr=lr, progress=False)
scores = ecstruct.score(before, tuned.model, data.implications, progress=False)

# %% [markdown]
# ## 1. Is there anything to explain?
#
# The reward (the logit of the right answer minus the mean logit of all options) has to rise, and so has the
# rank of the answer.

# %%
for name, model in (("before", before), ("after", tuned.model)):
    reward = float(scores.reward.sel(state=name).mean())
    print(
        f"{name}: reward {reward:+.2f} logits, mean rank {ecstruct.mean_rank(model, data.implications):.2f}"
    )

# %% [markdown]
# If the answer were certain afterwards, a reward of log-probability would be *saturated*: no component
# matters any more, and upstream scores vanish or turn negative. The logit difference, the default,
# saturates less.
#
# ## 2. Do they add up?
#
# Informative scores of all components and of the rest (embeddings, norms) sum to
# $\langle \partial R / \partial W, W' - W \rangle$. If the model were linear in its weights, that would be
# the change of the reward. What is missing is the error of the linear step. With `path_steps=k` the
# gradient is averaged over $k$ points on the way from $W$ to $W'$ (Gauss-Legendre quadrature), and the
# error has to go to zero:

# %%
change = float((scores.reward.sel(state="after") - scores.reward.sel(state="before")).mean())
errors = {}
for steps in (1, 2, 4, 8):
    along = ecstruct.score(before, tuned.model, data.implications, path_steps=steps, progress=False)
    errors[steps] = float(abs(along.completeness).mean())
print(f"mean change of the reward: {change:.2f} logits")
pd.Series(errors, name="mean |sum of scores - change of the reward| (logits)").rename_axis("path steps")

# %% [markdown]
# **What to look at.** The first line says how far the linear scores are from adding up; compare it with the
# change. A large share does not make them wrong about *which* components store the fact, which is the next
# question, but do not read them as shares of the whole. If eight steps still miss, the change is too large
# for any derivative: take checkpoints that are closer.
#
# ## 3. Do they agree with interventions?
#
# Each score stands for an intervention that can be done: put the new weights into one component; take away
# what it writes, with old and new later weights; give it its new input. `causal_scores` does these, at one
# partial forward pass each, and `fidelity` holds the fast scores against them, component by component: by
# default on a sample of the components, here on all, and with the other ways to compute the scores.

# %%
forms = ("path", "surrogate", "exact")
fidelity = ecstruct.fidelity(
    before, tuned.model, data.implications, forms=forms, sample=None, progress=False
)
fidelity.figure

# %%
print(fidelity.verdict())
fidelity.table().round(2)

# %% [markdown]
# **What to look at.** Points on a rising line: the order of the components, which is what one reads off a
# heatmap, is that of the interventions. A slope other than one only means that sizes are off.
#
# **What disagreement looks like.** Look at the *upstream* panels by gradients, surrogate and exact: a
# cloud. The components to which the interventions give the most are not those to which these scores do,
# because $y - y^*$ is no small step: taking away what an early component writes changes everything after
# it. Slopes by the rules of relevance, the default, are those of a step of that size. Here are the upstream
# components by them and by intervention:

# %%
names = {"fast": scores, "by intervention": fidelity.causal}
top = {name: of.top(5, "upstream")[["kind", "layer", "head", "value"]] for name, of in names.items()}
pd.concat(top, axis=1).round(2)

# %% [markdown]
# The same five, in another order. For sizes use `ecstruct.causal_scores(..., kinds=["upstream"])`, which
# costs an intervention per component.
#
# ## 4. Are they larger than where there is nothing to be found?
#
# * **random change**: a change of weights of the same size in every tensor, and no content;
# * **shuffled facts**: finetuning on the same people with each other's cities; the right answers are then
#   no implications;
# * **unrelated prompts**: the same questions about people of whom nothing was taught.

# %%
unrelated = ecstruct.facts.first_hop(names=slice(20, 40)).implications  # of people without any fact
controlled = controls(
    before,
    tuned.model,
    data.implications,
    facts=data,
    unrelated=unrelated,
    tune=tuned.config,
    progress=False,
)
controlled.figure

# %%
controlled.totals().round(2)

# %% [markdown]
# **What to look at.** Informative and downstream bars have to stand far above all three controls. Where a
# control is as high as the finetuned model, the score shows something that any change does, not these
# facts. For single components there is a permutation test over prompts, adjusted for their number:

# %%
above = {score: controlled.above(score) for score in ("informative", "upstream", "downstream")}
counts = {
    score: frame[frame["p_adjusted"] <= 0.05].groupby("against").size().reindex(list(controlled.controls))
    for score, frame in above.items()
}
print(f"components of {len(scores.components('informative'))} above each control, adjusted p <= 0.05:")
pd.DataFrame(counts).T.fillna(0).astype(int)

# %% [markdown]
# ## 5. Do the components do the work?
#
# If informative components store the facts, then the weight change of the few strongest, *grafted* onto the
# original model and nothing else, should bring the implications; and *reverting* these few in the finetuned
# model should lose them. Beside them stand components of largest weight change, random ones, and random
# ones with as many MLPs and heads: an MLP has more weights than a head, so any ranking that prefers MLPs
# looks good beside plain chance.

# %%
grafted = grafts(before, tuned.model, data.implications, scores, progress=False)
grafted.figure

# %%
print(grafted.conclusion())
ranks = grafted.frame.groupby(["how", "by", "k"], sort=False)["rank"].mean()
ranks.unstack("k").round(2)

# %% [markdown]
# **What to look at.** On the left the line of the informative ranking should fall first, on the right it
# should rise first. The two need not mirror each other: what is stored twice is enough once, and needed in
# neither place. "A high score" is therefore "it contributes", not "it is necessary".
#
# ## Would other prompts say the same?
#
# Intervals over prompts (bootstrap) say what other prompts of the same kind would have given. They do not
# cover another finetuning: for that, repeat it with other seeds, and take `scores.mean(...)`.

# %%
sure = scores.components("informative", ci=0.95)
sure[sure["low"] > 0].sort_values("value", ascending=False).head(8).round(2)

# %% [markdown]
# ## For your own model
#
# Replace `before`, `tuned.model` and `data`, and read the verdict first. The first three sections take
# minutes on a model of a billion parameters; controls finetune once more, grafts rank the prompts many
# times.
#
# | you find | then |
# |---|---|
# | implications did not move | there is nothing to explain: more epochs, another rate, other facts |
# | informative or downstream r is low | use `causal_scores`, or checkpoints that are closer |
# | a control is as large | the score is not about the facts |
# | fewer than ten prompts | intervals are too narrow: ask more |
