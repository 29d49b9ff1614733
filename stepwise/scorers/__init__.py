"""Process reward models behind one protocol: the probability that each step is right, given all before it."""

from stepwise.scorers.base import Item, Scored, Scorer, score_items, validate_scores
from stepwise.scorers.label_token import LabelTokenScorer
from stepwise.scorers.load import load_scorer
from stepwise.scorers.simple import ConstantScorer, PerfectScorer

__all__ = [
    "ConstantScorer",
    "Item",
    "LabelTokenScorer",
    "PerfectScorer",
    "Scored",
    "Scorer",
    "load_scorer",
    "score_items",
    "validate_scores",
]
