"""Configurations to replay, with values of wrong types and with required values missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ecstruct.commands import COMMANDS
from ecstruct.options import Options
from helpers.fuzz.cases import Case, Make, Words, named, of_file
from helpers.fuzz.damage import VALUES, put, ways, without

ONE = [{"prompt": "Mia lives in", "answer": "Rome"}, {"prompt": "Zoe lives in", "answer": "Paris"}]
CONFIGS: dict[str, dict[str, Any]] = {
    "demo": {"seed": 0},
    "fidelity": {
        **{"before": "{model}", "after": "{after}", "prompts": ONE, "reward": "logit_diff"},
        **{"baseline": "mean", "top": 5, "memory": None, "forms": ["surrogate"], "sample": None},
    },
    "finetune": {
        **{"model": "{model}", "facts": ONE, "save_model": False, "lr": 1e-3, "epochs": 1, "batch_size": 2},
        **{"schedule": "constant", "seed": 0, "freeze": {"layers": [0], "kinds": ["mlp"], "names": None}},
        **{"train_embeddings": False, "evaluate": {"seen": ONE}, "accumulate": 1, "recompute": False},
        **{"lora": {"r": 2, "alpha": 4, "targets": ["q_proj"], "rslora": False, "dora": False}},
        **{"checkpoint_every": 1, "fingerprint": None},
    },
    "score": {
        **{"before": "{model}", "after": "{after}", "prompts": ONE, "reward": "logit_diff"},
        **{"answer_tokens": "first", "baseline": "mean", "upstream": "surrogate", "offload": False},
        **{"convention": "definition", "path_steps": 1, "batch_size": None, "verify": 1},
    },
    "reproduce": {
        "experiments": ["ocr"],
        "options": {"sensitivity": {}},
        "setup": {
            **{"model": "{model}", "seeds": [0], "repeats": 1, "epochs": 1, "batch_size": 8, "early": 0.5},
            **{"rates": {"first_hop": 1e-3, "second_hop": 1e-3, "continued": 1e-3, "test": 1e-3}},
            **{"known": {"fact": "{{name}} a", "implication": "{{name}} b"}, "own_rates": False},
            "device": None,
        },
    },
}


def required(configuration: type[Options]) -> set[str]:
    return {each.name for each in fields(configuration) if each.default is each.default_factory is MISSING}


def good_config(command: str, inputs: Path) -> dict[str, Any]:
    text = json.dumps({"command": command, "ecstruct": "0", "arguments": CONFIGS[command]})
    for name in ("model", "after"):
        text = text.replace(f'"{{{name}}}"', json.dumps(str(inputs / name)))
    return json.loads(text.replace("{{name}}", "{name}"))


STANDS: dict[str, set[str]] = {
    **{key: {"null"} for key in ("freeze", "lora", "own_rates", "early")},
    **{key: {"null", "an empty list"} for key in ("layers", "kinds")},
    **{"checkpoint_every": {"null", "a number"}, "batch_size": {"a number"}},
    **{"names": {"an empty list"}, "evaluate": {"null", "an empty object"}, "targets": {"null"}},
    **{"alpha": {"a fraction"}, "fingerprint": {"an empty text"}, "seeds": {"a number"}},
    **{key: {"an empty object"} for key in ("options", "sensitivity", "setup")},
    **{"device": {"a text"}},
}
"""The values that a part of a configuration accepts in addition to those of its own type."""


def stands(way: tuple[Any, ...], was: Any, name: str, value: Any) -> bool:
    """Return whether a value is acceptable in the place of another one."""
    if isinstance(was, bool):
        return isinstance(value, bool) or name in STANDS.get(str(way[-1]), ())
    if isinstance(was, str) or (isinstance(was, int | float) and isinstance(value, int | float)):
        plain = name in ("a text", "a number") or (isinstance(was, float) and name == "a fraction")
        return plain or name in STANDS.get(str(way[-1]), ())
    return (was is None and value is None) or name in STANDS.get(str(way[-1]), ())


def replayed(command: str, change: Callable[[dict[str, Any]], Any], *says: str) -> Make:
    def make(inputs: Path, folder: Path) -> tuple[Words, tuple[str, ...]]:
        path = folder / "config.json"
        path.write_text(json.dumps(change(good_config(command, inputs))))
        return ["replay", path, "--out", folder / "out"], says

    return make


OF_CONFIGS = ("null", "true", "a fraction", "a huge number", "NaN", "a text", "a list", "an object")


def configuration_cases() -> list[Case]:
    cases = named(
        "config.json",
        of_file(
            ("replay", "{file}", "--out", "{out}"),
            "config.json",
            lambda inputs: json.dumps(good_config("demo", inputs)).encode(),
            set(),
        ),
    )
    for command, arguments in CONFIGS.items():
        for key in sorted(required(COMMANDS[command])):
            cases.append(
                Case(
                    f"replay {command}: no {key}",
                    replayed(command, lambda c, k=key: without(c, ("arguments", k)), key),
                )
            )
        for way in ways(arguments):
            shown = [str(part) for part in way]
            if {"facts", "prompts", "evaluate"} & {*shown} and len(way) > 2:
                continue  # the contents of records are read as everywhere else
            was = arguments
            for part in way:
                was = was[part]
            for name, value in ((name, VALUES[name]) for name in OF_CONFIGS):
                if stands(way, was, name, value):
                    continue
                at = ("arguments", *way)
                cases.append(
                    Case(
                        f"replay {command}: {'.'.join(shown)} is {name}",
                        replayed(
                            command,
                            lambda c, w=at, v=value: put(c, w, v),
                            shown[0].removesuffix("s"),
                            shown[-1],
                            *map(repr, value if isinstance(value, dict) else [value]),
                        ),
                    )
                )
    return cases
