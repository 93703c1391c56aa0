"""An inference task that a heuristic solves in-domain and not beyond: word overlap.

A pair *overlaps* if all words of its hypothesis are in its premise. In-domain, overlap and label agree but
for a few counterexamples, as in MNLI, where most overlapping pairs are entailed:

* all entailed pairs that overlap;
* as many that are not: a share of counterexamples, which overlap and are not entailed, and else
  *mismatched* pairs, a premise with the hypothesis of another pair, some word of which it lacks.

Beyond it are all other held-out pairs that overlap and are not entailed: the heuristic fails every one.

Source: Bhaskar, Friedman & Chen, "The Heuristic Core" (ACL 2024), whose sets are MNLI and HANS (McCoy,
Pavlick & Linzen, ACL 2019); this makes both sets of HANS alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ecstruct.errors import InputError
from ecstruct.facts.fact_set import FactSet
from ecstruct.facts.prompt import Prompt
from ecstruct.io.values import bounded

MISMATCHED = "mismatched"
"""The template of pairs whose hypothesis is that of another pair."""

_TRIES = 1000


@dataclass(frozen=True)
class OverlapTask:
    """The pairs to `train` on, held-out ones of the same kind (`in_domain`), and held-out ones that the
    heuristic fails (`generalization`). Templates are the cases that the pairs came from."""

    train: tuple[Prompt, ...]
    in_domain: tuple[Prompt, ...]
    generalization: tuple[Prompt, ...]


@bounded
def overlap_task(
    pairs: FactSet,
    *,
    share: float = 0.05,
    per_case: int | None = None,
    entailed: str = "entailment",
    seed: int = 0,
) -> OverlapTask:
    """Make an inference task with the heuristic of word overlap.

    Args:
        pairs: Labelled pairs of texts with two labels, as `ecstruct.facts.read` reads HANS: facts to train
            on, and implications that are held out.
        share: The share of the in-domain pairs that are not entailed that are counterexamples.
        per_case: How many pairs of each case are used, the first ones; all by default.
        entailed: The label of pairs that are entailed.
        seed: Draws the counterexamples, the mismatched pairs and the order.

    Raises:
        InputError: a share that is not between 0 and 1, other than two labels, no held-out pairs, too few
            counterexamples, or pairs of which no mismatched ones can be made.
    """
    if not 0 <= share <= 1:
        raise InputError(f"share={share} is no share of the pairs: use one between 0 and 1.")
    sets = [_first_of_each_case(its, per_case) for its in (pairs.facts, pairs.implications)]
    labels = list(dict.fromkeys(pair.answer for its in sets for pair in its))
    if not all(pair.second is not None for its in sets for pair in its) or len(labels) != 2:
        raise InputError(
            f"the pairs have the labels {', '.join(labels)}: an inference task of word overlap is made of "
            "pairs of texts with two labels, such as HANS."
        )
    if entailed not in labels:
        raise InputError(f"entailed={entailed!r} is no label of the pairs, which are {', '.join(labels)}.")
    if not sets[1]:
        raise InputError(
            "no pairs are held out: give records of a split other than train, or a folder with a file for "
            "each split."
        )
    other = labels[1 - labels.index(entailed)]
    rng = np.random.default_rng(seed)
    train, in_domain = (_in_domain(its, share, entailed, other, rng) for its in sets)
    used = {(pair.text, pair.second) for pair in in_domain}
    beyond = [p for p in sets[1] if p.answer == other and overlaps(p) and (p.text, p.second) not in used]
    if not beyond:
        raise InputError("no held-out pair overlaps without being entailed, so that nothing is beyond.")
    return OverlapTask(train, in_domain, tuple(beyond))


def overlaps(pair: Prompt) -> bool:
    """Return whether all words of the second text are in the first, whatever their case.

    >>> overlaps(Prompt("The judge saw the actor .", "entailment", second="The actor saw the judge ."))
    True
    """
    return _words(pair.second or "") <= _words(pair.text)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _first_of_each_case(pairs: Sequence[Prompt], most: int | None) -> list[Prompt]:
    taken: dict[str | None, list[Prompt]] = {}
    for pair in pairs:
        of_case = taken.setdefault(pair.template, [])
        if most is None or len(of_case) < most:
            of_case.append(pair)
    return [pair for of_case in taken.values() for pair in of_case]


def _in_domain(
    pairs: Sequence[Prompt], share: float, entailed: str, other: str, rng: np.random.Generator
) -> tuple[Prompt, ...]:
    """Return the entailed pairs that overlap, and as many that are not entailed, in a random order."""
    overlapping = [pair for pair in pairs if overlaps(pair)]
    agreeing = [pair for pair in overlapping if pair.answer == entailed]
    against = [pair for pair in overlapping if pair.answer == other]
    n_against = round(share * len(agreeing))
    if not agreeing or n_against > len(against):
        raise InputError(
            f"share={share:g} of {len(agreeing)} pairs are {n_against} counterexamples, but {len(against)} "
            "pairs overlap without being entailed: use a smaller share, or more pairs."
        )
    chosen = [against[i] for i in sorted(rng.choice(len(against), n_against, replace=False))]
    mismatched: dict[tuple[str, str | None], Prompt] = {}
    for _ in range(_TRIES * len(agreeing)):
        if len(mismatched) == len(agreeing) - n_against:
            break
        first, second = (pairs[i] for i in rng.integers(len(pairs), size=2))
        pair = replace(first, second=second.second, answer=other, template=MISMATCHED)
        if not overlaps(pair):
            mismatched[pair.text, pair.second] = pair
    else:
        raise InputError("these are too few pairs to make mismatched ones of: give more.")
    every = [*agreeing, *chosen, *mismatched.values()]
    return tuple(every[i] for i in rng.permutation(len(every)))
