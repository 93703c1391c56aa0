"""The three scores of a component: informative, upstream, downstream."""

from ecstruct.scores.assemble import SCORES
from ecstruct.scores.causal import causal_scores
from ecstruct.scores.engine import ScoreEngine, score
from ecstruct.scores.result import ExtractiveScores

__all__ = ["SCORES", "ExtractiveScores", "ScoreEngine", "causal_scores", "score"]
