"""Two models and sets of prompts, with an answer to every question of a diagnosis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecstruct.diagnosis.comparisons import (
    Answers,
    Compared,
    in_context,
    passes,
    sign_test,
    written_out,
)
from ecstruct.diagnosis.result import Finding
from ecstruct.diagnosis.road import Road, road_of
from ecstruct.diagnosis.weights import changes_of, inert, relative, unrelated
from ecstruct.engine.session import Session
from ecstruct.errors import InputError
from ecstruct.facts.prompt import Prompt
from ecstruct.models.delta import WeightDelta, is_delta, open_delta
from ecstruct.scores.pair import ModelAfter, Pair

_SHUFFLED = "shuffled answers"


@dataclass(frozen=True)
class Case:
    """Two models and sets of prompts by name, with a method for each question of `result.QUESTIONS`."""

    pair: Pair
    after: ModelAfter
    sets: Mapping[str, tuple[Prompt, ...]]
    _answers: dict[tuple[str, str], Answers] = field(default_factory=dict)

    def session(self, state: str) -> Session:
        """Return the model before, after or half way, which all read prompts with the tokenizer before."""
        weights = {"before": self.pair.before, "half": self.pair.between(0.5), "after": self.pair.after}
        return replace(self.pair.sessions[0], weights=weights[state])

    def answers(self, name: str, state: str) -> Answers:
        if (name, state) not in self._answers:
            self._answers[name, state] = Answers.of(self.session(state), self.sets[name])
        return self._answers[name, state]

    def both(self, name: str) -> tuple[Answers, Answers]:
        return self.answers(name, "before"), self.answers(name, "after")

    @cached_property
    def weights(self) -> pd.DataFrame:
        return changes_of(self.pair)

    @cached_property
    def road(self) -> Road | None:
        names = ("facts", "implications", "known")
        return road_of(self.pair, *(self.sets.get(name, ()) for name in names))

    @cached_property
    def votes(self) -> tuple[float, Compared, float]:
        """Return the share of implications that have the right answer first; that of those that still have
        the answer of the model before; and that of those that have the right one first but for that one."""
        old, new = self.both("implications")
        stayed = new.first_if(new.ranks > 0)
        beaten = [
            its[(t.prompt.options or ()).index(c)]
            for t, its, c in zip(new.prompts, stayed, old.chosen, strict=True)
        ]
        compared = new.shuffled(stayed, old.chosen)
        return float((new.ranks == 0).mean()), compared, float((new.ranks <= beaten).mean())

    @property
    def outvoted(self) -> bool:
        """Whether most implications have the right answer first but for that of the model before."""
        right, stayed, either = self.votes
        return stayed.mean > right and either > 0.5 and bool(passes(stayed.p))

    def changed(self) -> Finding:
        frame, far = self.weights, unrelated(self.weights)
        moved, rounded = int(np.count_nonzero(frame["change"])), frame.attrs["rounded to"]
        numbers = {"|dW| / |W|": relative(frame), "tensors that changed": moved, "tensors": len(frame)}
        numbers["share of matrices as near to zeros as to W"] = far
        said = f"{moved} of {len(frame)} tensors changed, by {relative(frame):.2%} of their norm together."
        if still := inert(frame):
            said += f" Did not change: {', '.join(still)}."
        against = "no change; W rounded to bfloat16 and float16; zeros in the place of W"
        fault = says = advice = ""
        if not moved:
            fault, says, advice = "nothing changed", "Both models have the same weights.", _NOTHING
            if adapter := self._adapter:
                advice = f"give the adapter {adapter} as the model after, which these weights do not have."
        elif rounded:
            fault, says = "only rounding changed", f"That is one model rounded to {rounded}, and no more."
            advice = f"train and save float32 weights: the steps were lost in rounding to {rounded}."
        elif far > 0.5:
            fault, advice = "wrong base", _BASE
            says = f"{far:.0%} of the matrices are as near to zeros as to those before."
        elif other := self._another_base:
            fault, advice = "wrong base", _BASE
            says = f"The delta was made from other weights than these, of {other}."
        if fault:
            return Finding("no", f"{said} {says}", numbers, against, fault, advice)
        return Finding("yes", said, numbers, against)

    def learnt(self) -> Finding:
        old, new = self.both("facts")
        loss, others, first = new.loss, new.loss_of_others, new.first
        numbers = _ranks(old, new) | {"share first": first.mean, "shuffled": first.shuffled, "p": first.p}
        numbers |= {"loss": loss, "loss of other options": others}
        said = (
            f"{_said(old, new, 'facts')}; the loss of an answer is {loss:.2g} nats, of others {others:.2g}."
        )
        against = f"rank 0 for most; {_SHUFFLED}"
        if old.known:
            said = f"{said} The model before knew them: nothing was left to learn."
            return Finding("cannot be told", said, numbers, against)
        advice = "train longer or at a higher rate, and look whether the loss falls."
        if still := inert(self.weights):
            advice += f" Not trained were {', '.join(still)}."
        return _judged(new.known, said, numbers, against, "not learnt", advice)

    def general(self) -> Finding:
        given = self.sets.get("variants")
        variants = given or in_context(self.sets["facts"])
        try:
            old, new = (Answers.of(self.session(state), variants) for state in ("before", "after"))
        except InputError as error:  # only of those that are made here: what is given was checked
            return Finding("cannot be told", f"After another fact, {error} Or give variants=.")
        whole = written_out(self.session("after"), new.prompts)
        # After another fact all answers are less certain, and ranks tell more than the first place.
        told, how = (new.first, "In other words") if given else (new.since(old), "After another fact")
        numbers = _ranks(old, new) | {"p": told.p, "share written to the end": whole}
        said = f"{how}, {_said(old, new, 'facts')}, p = {told.p:.2g}"
        longer = sum(len(prompt.answer_ids) > 1 for prompt in new.prompts)
        said += f"; {whole:.0%} of {longer} longer answers are written to their end." if longer else "."
        against, fault = f"{_SHUFFLED}; most answers", "a string, not a fact"
        if whole < 0.5:
            advice = "train on whole answers, and look whether the labels of their last tokens are masked."
            return Finding("no", said, numbers, against, fault, advice)
        if not given and "known" in self.sets and not passes(told.p):
            same = Answers.of(self.session("after"), in_context(self.sets["known"]))
            numbers["share first, known facts"] = same.first.mean
            if not passes(same.first.p):
                said += " So it is with known facts: give variants=, the facts in other words."
                return Finding("cannot be told", said, numbers, against)
        advice = "train on several wordings of every fact."
        return _judged(passes(told.p), said, numbers, against, fault, advice)

    def read(self) -> Finding:
        old, new = self.both("implications")
        fell, against = new.since(old), f"{_SHUFFLED}; where known facts are read"
        numbers = _ranks(old, new) | {"p": fell.p}
        said = f"{_said(old, new, 'implications')}, p = {fell.p:.2g}."
        if old.known:
            said = f"{said} The model before knew them."
            return Finding("cannot be told", said, numbers, against)
        if new.known:
            return Finding("yes", said, numbers, against)
        if "known" in self.sets and self.answers("known", "before").known is False:
            said += " But the model before does not know what is given as known: nothing can follow."
            return Finding("cannot be told", said, numbers, against)
        advice = "train on several wordings of every fact, or on some implications"
        if road := self.road:
            numbers["share stored where known facts are read"] = road.on_road
            said += f" {road.said}."
        else:
            advice += "; give known=, with subjects, to learn where the facts were stored"
        off = road is not None and road.on_road < 0.5
        if road and off:
            where = "below those that read" if road.direct else "from those on that read"
            advice = f"train the layers {where} the subject (freeze=, or layers_to_transform of an adapter)"
        # Facts whose subjects the implications do not name are stored late, not all of it on the road. And
        # an answer that is second to an old one has been read.
        verdict = False if road and off and road.direct and not self.outvoted else passes(fell.p)
        return _judged(verdict, said, numbers, against, "not read", f"{advice}.")

    def won(self) -> Finding:
        right, stayed, either = self.votes
        numbers = {"share right": right, "share with the answer before": stayed.mean}
        numbers |= {"shuffled": stayed.shuffled, "p": stayed.p, "share right but for it": either}
        said = (
            f"{right:.0%} of the implications have the right answer first, {stayed.mean:.0%} that of the "
            f"model before (shuffled: {stayed.shuffled:.0%}, p = {stayed.p:.2g}); but for that one, "
            f"{either:.0%} have the right one first."
        )
        advice = (
            "train longer, or the layers in which the old facts are stored, or on some implications; "
            "ecstruct.read_words shows what heads read of both answers."
        )
        against = "shuffled answers of the model before; the right answers"
        return _judged(not self.outvoted, said, numbers, against, "outvoted", advice)

    def helped(self) -> Finding:
        half, full = (
            np.concatenate([self.answers(name, state).ranks for name in ("facts", "implications")])
            for state in ("half", "after")
        )
        fell, rose, p = sign_test(half, full)
        facts = self.answers("facts", "half")
        numbers = {"mean rank with half of the change": half.mean(), "mean rank": full.mean()}
        numbers |= {"ranks that fell": fell, "ranks that rose": rose, "p": p}
        said = (
            f"With half of the change {_first(facts)} facts have their answer first; from there to all of "
            f"it, {fell} ranks of facts and implications fell and {rose} rose (p = {p:.2g})."
        )
        advice = "stop earlier, or take half of the change: 0.5 * WeightDelta.between(before, after)."
        # If more fell, but the test does not tell, it is open whether the other half was for nothing.
        more = False if fell <= rose else passes(p) or None
        verdict = True if facts.known is False else facts.known and more
        return _judged(verdict, said, numbers, "as many that fall as rise", "saturated", advice)

    def kept(self) -> Finding:
        old, new = self.both("preserved")
        rose, fell, p = sign_test(new.ranks, old.ranks)
        numbers = _ranks(old, new) | {"ranks that rose": rose, "ranks that fell": fell, "p": p}
        said = f"{_said(old, new, 'preserved prompts')}; {rose} ranks rose and {fell} fell (p = {p:.2g})."
        against = "as many that rise as fall; a random change of that size"
        lost, advice = passes(p), ""
        if lost:
            noise = WeightDelta.from_weights(self.pair.before, self.pair.after).random_like(0)
            moved = replace(self.session("before"), weights=noise.added_to(self.pair.before))
            chance, *_ = sign_test(Answers.of(moved, self.sets["preserved"]).ranks, old.ranks)
            numbers["ranks that rise by a random change of that size"] = chance
            said += f" A random change of the same size makes {chance} rise."
            advice = "mix such prompts into the training data, or lower the rate."
            if chance >= rose:
                advice = "lower the rate: a change of that size does as much in any direction."
        verdict = None if lost is None else not lost
        return _judged(verdict, said, numbers, against, "forgotten elsewhere", advice)

    @property
    def _another_base(self) -> str:
        """The model that a delta changes, if it is not the one before."""
        delta = self.after
        if isinstance(delta, str | Path) and is_delta(delta):
            delta = WeightDelta({}, open_delta(delta)[1])
        if not isinstance(delta, WeightDelta) or delta.starts_at(self.pair.view.model):
            return ""
        return delta.metadata.get("before", "another model")

    @property
    def _adapter(self) -> Path | None:
        """An adapter in the folder of the model after, which is not merged into that."""
        if not isinstance(self.after, str | Path):
            return None
        return next((file.parent for file in sorted(Path(self.after).glob("*/adapter_config.json"))), None)


_BASE = "give the checkpoint that was finetuned as the model before."
_NOTHING = (
    "give the model that was trained, or the adapter's folder: an adapter is in no weight before it is "
    "merged, and one that was never trained changes nothing."
)


def _judged(
    good: bool | None, said: str, numbers: Mapping[str, float], against: str, fault: str, advice: str
) -> Finding:
    """Return the finding of a question whose answer is yes if `good`; None stands for too few prompts."""
    if good is None:
        said = f"{said} There are too few prompts: give more, at least five, with different answers."
        return Finding("cannot be told", said, numbers, against)
    if good:
        return Finding("yes", said, numbers, against)
    return Finding("no", said, numbers, against, fault, advice)


def _first(answers: Answers) -> str:
    return f"{int((answers.ranks == 0).sum())} of {len(answers.ranks)}"


def _said(old: Answers, new: Answers, what: str) -> str:
    mean = f"mean rank {old.ranks.mean():.2f} before, {new.ranks.mean():.2f} after"
    return f"{_first(new)} {what} have their answer first ({mean})"


def _ranks(old: Answers, new: Answers) -> dict[str, Any]:
    return {"mean rank before": old.ranks.mean(), "mean rank after": new.ranks.mean()}
