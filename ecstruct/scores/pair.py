"""Two sets of weights of one architecture: what every score compares."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.engine.session import Session
from ecstruct.errors import InputError
from ecstruct.facts.encoding import encode_for
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import TokenizedPrompt, pad_id_of, tokenize
from ecstruct.io.files import digest
from ecstruct.models.added_tokens import without_added
from ecstruct.models.bridge import named_weights, saved_buffers
from ecstruct.models.checkpoint import LazyWeights
from ecstruct.models.configs import check_same_computation, warn_of_buffers
from ecstruct.models.delta import WeightDelta, check_same, is_delta
from ecstruct.models.fingerprint import combined
from ecstruct.models.finite import check_weight
from ecstruct.models.hooked import HookedView
from ecstruct.models.hooked_transformer import is_hooked_transformer
from ecstruct.models.labels import labels_of
from ecstruct.models.loading import delta_onto, load, load_after
from ecstruct.models.offload import offloaded
from ecstruct.models.provenance import provenance, tokenizer_of, versions
from ecstruct.scores.batching import with_answer
from ecstruct.scores.reward import Reward

ModelBefore = TransformerBridge | Session | str | Path
"""The original model, or a source string for `ecstruct.load`."""

ModelAfter = TransformerBridge | WeightDelta | Session | str | Path
"""The finetuned model: a model, a `WeightDelta`, a source string for `ecstruct.load`, the path of a saved
delta, or the folder of an adapter of the original model. Both models may be the `sessions` of a `Pair`."""

_logger = logging.getLogger("ecstruct.scores")


@dataclass(frozen=True)
class Pair:
    """A hooked model with two sets of weights by name, W (`before`) and W' (`after`), in the dtype in which
    scores are computed. `sources` describe where each comes from, by "before" and "after".

    Fingerprints are of a model's weights in its own dtype, as for masks and recall; for a delta or a
    source, they are of the weights as they are read here."""

    view: HookedView
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    sources: Mapping[str, Mapping[str, Any]]
    resident: bool = True
    """Whether weights are in memory, rather than read from disk on access."""
    tokenizer_after: Any = None
    """The finetuned model's tokenizer, if it has one. Scoring uses the original model's token ids."""

    @classmethod
    def of(
        cls, model_before: "ModelBefore | Pair", model_after: ModelAfter | None, device: str | None = None
    ) -> "Pair":
        """Read both models; warn in the log if weights are cast up, or if no weight differs. `device` is
        for an original model that is given as a source. A pair, or its sessions, give that pair again.

        Raises:
            InputError: a model cannot be scored, or the two do not match.
        """
        if isinstance(model_before, Pair):
            return model_before
        if isinstance(model_before, Session) or isinstance(model_after, Session):
            return cls._from_sessions(model_before, model_after)
        if isinstance(model_before, str | Path):
            model_before = load(model_before, device=device)
        model, other = _as_bridge(model_before), _as_bridge(model_after)
        view = HookedView(model)
        if next(model.parameters()).dtype not in (torch.float32, torch.float64):
            _logger.warning("weights are cast up: scores are computed in float32")
        before = view.weights()
        after, described, tokenizer_after, own = _weights_after(view, before, other)
        described = provenance(model).described, described
        sources = _sources((before, after), described, (view.named_weights, own))
        return cls(view, before, after, sources, tokenizer_after=tokenizer_after)

    @classmethod
    def on_disk(cls, before: Any, after: Any, device: str | None = None) -> "Pair":
        """Pair two models that stay on disk, see `ecstruct.models.offload`. Each weight is read once here.

        Raises:
            InputError: as `ecstruct.load`; also for a model that is already in memory.
        """
        found = offloaded(before, after, device)
        described = provenance(found.model).described, found.after_described
        sources = _sources((found.before, found.after), described)
        view = HookedView(found.model)
        return cls(view, found.before, found.after, sources, False, found.tokenizer_after)

    @classmethod
    def _from_sessions(cls, before: Any, after: Any) -> "Pair":
        """Return the pair whose `sessions` these are, in this order; raise `InputError` for any others."""
        view, other = getattr(before, "view", None), getattr(after, "view", None)
        if view is None or view is not other or before.tokenizer is not tokenizer_of(view.model):
            raise InputError(
                "these are not the sessions of two models, before and after finetuning: give the models, "
                "or both sessions of the Pair that was made of them, in this order."
            )
        tokenizer_after = None if after.tokenizer is before.tokenizer else after.tokenizer
        sources = {"before": before.described, "after": after.described}
        return cls(view, before.weights, after.weights, sources, tokenizer_after=tokenizer_after)

    @property
    def sessions(self) -> tuple[Session, Session]:
        """The sessions of both models, which share the hooked model but have tokenizers of their own."""
        own = tokenizer_of(self.view.model)
        return (
            Session(self.view, self.before, own, self.sources["before"]),
            Session(self.view, self.after, self.tokenizer_after or own, self.sources["after"]),
        )

    def attrs(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes of a result: all that is needed to compute it again, which is the sources,
        the `options` and the versions of packages."""
        return {
            **{state: dict(source) for state, source in self.sources.items()},
            "options": dict(options),
            "versions": versions(),
        }

    def mixed(self, new: Iterable[str]) -> Mapping[str, Tensor]:
        """Return W, but with the weights that are named in `new` from W'."""
        names = frozenset(new)
        return LazyWeights(self.before, lambda name: (self.after if name in names else self.before)[name])

    def between(self, a: float) -> Mapping[str, Tensor]:
        """Return W + a (W' - W)."""
        return LazyWeights(self.before, lambda name: torch.lerp(self.before[name], self.after[name], a))

    @property
    def pad_id(self) -> int:
        return pad_id_of(tokenizer_of(self.view.model))

    def tokenize(self, prompts: PromptsLike, reward: Reward) -> tuple[list[TokenizedPrompt], list[int]]:
        """Return the prompts, tokenized as `reward` needs them, and their lengths without answer tokens."""
        tokenizer = tokenizer_of(self.view.model)
        tokenized = tokenize(
            prompts, tokenizer, n_ctx=self.view.model.cfg.n_ctx, with_options=reward.needs_options
        )
        lengths = [len(p.ids) for p in tokenized]
        if self.tokenizer_after is not None:
            self._compare_tokenizers(tokenized)
        if reward.answer_tokens == "all":
            tokenized = [with_answer(p, tokenizer) for p in tokenized]
        return tokenized, lengths

    def _compare_tokenizers(self, tokenized: list[TokenizedPrompt]) -> None:
        """Warn in the log about the first text that the finetuned model's tokenizer splits differently."""
        for prompt in tokenized:
            if labels := labels_of(self.tokenizer_after):
                text, ids = prompt.prompt.text, list(prompt.ids)
                others = list(encode_for(labels, [prompt.prompt], self.tokenizer_after)[0])
            else:
                text = prompt.prompt.answered(prompt.prompt.answer)
                ids = [*prompt.ids, *prompt.answer_ids]
                others = self.tokenizer_after(text)["input_ids"][: len(ids)]
            if prompt.prompt.wrapper is None and ids != others:
                _logger.warning(
                    "the tokenizer after reads %r otherwise than the one before, whose ids both models get",
                    text,
                )
                return


def _as_bridge(model: Any) -> Any:
    """Load a HookedTransformer's original checkpoint; return anything else unchanged."""
    if is_hooked_transformer(model):
        return load(model, device=model.cfg.device, dtype=model.cfg.dtype)
    return model


_STATES = "before", "after"
Rounding = tuple[int, torch.dtype]
"""The index of the state that may be the other one rounded, and the dtype that it is rounded to."""

ROUNDINGS: tuple[Rounding, ...] = tuple(product((1, 0), (torch.bfloat16, torch.float16)))

_States = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


def only_rounded(states: Sequence[Tensor], among: Iterable[Rounding]) -> list[Rounding]:
    """Return those roundings that make one state of a weight of the other one."""
    found = list(among)
    first_rows = [state[0] if state.ndim else state for state in states]
    for its in (first_rows, states):  # most weights are told apart by their first rows
        found = [(s, d) for s, d in found if torch.equal(its[1 - s].to(d).to(its[s]), its[s])]
    return found


def _sources(
    weights: _States, described: tuple[dict[str, Any], dict[str, Any]], own: _States | None = None
) -> dict[str, dict[str, Any]]:
    """Describe both states, with fingerprints; warn in the log if their weights are equal, or equal but for
    rounding. `own` are the weights before they were cast up, from which fingerprints are computed.

    Raises:
        InputError: a weight is NaN or infinite.
    """
    digests: tuple[dict[str, str], dict[str, str]] = {}, {}
    same, roundings = True, list(ROUNDINGS)
    for name in weights[0]:  # weight by weight, as both states may be read from disk together
        pair = [its[name] for its in weights]
        if not torch.equal(*pair):
            same, roundings = False, only_rounded(pair, roundings)
        for state, weight in enumerate(pair):
            check_weight(described[state]["source"], name, weight)
            digests[state][name] = digest(weight if own is None else own[state][name])
    if same:
        _logger.warning("both models have the same weights: informative, upstream and downstream are zero")
    elif roundings:
        state, dtype = roundings[0]
        _logger.warning(
            "the weights %s are those %s rounded to %s: nothing else differs, and scores are of rounding",
            *(_STATES[state], _STATES[1 - state], str(dtype).removeprefix("torch.")),
        )
    return {
        state: {**its, "fingerprint": combined(of)}
        for state, its, of in zip(_STATES, described, digests, strict=True)
    }


def _weights_after(
    view: HookedView,
    before: Mapping[str, Tensor],
    after: TransformerBridge | WeightDelta | str | Path,
) -> tuple[Mapping[str, Tensor], dict[str, Any], Any, Mapping[str, Tensor]]:
    """Return W', a description of its source, its tokenizer if it has one, and W' in its own dtype."""
    if isinstance(after, str | Path) and not is_delta(after):
        after = load_after(after, view.model, device=view.device, dtype=view.dtype)
    if isinstance(after, str | Path | WeightDelta):
        if isinstance(after, WeightDelta):
            change, named = after, after.name
        else:
            change, named = delta_onto(after, view.model), str(after)
        weights = change.added_to(before)
        return weights, {"source": named, "revision": None}, None, weights
    own = named_weights(after)
    found = without_added(own, view.named_weights)
    check_same(view.named_weights, found)
    check_same_computation(view.hf.config, after.original_model.config)
    warn_of_buffers(saved_buffers(view.hf), saved_buffers(after.original_model))
    weights = {name: w.detach().to(view.device, view.dtype) for name, w in found.items()}
    origin = provenance(after)
    # A tokenizer with more tokens would read prompts with some that the embedding does not have here.
    has_more = len(own["embed.weight"]) > len(weights["embed.weight"])
    return weights, origin.described, None if has_more else origin.tokenizer, own
