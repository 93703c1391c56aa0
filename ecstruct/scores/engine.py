"""Fast scores of two models: `ecstruct.score` and the engine behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecstruct.engine.plan import halving, is_out_of_memory
from ecstruct.errors import InputError
from ecstruct.facts.prompt import PromptsLike, as_prompts
from ecstruct.facts.tokens import TokenizedPrompt
from ecstruct.io.distributed import Ranks
from ecstruct.io.values import checksum
from ecstruct.models.bridge import still
from ecstruct.options import (
    AnswerTokens,
    BaselineKind,
    CausalOptions,
    Convention,
    Propagation,
    ScoreOptions,
    Upstream,
)
from ecstruct.scores.ascent import Ascent
from ecstruct.scores.assemble import SCORES, Assembly
from ecstruct.scores.batching import cut, prompts_per_batch
from ecstruct.scores.causal import intervened
from ecstruct.scores.pair import ModelAfter, ModelBefore, Pair
from ecstruct.scores.passes import Passes
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.reward import Reward, RewardLike
from ecstruct.scores.shards import Shards


def score(
    before: ModelBefore,
    after: ModelAfter,
    prompts: PromptsLike,
    *,
    reward: RewardLike = "logit_diff",
    answer_tokens: AnswerTokens = "first",
    baseline: BaselineKind = "counterfactual",
    upstream: Upstream = "local",
    propagation: Propagation = "relevance",
    convention: Convention = "definition",
    path_steps: int = 1,
    projections: bool = False,
    verify: int = 0,
    batch_size: int | None = None,
    offload: bool = False,
    device: str | None = None,
    progress: bool = True,
) -> ExtractiveScores:
    """Compute informative, upstream and downstream scores of every MLP and attention head, per token.

    With g = dR/dy_C under W, g' under W', z_C the input of component C and y_C what it writes
    (Feng, Russell and Steinhardt 2024, arXiv 2412.04614; the linear forms of eq. 1, 2 and 4):

        I_C = dR/dW_C . dW_C       D_C = g_C . (f_C(z'_C, W_C) - y_C)
        U_C = (g'_C - g_C) . (y_C - y*_C)

    Positive raises the reward R; the unit is the reward's. Neither model is changed.

    Args:
        before: W, from `ecstruct.load`, or a source string as for it.
        after: W': a model, a `WeightDelta`, a source string as for `ecstruct.load`, the path of a
            saved delta, or the folder of a LoRA adapter of `before`.
        prompts: `Prompt`s, (text, answer) pairs, a `datasets.Dataset` or a JSONL file.
        reward: `"logit_diff"`, `"logprob"` or a function, see `ecstruct.scores.reward`.
        answer_tokens: with `"logprob"`, the answer's `"first"` token or `"all"` of them.
        baseline: y*, `"counterfactual"`, `"mean"` or `"zero"`, see `ecstruct.scores.baseline`.
        upstream: the weights under which g' is taken: `"local"`, all new, each block on its input under W;
            `"surrogate"`, all new, each block on its input under W', as in the paper; `"exact"`, only late
            weights new (eq. 5), which costs about 2 n_layers more forward passes.
        propagation: how g and g' of upstream scores are computed: as slopes by the rules of `"relevance"`,
            see `ecstruct.scores.relevance`, or as the `"gradient"`, as in the paper.
        convention: to which token each score is assigned, see `ecstruct.scores.linear`.
        path_steps: 1 takes the gradients of informative scores at W. k > 1 averages them along
            W + a (W' - W) at the k nodes of Gauss-Legendre quadrature, for k more forward and backward
            passes; informative scores and `rest` then sum to R(W') - R(W), see `.completeness`.
        projections: split informative scores by the matrix whose change they are of (q, k, v, o, in, gate,
            out, norm), see `ExtractiveScores.projections`.
        verify: how many of the strongest components by each score to verify by the intervention that the
            score estimates (`ecstruct.scores.causal`), see `ExtractiveScores.verified`.
        batch_size: prompts per batch; by default chosen from their lengths. Does not change scores.
            Halved when memory runs out.
        offload: leave both models, given as sources, on disk and read one block at a time, for models that
            do not fit into memory. Does not change scores.
        device: where to load models given as sources, by default a GPU if there is one; others stay.
        progress: show a progress bar.

    Raises:
        InputError: prompts or options are unusable, the models do not match, or a reward is NaN.
    """
    options = ScoreOptions.given(locals())
    return ScoreEngine(before, after, options, device=device, progress=progress).score(prompts)


class ScoreEngine:
    """An engine that holds two sets of weights of one architecture and scores prompts with them.

    Weights that are not offloaded are read once, so scoring several prompt sets with one engine saves that
    time.
    """

    def __init__(
        self,
        before: ModelBefore | Pair,
        after: ModelAfter | None = None,
        options: ScoreOptions | None = None,
        *,
        device: str | None = None,
        progress: bool = True,
        **given: Any,
    ) -> None:
        """Load and compare the models.

        Args:
            before, after: as for `ecstruct.score`; a `Pair` may replace both.
            options, given: the options of `ecstruct.score`, as one object or as keywords.
            device, progress: as for `ecstruct.score`.

        Raises:
            InputError: an option is unusable, or the models do not match.
        """
        self.options = ScoreOptions(**given) if options is None else replace(options, **given)
        self.reward = Reward.of(self.options.reward, self.options.answer_tokens)
        on_disk = self.options.offload and not isinstance(before, Pair)
        self.pair = (Pair.on_disk if on_disk else Pair.of)(before, after, device)
        n_components = self.pair.view.n_layers * (1 + self.pair.view.n_heads)
        if (verify := self.options.verify) > n_components:
            raise InputError(f"verify={verify} is more than the {n_components} components: give fewer.")
        self._progress = progress

    @property
    def attrs(self) -> dict[str, Any]:
        """What is needed to compute the scores again: sources, options, versions."""
        options = {name: value for name, value in vars(self.options).items() if name != "offload"}
        return self.pair.attrs(options | {"reward": self.reward.name})

    def like(self, **options: Any) -> "ScoreEngine":
        """Return an engine for the same models, with some other options."""
        return ScoreEngine(self.pair, None, replace(self.options, **options), progress=self._progress)

    def score(self, prompts: PromptsLike) -> ExtractiveScores:
        """Score one set of prompts; see `ecstruct.score`."""
        return self.score_and_ascent(prompts)[0]

    def score_and_ascent(self, prompts: PromptsLike) -> tuple[ExtractiveScores, Ascent | None]:
        """Score one set of prompts; return also the way up of all of them, for interventions, if they were
        walked in a single round."""
        scores, ascent = self._shared(prompts, Ranks())
        assert scores is not None  # a process on its own is the first rank
        return scores, ascent

    def score_across(
        self, prompts: PromptsLike, ranks: Ranks, folder: Path | None = None
    ) -> ExtractiveScores | None:
        """Score one set of prompts, sharing the work with other processes that call this method.

        Args:
            prompts: as for `ecstruct.score`.
            ranks: the processes; each one has an engine with the same models and options.
            folder: where finished parts of the work are kept, if there is more than one; parts found there
                are not computed again. Delete it once the scores are safe.

        Returns:
            The scores on the first rank, `None` on the others.

        Raises:
            InputError: as `ecstruct.score`; also if ranks differ, `folder` holds parts of another run, or
                memory runs out on one of several ranks.
        """
        return self._shared(prompts, ranks, folder)[0]

    def _shared(
        self, prompts: PromptsLike, ranks: Ranks, folder: Path | None = None
    ) -> tuple[ExtractiveScores | None, Ascent | None]:
        """Do what `shared` does; return also the ascent of all prompts, if they took a single round."""
        prompts = as_prompts(prompts)  # they are read twice
        tokenized, lengths = self.pair.tokenize(prompts, self.reward)
        batch_size = self.options.batch_size or prompts_per_batch(tokenized)
        identity = self._identity(tokenized)
        ranks.agree({**identity, "batch_size": str(batch_size)})
        shards = self._shards(folder, identity)
        passes = Passes(self.pair, self.reward, self.options, self._progress and ranks.first, ranks, shards)
        every = self.reward.answer_tokens == "all"

        def run(size: int) -> tuple[Assembly | None, Ascent | None]:
            job = cut(tokenized, size, self.pair.view.device, self.pair.pad_id, every)
            with still(self.pair.view.model):
                return passes.run(job)

        size = min(batch_size, len(tokenized))
        try:
            assembly, ascent = halving(size, run) if ranks.size == 1 else run(size)
        except RuntimeError as error:
            if ranks.size == 1 or size == 1 or not is_out_of_memory(error):
                raise
            raise InputError(
                f"rank {ranks.rank} is out of memory with batch_size={batch_size}: pass batch_size="
                f"{size // 2}, which goes on from what is finished."
            ) from error
        if assembly is None:
            return None, None
        scores = ExtractiveScores(assembly.dataset(lengths, self.attrs))
        if self.options.verify:
            interventions = intervened(
                self.pair,
                prompts,
                CausalOptions.given(vars(self.options)),
                components={kind: scores.top(self.options.verify, kind) for kind in SCORES},
                ascent=ascent,
                progress=self._progress,
            )
            scores = scores.verified(interventions)
        return scores, ascent

    def identity(self, prompts: PromptsLike) -> dict[str, str]:
        """Return everything that scores of these prompts depend on, by names that can go into a message."""
        return self._identity(self.pair.tokenize(prompts, self.reward)[0])

    def _shards(self, folder: Path | None, identity: Mapping[str, str]) -> Shards | None:
        if folder is None:
            return None
        self.reward.check_is_known_by_name()
        return Shards(folder, identity)

    def _identity(self, prompts: Sequence[TokenizedPrompt]) -> dict[str, str]:
        """Like `identity`, for prompts that are tokenized already."""
        attrs = self.attrs
        return {
            **{f"the weights {state}": attrs[state]["fingerprint"] for state in ("before", "after")},
            "the prompts": f"{len(prompts)} with checksum {checksum(prompts)}",
            **self.options.identity(),
            "reward": self.reward.name,
            "dtype": str(self.pair.view.dtype),
            **{f"{name}'s version": found for name, found in attrs["versions"].items()},
        }
