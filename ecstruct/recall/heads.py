"""Extraction heads: which heads map a subject to its attributes by their weights alone.

For a head with the value matrix W_V and the output matrix W_O, row s of E W_V W_O E^T is what the head
writes on the vocabulary when it attends to the embedding of the token s (Geva et al. 2023, section 6). Here
E is the embedding on the left and the unembedding on the right; biases, norms and the effect of earlier
layers on a token are left out. A head maps a subject to an attribute when one of the first tokens of the
row is in A_s. Heads that share keys and values have the same W_V. Among many tokens some are attributes by
chance, so compare the shares with those that `Attributes.shuffled` gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ecstruct.engine.session import Model
from ecstruct.errors import InputError
from ecstruct.recall.attributes import Attributes
from ecstruct.recall.runs import Prompts, Runs
from ecstruct.recall.vocabulary import TOP, Reader, final_norm, tokens_matrix

_SHOWN = 5
"""The number of tokens of every row that are returned for inspection."""


def extraction_heads(
    model: Model,
    prompts: Prompts,
    attributes: Attributes,
    *,
    position: str = "subject-last",
    normed: bool = False,
    top: int | None = None,
    layers: Sequence[int] | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Find the heads whose weights map the prompts' subjects to their attributes.

    Args:
        model: from `ecstruct.load`; it is not changed.
        prompts: with subjects; as everywhere in ecstruct.
        attributes: A_s of the subjects.
        position: the name of a group of positions, whose tokens are looked up; with several tokens, one row
            that contains an attribute is enough.
        normed: apply the model's final norm to what a head writes.
        top: how many tokens of a row are searched: 500, or a hundredth of a vocabulary of fewer than
            50,000.
        layers: the layers whose heads are searched; all by default.
        progress: show a progress bar.

    Returns:
        `maps` (prompt, layer, head), whether a head maps the subject to an attribute; `share` (layer,
        head), the percentage of prompts for which it does; `hits` (prompt, layer, head), the percentage of
        the searched tokens that are attributes; `top_tokens` (prompt, layer, head, place), the first
        tokens of the row of the first position.

    Raises:
        InputError: as `attributes_rate`; also a layer that does not exist, or an embedding that is not as
            wide as the residual stream.
    """
    runs = Runs.of(model, prompts)
    view = runs.view
    chosen = range(view.n_layers) if layers is None else layers
    if outside := [layer for layer in chosen if layer not in range(view.n_layers)]:
        raise InputError(
            f"layers={list(chosen)}: there is no layer {outside[0]}, but 0 to {view.n_layers - 1}."
        )
    embedding, unembedding = (tokens_matrix(runs.session, which) for which in ("embedding", "unembedding"))
    n_top = max(1, min(TOP, len(unembedding) // 100)) if top is None else top
    reader = Reader(runs, attributes, top=n_top)
    places = runs.places(position)
    # Prompts share subjects and tokens, so every row is computed once.
    ids = sorted({p.ids[at] for p, its in zip(runs.prompts, places, strict=True) for at in its})
    row_of = {token: i for i, token in enumerate(ids)}
    tokens = [[row_of[p.ids[at]] for at in its] for p, its in zip(runs.prompts, places, strict=True)]
    shape = (len(runs.prompts), len(chosen), view.n_heads)
    maps, hits = np.zeros(shape, dtype=bool), np.zeros(shape)
    shown = np.empty((*shape, min(_SHOWN, n_top)), dtype=object)
    names = np.array(reader.words, dtype=object)
    with (
        runs.session.still(),
        tqdm(total=len(chosen), desc="extraction heads", disable=not progress) as bar,
    ):
        looked_up = embedding[torch.tensor(ids, device=view.device)]
        for at, layer in enumerate(chosen):
            for head, written in enumerate(_written(runs, layer, looked_up)):
                if normed:
                    written = final_norm(runs.session, written)
                found = (written @ unembedding.T).topk(n_top).indices
                for i, (rows, subject) in enumerate(zip(tokens, reader.subjects, strict=True)):
                    its = reader.members[subject][found[rows]]
                    maps[i, at, head] = bool(its.any())
                    hits[i, at, head] = 100 * its.double().mean().item()
                    shown[i, at, head] = names[found[rows[0], :_SHOWN].cpu().numpy()]
            bar.update()
    coordinates = {
        **runs.coordinates(),
        "layer": np.array(chosen),
        "head": np.arange(view.n_heads),
        "place": np.arange(shown.shape[-1]),
    }
    dims = ("prompt", "layer", "head")
    variables = {
        "share": (dims[1:], 100 * maps.mean(0)),
        "maps": (dims, maps),
        "hits": (dims, hits),
        "top_tokens": ((*dims, "place"), shown),
    }
    options = {"attributes": attributes.source, "position": position, "normed": normed}
    options |= {"top": n_top}
    return xr.Dataset(variables, coordinates, {**runs.attrs("extraction heads", options), "unit": "%"})


def _written(
    runs: Runs, layer: int, seen: Float[Tensor, "token d_model"]
) -> Float[Tensor, "head token d_model"]:
    """Return what every head of a layer writes when it attends to each of these rows: row W_V W_O."""
    sites, d_head = runs.view.block_sites[layer], runs.view.d_head
    values = sites["attn.v"].matrix(runs.session.weights) if "attn.v" in sites else None
    output = sites["attn.o"].matrix(runs.session.weights)
    if values is None or output is None or len(values) % d_head:
        raise InputError(
            f"layer {layer} of this model has no value matrix with {d_head} rows for each head: use "
            "another architecture."
        )
    w_v = rearrange(values, "(kv d_head) d_in -> kv d_head d_in", d_head=d_head)
    w_o = rearrange(output, "d_out (kv group d_head) -> kv group d_head d_out", kv=len(w_v), d_head=d_head)
    z = einsum(seen, w_v, "token d_in, kv d_head d_in -> kv token d_head")
    written = einsum(z, w_o, "kv token d_head, kv group d_head d_out -> kv group token d_out")
    return rearrange(written, "kv group token d_out -> (kv group) token d_out")
