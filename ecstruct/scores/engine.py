"""The linearised scores of two checkpoints: `ecstruct.score` and the engine behind it.

Two walks, under the original weights W and the finetuned weights W', one forward and one backward pass
each. On the way down they meet at every block, where everything about its components is known: inputs,
what they write, and the gradients of the reward there. The formulas are in `ecstruct.scores.linear`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike
from ecstruct.facts.tokens import pad_id_of, tokenize
from ecstruct.models.delta import WeightDelta, check_same
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.hooked import HookedView, Trace, eval_mode
from ecstruct.models.load import load
from ecstruct.models.provenance import provenance
from ecstruct.models.sites import Site
from ecstruct.scores import linear
from ecstruct.scores.assemble import Assembly
from ecstruct.scores.baseline import Baseline, BaselineKind
from ecstruct.scores.batching import (
    TOKENS_PER_BATCH,
    Job,
    cut,
    fits_in_memory,
    is_out_of_memory,
    with_answer,
)
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.reward import AnswerTokens, Reward, RewardLike
from ecstruct.scores.walk import Visit, Walk

Upstream = Literal["surrogate", "exact"]
INFORMATIVE, UPSTREAM, DOWNSTREAM = range(3)
BEFORE, AFTER = range(2)

_logger = logging.getLogger(__name__)


def score(
    model_before: TransformerBridge,
    model_after: "TransformerBridge | WeightDelta | str | Path",
    prompts: PromptsLike,
    *,
    reward: RewardLike = "logit_diff",
    answer_tokens: AnswerTokens = "first",
    baseline: BaselineKind = "counterfactual",
    upstream: Upstream = "surrogate",
    convention: linear.Convention = "definition",
    batch_size: int | None = None,
    progress: bool = True,
) -> ExtractiveScores:
    """Informative, upstream and downstream scores of every MLP and attention head, per token.

    With g = dR/dy_C under W, g' under W', z_C the input of component C and y_C what it writes
    (Feng, Russell and Steinhardt 2024, arXiv 2412.04614; the linear forms of eq. 1, 2 and 4):

        I_C = dR/dW_C . dW_C       D_C = g_C . (f_C(z'_C, W_C) - y_C)
        U_C = (g'_C - g_C) . (y_C - y*_C)

    Positive raises the reward R; the unit is the reward's. Neither model is changed.

    Args:
        model_before: W, from `ecstruct.load`.
        model_after: W': a model, a `WeightDelta`, or a source string as for `ecstruct.load`, or the path
            of a saved delta.
        prompts: `Prompt`s, (text, answer) pairs, a `datasets.Dataset` or a JSONL file.
        reward: `"logit_diff"`, `"logprob"` or a function, see `ecstruct.scores.reward`.
        answer_tokens: with `"logprob"`, the answer's `"first"` token or `"all"` of them.
        baseline: y*, `"counterfactual"`, `"mean"` or `"zero"`, see `ecstruct.scores.baseline`.
        upstream: `"surrogate"`, g' with all weights new, as the paper computes; `"exact"` (eq. 5, only
            later weights new) is not implemented yet.
        convention: how tokens and weights are booked, see `ecstruct.scores.linear.Convention`.
        batch_size: prompts per batch; chosen from their lengths when not given. Does not change scores.
            Halved when memory runs out.
        progress: show a progress bar.

    Raises:
        InputError: unusable prompts or options, models that do not fit one another, NaN rewards.
        NotImplementedError: `upstream="exact"`.
    """
    engine = ScoreEngine(
        model_before,
        model_after,
        reward=reward,
        answer_tokens=answer_tokens,
        baseline=baseline,
        upstream=upstream,
        convention=convention,
        batch_size=batch_size,
        progress=progress,
    )
    return engine.score(prompts)


class ScoreEngine:
    """Holds two sets of weights of one architecture, and scores prompts with them.

    Arguments as for `score`. The weights are read once, so scoring several prompt sets with one engine
    saves that time.
    """

    def __init__(
        self,
        model_before: TransformerBridge,
        model_after: "TransformerBridge | WeightDelta | str | Path",
        *,
        reward: RewardLike = "logit_diff",
        answer_tokens: AnswerTokens = "first",
        baseline: BaselineKind = "counterfactual",
        upstream: Upstream = "surrogate",
        convention: linear.Convention = "definition",
        batch_size: int | None = None,
        progress: bool = True,
    ) -> None:
        if upstream == "exact":
            raise NotImplementedError("upstream='exact' is not implemented yet: use upstream='surrogate'.")
        if upstream != "surrogate":
            raise InputError(f"unknown upstream {upstream!r}: the choice is 'surrogate'.")
        if convention not in ("definition", "reference"):
            raise InputError(f"unknown convention {convention!r}: choose 'definition' or 'reference'.")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size is at least 1, not {batch_size}.")
        self.view = HookedView(model_before)
        self.reward = Reward.of(reward, answer_tokens)
        self.baseline: BaselineKind = baseline
        self.convention: linear.Convention = convention
        self.batch_size, self.progress = batch_size, progress
        if next(model_before.parameters()).dtype not in (torch.float32, torch.float64):
            _logger.warning("weights are cast up: scores are computed in float32")
        self.before = self.view.weights()
        self.after, described = self._weights_after(model_after)
        origin = provenance(model_before)
        self.attrs: dict[str, Any] = {
            "before": {
                "source": origin.source,
                "revision": origin.revision,
                "fingerprint": fingerprint(self.before),
            },
            "after": {**described, "fingerprint": fingerprint(self.after)},
            "options": {
                "reward": self.reward.name,
                "answer_tokens": answer_tokens,
                "baseline": baseline,
                "upstream": upstream,
                "convention": convention,
                "batch_size": batch_size,
            },
            "versions": {
                name: version(name) for name in ("ecstruct", "torch", "transformers", "transformer-lens")
            },
        }

    def _weights_after(
        self, after: "TransformerBridge | WeightDelta | str | Path"
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if isinstance(after, str | Path):
            if Path(after).suffix == ".safetensors":
                delta = WeightDelta.load(after)
                return self._with_delta(delta, str(after))
            after = load(after, device=self.view.device)
        if isinstance(after, WeightDelta):
            return self._with_delta(after, after.metadata.get("after", "a weight delta"))
        other = HookedView(after)
        check_same(self.view.named_weights, other.named_weights)
        weights = {name: w.to(self.view.device, self.view.dtype) for name, w in other.weights().items()}
        origin = provenance(after)
        return weights, {"source": origin.source, "revision": origin.revision}

    def _with_delta(self, delta: WeightDelta, source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return delta.added_to(self.before), {"source": source, "revision": None}

    def score(self, prompts: PromptsLike) -> ExtractiveScores:
        """Score one set of prompts; see `ecstruct.score`."""
        origin = provenance(self.view.model)
        tokenized = tokenize(
            prompts,
            origin.tokenizer,
            n_ctx=self.view.model.cfg.n_ctx,
            with_options=self.reward.needs_options,
        )
        lengths = [len(p.ids) for p in tokenized]
        every = self.reward.answer_tokens == "all"
        if every:
            tokenized = [with_answer(p, origin.tokenizer) for p in tokenized]
        longest = max(len(p.ids) for p in tokenized)
        batch_size = self.batch_size or max(1, TOKENS_PER_BATCH // longest)
        while True:
            try:
                job = cut(tokenized, batch_size, self.view.device, pad_id_of(origin.tokenizer), every)
                with _full_precision(), eval_mode(self.view.model):
                    assembly = self._run(job)
                return ExtractiveScores(assembly.dataset(lengths, self.attrs))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if batch_size == 1 or not is_out_of_memory(error):
                    raise
                batch_size = max(1, min(batch_size, len(tokenized)) // 2)
                _logger.warning("out of memory: trying again with batch_size=%d", batch_size)

    def _run(self, job: Job) -> Assembly:
        view = self.view
        keep = fits_in_memory(view, job.batches)
        before = Walk(view, self.before, job.batches, keep)
        after = Walk(view, self.after, job.batches, keep)
        baseline = Baseline(self.baseline, job.prompts, job.rows, view.device)
        dtype = np.dtype(str(view.dtype).removeprefix("torch."))
        out = Assembly(job.prompts, view.n_layers, view.n_heads, dtype)

        def see(layer: int, batch: int, trace: Trace) -> None:
            baseline.add(layer, "attn.o", batch, trace.taps["attn.o"].input)
            baseline.add(layer, "mlp.out", batch, trace.taps["mlp.out"].output)

        def change_of(sites: Mapping[str, Site]) -> dict[str, Tensor]:
            return linear.changed(self.before, self.after, sites, room)

        room: dict[str, Tensor] = {}
        steps = 3 * view.n_layers
        with tqdm(total=steps, desc="scoring", unit="block", disable=not self.progress) as bar:
            before.up(see, bar.update)
            after.up(tick=bar.update)
            change = change_of(view.head_sites)
            for b, rows in enumerate(job.rows):
                visit = self._read_out(before, BEFORE, b, job, out)
                self._read_out(after, AFTER, b, job, out)
                self._add_outside(view.head_sites, visit, change, rows, out)
            for layer in reversed(range(view.n_layers)):
                change = change_of(view.block_sites[layer])
                for b, rows in enumerate(job.rows):
                    self._score_block(layer, b, rows, before, after, baseline, change, out)
                bar.update()
            change = change_of(view.embed_sites)
            for b, rows in enumerate(job.rows):
                self._add_outside(view.embed_sites, before.to_embedding(b), change, rows, out)
        return out

    def _read_out(self, walk: Walk, state: int, b: int, job: Job, out: Assembly) -> Visit:
        batch = job.batches[b]
        rewards, visit = walk.read_out(b, job.positions[b], lambda logits: self.reward(logits, batch))
        if not torch.isfinite(rewards).all():
            text = job.prompts[job.rows[b][int((~torch.isfinite(rewards)).int().argmax())]].prompt.text
            raise InputError(
                f"the reward of {text!r} is NaN or infinite {('before', 'after')[state]} finetuning: "
                "look for NaN or infinite weights in that checkpoint."
            )
        out.put_reward(state, job.rows[b], rewards)
        return visit

    def _add_outside(
        self,
        sites: Mapping[str, Site],
        visit: Visit,
        change: dict[str, Tensor],
        rows: Sequence[int],
        out: Assembly,
    ) -> None:
        for name, site in sites.items():
            value = linear.contribution(site, visit, change)
            zero = torch.zeros(len(rows), device=self.view.device)
            out.add_rest(name, rows, zero if value is None else value.sum(1))

    def _score_block(
        self,
        layer: int,
        b: int,
        rows: Sequence[int],
        before: Walk,
        after: Walk,
        baseline: Baseline,
        change: dict[str, Tensor],
        out: Assembly,
    ) -> None:
        view, sites, convention = self.view, self.view.block_sites[layer], self.convention
        old = before.down(
            layer, b, inputs=("attn.o", "mlp.out"), outputs=list(sites), retain_graph=bool(change)
        )
        new = after.down(layer, b, inputs=("attn.o",), outputs=("attn.o", "mlp.out"))
        z_star = baseline.of(layer, "attn.o", b, old.input("attn.o"))
        y_star = baseline.of(layer, "mlp.out", b, old.output("mlp.out"))
        with torch.no_grad():
            z_at, hidden_at = self._at_new_inputs(layer, b, before, after, new)
            i = linear.informative(view, sites, old, self.before, change, convention)
            d_written = linear.pulled_back(sites, old, new, self.before)
            u = linear.upstream(view, old, new, d_written, z_star, y_star, convention)
            d = linear.downstream(view, old, z_at, hidden_at)
            r = linear.attribution(view, old, new, d_written, z_star, y_star)
        for name, which, (mlp, heads) in (
            ("", INFORMATIVE, (i.mlp, i.heads)),
            ("", UPSTREAM, u),
            ("", DOWNSTREAM, d),
            ("attribution_", BEFORE, r[BEFORE]),
            ("attribution_", AFTER, r[AFTER]),
        ):
            out.put_mlp(f"{name}mlp", which, rows, layer, mlp)
            out.put_heads(f"{name}heads", which, rows, layer, heads)
        for group, value in i.rest.items():
            out.add_rest(group, rows, value.sum(1))

    def _at_new_inputs(
        self, layer: int, b: int, before: Walk, after: Walk, new: Visit
    ) -> tuple[Tensor, Tensor]:
        """What the components of a block feed to their output projections when they run under W on the
        inputs seen under W'."""
        if self.convention == "definition":
            inputs = {"ln2": new.input("ln2")}
        else:
            inputs = {"attn": new.input("attn.q"), "mlp": new.input("mlp.in")}
        resid, call = after.resid(layer, b), before.call(layer, b)
        return self.view.writer_inputs(layer, self.before, call, resid, inputs)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Differences of two close states drown in the rounding of TF32."""
    old = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(old)
