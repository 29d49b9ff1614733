"""Is an answer right? `grade(prediction, gold)` says so with a `Verdict`, and never hangs.

Two paths. The exact path runs in the caller: normalised strings, integers and rationals, units, words, choices, clock
times, tuples, intervals, sets and lists. What is left (algebra) goes to a worker process, where math-verify's parser
makes sympy expressions of LaTeX and both sides are evaluated with many digits. A worker that takes too long is killed;
one that dies is replaced. `answers.py` states the rules of equality, `text.py` the caps that apply before sympy.
"""

from stepwise.grading.grader import (
    DEFAULT_TIMEOUT,
    GRADER_VERSION,
    Verdict,
    check_gold,
    grade,
    grade_many,
)
from stepwise.grading.reading import FoundAnswer, find_answer

__all__ = [
    "DEFAULT_TIMEOUT",
    "GRADER_VERSION",
    "FoundAnswer",
    "Verdict",
    "check_gold",
    "find_answer",
    "grade",
    "grade_many",
]
