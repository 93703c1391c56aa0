# /// script
# requires-python = ">=3.11"
# dependencies = ["tracr-pypi==1.0.0", "safetensors>=0.4"]
# ///
"""Write the files of this folder anew: `python make.py`, where the packages named above are installed.

Every program of `sources.py` becomes NAME.safetensors, the weights before and those that are others after,
and NAME.json, with what it says, what has which role in that, and what goes from one part to another.
`tests/programs.py` reads them, for which nothing of this is needed.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from compiled import D_MODEL, N_HEADS, Compiled, compiled, start_labels
from parts import SUBJECT, Program
from roles import Pair
from safetensors.numpy import save_file
from sources import PROGRAMS

HERE = Path(__file__).parent


def make(program: Program) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the description of a program.

    Raises:
        ValueError: its roles are not those that were stated, or too many tensors change.
    """
    texts = [program.text.format(subject).split() for subject in program.subjects]
    words = list(dict.fromkeys(word for text in texts for word in text))
    pair = Pair(*(_compiled(program, state, words) for state in ("before", "after")))
    said = {state: [pair.said(state, text) for text in texts] for state in ("before", "after")}
    at_end = {state: [of_text[0][-1] for of_text in of_state] for state, of_state in said.items()}
    asked = [i for i, (old, new) in enumerate(zip(*at_end.values(), strict=True)) if old != new]
    prompts = [(texts[i], at_end["after"][i]) for i in asked]
    changed = [
        name
        for name, old in pair.before.weights.items()
        if not np.array_equal(old, pair.after.weights[name])
    ]
    roles = _roles(program, pair, pair.scores(prompts))
    if len(prompts) != 4 or len(changed) != sum(role["role"] == "informative" for role in roles):
        raise ValueError(f"{program.name}: {len(prompts)} answers and the tensors {changed} change")
    description = {
        "about": program.about,
        "config": {
            **{"n_embd": D_MODEL, "n_head": N_HEADS, "n_positions": len(words) + 1},
            "n_layer": 1 + max(component.place[0] for component in pair.before.components),
            "n_inner": pair.before.weights["transformer.h.0.mlp.c_fc.weight"].shape[1],
        },
        "vocabulary": pair.before.vocabulary,
        "components": {
            component.name: [_name(label) for label in component.labels]
            for component in pair.before.components
        },
        "inputs": [" ".join(text) for text in texts],
        "said": said,
        "prompts": [
            {
                **{"text": " ".join(words), "answer": answer, "options": [of_it for _, of_it in prompts]},
                **{"subject": program.subjects[i], "template": "first two" if n < 2 else "last two"},
            }
            for n, (i, (words, answer)) in enumerate(zip(asked, prompts, strict=True))
        ],
        "changed": changed,
        "roles": roles,
        "edges": [
            {"role": role, "from": first, "to": second, "effects": effects}
            for (role, first, second), effects in pair.edges(prompts).items()
            if any(effects)
        ],
    }
    tensors = {}
    for state, names in (("before", pair.before.weights), ("after", changed)):
        for name in names:
            values = getattr(pair, state).weights[name].ravel()
            (index,) = values.nonzero()
            tensors[f"{state}/{name}/index"] = index.astype(np.int32)
            tensors[f"{state}/{name}/value"] = values[index]
    return tensors, description


def as_text(description: dict[str, Any]) -> str:
    """JSON with a line per entry, and per item of those that are lists of entries."""

    def lines(value: Any) -> str:
        if not isinstance(value, list) or not isinstance(value[0], dict):
            return json.dumps(value)
        return "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"

    entries = [f"{json.dumps(key)}: {lines(value)}" for key, value in description.items()]
    return "{\n " + ",\n ".join(entries) + "\n}\n"


def _compiled(program: Program, state: str, words: list[str]) -> Compiled:
    start_labels()
    # Tracr makes heads as wide as what they compare: with a position for every word, words fit in.
    return compiled(program.build(program.facts_of(state)), words, len(words))


def _roles(program: Program, pair: Pair, scores: dict[tuple[str, str], np.ndarray]) -> list[dict[str, Any]]:
    """Every role as it was stated, with its scores by prompt."""
    component_of = {_name(label): c.name for c in pair.before.components for label in c.labels}
    places = program.text.split()
    behind = len(program.subjects[0].split()) - 1  # words that the subject has more than its place
    stated = {}
    for role, value, word, why in program.roles:
        index = places.index(word)
        token = index + behind * (index >= places.index(SUBJECT))
        stated[role, component_of[value], token] = {"writes": value, "why": why}
    derived = {
        (*key, int(token)): of_it[:, token]
        for key, of_it in scores.items()
        for token in of_it.any(0).nonzero()[0]
    }
    if wrong := sorted(stated.keys() ^ derived.keys()):
        raise ValueError(f"{program.name}: only one of what is stated and what is derived has {wrong}")
    return [
        # The first token of a model's prompt is that which begins all of them.
        {"role": role, "component": component, "token": token + 1, **said, "scores": derived[key].tolist()}
        for key, said in stated.items()
        for role, component, token in [key]
    ]


def _name(label: str) -> str:
    """What a value was named, of the label that it got."""
    return label.rpartition("_")[0]


if __name__ == "__main__":
    for program in PROGRAMS:
        tensors, description = make(program)
        save_file(tensors, HERE / f"{program.name}.safetensors")
        (HERE / f"{program.name}.json").write_text(as_text(description))
        print(program.name, {name: len(tensors[f"after/{name}/index"]) for name in description["changed"]})
