"""How well first errors are found, as ProcessBench measures it, and localizers that need no language model.

The metric is ProcessBench's (arXiv 2412.06559, section 4): the share of wrong attempts whose earliest wrong step is
named exactly, the share of right attempts of which it is said that nothing is wrong, and the harmonic mean F1 of the
two, per subset. What differs from the paper:
1. An attempt is wrong when it has a wrong step (label >= 0), whatever its final answer; the two are not the same.
2. A localization that failed (no answer, or one that could not be read) is a miss in either class, and is counted.
3. A subset without wrong or without right attempts has no F1 (None, not 0), and every F1 has a bootstrap interval.
4. What a guess by position alone reaches stands beside it (`position_prior`, `blind_f1`).

Shares, F1 and intervals are in percent.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from stepwise.data.processbench import ProcessBenchRow
from stepwise.errors import DataError
from stepwise.records import record
from stepwise.seeds import rng as seeded
from stepwise.stats import Interval, bootstrap, percentile
from stepwise.types import Usage

_STEP_LABEL = re.compile(r"\s*(?:#+|\**)\s*step\s+\d+\s*[:.)]", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+")


@record()
class Outcome:
    """What a localizer said of one attempt, and what that cost.

    `first_error` is a 0-based step index, None where it said that every step is right. A text in `error` means that it
    said nothing that can be used. `repairs` counts replies that had to be asked for a second time.

    >>> Outcome(first_error=2, repairs=1).first_error
    2
    """

    first_error: int | None
    error: str = ""
    repairs: int = 0
    usage: Usage = Usage()


Localizer = Callable[[ProcessBenchRow], Outcome]


class LocalizationCounts(NamedTuple):
    """Attempts of one subset: the wrong ones, those among them whose first error was `found`; the right ones, those
    among them that were `cleared`.

    >>> LocalizationCounts(found=1, wrong=2, cleared=3, right=3).f1  # harmonic mean of 50 % and 100 %
    66.66666666666667
    """

    found: int
    wrong: int
    cleared: int
    right: int

    @property
    def acc_err(self) -> float | None:
        """Percent of wrong attempts whose first error was named exactly, None without wrong attempts."""
        return 100 * self.found / self.wrong if self.wrong else None

    @property
    def acc_cor(self) -> float | None:
        """Percent of right attempts of which it was said that nothing is wrong, None without right attempts."""
        return 100 * self.cleared / self.right if self.right else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of the two in percent; 0 when both are 0, None when one of them is None."""
        if not self.wrong or not self.right:
            return None
        return float(_f1(np.array(self.found / self.wrong), np.array(self.cleared / self.right)))


def count(outcomes: Sequence[Outcome], examples: Sequence[ProcessBenchRow]) -> LocalizationCounts:
    """Compare outcomes with labels, in the same order; raises `DataError` when there are not equally many.

    >>> from stepwise.data.processbench import from_row
    >>> row = from_row({"id": "1", "problem": "1 + 1?", "steps": ["It is 3."], "label": 0}, "row 1")
    >>> count([Outcome(0)], [row]).found
    1
    """
    if len(outcomes) != len(examples):
        raise DataError(f"count: {len(outcomes)} outcomes for {len(examples)} attempts; give one per attempt, in order")
    found = wrong = cleared = 0
    for outcome, example in zip(outcomes, examples, strict=True):
        first = example.localization.first_error
        hit = not outcome.error and outcome.first_error == first
        wrong += first is not None
        found += hit and first is not None
        cleared += hit and first is None
    return LocalizationCounts(found, wrong, cleared, len(examples) - wrong)


def mean_f1(
    subsets: Sequence[LocalizationCounts], *, samples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Interval | None:
    """Mean of the subsets' F1 in percent (of one subset: its F1), with a percentile bootstrap interval over attempts.

    Attempts are drawn anew within each subset. None when there is no subset, or one without F1. Draws that leave a
    subset without one of the classes have no F1 and are left out. Deterministic for a given `seed`.

    >>> mean_f1([LocalizationCounts(1, 2, 3, 3)], samples=100).value
    66.66666666666667
    """
    values = [subset.f1 for subset in subsets]
    if not values or None in values:
        return None
    mean = sum(value or 0.0 for value in values) / len(values)
    rng = np.random.default_rng(seed)
    total = np.zeros(samples)
    for found, wrong, cleared, right in subsets:
        # F1 depends on four counts alone, so that drawing these is drawing rows.
        cells = np.array([found, wrong - found, cleared, right - cleared])
        hit, missed, kept, lost = rng.multinomial(cells.sum(), cells / cells.sum(), size=samples).T
        with np.errstate(invalid="ignore"):
            total += _f1(hit / (hit + missed), kept / (kept + lost))
    return percentile([mean, *(total / len(subsets)).tolist()], confidence)


def _f1(acc_err: np.ndarray, acc_cor: np.ndarray) -> np.ndarray:
    """Percent from two shares in [0, 1]; 0 where both are 0, nan where one is nan."""
    total = acc_err + acc_cor
    return np.asarray(200 * acc_err * acc_cor / np.where(total == 0, 1, total))


def position_prior(examples: Iterable[ProcessBenchRow]) -> tuple[float, ...]:
    """Share of the wrong attempts, in percent, whose first error is at step 0, 1, ...; empty without wrong attempts.

    The largest is what the best constant guess reaches on wrong attempts.

    >>> from stepwise.data.processbench import from_row
    >>> row = from_row({"id": "1", "problem": "1 + 1?", "steps": ["It is 3."], "label": 0}, "row 1")
    >>> position_prior([row])
    (100.0,)
    """
    places = Counter(first for e in examples if (first := e.localization.first_error) is not None)
    return tuple(100 * places[i] / places.total() for i in range(max(places, default=-1) + 1))


def blind_f1(prior: Sequence[float]) -> float | None:
    """The best F1 in percent that can be had without reading the attempt, None without wrong attempts.

    Saying "no error" with probability q, else naming the most frequent place, which is right in a share a of the wrong
    attempts: 2 a q (1 - q) / (q + a (1 - q)) is largest at q / (1 - q) = sqrt(a), where it is 2 a / (1 + sqrt(a))^2.
    A constant guess by itself has F1 0: it misses every right attempt.

    >>> round(blind_f1([40.0, 60.0]), 1)
    38.1
    """
    if not prior:
        return None
    a = max(prior) / 100
    return float(200 * a / (1 + a**0.5) ** 2)


class _AboveConstant(NamedTuple):
    """Of `wrong` attempts, those whose first error was `found`, and those that always saying step `place` hits
    (`guessed`); the difference in percent of the wrong attempts, None without any.
    """

    wrong: int
    found: int
    guessed: int
    place: int
    difference: Interval | None

    def __str__(self) -> str:
        if self.difference is None:
            return "no wrong attempt to find an error in"
        value, low, high = self.difference
        verdict = "above a guess" if low > 0 else "not to be told from a guess" if high >= 0 else "below a guess"
        return (
            f"{self.found} of {self.wrong} first errors; always saying step {self.place}: {self.guessed}; difference "
            f"{value:+.0f} points (95 %: {low:+.0f} to {high:+.0f}): {verdict}"
        )


def above_constant(
    outcomes: Sequence[Outcome], examples: Sequence[ProcessBenchRow], *, seed: int = 0
) -> _AboveConstant:
    """How far a localizer is above guessing a constant position, on the wrong attempts of `examples`, paired.

    The position is the best one in hindsight (the last step of a shorter attempt stands for it), so the guess has an
    advantage where attempts are few. The interval is from a bootstrap over attempts.

    >>> from stepwise.data.processbench import from_row
    >>> rows = [from_row({"problem": "?", "steps": ["a", "b"], "label": label}) for label in (0, 0, 0, 1)]
    >>> print(above_constant([Outcome(0), Outcome(0), Outcome(0), Outcome(1)], rows))
    4 of 4 first errors; always saying step 0: 3; difference +25 points (95 %: +0 to +75): not to be told from a guess
    """
    counts = count(outcomes, examples)
    wrong = [
        (outcome, len(example.trace.steps), first)
        for outcome, example in zip(outcomes, examples, strict=True)
        if (first := example.localization.first_error) is not None
    ]
    if not wrong:
        return _AboveConstant(0, 0, 0, 0, None)
    longest = max(steps for _, steps, _ in wrong)
    hits = [[min(guess, steps - 1) == first for _, steps, first in wrong] for guess in range(longest)]
    place = max(range(longest), key=lambda guess: (sum(hits[guess]), -guess))
    named = [not outcome.error and outcome.first_error == first for outcome, _, first in wrong]
    gains = 100 * (np.array(named, float) - np.array(hits[place], float))
    difference = bootstrap(lambda index: float(gains[index].mean()), len(wrong), seed=seed)
    return _AboveConstant(counts.wrong, counts.found, sum(hits[place]), place, difference)


def first_below(scores: Sequence[float], threshold: float) -> int | None:
    """Index of the first step whose score is under `threshold`, None where there is none.

    >>> first_below([0.9, 0.4, 0.1], 0.5)
    1
    """
    return next((i for i, score in enumerate(scores) if score < threshold), None)


def best_threshold(scores: Sequence[Sequence[float] | None], examples: Sequence[ProcessBenchRow]) -> float:
    """The threshold in [0, 1] with which `first_below` has the highest F1 on `examples`; of several, the middle one.

    None in place of a solution's scores is a miss at every threshold. Raises `DataError` when wrong or right attempts
    are lacking, or a solution has another number of scores than steps. Choose it on other rows than those it is
    measured on: `refuse_shared`.

    Example:
        threshold = best_threshold(scores, tuning)  # chosen on `tuning`, measured on other rows
    """
    _both_classes(examples)
    bounds: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    total: Counter[bool] = Counter()
    for values, (problem, trace, localization, _) in zip(scores, examples, strict=True):
        first = localization.first_error
        total[first is not None] += 1
        if values is None:
            continue
        if len(values) != len(trace.steps):
            raise DataError(f"problem {problem.id!r}: {len(values)} scores for {len(trace.steps)} steps; give one each")
        # The attempt is judged rightly at every threshold in (low, high]: running minima bound it.
        lowest = [np.inf, *np.minimum.accumulate(values).tolist()]
        bounds[first is not None].append((-np.inf, lowest[-1]) if first is None else (lowest[first + 1], lowest[first]))
    ends = np.array([end for pairs in bounds.values() for pair in pairs for end in pair])
    places = np.unique([0.0, *ends[(ends > 0) & (ends < 1)], 1.0])
    thresholds = (places[1:] + places[:-1]) / 2

    def share(wrong: bool) -> np.ndarray:
        low, high = np.sort(np.array(bounds[wrong]).reshape(-1, 2), axis=0).T
        return np.asarray((np.searchsorted(low, thresholds) - np.searchsorted(high, thresholds)) / total[wrong])

    f1 = _f1(share(True), share(False))
    best = np.flatnonzero(f1 == f1.max())
    return float(thresholds[best[len(best) // 2]])


def refuse_shared(tuning: Sequence[ProcessBenchRow], test: Sequence[ProcessBenchRow], name: str) -> None:
    """Raise `DataError` when an attempt of `test` (question and steps, blanks aside) is in `tuning` too.

    Example:
        refuse_shared(tuning, test, "gsm8k.json")  # raises where a row is in both
    """
    known = {_fingerprint(example): example.problem.id for example in tuning}
    shared = [example.problem.id for example in test if _fingerprint(example) in known]
    if shared:
        raise DataError(
            f"{len(shared)} of {len(test)} attempts of {name} (the first is {shared[0]!r}) are in the tuning split "
            "too; nothing may be chosen on rows that it is then measured on: give another file or part to tune on"
        )


def _fingerprint(example: ProcessBenchRow) -> str:
    """The same for two rows with the same question and steps, blanks aside, whatever their ids."""
    texts = (example.problem.question, *(step.text for step in example.trace.steps))
    return hashlib.sha256("\0".join(" ".join(text.split()) for text in texts).encode("utf-8", "replace")).hexdigest()


def random_guess(seed: int) -> Localizer:
    """Says "no error" with probability one half, else names any step alike; the same row gets the same guess.

    >>> from stepwise.data.processbench import from_row
    >>> row = from_row({"id": "1", "problem": "1 + 1?", "steps": ["It is 3."], "label": 0}, "row 1")
    >>> random_guess(seed=0)(row) == random_guess(seed=0)(row)
    True
    """

    def localize(example: ProcessBenchRow) -> Outcome:
        rng = seeded(f"{seed} {_fingerprint(example)}")
        return Outcome(None if rng.random() < 0.5 else rng.randrange(len(example.trace.steps)))

    return localize


def absent_number(example: ProcessBenchRow) -> Outcome:
    """Names the first step with a number that is neither in the question nor in the reference solution.

    A baseline for whoever localizes with a reference: a method must find more than such a string match. Signs are left
    aside, and so is the number in "Step 3:"; 1,000 and 1000.0 are the same. Fails where there is no reference.

    >>> from stepwise.data.processbench import from_row
    >>> row = from_row({"id": "1", "problem": "1 + 1?", "steps": ["1 + 1 = 3."], "label": 0}, "row 1")
    >>> absent_number(row._replace(problem=Problem("1", "1 + 1?", reference="1 + 1 = 2."))).first_error
    0
    """
    if example.problem.reference is None:
        return Outcome(None, "the problem has no reference")
    texts = [step.text for step in example.trace.steps]
    return Outcome(first_absent(texts, example.problem.question, example.problem.reference))


def first_absent(steps: Iterable[str], *known: str) -> int | None:
    """Index of the first step with a number that is in none of the `known` texts, None where there is none.

    >>> first_absent(["I take 4 of 41.", "41 - 4 = 39."], "4 of 41?", "41 - 4 = 37")
    1
    """
    numbers = set(numbers_in(" ".join(known)))
    read = (numbers_in(_STEP_LABEL.sub("", text, count=1)) for text in steps)
    return next((i for i, found in enumerate(read) if not numbers.issuperset(found)), None)


def numbers_in(text: str) -> list[Fraction]:
    """The values of all numbers in `text`, in order, without their signs.

    >>> numbers_in("1,000 of them, less 2.50")
    [Fraction(1000, 1), Fraction(5, 2)]
    """
    return [Fraction(number.replace(",", "")) for number in _NUMBER.findall(text)]


def _both_classes(examples: Sequence[ProcessBenchRow]) -> None:
    wrong = sum(example.localization.first_error is not None for example in examples)
    if not wrong or wrong == len(examples):
        raise DataError(
            f"the tuning split has {wrong} wrong and {len(examples) - wrong} right attempts; both are needed, add rows"
        )
