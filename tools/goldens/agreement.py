"""How two records agree: to the bit, exactly but for floats, up to rounding at one draw, or not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .parting import parting
from .traces import CAPPED, GROUP, pieces

CLOSE = 1e-5
ROUNDING = "rounding at one draw"
OFTEN = {"exact": 0.1, "shipped": 0.3}  # share of traces that rounding may part, by `traces.ARITHMETIC`
SHAPES = 2e-2  # what another batch may change in a score as models are shipped; "exact" arithmetic knows no such change
_NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")


@dataclass
class Verdicts:
    """Counts of what came of each comparison, and a line for each that is not equal."""

    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)
    largest: float = 0.0
    arithmetic: str = "exact"

    @property
    def failed(self) -> bool:
        """Whether anything differs that rounding does not explain, or more than rounding explains.

        A change that is small everywhere, as of the temperature, moves many draws by little.
        """
        most = max(2.0, OFTEN[self.arithmetic] * self.counts.total())
        return self.counts["DIFFERENT"] > 0 or self.counts[ROUNDING] > most

    def note(self, verdict: str, line: str = "") -> None:
        """Count one comparison."""
        self.counts[verdict] += 1
        if line:
            self.lines.append(f"{verdict}: {line}")

    def __str__(self) -> str:
        told = ", ".join(f"{count} {verdict}" for verdict, count in self.counts.items())
        return f"{told}; largest difference of a float {self.largest:.1e}"


def differences(old: Any, new: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves at which two JSON values differ, with their place."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            yield from differences(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
    elif _listed(old) and _listed(new) and len(old) == len(new):
        for number, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{place}[{number}]")
    elif old != new and not (_nan(old) and _nan(new)):
        yield place, old, new


def distance(old: Any, new: Any) -> float | None:
    """How far two floats are apart, relative where they are above 1; None for anything but two numbers."""
    if isinstance(old, bool) or isinstance(new, bool) or not isinstance(old, float) or not isinstance(new, float):
        return None
    return abs(old - new) / max(1.0, abs(old), abs(new))


def compare_values(old: Any, new: Any, verdicts: Verdicts, name: str) -> None:
    """Two plain values: equal to the bit, or but for floats within `CLOSE`, or different; one verdict for all."""
    worst, wrong = 0.0, []
    for place, a, b in differences(old, new):
        gap = distance(a, b)
        worst = max(worst, gap or 0.0)
        if gap is None or gap > CLOSE:
            wrong.append(f"{name}.{place}: {_short(a)} became {_short(b)}")
    verdicts.largest = max(verdicts.largest, worst)
    for line in wrong[:5]:
        verdicts.lines.append(f"DIFFERENT: {line}")
    verdicts.note("DIFFERENT" if wrong else f"within {CLOSE:g}" if worst else "equal to the bit")


def compare_traces(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> dict[str, Verdicts]:
    """Verdicts by policy, of traces that are found by policy and problem."""
    there = {(row["policy"], row["problem"]): row for row in new}
    found: dict[str, Verdicts] = {}
    for row in old:
        verdicts = found.setdefault(row["policy"], Verdicts(arithmetic=row["arithmetic"]))
        other = there.pop((row["policy"], row["problem"]), None)
        if other is None:
            verdicts.note("DIFFERENT", f"{row['problem']} is missing")
        else:
            _compare_trace(row, other, verdicts)
    for policy, problem in there:
        found.setdefault(policy, Verdicts()).note("DIFFERENT", f"{problem} is new")
    return found


def _compare_trace(old: Mapping[str, Any], new: Mapping[str, Any], verdicts: Verdicts) -> None:
    """One verdict for two traces of one problem under one policy."""
    most = CLOSE if old["arithmetic"] == "exact" else SHAPES
    worst, wrong, printed = 0.0, [], False
    for place, a, b in differences(old, new):
        gap = distance(a, b)
        if gap is not None and gap <= most:
            worst = max(worst, gap)
        elif place.endswith("decision") and _same_but_for_rounding(a, b):
            printed = True
        else:
            wrong.append(f"{place}: {_short(a)} became {_short(b)}")
    verdicts.largest = max(verdicts.largest, worst)
    if not wrong:
        within = f"exact, floats within {most:g}"
        verdicts.note("equal to the bit" if not (worst or printed) else within)
        return
    name = f"{old['problem']}, {old['policy']}"
    finding = parting(old, new)
    if finding.rounding:
        verdicts.note(ROUNDING, f"{name}: {finding.how}")
    elif old["policy"] == CAPPED and "budget" in f"{finding.how} {wrong[0]}":  # also one whose note alone names it
        verdicts.note("cap order", f"{name}: {finding.how}; {wrong[0]}")
    else:
        verdicts.note("DIFFERENT", f"{name}: {finding.how}; {wrong[0]}")


def totals(rows: Sequence[Mapping[str, Any]], policy: str) -> dict[str, int]:
    """What the traces under a policy cost, by author: generated tokens and calls."""
    found: Counter[str] = Counter()
    for row in rows:
        if row["policy"] != policy:
            continue
        for piece in pieces(row):
            found[f"{piece['author']} tokens"] += piece["usage"]["generated"]
            found[f"{piece['author']} calls"] += piece["usage"]["calls"]
        found["scorer calls"] += row["scorer"]["calls"]
    return dict(sorted(found.items()))


def spent(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Strong tokens of each group of problems under the cap that binds."""
    found = [0]
    for number, row in enumerate(row for row in rows if row["policy"] == CAPPED):
        if number and not number % GROUP:
            found.append(0)
        found[-1] += sum(one["usage"]["generated"] for one in pieces(row) if one["author"] == "strong")
    return found


def _same_but_for_rounding(a: Any, b: Any) -> bool:
    """Whether two decisions say the same with numbers that are printed with another last digit."""
    if not (isinstance(a, str) and isinstance(b, str)) or _NUMBER.sub("#", a) != _NUMBER.sub("#", b):
        return False
    pairs = zip(_NUMBER.findall(a), _NUMBER.findall(b), strict=True)
    return all(abs(float(x) - float(y)) <= max(0.0101, 0.01 * abs(float(x))) for x, y in pairs)


def _listed(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 70 else text[:67] + "..."
