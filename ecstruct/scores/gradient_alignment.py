"""Alignment of gradients before finetuning: what a step on a fact does to an implication, by component.

With the loss L_F that finetuning minimises on a fact F (mean cross-entropy of the answer's tokens, in
nats), the reward R_I of an implication I, and both gradients at the original weights W,

    A_C(F, I) = d_C(F) . dR_I/dW_C

for the weights W_C of a component C and one of these directions d:

    sgd       d = -dL_F/dW
    sign      d = sign(-dL_F/dW), Adam's first step
    adam      d = -dL_F/dW / (sqrt(v) + 1e-8), where v is the mean over all facts of (dL_F/dW)^2
    cosine    as sgd, divided by |dL_F/dW| |dR_I/dW|

So lr A is the change of the reward, to first order, by one step of that optimiser on the fact alone:
**positive raises the reward**. The published code of Feng, Russell and Steinhardt (ICML 2025) has the same
four products. v is the second moment of the gradients of single facts at W, weight by weight.

A_C(F, I) is the informative score that the component would have if d(F) were the change of weights. So the
shares of heads are those of informative scores, also where heads share keys and values or a pre-norm, and
with `rest` all shares sum to the whole product. The norms of the cosine are of all weights together, so
that its shares sum to the cosine of the two gradients. Embeddings and unembedding are left out, as
finetuning leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ecstruct.cost import Bar
from ecstruct.engine.plan import halving
from ecstruct.engine.session import Model, Session
from ecstruct.errors import InputError
from ecstruct.facts.fact_set import FactSet
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.facts.tokens import MISSING, Batch, TokenizedPrompt
from ecstruct.models.bridge import still
from ecstruct.models.finite import finite
from ecstruct.models.provenance import versions
from ecstruct.models.sites import Site
from ecstruct.options import AlignmentOptions, AnswerTokens
from ecstruct.scores import linear
from ecstruct.scores.alignment_result import FORMS, Alignment
from ecstruct.scores.assemble import numpy_dtype
from ecstruct.scores.batching import Job, cut, fits_in_memory, prompts_per_batch, with_answer
from ecstruct.scores.reward import Reward, RewardLike, logprob
from ecstruct.scores.walk import Descent, RewardOfLogits, Visit, Walk

EPSILON = 1e-8
"""Adam's, of torch.optim."""

Sites = dict[str, Site]


def alignment(
    model: Model,
    facts: FactSet | PromptsLike,
    implications: PromptsLike | None = None,
    *,
    reward: RewardLike = "logit_diff",
    answer_tokens: AnswerTokens = "first",
    progress: bool = True,
) -> Alignment:
    """Compute how far the gradients of facts and implications are aligned before finetuning.

    The product of every fact with every implication is computed, component by component, in the four forms
    of `ecstruct.scores.gradient_alignment`. It takes two forward passes, two backward passes, and a pass
    for every fact and form.

    Args:
        model: the model that is to be finetuned, from `ecstruct.load`, or a source for it; it is not
            changed.
        facts: what it would be finetuned on, as for `ecstruct.finetune`; or a `FactSet`, whose derivations
            say which facts each implication follows from.
        implications: prompts, as for `ecstruct.score`, one for each fact in their order; by default those
            of the fact set.
        reward, answer_tokens: what an implication's gradient is of, as for `ecstruct.score`.
        progress: show a progress bar.

    Raises:
        InputError: prompts or options are unusable, it is not known which implication follows from which
            fact, or a loss or a reward is not finite.
    """
    options = AlignmentOptions.given(locals())
    data, pairs = _paired(facts, implications)
    session, asked = Session.of(model), Reward.of(options.reward, options.answer_tokens)
    every = asked.answer_tokens == "all"
    tokenizer, view = session.tokenizer, session.view
    taught = [with_answer(t, tokenizer) for t in session.tokenize(data.facts, with_options=False)]
    questions = session.tokenize(data.implications, with_options=asked.needs_options)
    if every:
        questions = [with_answer(t, tokenizer) for t in questions]

    def run(size: int) -> _Products:
        with (
            Bar(3 * view.n_layers, "alignment", unit="layer", disable=not progress) as bar,
            still(view.model),
        ):
            walked = (
                _Walked.up(session, taught, size, True, _minus_loss, bar),
                _Walked.up(session, questions, size, every, asked.of_batch, bar),
            )
            products = _Products(session, *walked)
            products.compute(bar)
        return products

    products = halving(max(map(prompts_per_batch, (taught, questions))), run)
    attrs = {
        "model": dict(session.described),
        "options": vars(options) | {"reward": asked.name},
        "versions": versions(),
    }
    return Alignment(products.dataset(data, pairs, attrs))


def _paired(facts: FactSet | PromptsLike, implications: PromptsLike | None) -> tuple[FactSet, np.ndarray]:
    """Return facts and implications, and a mask [fact, implication] of which implication follows from which
    fact; raise `InputError` if that is not known, or there are no implications."""
    if not isinstance(facts, FactSet):
        facts = FactSet(as_prompts(facts), ())
    if implications is not None:
        facts = FactSet(facts.facts, as_prompts(implications), facts.name)
    n_facts, n_implications = len(facts.facts), len(facts.implications)
    if not n_implications:
        raise InputError("there are no implications: pass implications=, or a FactSet that has some.")
    pairs = np.zeros((n_facts, n_implications), bool)
    if facts.derivations:
        for i, derivation in enumerate(facts.derivations):
            pairs[list(derivation.facts), i] = True
        if not pairs.any():
            raise InputError(
                "no implication follows from any of the facts: name the facts in the derivations of the "
                "FactSet."
            )
    elif n_facts == n_implications:
        np.fill_diagonal(pairs, True)
    else:
        raise InputError(
            f"{n_implications} implications cannot be paired with {n_facts} facts one to one: give as "
            "many, or a FactSet whose derivations say which facts each one follows from."
        )
    return facts, pairs


def _minus_loss(batch: Batch) -> RewardOfLogits:
    """Return a function from logits to minus the loss of every fact of a batch, in nats, [batch]."""
    n_tokens = (batch.answer_ids != MISSING).sum(1)
    return lambda logits: logprob(logits, batch) / n_tokens


@dataclass(frozen=True)
class _Walked:
    """Prompts whose walk is up, and the descent that has begun; `read` has the visit of the head for every
    batch."""

    job: Job
    walk: Walk
    descent: Descent
    read: list[Visit]

    @classmethod
    def up(
        cls,
        session: Session,
        prompts: list[TokenizedPrompt],
        size: int,
        every: bool,
        reward_of: Callable[[Batch], RewardOfLogits],
        bar: Bar,
    ) -> _Walked:
        view = session.view
        job = cut(prompts, size, view.device, session.pad_id, every)
        walk = Walk(view, session.weights, job.batches, fits_in_memory(view, job.batches))
        walk.up(tick=bar.update)
        descent, read = Descent(walk), []
        for b, batch in enumerate(job.batches):
            values, visit = descent.read_out(b, job.positions[b], reward_of(batch))
            finite(values, "losses or rewards")
            read.append(visit)
        return cls(job, walk, descent, read)

    def down(self, layer: int, sites: Sites, inputs: Sequence[str] = ()) -> list[Visit]:
        """Return the visits of one block, by batch; its graphs are kept until `free` is called."""
        batches = range(len(self.job.batches))
        return [self.descent.down(layer, b, inputs, list(sites), retain_graph=True) for b in batches]

    def free(self, layer: int) -> None:
        for b in range(len(self.job.batches)):
            self.walk.free(layer, b)

    def rows(self, visits: Sequence[Visit]) -> Iterator[tuple[int, Visit, int]]:
        """Yield each prompt's index, the visit that it is part of, and its row there."""
        for rows, visit in zip(self.job.rows, visits, strict=True):
            for place, row in enumerate(rows):
                yield row, visit, place


class _Products:
    """The products A of every fact with every implication, in all forms, added up layer by layer."""

    def __init__(self, session: Session, facts: _Walked, implications: _Walked) -> None:
        self._session, self._facts, self._implications = session, facts, implications
        view = session.view
        self._shape = len(FORMS), len(facts.job.prompts), len(implications.job.prompts)
        self._dtype = numpy_dtype(view.dtype)
        self._mlp = np.zeros((*self._shape, view.n_layers), self._dtype)
        self._heads = np.zeros((*self._shape, view.n_layers, view.n_heads), self._dtype)
        self._rest: dict[str, np.ndarray] = {}
        self._squares = [np.zeros(n) for n in self._shape[1:]]
        """|dL_F/dW|^2 of every fact, and |dR_I/dW|^2 of every implication."""

    def compute(self, bar: Bar) -> None:
        """Compute all products on one way down the blocks."""
        view = self._session.view
        norms = {name: site for name, site in view.head_sites.items() if name == "ln_final"}
        for form, fact, direction in self._directions(norms, self._facts.read, self._implications.read):
            for rows, visit in zip(self._implications.job.rows, self._implications.read, strict=True):
                for name, site in norms.items():
                    self._add_rest(name, form, fact, rows, linear.contribution(site, visit, direction))
        for layer in reversed(range(view.n_layers)):
            sites = view.block_sites[layer]
            visits = self._facts.down(layer, sites), self._implications.down(layer, sites, ["attn.o"])
            for form, fact, direction in self._directions(sites, *visits):
                self._add(layer, form, fact, direction, visits[1])
            self._facts.free(layer)
            self._implications.free(layer)
            bar.update()
        for array in (self._mlp, self._heads, *self._rest.values()):
            finite(torch.from_numpy(array), "products of gradients")
        sgd, cosine = FORMS.index("sgd"), FORMS.index("cosine")
        lengths = np.sqrt(np.outer(*self._squares))
        with np.errstate(invalid="ignore"):  # a gradient of zero has no direction
            for array in (self._mlp, self._heads, *self._rest.values()):
                array[cosine] = array[sgd] / lengths.reshape(*lengths.shape, *[1] * (array.ndim - 3))

    def _add(
        self, layer: int, form: int, fact: int, direction: dict[str, Tensor], visits: Sequence[Visit]
    ) -> None:
        view, weights = self._session.view, self._session.weights
        for rows, visit in zip(self._implications.job.rows, visits, strict=True):
            with torch.no_grad():
                sites = view.block_sites[layer]
                found = linear.informative(view, sites, visit, weights, direction, "definition")
            self._mlp[form, fact, rows, layer] = found.mlp.sum(1).cpu()
            self._heads[form, fact, rows, layer] = found.heads.sum(1).cpu()
            for group, value in found.rest.items():
                self._add_rest(group, form, fact, rows, value)

    def _add_rest(
        self, group: str, form: int, fact: int, rows: Sequence[int], value: Tensor | None
    ) -> None:
        if value is not None:
            of_group = self._rest.setdefault(group, np.zeros(self._shape, self._dtype))
            of_group[form, fact, rows] += value.sum(1).cpu().numpy()

    def _directions(
        self, sites: Sites, of_facts: Sequence[Visit], of_implications: Sequence[Visit]
    ) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
        """Yield (form, fact, d) for the weights of some sites, and add up the squares of their gradients.

        The gradients of a fact are computed twice, as those of all facts would take too much memory."""
        second: dict[str, Tensor] = {}
        for fact, visit, row in self._facts.rows(of_facts):
            for name, gradient in self._gradient(sites, visit, row).items():
                square = gradient.square()
                self._squares[0][fact] += float(square.sum(dtype=torch.float64))
                share = square / len(self._facts.job.prompts)
                second[name] = second[name] + share if name in second else share
        scale = {name: v.sqrt() + EPSILON for name, v in second.items()}
        for implication, visit, row in self._implications.rows(of_implications):
            for gradient in self._gradient(sites, visit, row).values():
                square = float(gradient.square().sum(dtype=torch.float64))
                self._squares[1][implication] += square
        for fact, visit, row in self._facts.rows(of_facts):
            gradients = self._gradient(sites, visit, row)
            yield FORMS.index("sgd"), fact, gradients
            yield FORMS.index("sign"), fact, {name: g.sign() for name, g in gradients.items()}
            yield FORMS.index("adam"), fact, {name: g / scale[name] for name, g in gradients.items()}

    def _gradient(self, sites: Sites, visit: Visit, row: int) -> dict[str, Tensor]:
        """Return dR/dW of one prompt, `row` of a visit, for the weights of some sites, by name."""
        found: dict[str, Tensor] = {}
        for name, site in sites.items():
            x = visit.input(name)
            d_output = visit.d_output[name][row : row + 1]
            found |= site.gradient(x[row : row + 1], d_output, self._session.weights)
        return found

    def dataset(self, data: FactSet, pairs: np.ndarray, attrs: dict) -> xr.Dataset:
        """Return the dataset that `Alignment` wraps."""
        of_pair = ("form", "fact", "implication")
        rest = np.stack([*self._rest.values()], -1) if self._rest else np.zeros((*self._shape, 0))
        described = {
            f"{kind}_{what}": (kind, [getattr(prompt, what) for prompt in prompts])
            for kind, prompts in (("fact", data.facts), ("implication", data.implications))
            for what in ("text", "answer")
        }
        return xr.Dataset(
            {
                "mlp": ((*of_pair, "layer"), self._mlp),
                "heads": ((*of_pair, "layer", "head"), self._heads),
                "rest": ((*of_pair, "group"), rest),
                "pair": (of_pair[1:], pairs),
            },
            {
                "form": list(FORMS),
                **{name: np.arange(n) for name, n in zip(of_pair[1:], self._shape[1:], strict=True)},
                "layer": np.arange(self._mlp.shape[-1]),
                "head": np.arange(self._heads.shape[-1]),
                "group": np.array([*self._rest], dtype=object),
                **described,
            },
            attrs,
        )
