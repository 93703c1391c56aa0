"""Why did a finetuning not take? Questions in the order in which one would ask them, and their faults:

* changed: nothing changed (dW = 0); only rounding changed (W' is W, rounded); wrong base (most matrices of
  W' are as near to zeros as to W, or the delta was made from other weights);
* learnt: not learnt (most answers do not come first, or no more of them than shuffled answers);
* general: a string, not a fact (in other words, no more answers come first than shuffled answers or, after
  another fact, ranks fell no more than theirs; or most longer answers are not written to their end);
* read: not read (the ranks of implications fell no more than those of shuffled answers; or they fell, but
  not to 0, and less than half of what is stored is where known facts are read);
* won: outvoted (more implications have the answer that they had before than the right one, and more than
  with shuffled answers before, but most have the right one first if that one is set aside);
* helped: saturated (half of the change has the facts as well, and with the other half no more ranks of
  facts and implications fell than rose);
* kept: forgotten elsewhere (more ranks of preserved prompts rose than fell).

A question does not arise where an earlier one settles it. `ecstruct.diagnosis.comparisons` has the tests,
`ecstruct.diagnosis.road` where known facts are read.
"""

from __future__ import annotations

import pandas as pd
from tqdm.auto import tqdm

from ecstruct.diagnosis.case import Case
from ecstruct.diagnosis.result import QUESTIONS, Diagnosis, Finding
from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.io.values import checksum
from ecstruct.models.labels import labels_of
from ecstruct.scores.pair import ModelAfter, ModelBefore, Pair

_NEEDS = {"read": "implications", "won": "implications", "helped": "implications", "kept": "preserved"}
"""The prompts without which a question cannot be told."""


def diagnose(
    before: ModelBefore | Pair,
    after: ModelAfter,
    facts: PromptsLike,
    implications: PromptsLike | None = None,
    *,
    variants: PromptsLike | None = None,
    known: PromptsLike | None = None,
    preserved: PromptsLike | None = None,
    progress: bool = True,
) -> Diagnosis:
    """Find out why a finetuning did not take, see `ecstruct.diagnosis.questions`.

    Args:
        before, after: as for `ecstruct.score`, or the `Pair` of both and `after` again. Neither is changed.
        facts: what `after` was finetuned on, with options that differ in their first tokens.
        implications: what follows from the facts. Without them it cannot be told whether the facts are
            read, which answers win, and whether more of the change still helped.
        variants: the facts in other words. By default every fact is asked after another one.
        known: facts that `before` knows and that lead from the facts to the implications, or are asked as
            these are, with their subjects: they show where facts are read. Without them it cannot be told
            where facts that are not read were stored.
        preserved: what `before` answers and `after` still should; by default `known`.
        progress: show a progress bar.

    Raises:
        InputError: prompts or models that cannot be used, facts that all have one answer, or a classifier.
    """
    given = {"facts": facts, "implications": implications, "variants": variants, "known": known}
    given["preserved"] = known if preserved is None else preserved
    sets = {name: as_prompts(its) for name, its in given.items() if its is not None}
    if len({p.answer for p in sets["facts"]}) < 2:
        raise InputError(
            f"all facts have the answer {sets['facts'][0].answer!r}, so that nothing tells whether a model "
            "learnt which belongs to which prompt: give facts with several answers."
        )
    pair = Pair.of(before, after)
    if labels_of(pair.sessions[0].tokenizer):
        raise InputError(
            "diagnose is of words that a language model predicts, and this is a classifier, which predicts "
            "labels: use ecstruct.mean_rank and ecstruct.checks.controls."
        )
    for prompts in sets.values():
        pair.sessions[0].tokenize(prompts)  # so that bad prompts are refused before any work
    case, findings = Case(pair, after, sets), dict[str, Finding]()
    for question in tqdm(QUESTIONS, desc="diagnose", unit="question", disable=not progress):
        earlier = findings if question != "kept" else ["changed"]  # all settle it but what is kept
        no = [findings[name].fault for name in earlier if findings[name].verdict == "no"]
        if no:
            found = Finding("does not arise", f"It does not arise: {no[0]}.")
        elif (needed := _NEEDS.get(question, "facts")) not in sets:
            found = Finding("cannot be told", f"It cannot be told: give {needed}=.")
        else:
            found = getattr(case, question)()
        findings[question] = found
    ranks = pd.concat(
        pd.DataFrame(
            {
                "set": name,
                "text": [p.text for p in prompts],
                "answer": [p.answer for p in prompts],
                **{state: case.answers(name, state).ranks for state in ("before", "after")},
            }
        )
        for name, prompts in sets.items()
    )
    prints = {name: checksum(prompts) for name, prompts in sets.items()}
    return Diagnosis.of(findings, case.weights, ranks, pair.attrs({"prompts": prints}))
