"""The loop between both papers: route, learn from what was escalated and from what failed, and route again."""

from stepwise.rounds.learning import LoopSettings, loop
from stepwise.rounds.results import LoopPoint, LoopResult, LoopRound

__all__ = ["LoopPoint", "LoopResult", "LoopRound", "LoopSettings", "loop"]
