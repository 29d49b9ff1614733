"""Where two records of one trace part, in the order in which things were written and decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .draws import NEAR, Finding, decided, sampled

Piece = Mapping[str, Any]
_EVIDENCE = ("first_token", "resamples", "rating", "verification", "scores", "logprobs", "cut")


@dataclass(frozen=True)
class Place:
    """What was written at one place of a solution: drafts with the step that stands last, and evidence.

    `anew`: the solution begins here once more, after a review of the weak model's.
    """

    texts: Sequence[Piece]
    evidence: Sequence[Piece] = ()
    anew: bool = False

    @property
    def decision(self) -> str:
        """What the policy decided last."""
        return str(self.texts[-1]["decision"]) if self.texts else ""

    def by(self, weak: bool) -> list[Piece]:
        """The texts of the weak model, or of another author."""
        return [piece for piece in self.texts if (piece["author"] == "weak") == weak]


def places(trace: Piece) -> list[Place]:
    """The places of a trace in order; a step that never came to be is one more at its end."""
    found = [Place([*step["discarded"], step], step["evidence"]) for step in trace["steps"]]
    if trace["policy"].startswith("review") and found and trace["steps"][0]["author"] == "strong":
        first = found[0]
        whole = [Place([draft]) for draft in first.texts[:-1]]
        found = [*whole, Place(first.texts[-1:], first.evidence, anew=True), *found[1:]]
    if trace["abandoned"]:
        of_evidence = [piece["decision"].partition(":")[0] in _EVIDENCE for piece in trace["abandoned"]]
        loose = list(zip(trace["abandoned"], of_evidence, strict=True))
        found.append(Place([p for p, evidence in loose if not evidence], [p for p, evidence in loose if evidence]))
    return found


def parting(old: Piece, new: Piece) -> Finding:
    """The first draw or decision at which two traces of one problem under one policy part."""
    rows, near = (places(old), places(new)), NEAR[old["arithmetic"]]
    before: list[Piece] = []
    for number, (a, b) in enumerate(zip(*rows, strict=False)):
        if a.anew != b.anew:
            return decided((a.decision, b.decision), number, near)
        before = [] if a.anew else before
        found = _at(old, before, number, a, b)
        if found is not None:
            return found
        before.append(a.texts[-1])
    shared = min(map(len, rows))
    ends = [row[shared].decision if len(row) > shared else "" for row in rows]
    if not any(ends):
        return Finding(False, f"{shared} equal steps, then {old['finish']!r} and {new['finish']!r}, {old['note']!r}")
    return decided(ends, shared, near)


def _at(trace: Piece, before: Sequence[Piece], number: int, a: Place, b: Place) -> Finding | None:
    """What parts at one place, None where texts and authors are the same."""
    at = len(before)
    for attempt, pair in enumerate(zip(a.by(weak=True), b.by(weak=True), strict=False)):
        if _text(pair[0]) != _text(pair[1]):
            return sampled(trace, before, pair, (at, "weak", attempt, 0))
    samples = 0
    for pair in zip(a.evidence, b.evidence, strict=False):
        kind = pair[0]["decision"].partition(":")[0]
        if pair[0]["text"] != pair[1]["text"]:
            known = {"resamples": (at, "resamples", samples), "first_token": (at, "weak", 0, 0)}
            if kind not in known:
                return Finding(False, f"step {at}: {kind} says {pair[0]['text']!r} and {pair[1]['text']!r}")
            return sampled(trace, before, pair, known[kind])
        samples += kind == "resamples"
    for pair in zip(a.by(weak=False), b.by(weak=False), strict=False):
        if _text(pair[0]) != _text(pair[1]):
            return sampled(trace, before, pair, (at, "strong", 0, 0))
    if [len(a.by(weak)) for weak in (True, False)] != [len(b.by(weak)) for weak in (True, False)]:
        return decided((a.decision, b.decision), number, NEAR[trace["arithmetic"]])
    return None


def _text(piece: Piece) -> tuple[Any, ...]:
    return (piece["text"], tuple(piece["ids"]))
