"""Guided rollouts, as far as no model is needed: who is asked next, and who is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from stepwise.grading import Verdict
from stepwise.interventions.filtering import next_to_compare, ranked, shared_out
from stepwise.interventions.rows import Candidate, GuidedRollout
from stepwise.interventions.settings import CollectSettings

Phase = Literal["filter", "compare", "fresh"]
Counts = tuple[int, int]
"""(successes, rollouts that could be judged)"""


@dataclass(frozen=True)
class Wanted:
    """`n` guided rollouts of a candidate, the first of which is its number `first`."""

    candidate: Candidate
    first: int
    n: int
    phase: Phase


Sample = Callable[[Sequence[Wanted]], list[GuidedRollout]]
"""Makes and grades the rollouts that are wanted, all together."""


def guided_by(candidates: Sequence[Candidate], sample: Sample, settings: CollectSettings) -> list[GuidedRollout]:
    """The rollouts of all candidates, one after the other: filtered, compared, measured afresh as `settings` say."""
    asking = _Asking(candidates, sample)
    _filter(asking, settings)
    if settings.keep == "best":
        _compare(asking, settings)
    if settings.fresh:
        asking.ask([(row, settings.fresh) for row in chosen(candidates, asking.all(), settings)], "fresh")
    return asking.all()


def counts_of(rows: Iterable[GuidedRollout], *, fresh: bool = False) -> dict[str, Counts]:
    """(successes, judged) by candidate (id): of the rollouts that chose it, or of the `fresh` ones alone."""
    outcomes: defaultdict[str, list[bool]] = defaultdict(list)
    for row in rows:
        if row.verdict is not None and (row.phase == "fresh") == fresh:
            outcomes[row.candidate].append(row.verdict is Verdict.CORRECT)
    return {name: (sum(found), len(found)) for name, found in outcomes.items()}


def chosen(
    candidates: Sequence[Candidate], guided: Iterable[GuidedRollout], settings: CollectSettings
) -> list[Candidate]:
    """Those with a success: of each attempt the one with the highest posterior mean rate, or all (`settings.keep`)."""
    counts = counts_of(guided)
    good = {row.id: row for row in candidates if counts.get(row.id, (0, 0))[0]}
    if settings.keep == "all":
        return list(good.values())
    best: dict[str, str] = {}
    for name in ranked({name: counts[name] for name in good}):
        best.setdefault(good[name].failure, name)
    return [row for name, row in good.items() if best[row.failure] == name]


class _Asking:
    """The rollouts so far, by candidate."""

    def __init__(self, candidates: Sequence[Candidate], sample: Sample) -> None:
        self.candidates = {row.id: row for row in candidates}
        self.rows: dict[str, list[GuidedRollout]] = {row.id: [] for row in candidates}
        self._sample = sample

    def ask(self, wanted: Sequence[tuple[Candidate, int]], phase: Phase) -> None:
        given = [Wanted(row, len(self.rows[row.id]), n, phase) for row, n in wanted if n]
        for made in self._sample(given) if given else []:
            self.rows[made.candidate].append(made)

    def all(self) -> list[GuidedRollout]:
        return [row for found in self.rows.values() for row in found]

    def tried(self, name: str) -> Counts:
        """(successes, rollouts), those that could not be judged included: they are paid for."""
        return sum(row.verdict is Verdict.CORRECT for row in self.rows[name]), len(self.rows[name])


def _filter(asking: _Asking, settings: CollectSettings) -> None:
    """Ask until the rule has enough of every candidate, or the chunk has had all that it may have."""
    left = None if settings.average is None else settings.average * len(asking.candidates)
    while True:
        tried = {name: asking.tried(name) for name in asking.candidates}
        won = {row.failure for name, row in asking.candidates.items() if tried[name][0] and settings.keep == "first"}
        wanted = {
            name: settings.rule.next_batch(*tried[name])
            for name, row in asking.candidates.items()
            if row.failure not in won
        }
        given = shared_out({name: n for name, n in wanted.items() if n}, tried, left)
        if not given:
            return
        asking.ask([(asking.candidates[name], n) for name, n in given.items()], "filter")
        left = None if left is None else left - sum(given.values())


def _compare(asking: _Asking, settings: CollectSettings) -> None:
    """Ask for `compare` more of each attempt with several candidates that have a success, a few at a time."""
    rivals: defaultdict[str, list[str]] = defaultdict(list)
    for name, row in asking.candidates.items():
        if asking.tried(name)[0]:
            rivals[row.failure].append(name)
    step = settings.compare_batch
    for done in range(0, settings.compare, step):
        names = [
            next_to_compare({name: asking.tried(name) for name in found}) for found in rivals.values() if len(found) > 1
        ]
        asking.ask([(asking.candidates[name], min(step, settings.compare - done)) for name in names], "compare")
