"""Subject enrichment: how much of what there is to know of a subject its hidden states say.

The attributes rate of a hidden state is the share of the first tokens of its projection on the vocabulary
(`ecstruct.recall.vocabulary`) that are in the subject's attributes A_s, in percent (Geva et al. 2023,
section 5). In a model that enriches its subjects it rises over the early layers at the subject's last
token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike
from ecstruct.recall.attributes import Attributes
from ecstruct.recall.groups import named
from ecstruct.recall.running import Runs
from ecstruct.recall.vocabulary import Cut, Onto, Vocabulary

POSITIONS = ("subject-last", "subject-first", "subject-others", "last")


def attributes_rate(
    model: TransformerBridge,
    prompts: PromptsLike,
    attributes: Attributes,
    *,
    positions: Sequence[str] = POSITIONS,
    onto: Onto = "unembedding",
    normed: bool = False,
    top: int | None = None,
    kept: int | None = None,
    progress: bool = True,
) -> xr.DataArray:
    """The attributes rate at some positions after every layer.

    Args:
        model: from `ecstruct.load`; not changed.
        prompts: with subjects; as everywhere in ecstruct.
        attributes: A_s of their subjects.
        positions: names of groups of positions, see `ecstruct.recall.groups`; over those of several tokens
            it is the mean.
        onto: what hidden states are projected with, the "unembedding" or the "embedding"; the same where
            these are tied, as in the paper's model. See `ecstruct.recall.vocabulary`.
        normed: put the model's final norm before the projection.
        top: how many tokens of the projection are gone through: 500, or a tenth of a vocabulary of fewer
            than 5000.
        kept: how many of them, without stop words and strings of at most two characters, are held against
            A_s: 50, or a hundredth of such a vocabulary.
        progress: show a progress bar.

    Returns:
        (prompt, position, layer), in percent; NaN for a position that a prompt has not, as the "others" of
        a subject of one or two tokens, and where all tokens were dropped.

    Raises:
        InputError: a prompt without subject, a subject without attributes, an unknown position or
            matrix, or `top` and `kept` that do not go with the vocabulary.
    """
    groups = named(positions)
    runs = Runs.of(model, prompts)
    reader = Reader(runs, attributes, top=top, kept=kept, normed=normed, onto=onto)
    places = [runs.places(which, may_be_empty=True) for which in groups.values()]
    n_prompts, n_layers = len(runs.prompts), runs.view.n_layers
    rates = np.full((n_prompts, len(groups), n_layers), np.nan)
    of_any = [[at for its in places for at in its[row]] for row in range(n_prompts)]
    wanted = [runs.where(b, of_any) for b in range(len(runs.batches))]
    with runs.still(), tqdm(total=n_prompts, desc="attributes rate", disable=not progress) as bar:
        for b, rows in enumerate(runs.rows):
            resid, calls = runs.embed(b)
            for layer in range(n_layers):
                resid = runs.block(layer, calls[layer], resid).output
                found = reader.read(b, resid, wanted[b])
                for i, row in enumerate(rows):
                    for g, its in enumerate(places):
                        if its[row]:
                            rates[row, g, layer] = found[i, its[row]].mean()
            bar.update(len(rows))
    coordinates = {
        **runs.coordinates(),
        "position": list(groups),
        "layer": np.arange(n_layers),
        "token": (("prompt", "position"), _texts(runs, places)),
    }
    options = {"positions": list(groups), **reader.options}
    attrs = runs.attrs("attributes rate", options) | {"unit": "%"}
    return xr.DataArray(rates, coordinates, ("prompt", "position", "layer"), "attributes_rate", attrs)


class Reader:
    """Reads the attributes rate off hidden states of the prompts of `runs`."""

    def __init__(
        self,
        runs: Runs,
        attributes: Attributes,
        *,
        top: int | None = None,
        kept: int | None = None,
        normed: bool = False,
        onto: Onto = "unembedding",
    ) -> None:
        self.vocabulary = Vocabulary.of(runs.view, runs.weights, onto)
        self.cut = Cut.of(top, kept, len(self.vocabulary.words))
        self._normed = normed
        self.options = {
            "attributes": attributes.source,
            "onto": onto,
            "normed": normed,
            "top": self.cut.top,
            "kept": self.cut.kept,
        }
        its = attributes.about([p.prompt for p in runs.prompts])
        self.members: Bool[Tensor, "subject d_vocab"] = torch.stack(
            [self.vocabulary.among(words) for words in its.values()]
        )
        order = list(its)
        for subject, known in zip(order, self.members.any(1).tolist(), strict=True):
            if not known:
                raise InputError(
                    f"no attribute of the subject {subject!r} is a token of this model's vocabulary: make "
                    "the attributes with this model."
                )
        self.subjects = [order.index(str(p.prompt.subject)) for p in runs.prompts]
        self._rows = [
            torch.tensor([self.subjects[row] for row in rows], device=runs.view.device)
            for rows in runs.rows
        ]

    def read(
        self, b: int, resid: Float[Tensor, "batch pos d_model"], where: Bool[Tensor, "batch pos"]
    ) -> np.ndarray:
        """The rates of batch `b` [batch, pos] in percent, NaN at other tokens than those wanted."""
        rates = torch.full(where.shape, torch.nan, dtype=torch.float64, device=resid.device)
        subjects = self._rows[b][:, None].expand(where.shape)[where]
        rates[where] = self.vocabulary.rates(resid[where], self.members, subjects, self.cut, self._normed)
        return rates.cpu().numpy()


def _texts(runs: Runs, places: Sequence[Sequence[Sequence[int]]]) -> list[list[str]]:
    """The tokens at every prompt's positions."""
    return [
        [" ".join(prompt.tokens[p] for p in its[i]) for its in places]
        for i, prompt in enumerate(runs.prompts)
    ]
