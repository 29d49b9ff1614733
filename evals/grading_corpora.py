"""Answers whose verdict is known, of every corpus at hand, for `evals/grading.py`; and what a person read in them.

- rewritten, perturbed, kinds: written by hand, in tests/grading; a rewritten answer is right, a perturbed one is not.
- reported: DATA/grading_cases.tsv (kind, gold, prediction, right, seen), where it is there.
- olympiad, olympiad texts: DATA/olympiad_answers.jsonl (id, gold, prediction, tail, label_correct): the boxed answer,
  and the end of the whole solution.
- processbench: whole solutions of DATA/processbench/*.json whose problem is among the gold answers.

Labels can be wrong: grading_disagreements.tsv lists, for each one that does not agree with a verdict, what is right.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stepwise.data.processbench import read_rows
from stepwise.grading import Verdict, grade_many
from stepwise.types import Problem

WRITTEN = Path(__file__).parent.parent / "tests" / "grading"
READ_BY_HAND = Path(__file__).parent / "grading_disagreements.tsv"
DEFAULT_SHARE = 0.995
"""Of rewritten gold answers that must be CORRECT."""


class Case(NamedTuple):
    """One answer: `text` is what the model wrote (a box, or a whole solution), `right` whether it is right."""

    corpus: str
    name: str
    gold: str
    text: str
    right: bool


def cases(data: Path, golds: Sequence[Problem], limit: int = 0) -> Iterator[Case]:
    """The cases that are at hand, `limit` per corpus (0: all); labels that a person found wrong are put right."""
    mended = read_by_hand()
    taken: Counter[str] = Counter()
    for case in (*_written(), *_reported(data), *_olympiad(data), *_processbench(data, golds)):
        taken[case.corpus] += 1
        if limit and taken[case.corpus] > limit:
            continue
        yield case._replace(right=mended.get((case.corpus, case.name), case.right))


def read_by_hand() -> dict[tuple[str, str], bool]:
    """What a person found for labels that disagree with a verdict, by corpus and name."""
    with READ_BY_HAND.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return {(row["corpus"], row["name"]): row["right"] == "yes" for row in rows}


def measure(every: Sequence[Case], plain: Callable[[str, str], bool]) -> dict[str, dict[str, Any]]:
    """By corpus: answers, wrong verdicts and false CORRECTs of the grader and of `plain`, and the grader's own rows.

    A verdict is wrong where a right answer is not CORRECT, or one that is not right is. Nothing in between exists for
    `plain`; the grader's UNPARSEABLE and NO_ANSWER count as not CORRECT.
    """
    verdicts = grade_many([(case.text, case.gold) for case in every], timeout=60)
    table: dict[str, dict[str, Any]] = {}
    for case, verdict in zip(every, verdicts, strict=True):
        ours, theirs = verdict is Verdict.CORRECT, plain(case.text, case.gold)
        row = table.setdefault(case.corpus, {"answers": 0, "right": 0, "ours": 0, "ours_false": 0, "plain": 0,
                                             "plain_false": 0, "wrong": []})  # fmt: skip
        row["answers"] += 1
        row["right"] += case.right
        row["ours"] += ours != case.right
        row["ours_false"] += ours and not case.right
        row["plain"] += theirs != case.right
        row["plain_false"] += theirs and not case.right
        if ours != case.right:
            row["wrong"].append(
                {"name": case.name, "gold": case.gold, "text": case.text[-300:], "verdict": str(verdict)}
            )
    return table


def _table(path: Path) -> Iterator[list[str]]:
    if path.is_file():
        yield from (line.split("\t") for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")[1:])


def _written() -> Iterator[Case]:
    for corpus, right in (("rewritten", True), ("perturbed", False)):
        for number, (_, gold, prediction) in enumerate(_table(WRITTEN / f"{corpus}.tsv"), 2):
            yield Case(corpus, str(number), gold, prediction, right)
    for number, (_, gold, prediction, verdict) in enumerate(_table(WRITTEN / "kinds.tsv"), 2):
        yield Case("kinds", str(number), gold, f"\\boxed{{{prediction}}}", verdict == "CORRECT")


def _reported(data: Path) -> Iterator[Case]:
    path = data / "grading_cases.tsv"
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter="\t"), 2):
            if row["right"] in ("CORRECT", "WRONG"):
                text = row["prediction"].replace("\\n\\n", "\n\n")
                yield Case("reported", str(number), row["gold"], text, row["right"] == "CORRECT")


def _olympiad(data: Path) -> Iterator[Case]:
    path = data / "olympiad_answers.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    for row in rows:
        boxed = f"\\boxed{{{row['prediction']}}}"
        yield Case("olympiad", row["id"], row["gold"], boxed, row["label_correct"])
        yield Case("olympiad texts", row["id"], row["gold"], row["tail"], row["label_correct"])


def _processbench(data: Path, golds: Sequence[Problem]) -> Iterator[Case]:
    answers = {" ".join(problem.question.split()): problem.answer or "" for problem in golds}
    for path in sorted((data / "processbench").glob("*.json")):
        for example in read_rows(path):
            gold = answers.get(" ".join(example.problem.question.split()))
            if gold is not None and example.final_answer_correct is not None:
                yield Case("processbench", example.problem.id, gold, example.trace.text, example.final_answer_correct)
