"""Beyond the paper: questions that it leaves open, asked of the organism (and most of them of any model).

* `built_in`: does the organism's regulariser cause the freezing contrast?
* `origin`: when in pretraining do extractive structures appear, by the order of the data?
* `shortcut`: what carries the small generalisation that is left when implications come first?
* `domains`: ordering and grafting in other domains than cities, and grafts from one to another.
* `prompts`: do longer and nested prompts use the same components?
* `editing`: is it enough to finetune the components that the scores name?
* `spurious`: do false implications generalise like true ones, and by the same components?
* `generalisation`: which facts generalise, and does anything known before finetuning predict it?
"""

from ecstruct.experiments.beyond.facts_that_generalise import Generalisation, generalisation
from ecstruct.experiments.beyond.layer_editing import Editing, editing
from ecstruct.experiments.beyond.longer_prompts import Prompts, prompts
from ecstruct.experiments.beyond.origin_in_pretraining import Origin, origin
from ecstruct.experiments.beyond.other_domains import Domains, domains
from ecstruct.experiments.beyond.shortcut_components import Shortcut, shortcut
from ecstruct.experiments.beyond.spurious_implications import Spurious, spurious
from ecstruct.experiments.beyond.without_regulariser import BuiltIn, built_in

__all__ = [
    "BuiltIn",
    "Domains",
    "Editing",
    "Generalisation",
    "Origin",
    "Prompts",
    "Shortcut",
    "Spurious",
    "built_in",
    "domains",
    "editing",
    "generalisation",
    "origin",
    "prompts",
    "shortcut",
    "spurious",
]
