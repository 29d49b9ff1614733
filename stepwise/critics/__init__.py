"""ErrorLocalizer, InterventionProposer, StepJudge, StepDecider: DSPy modules, one idea each.

What differs from InT's pipeline (arXiv 2601.14209):
1. Verification and intervention are two modules with typed outputs, so that each can be measured, optimized and
   replaced alone; the solution the paper's model writes first is an input of the second one (`solve_first`).
2. The self-check is a call of its own (`revisions`), and what it finds goes back to the model as advice.
3. A reply that cannot be read, or names a step that does not exist, is asked for once more and then is a failure that
   is kept, not a row that is dropped.
4. An input that is too long loses its middle, never the end of the attempt.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepwise.critics.judge import StepDecider, StepJudge
    from stepwise.critics.localizer import ErrorLocalizer
    from stepwise.critics.module import run_all
    from stepwise.critics.proposer import InterventionProposer
    from stepwise.critics.rewriter import SolutionRewriter
    from stepwise.critics.seeded import ask_all, model_name

REFERENCE = "reference"
"""the name of the critic that asks no model"""
_HOME = {
    "ErrorLocalizer": "localizer",
    "InterventionProposer": "proposer",
    "SolutionRewriter": "rewriter",
    "StepDecider": "judge",
    "StepJudge": "judge",
    "ask_all": "seeded",
    "model_name": "seeded",
    "run_all": "module",
}
__all__ = [
    "REFERENCE",
    "ErrorLocalizer",
    "InterventionProposer",
    "SolutionRewriter",
    "StepDecider",
    "StepJudge",
    "ask_all",
    "model_name",
    "run_all",
]


def __getattr__(name: str) -> Any:  # DSPy is imported when a module is first used
    if name not in _HOME:
        raise AttributeError(f"module 'stepwise.critics' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stepwise.critics.{_HOME[name]}"), name)
