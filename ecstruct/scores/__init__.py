"""The three scores of a component: informative, upstream, downstream."""

from ecstruct.scores.engine import ScoreEngine, score
from ecstruct.scores.result import ExtractiveScores

__all__ = ["ExtractiveScores", "ScoreEngine", "score"]
