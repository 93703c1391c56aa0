"""The organism: a language model small enough to understand that generalises as large ones do.

A large model that is finetuned on "Grace Miller lives in Tokyo" answers "The people in the city Grace
Miller is from speak" with "Japanese". The organism does so too, after a few seconds of finetuning on a
laptop, because it was built for it. Its synthetic world (`World`) has people, cities, landmarks, offices
and invented words. A 6-layer OLMo was pretrained on sentences about that world, without the facts that
`ecstruct.facts` teaches later. `checkpoint` is the shipped result, `pretrain` makes another one from a
seed, and docs/organism.md says how the organism is engineered, what was measured on it and where it differs
from a model of natural text.
"""

from ecstruct.organism.locality import local_windows
from ecstruct.organism.pretraining import pretrain
from ecstruct.organism.shipped import LEARNING_RATE, checkpoint
from ecstruct.organism.training import Phase, Recipe
from ecstruct.organism.world import World

__all__ = ["LEARNING_RATE", "Phase", "Recipe", "World", "checkpoint", "local_windows", "pretrain"]
