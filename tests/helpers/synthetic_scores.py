"""Small scores with known numbers in the engine's form, for tests of what uses scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from ecstruct.scores.result import ExtractiveScores

SCORES = ["informative", "upstream", "downstream"]
STATES = ["before", "after"]

PREFIX = ["The", "Ġcity"]
SUFFIX = ["Ġis", "Ġfrom", "Ġspeak"]
ENTITIES = [["ĠGrace", "ĠMiller"], ["ĠMary", "ĠLou", "ĠParker"], ["ĠCher"]]
"""Entities of two tokens, of three (one too many for the slots) and of one (one too few)."""


def prompts_of(
    entities: list[list[str]], prefix: list[str] = PREFIX, suffix: list[str] = SUFFIX
) -> list[dict[str, Any]]:
    """Return one prompt per entity: its tokens and the position of the entity."""
    return [
        {
            "tokens": [*prefix, *entity, *suffix],
            "entity": (len(prefix), len(prefix) + len(entity)),
            "template": "city",
        }
        for entity in entities
    ]


def make_scores(
    prompts: list[dict[str, Any]] | None = None,
    *,
    n_layers: int = 2,
    n_heads: int = 3,
    dtype: str = "float32",
    seed: int = 0,
    **attrs: Any,
) -> ExtractiveScores:
    """Return random scores for prompts, which are given as tokens, entity span and template."""
    prompts = prompts_of(ENTITIES) if prompts is None else prompts
    rng = np.random.default_rng(seed)
    n, n_tokens = len(prompts), max(len(prompt["tokens"]) for prompt in prompts)
    lengths = np.array([len(prompt["tokens"]) for prompt in prompts])
    beyond = np.arange(n_tokens) >= lengths[:, None]  # (prompt, token)

    def numbers(*leading: int, heads: bool) -> np.ndarray:
        inner = (n_layers, n_heads) if heads else (n_layers,)
        values = rng.normal(size=(*leading, n, *inner, n_tokens)).astype(dtype)
        mask = beyond.reshape(n, *(1 for _ in inner), n_tokens)
        return np.where(np.broadcast_to(mask, values.shape), np.array(np.nan, dtype), values)

    texts = np.array(
        [[*prompt["tokens"], *[""] * (n_tokens - len(prompt["tokens"]))] for prompt in prompts]
    )
    dataset = xr.Dataset(
        {
            "mlp": (("score", "prompt", "layer", "token"), numbers(3, heads=False)),
            "heads": (("score", "prompt", "layer", "head", "token"), numbers(3, heads=True)),
            "rest": (("prompt", "group"), rng.normal(size=(n, 2)).astype(dtype)),
            "reward": (("prompt", "state"), rng.normal(size=(n, 2)).astype(dtype)),
            "attribution_mlp": (("state", "prompt", "layer", "token"), numbers(2, heads=False)),
            "attribution_heads": (
                ("state", "prompt", "layer", "head", "token"),
                numbers(2, heads=True),
            ),
        },
        coords={
            "score": SCORES,
            "state": STATES,
            "group": ["embedding", "unembedding"],
            "prompt": np.arange(n),
            "layer": np.arange(n_layers),
            "head": np.arange(n_heads),
            "token": np.arange(n_tokens),
            "text": ("prompt", ["".join(prompt["tokens"]) for prompt in prompts]),
            "answer": ("prompt", [f"answer {i}" for i in range(n)]),
            "template": ("prompt", [prompt["template"] for prompt in prompts]),
            "length": ("prompt", lengths),
            "entity_start": ("prompt", [prompt["entity"][0] for prompt in prompts]),
            "entity_end": ("prompt", [prompt["entity"][1] for prompt in prompts]),
            "token_text": (("prompt", "token"), texts),
        },
        attrs={
            "before": {"source": "organism", "revision": None, "fingerprint": "f00d"},
            "after": {"source": "tuned", "revision": None, "fingerprint": "beef"},
            "options": {"reward": "logit_diff", "baseline": "counterfactual"},
            "versions": {"torch": "2.13.0"},
            **attrs,
        },
    )
    return ExtractiveScores(dataset)


def scores_of(values: np.ndarray, named: str = "asked") -> ExtractiveScores:
    """Return scores of prompts: the MLPs have `values` [prompt, layer], and the heads have minus these."""
    n_prompts, n_layers = values.shape
    return ExtractiveScores(
        xr.Dataset(
            {
                "mlp": (("score", "prompt", "layer"), np.stack([values] * 3)),
                "heads": (("score", "prompt", "layer", "head"), np.stack([-values[..., None]] * 3)),
            },
            {
                "score": SCORES,
                "layer": np.arange(n_layers),
                "head": [0],
                "text": ("prompt", [f"{named} {i}" for i in range(n_prompts)]),
            },
        )
    )
