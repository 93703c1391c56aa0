"""Where to train, edit or merge: the sublayers that store what a finetuning taught, or would teach.

The share of all sublayers with the highest mean informative score I_s over the prompts is suggested, see
`ecstruct.sublayers`, in the forms that training, editing and merging tools read.

The advice is about where facts of this kind are stored by this model, so that it holds for other facts of
the kind. What it is worth was measured by training again, see `docs/suggest.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ecstruct.bootstrap import Bootstrap
from ecstruct.engine.session import Session
from ecstruct.errors import InputError
from ecstruct.facts.fact_set import FactSet
from ecstruct.facts.prompt import PromptsLike
from ecstruct.io.saved import SavedDataset
from ecstruct.io.values import bounded
from ecstruct.models.classifiers import is_classifier
from ecstruct.models.names import WeightSelection, layer_of
from ecstruct.models.provenance import source_of
from ecstruct.models.skeleton import Skeleton
from ecstruct.options import SuggestOptions
from ecstruct.plots.lines import Line, line_panels
from ecstruct.plots.style import reward_title
from ecstruct.scores.alignment_result import Alignment
from ecstruct.scores.engine import ScoreEngine
from ecstruct.scores.gradient_alignment import alignment
from ecstruct.scores.pair import ModelAfter, ModelBefore, Pair
from ecstruct.scores.result import ExtractiveScores
from ecstruct.sublayers import KINDS, Sublayer, all_but, sublayer_scores, weights_of

_DRAWN = ["layer", "score", "low", "high"]


def suggest(
    before: ModelBefore,
    after: ModelAfter | FactSet,
    prompts: PromptsLike | None = None,
    *,
    scores: ExtractiveScores | None = None,
    share: float = 1 / 3,
    progress: bool = True,
) -> Suggestion:
    """Suggest where to train, edit or merge, from the informative scores of a finetuning or of a step.

    Args:
        before: W, as for `ecstruct.score`; it is not changed.
        after: W', as for `ecstruct.score`; or the facts that W would be finetuned on, with their
            implications, as for `ecstruct.alignment`.
        prompts: the prompts to score, which facts may leave out.
        scores: scores of W and W' on these prompts; computed if not given.
        share: which share of the sublayers is suggested, between 0 and 1.
        progress: show progress bars.

    Raises:
        InputError: the share is none, the scores are of another model, or there are no prompts; also as
            `ecstruct.score` or `ecstruct.alignment`.
    """
    options = SuggestOptions.given(locals())
    if isinstance(after, FactSet):
        if scores is not None:
            raise InputError("scores= are of a finetuned model, and facts have none: leave them out.")
        session = Session.of(before)
        return suggested(session, alignment(session, after, prompts, progress=progress), options)
    if prompts is None:
        raise InputError("there are no prompts to score: give the implications of what was finetuned on.")
    pair = Pair.of(before, after)
    scores = scores or ScoreEngine(pair, None, progress=progress).score(prompts)
    return suggested(pair.sessions[0], scores, options)


def suggested(
    session: Session, scores: ExtractiveScores | Alignment, options: SuggestOptions
) -> Suggestion:
    """Suggest sublayers of a model from its scores, or from the alignment of facts and implications.

    Raises:
        InputError: the scores are of another model.
    """
    view = session.view
    model, config = view.model, view.hf.config
    if isinstance(scores, ExtractiveScores):
        scores.check_of(view.n_layers, view.n_heads)
    places = Skeleton.of(source_of(model), config, session.tokenizer).places
    projections = {
        _module(place.tensor)
        for name, place in places.items()
        if layer_of(name) is not None and len(place.shape) == 2
    }
    modules: dict[str, Any] = {}  # of a language model; EasyEdit edits no classifiers
    if not is_classifier(config):
        adapter: Any = model.adapter
        modules = {"blocks": adapter.component_mapping["blocks"]}
        modules |= {sublayer: getattr(model.blocks[0], sublayer) for sublayer in KINDS}
        modules |= {name: getattr(model, name) for name in ("ln_final", "unembed")}
    checkpoint = {
        "tensors": {name: place.tensor for name, place in places.items()},
        "projections": sorted(projections),
        "modules": {name: module.name for name, module in modules.items()},
    }
    attrs = {"before": session.described, **scores.attrs, **vars(options), "checkpoint": checkpoint}
    return Suggestion(sublayer_scores(scores).to_dataset().assign_attrs(attrs))


@dataclass(frozen=True, eq=False)
class Suggestion(SavedDataset):
    """What to train, edit or merge; `ecstruct.suggest` returns it.

    It wraps one `xarray.Dataset`, accessible as `.dataset`, with I_s as `informative` (prompt, layer,
    sublayer), where `sublayer` is "attn" or "mlp"; `attrs["checkpoint"]` has the names that a checkpoint
    of the model has for its weights and modules.
    """

    format = "ecstruct suggestion 1"
    contents = "suggestions"

    @property
    def n_chosen(self) -> int:
        """How many sublayers are suggested."""
        sizes = self.dataset.sizes
        return max(1, round(self.attrs["share"] * sizes["layer"] * sizes["sublayer"]))

    @property
    def chosen(self) -> list[Sublayer]:
        """The suggested sublayers, that with the highest score first."""
        rows = self.table().head(self.n_chosen).to_dict("records")
        return [(row["layer"], row["sublayer"]) for row in rows]

    @bounded
    def table(self, *, ci: float = 0.95, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Return a row per sublayer, the highest score first: `layer`, `sublayer`, the mean `score` with
        the ends `low` and `high` of its interval over prompts, whether it is `suggested`, and `stability`,
        the share of draws of prompts in which it is among as many sublayers with the highest scores (NaN
        for a single prompt; see `ecstruct.bootstrap`)."""
        values = self.dataset["informative"].stack(of=("layer", "sublayer")).values
        frame = pd.DataFrame(
            [(layer, sublayer) for layer in self.dataset["layer"].values.tolist() for sublayer in KINDS],
            columns=["layer", "sublayer"],
        )
        frame["score"] = values.mean(axis=0)
        frame = frame.assign(low=np.nan, high=np.nan, stability=np.nan)
        if len(values) > 1:
            bootstrap = Bootstrap(len(values), ci=ci, resamples=resamples, seed=seed)
            frame["low"], frame["high"] = bootstrap.interval(values)
            places = np.argsort(np.argsort(-(bootstrap.weights @ values), axis=1), axis=1)
            frame["stability"] = (places < self.n_chosen).mean(axis=0)
        frame = frame.sort_values("score", ascending=False, kind="stable", ignore_index=True)
        frame.insert(5, "suggested", frame.index < self.n_chosen)
        return frame

    def freeze(self) -> WeightSelection:
        """Return all weights of other sublayers, for `ecstruct.finetune(freeze=)`."""
        return all_but(self.chosen, self.attrs["checkpoint"]["tensors"])

    def lora(self, r: int = 8, alpha: int = 16, *, by_score: bool = False) -> dict[str, Any]:
        """Return the arguments of `peft.LoraConfig`, with an adapter of rank `r` on every projection of the
        suggested sublayers. With `by_score`, every sublayer of the model has adapters, of rank
        r max(I_s, 0) / mean max(I, 0), rounded, from 1 to 4 r; alpha is the same multiple of all ranks.
        """
        rows = self.table() if by_score else self.table().head(self.n_chosen)
        positive = rows["score"].clip(lower=0)
        ranks = (r * positive / (positive.mean() or 1)).round().clip(1, 4 * r).astype(int)
        checkpoint = self.attrs["checkpoint"]
        tensors, projections = checkpoint["tensors"], checkpoint["projections"]
        rank_of = {
            module: int(rank)
            for layer, sublayer, rank in zip(rows["layer"], rows["sublayer"], ranks, strict=True)
            for name in weights_of([(layer, sublayer)], tensors)
            if (module := _module(tensors[name])) in projections
        }
        arguments: dict[str, Any] = {
            "task_type": "CAUSAL_LM" if checkpoint["modules"] else "SEQ_CLS",
            "r": r,
            "lora_alpha": alpha,
            "target_modules": sorted(rank_of),
        }
        if by_score:
            arguments["rank_pattern"] = rank_of
            arguments["alpha_pattern"] = {name: alpha * rank / r for name, rank in rank_of.items()}
        return arguments

    def easyedit(self) -> dict[str, Any]:
        """Return hyperparameters of EasyEdit's finetuning of chosen layers (FT, over the whole answer): the
        output projections of the suggested MLPs.

        Raises:
            InputError: no MLP is suggested, the MLPs have no output projection of their own, or the model
                is a classifier.
        """
        modules, written = self.attrs["checkpoint"]["modules"], self._written_by_mlps()
        if not written:
            raise InputError(
                "EasyEdit changes the output projections of a language model's MLPs, and there is none "
                "among the suggested sublayers: give a larger share=, or use lora()."
            )
        layer = f"{modules['blocks']}.{{}}"
        return {
            "alg_name": "FT",
            "model_name": self.attrs["before"]["source"],
            "objective_optimization": "target_new",
            "layers": sorted(written),
            "num_steps": 25,
            "lr": 5e-4,
            "weight_decay": 0,
            "kl_factor": 0,
            "norm_constraint": False,
            "batch_size": 1,
            "max_length": 40,
            "rewrite_module_tmp": f"{layer}.{_module(_in_layer(min(written.values())))}",
            "layer_module_tmp": layer,
            "mlp_module_tmp": f"{layer}.{modules['mlp']}",
            "attn_module_tmp": f"{layer}.{modules['attn']}",
            "ln_f_module": modules["ln_final"],
            "lm_head_module": modules["unembed"],
            "model_parallel": False,
        }

    @property
    def edits_mlps(self) -> bool:
        """Whether `easyedit` has an MLP to name."""
        return bool(self._written_by_mlps())

    def _written_by_mlps(self) -> dict[int, str]:
        """Return the names of the output projections of a language model's suggested MLPs by layer."""
        if not self.attrs["checkpoint"]["modules"]:
            return {}
        tensors = self.attrs["checkpoint"]["tensors"]
        names = {layer: f"blocks.{layer}.mlp.out.weight" for layer, kind in self.chosen if kind == "mlp"}
        return {layer: tensors[name] for layer, name in names.items() if name in tensors}

    @property
    def merges(self) -> bool:
        """Whether there is a finetuned model that `mergekit` can take sublayers from."""
        return "after" in self.attrs

    def mergekit(self) -> dict[str, Any]:
        """Return a configuration of mergekit: the suggested sublayers from W', all else from W.

        Raises:
            InputError: the suggestion is of facts, and nothing was finetuned.
        """
        if not self.merges:
            raise InputError(
                "there is no finetuned model to merge: suggest sublayers of one, not of facts."
            )
        tensors, layers = self.attrs["checkpoint"]["tensors"], range(self.dataset.sizes["layer"])
        parts = {
            _in_layer(tensors[name]).partition(".")[0]: sublayer
            for sublayer in KINDS
            for name in weights_of([(layer, sublayer) for layer in layers], tensors)
        }
        weights = [
            {"filter": part, "value": [float((layer, parts[part]) in self.chosen) for layer in layers]}
            for part in sorted(parts, key=len, reverse=True)  # the first filter that is in a name counts
        ]
        before, after = (self.attrs[state]["source"] for state in ("before", "after"))
        return {
            "merge_method": "task_arithmetic",
            "base_model": before,
            "models": [{"model": after, "parameters": {"weight": [*weights, {"value": 0.0}]}}],
            "dtype": "float32",
        }

    @property
    def figure(self) -> go.Figure:
        """Draw the scores of the sublayers by layer, with intervals over prompts."""
        table = self.table().sort_values("layer")
        lines = {}
        for sublayer, shown in KINDS.items():
            x, y, low, high = np.array(table.loc[table["sublayer"] == sublayer, _DRAWN]).T
            lines[shown] = Line(x, y, (low, high))
        return line_panels(
            {"": lines},
            x="layer",
            y=f"informative score, {reward_title(self.attrs)}{'' if self.merges else ' per learning rate'}",
            hover="layer %{x}: %{y:.3~g}",
            between="interval over prompts",
        )

    def conclusion(self) -> str:
        """Name the suggested sublayers, and say how much of the score they have and how stable they are."""
        table = self.table()
        suggested, positive = table["suggested"], table["score"].clip(lower=0)
        share = positive[suggested].sum() / (positive.sum() or np.nan)
        layers = {
            shown: _ranges(layer for layer, kind in self.chosen if kind == sublayer)
            for sublayer, shown in KINDS.items()
        }
        named = " and ".join(f"{shown} {each}" for shown, each in layers.items() if each)
        firm = int(np.sum(table["stability"][suggested] >= 0.9))
        said = (
            f"Suggested: {named}, {self.n_chosen} of {len(table)} sublayers, which have {share:.0%} of the "
            f"positive informative score. {firm} of them are suggested in 90% of draws of prompts or more."
        )
        if firm or len(self.dataset["prompt"]) == 1:
            return said
        return f"{said} So prompts disagree: take more, or ask ecstruct diagnose whether they were learnt."


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _in_layer(tensor: str) -> str:
    """Return the name of a tensor within its layer.

    >>> _in_layer("model.layers.3.mlp.down_proj.weight")
    'mlp.down_proj.weight'
    """
    return re.split(r"\.\d+\.", tensor, maxsplit=1)[1]


def _ranges(layers: Iterable[int]) -> str:
    """Return layers as text.

    >>> _ranges([3, 0, 1, 7])
    '0 to 1, 3, 7'
    """
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
