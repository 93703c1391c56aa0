"""Attention knockout: which tokens must be seen, and in which layers, for a fact to be recalled.

For every layer l, attention edges from a group of source tokens into the last position are blocked in a
window of layers around l, for all heads: their scores are set to the dtype's minimum before the softmax.
With p0 and p the probability of a token without and with the knockout, the effect in percent is

    100 (p - p0) / p0

which is -100 if nothing is left of the token, and 0 if nothing changes (Geva et al. 2023, section 4, arXiv
2304.14767). `ecstruct.recall.copies` explains how many knockouts run at once.
"""

from itertools import product
from typing import get_args

import numpy as np
import torch
import xarray as xr
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ecstruct.engine.session import Model, Session
from ecstruct.errors import InputError
from ecstruct.facts.prompt import Prompt
from ecstruct.recall.copies import Copies, Copying, Knockout, Plain, States, batch_size
from ecstruct.recall.groups import Groups, Which, as_json, named, positions
from ecstruct.recall.layer_readings import LENS, readings
from ecstruct.recall.runs import Places, Prompts, Run, Runs, TokenKind, read
from ecstruct.recall.vocabulary import LOGITS

WINDOW = 9
"""The number of layers in a window of the paper, for a model of 48 layers."""
GROUPS = ("subject", "non-subject", "last")
LIKELY = 0.01
"""The probability that a token must have for its relative change to be more than noise."""


def knockout(
    model: Model,
    prompts: Prompts,
    *,
    window: int | None = None,
    groups: Groups = GROUPS,
    destination: Which = "last",
    token: TokenKind = "predicted",
    progress: bool = True,
) -> xr.DataArray:
    """Compute the effect of blocking attention from groups of tokens, layer by layer.

    Args:
        model: from `ecstruct.load`; it is not changed.
        prompts: as for `ecstruct.score`. Groups that are named need the prompts' `subject`.
        window: how many layers are blocked at once, around each layer (see `windows`); by
            default the paper's 9, or all layers of a model that has fewer.
        groups: the sources, each on its own: names of `ecstruct.recall.groups.NAMES`, or a mapping from
            labels to names, positions (negative from the end), slices or lists of positions.
        destination: the group that does not see the sources; "last" in the paper.
        token: whose probability is read at the last position: "predicted" is the token that the model
            predicts, "answer" the first token of the prompt's answer.
        progress: show a progress bar.

    Returns:
        Percent, float64 (prompt, group, layer). Prompts have the coordinates `text`, `answer`, `subject`,
        `subject_at` (the position of its first token), `template`, the `token` that is read and its
        `probability` p0. Layers have `first_layer` and
        `last_layer`, the ends of their windows. `.attrs` hold what is needed to compute it again.

    Raises:
        InputError: a prompt that cannot be used; an unknown group or position; a group without a token that
            can be blocked, or whose blocking leaves a token nothing to see; a window of more layers than
            the model has; an unknown `token`.
    """
    if token not in get_args(TokenKind):
        raise InputError(f"token is 'predicted' or 'answer', not {token!r}.")
    by_label = named(groups)
    runs = Runs.of(model, prompts)
    n_layers = runs.view.n_layers
    size = min(WINDOW, n_layers) if window is None else window
    around = windows(n_layers, size)
    distinct = list(dict.fromkeys(around))  # in a model of few layers, several windows are the same
    into = runs.places(destination)
    sources = {label: runs.places(which) for label, which in by_label.items()}
    for label, places in sources.items():
        _check_seen(runs, label, places, into)
    n, copying, tokenizer = len(runs.prompts), Copying(), runs.session.tokenizer
    asked = [*product(sources, distinct)]
    order = np.argsort([window.start for _, window in asked], kind="stable").tolist()
    ids, p0, p = np.empty(n, np.int64), np.empty(n), np.empty((n, len(asked)))

    def measure(run: Run) -> None:
        plain = Plain(run, into)
        of_token = plain.logits.argmax(-1) if token == "predicted" else run.batch.answer_ids[:, 0]
        ids[run.rows] = of_token.cpu()
        p0[run.rows] = _probability(plain.logits[:, None], of_token)[:, 0].cpu()
        _check_probabilities(run, p0)
        hidden = {label: run.where(places) for label, places in sources.items()}
        knockouts = [Knockout(label, hidden[label], window) for label, window in (asked[i] for i in order)]

        def read_off(copies: Copies, states: States) -> Float[Tensor, "batch copy"]:
            rows = torch.arange(len(of_token), device=of_token.device)
            parts = states[rows, :, copies.last].split(max(1, LOGITS // plain.logits.numel()), dim=1)
            logits = (plain.view.head(plain.weights, part).output for part in parts)
            return torch.cat([_probability(its, of_token) for its in logits], 1)

        p[np.ix_(run.rows, order)] = copying.measure(plain, knockouts, n_layers, read_off).cpu()

    runs.each(measure, "knockouts", progress, batch_size(runs, into, len(asked)))
    by_window = rearrange(p, "prompt (group window) -> prompt group window", window=len(distinct))
    of_layers, whole = by_window[:, :, [distinct.index(w) for w in around]], p0[:, None, None]
    options = {
        "window": size,
        "groups": {label: as_json(which) for label, which in by_label.items()},
        "destination": as_json(destination),
        "token": token,
    }
    return xr.DataArray(
        100 * (of_layers - whole) / whole,
        dims=("prompt", "group", "layer"),
        coords={
            **runs.coordinates(),
            "group": list(by_label),
            "layer": np.arange(len(around)),
            "token": ("prompt", [str(tokenizer.decode([int(i)])).strip() for i in ids]),
            "probability": ("prompt", p0),
            "first_layer": ("layer", [w.start for w in around]),
            "last_layer": ("layer", [w.stop - 1 for w in around]),
        },
        name="knockout",
        attrs=runs.attrs("knockout", options),
    )


def knockout_tokens(
    model: Model,
    prompt: Prompt,
    *,
    window: int | None = None,
    destination: Which = "last",
    token: TokenKind = "predicted",
    progress: bool = True,
) -> xr.DataArray:
    """Compute the effect of blocking attention from each token of one prompt on its own, layer by layer.

    The arguments are those of `knockout`. Tokens after all of the destination are left out, because the
    destination does not see them.

    Returns:
        Percent, float64 (token, layer), with the coordinates of `knockout` and `token_text`. The coordinate
        `read` is the token whose probability is read; `lens` and `lens_probability` (layer) are what the
        logit lens makes of the last token after each layer (`ecstruct.recall.readings`).

    Raises:
        InputError: as `knockout`.
    """
    session = Session.of(model)
    (tokenized,) = prompts = read(session, [prompt])
    seen = range(max(positions(tokenized, destination)) + 1)
    found = knockout(
        session,
        prompts,
        window=window,
        groups={str(place): place for place in seen},
        destination=destination,
        token=token,
        progress=progress,
    )
    by_token = found.isel(prompt=0).rename(token="read").rename(group="token")
    lens = readings(session, prompts, which=[LENS], token=token, top=1, progress=False)
    lens = lens.isel(reading=0, prompt=0, place=0)
    added = {
        "token_text": ("token", [tokenized.tokens[place] for place in seen]),
        "lens": ("layer", lens["top_tokens"].values),
        "lens_probability": ("layer", lens["top_probability"].values),
    }
    return by_token.assign_coords(token=list(seen), **added).rename("knockout_tokens")


def windows(n_layers: int, size: int) -> list[range]:
    """Return the window of every layer l: the layers from max(0, l - size // 2) up to, not including,
    min(n_layers, l + ceil(size / 2)).

    Away from the ends, a window has `size` layers, of which l is the middle one, or the later of the two
    middle ones. Near the ends it is cut off: the windows of the first and last layer have about half as
    many layers. They block less, and therefore have a smaller effect.

    Raises:
        InputError: a window of less than one layer, or of more than the model has.

    >>> [(w.start, w.stop) for w in windows(6, 3)]
    [(0, 2), (0, 3), (1, 4), (2, 5), (3, 6), (4, 6)]
    """
    if not 1 <= size <= n_layers:
        raise InputError(f"window={size}: the model has {n_layers} layers, use 1 to {n_layers} of them.")
    return [
        range(max(0, layer - size // 2), min(n_layers, layer + (size + 1) // 2))
        for layer in range(n_layers)
    ]


def telling(effect: xr.DataArray) -> xr.DataArray:
    """Return the effects on tokens whose p0 is at least `LIKELY`, and NaN for others. The probability of a
    token with p0 = 1e-6 doubles with almost any change of the logits."""
    return effect.where(effect["probability"] >= LIKELY)


def _probability(
    logits: Float[Tensor, "batch copy d_vocab"], ids: Int[Tensor, " batch"]
) -> Float[Tensor, "batch copy"]:
    """Return the probability of one token per prompt, in float64."""
    logprobs = logits.double().log_softmax(-1)
    return logprobs[torch.arange(len(ids), device=ids.device), :, ids].exp()


def _check_probabilities(run: Run, p0: Float[np.ndarray, " prompt"]) -> None:
    for row in run.rows:
        if not p0[row] > 0:
            raise InputError(
                f"the token after {run.runs.prompts[row].prompt.text!r} has the probability {p0[row]}, of "
                "which no percentage can be told: take another, or look for NaN in the checkpoint."
            )


def _check_seen(runs: Runs, label: str, sources: Places, into: Places) -> None:
    for prompt, of_prompt, its_destination in zip(runs.prompts, sources, into, strict=True):
        if min(of_prompt) > max(its_destination):
            raise InputError(
                f"the group {label!r} of {prompt.prompt.text!r} comes after all of the destination, which "
                "does not see it: choose another destination, or another group."
            )
