"""How the rows of two collections agree, problem by problem."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from .agreement import ROUNDING, Verdicts, differences
from .draws import Finding, model, turned

STAGES = ("rollouts", "failures", "located", "candidates", "guided", "examples", "dataset")
_SAMPLED = ("rollouts", "guided")
Row = Mapping[str, Any]


def compare_collections(old: Mapping[str, Sequence[Row]], new: Mapping[str, Sequence[Row]]) -> Verdicts:
    """One verdict for the names and order of the rows of each file, and one for all rows of each problem.

    Where the rows of a problem part at a sampled text, the draw must lie within rounding; what follows from that text
    may then be different.
    """
    verdicts = Verdicts()
    rows = [_by_problem(record) for record in (old, new)]
    excused = set[str]()
    for problem in dict.fromkeys((*rows[0], *rows[1])):
        finding = _parting(*(found.get(problem, {}) for found in rows))
        if finding is None:
            verdicts.note("equal to the bit")
        elif finding.rounding:
            excused.add(problem)
            verdicts.note(ROUNDING, f"{problem}: {finding.how}")
        else:
            verdicts.note("DIFFERENT", f"{problem}: {finding.how}")
    for file in dict.fromkeys((*old, *new)):
        orders = [[row["id"] for row in record.get(file, ()) if _problem(row) not in excused] for record in (old, new)]
        if orders[0] != orders[1]:
            verdicts.note("DIFFERENT", f"{file}: {len(orders[0])} rows became {len(orders[1])}, or their order changed")
    return verdicts


def _problem(row: Row) -> str:
    """The problem that a row belongs to: an example names it among its parents."""
    return str(row["problem"] if "problem" in row else row["parents"]["problem"])


def _by_problem(record: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, dict[str, Row]]]:
    """Rows by problem, stage and id."""
    found: dict[str, dict[str, dict[str, Row]]] = defaultdict(lambda: {stage: {} for stage in STAGES})
    for file, rows in record.items():
        stage = file.rpartition("/")[2].removesuffix(".jsonl")
        for row in rows:
            found[_problem(row)][stage][row["id"]] = row
    return found


def _parting(old: Mapping[str, Mapping[str, Row]], new: Mapping[str, Mapping[str, Row]]) -> Finding | None:
    """The first stage and row at which two collections part on a problem, None where they do not."""
    for stage in STAGES:
        a, b = old.get(stage, {}), new.get(stage, {})
        for name in dict.fromkeys((*a, *b)):
            where = f"{stage}, {name}"
            if name not in a or name not in b:
                return Finding(False, f"{where} is {'new' if name in b else 'missing'}")
            changes = list(differences(a[name], b[name]))
            if not changes:
                continue
            if stage in _SAMPLED and a[name]["token_ids"] != b[name]["token_ids"]:
                return _drawn(old, (a[name], b[name]), where)
            place, before, after = changes[0]
            return Finding(False, f"{where}.{place}: {before!r:.70} became {after!r:.70}")
    return None


def _drawn(stages: Mapping[str, Mapping[str, Row]], pair: tuple[Row, Row], where: str) -> Finding:
    """Whether two samples of the weak model part by rounding."""
    import stepwise as sw

    row, writer = pair[0], model("lab-weak")
    split, number = row["problem"].split("/")[1:]
    ids = writer.prompt(sw.lab.generate(split, 1, start=int(number))[0].problem.question)
    if "candidate" in row:
        candidate = stages["candidates"][row["candidate"]]
        steps = stages["failures"][candidate["failure"]]["steps"][: candidate["location"]]
        for text in (*steps, candidate["content"]):
            ids += writer.step((), text)
    told = row["usage"]["prompt_tokens"]
    if len(ids) != told:
        return Finding(False, f"{where}: its prefix has {len(ids)} tokens here and {told} in the record")
    source = (int(row["made"]["seed"]), int(row["made"]["draw"]))
    return turned(writer, ids, [one["token_ids"] for one in pair], source, "exact", where)
