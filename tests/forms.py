"""How well every form of upstream scores agrees with the interventions that it estimates.

    python tests/forms.py random                     pairs of random models of four families
    python tests/forms.py organism [FOLDER ...]      the organism, or those in folders, and both hops
    python tests/forms.py smollm2                    SmolLM2, finetuned on invented people

prints Pearson's r over components between each form and the causal scores (for all components and for heads
alone), the slope of the causal scores on the form, and the processor time of scoring.
"""

import sys
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
from helpers.tiny import PROMPTS, single_pair

import ecstruct
from ecstruct.scores.engine import ScoreEngine
from ecstruct.scores.result import component_totals

FAMILIES = ("llama", "gpt2", "neox", "olmo2")
RATE = 4e-4
"""The learning rate of the experiments on the organism."""
FORMS = [(upstream, by) for upstream in ("local", "surrogate", "exact") for by in ("relevance", "gradient")]


def pairs(kind: str, *given: str) -> Iterator[tuple]:
    """Yield a name, the models before and after, and prompts."""
    if kind == "random":
        for family in FAMILIES:
            yield family, *single_pair(family), PROMPTS
    elif kind == "organism":
        for source in given or ("organism",):
            before = ecstruct.load(source, device="cpu")
            for hop in (ecstruct.facts.first_hop, ecstruct.facts.second_hop):
                data = hop()
                tuned = ecstruct.finetune(before, data.facts, lr=RATE, progress=False)
                yield f"{source} {hop.__name__}", before, tuned.delta, data.implications
    else:
        before, data = ecstruct.load(kind, device="cpu"), ecstruct.facts.people()
        yield kind, before, ecstruct.finetune(before, data.facts, progress=False).delta, data.implications


def agreement(before, after, prompts) -> pd.DataFrame:
    """Return a row per form."""
    causal = ecstruct.causal_scores(before, after, prompts, kinds="upstream", progress=False)
    caused = component_totals(causal, "upstream").mean(0)
    heads = causal.components("upstream")["kind"].to_numpy() == "head"
    engine, rows = ScoreEngine(before, after, progress=False), []
    for upstream, propagation in FORMS:
        start = time.process_time()
        scores = engine.like(upstream=upstream, propagation=propagation).score(prompts)
        seconds = time.process_time() - start
        fast = component_totals(scores, "upstream").mean(0)
        rows.append(
            {
                "upstream": upstream,
                "propagation": propagation,
                "r": np.corrcoef(fast, caused)[0, 1],
                "r of heads": np.corrcoef(fast[heads], caused[heads])[0, 1],
                "slope": np.polyfit(fast, caused, 1)[0],
                "seconds": seconds,
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    for name, *pair in pairs(*sys.argv[1:]):
        print(name, agreement(*pair).round(2).to_string(index=False), "", sep="\n", flush=True)
