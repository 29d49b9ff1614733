"""The true first error as a DSPy metric: a score for every optimizer, and words for those that learn from words (GEPA).

    trainset = training_examples(read_rows("train.jsonl"))
    dspy.GEPA(metric=first_error_metric, ...).compile(ErrorLocalizer(lm), trainset=trainset)

The score is ProcessBench's, per attempt (arXiv 2412.06559): 1 where exactly the first wrong step is named, or rightly
none; nothing for a near miss, and nothing for a failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import dspy

from stepwise.critics.inputs import as_steps
from stepwise.critics.signatures import numbered, shifted
from stepwise.data.processbench import ProcessBenchRow
from stepwise.errors import DataError

_SHOWN = re.compile(r"^\[(\d+)\] ", re.MULTILINE)  # as `numbered` begins each step


def training_examples(examples: Iterable[ProcessBenchRow]) -> list[dspy.Example]:
    """`dspy.Example`s for `ErrorLocalizer`: problem, steps and (if known) reference as inputs, first_error as the gold.

    They also hold the attempt as prompts show it, so that DSPy's few-shot optimizers can show labelled examples too.

    >>> from stepwise.data.processbench import from_row
    >>> row = from_row({"id": "1", "problem": "1 + 1?", "steps": ["It is 3."], "label": 0}, "row 1")
    >>> training_examples([row])[0].first_error
    0
    """
    made = []
    for problem, trace, localization, _ in examples:
        steps = [step.text for step in trace.steps]
        given = {"problem": problem.question, "steps": steps}
        if problem.reference is not None:
            given["reference"] = problem.reference
        gold = dspy.Example(**given, attempt=numbered(steps), first_error=localization.first_error)
        made.append(gold.with_inputs(*given))
    return made


def first_error_metric(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
    """1.0 where `pred` says what `gold.first_error` says (None: every step is right), else 0.0; for any localizer.

    Asked about one predictor (`pred_name`, as GEPA does) it is a `dspy.Prediction` with `score` and `feedback`, which
    speaks of the call in `pred_trace`, counting steps as its prompt does. `gold.steps`, where there, are quoted. Raises
    DataError where `gold.first_error` is missing or names no step.

    >>> gold = dspy.Example(problem="1 + 1?", steps=["It is 3."], first_error=0)
    >>> first_error_metric(gold, dspy.Prediction(first_error=0, failure=None))
    1.0
    """
    first, steps = _gold(gold)
    score = float(_said(pred) == ("said", first))
    if pred_name is None:
        return score
    return dspy.Prediction(score=score, feedback=_feedback(first, steps, pred, pred_trace))


def _gold(gold: Any) -> tuple[int | None, Sequence[str]]:
    if "first_error" not in gold:
        raise DataError("the gold example has no first_error; give the index of the first wrong step, or None")
    first, steps = gold["first_error"], as_steps(gold["steps"]) if gold.get("steps") else []
    if first is None:
        return None, steps
    if not isinstance(first, int) or isinstance(first, bool) or first < 0 or (steps and first >= len(steps)):
        raise DataError(
            f"gold.first_error is {first!r}; it counts from 0"
            + (f" to {len(steps) - 1}" if steps else "")
            + ", and is None where every step is right"
        )
    return first, steps


def _said(pred: Any) -> tuple[str, int | None]:
    """What was said; ("failed", None) is equal to no gold."""
    failed = pred is None or pred.get("failure") is not None or "first_error" not in pred
    return ("failed", None) if failed else ("said", pred["first_error"])


def _feedback(first: int | None, steps: Sequence[str], pred: Any, pred_trace: Any) -> str:
    call = pred_trace[-1] if pred_trace else None
    begin = _SHOWN.match(call[1].get("attempt", "")) if call is not None else None
    base = int(begin[1]) if begin else 0
    parts = []
    if call is not None and "right" in call[2]:
        parts.append(_on_prefix(first, steps, base, call[1].get("attempt", ""), call[2]["right"]))
    elif call is not None and "first_error" in call[2]:  # one vote of several may say something else than the majority
        parts.append(_on_verdict(first, steps, base, shifted(dict(call[2].items()), -base)["first_error"]))
    elif _said(pred)[0] == "said":
        parts.append(_on_verdict(first, steps, base, pred["first_error"]))
    else:
        why = (pred.get("failure") if pred is not None else None) or "the program raised an error"
        parts.append(f"There is no result, which counts as wrong ({why}). {_truth(first, steps, base)}")
    for name, words in (("repairs", "The first reply could not be read: "), ("warnings", "Note: ")):
        parts += [f"{words}{text}." for text in (pred.get(name) if pred is not None else None) or []]
    return " ".join(parts)


def _on_verdict(first: int | None, steps: Sequence[str], base: int, said: int | None) -> str:
    """On what was said of all steps; `base` is the number of the first step in texts for people and models."""
    truth = _truth(first, steps, base)
    if said == first:
        return f"Right. {truth}"
    if said is None:
        return f"You found no error, but there is one. {truth}"
    if first is None:
        return f"You named step {said + base}, but no step is wrong.{_quoted(said, steps)}"
    earlier = "The steps before it are right." if said < first else f"You passed step {first + base} as right."
    return f"You named step {said + base}. {truth} {earlier}"


def _on_prefix(first: int | None, steps: Sequence[str], base: int, attempt: str, right: bool) -> str:
    """On a call that was shown the steps up to some place, and said whether they are all right."""
    shown = len(_SHOWN.findall(attempt))
    truly, truth = first is None or first >= shown, _truth(first, steps, base)
    said = f"that {'all are right' if right else 'one is wrong'}"
    verdict = f"You were shown steps {base} to {shown - 1 + base} and said {said}"
    if right == truly:
        return f"Right. {verdict}. {truth}"
    return f"{verdict}, but {'they are all right' if truly else 'one is wrong'}. {truth}"


def _truth(first: int | None, steps: Sequence[str], base: int) -> str:
    return "No step is wrong." if first is None else f"The first wrong step is {first + base}.{_quoted(first, steps)}"


def _quoted(index: int, steps: Sequence[str]) -> str:
    return f' It says: "{" ".join(steps[index].split())[:500]}"' if 0 <= index < len(steps) else ""
