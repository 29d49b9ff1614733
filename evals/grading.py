r"""The grader on real gold answers and on answers made from them, beside plain math-verify.

--data holds gsm8k/test.jsonl, math500/test.jsonl, aime24/test.jsonl and processbench/{gsm8k,math}.json in their
published columns; those that are missing are left out.

Made answers: of each gold answer, answers are made whose verdict is known: the same in another dress (spaces, \dfrac,
a unit, a name, a decimal, twice it over two), and ones that differ (one more, the sign, one part in 10^12, other
brackets, other order). Corpora: answers whose verdict is known (`evals/grading_corpora.py`), written by hand and real
ones. Both graders judge both; a bar is missed where ours takes a wrong answer for right, has more wrong verdicts than
math-verify on a corpus, or takes less than 99.5 % of the rewritten gold answers. Times: the exact path, the worker
path, and how long after its timeout a call returns, worker killed; and grades per second from 8 threads, each pair its
own.

Every made answer on which the two graders do not agree is printed with both verdicts, grouped by change (all of them
with --all, else the first few of each), and of the corpora every one that ours judges wrongly.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

from evals.grading_corpora import DEFAULT_SHARE, cases, measure
from stepwise.errors import DataError
from stepwise.grading import GRADER_VERSION, Verdict, check_gold, grade
from stepwise.grading.answers import ParsedAnswer, read
from stepwise.grading.equality import compare
from stepwise.grading.text import Unreadable, clean
from stepwise.runs.shell import Options, Run, program
from stepwise.types import Problem

QUESTIONS = {"gsm8k": "question", "math500": "problem", "aime24": "problem"}
SLOW = r"\int_0^1 \frac{\sin(x^x)}{\ln(1+x^3)} dx"
THREADS = 8
SHOWN = 5
Made = tuple[str, str, bool]  # name of the change, the answer, whether it equals the gold answer


class _Options(Options):
    data: Path
    """folder with gsm8k, math500 and aime24"""
    limit: int = 250
    """problems per data set for made answers"""
    repeats: int = 5
    """of what is timed"""
    cases: int = 0
    """answers per corpus, 0 for all of them"""
    all: bool = False
    """print every disagreement, not the first few of a change"""


@program(_Options, doc=__doc__, resumable=False)
def main(run: Run[_Options]) -> int:
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    found = {name: golds for name in QUESTIONS if (golds := _golds(run.args.data, name))}
    if not found:
        raise DataError(f"--data {run.args.data}: no gsm8k/test.jsonl, math500/test.jsonl or aime24/test.jsonl in it")
    plain_grade("1", "1")
    grade("x+1", "1+x")
    result: dict[str, Any] = {"grader": GRADER_VERSION, "sets": {}, "times_ms": {}}
    rows: list[dict[str, Any]] = []
    for name, golds in found.items():
        run.say(f"{name}: {len(golds)} gold answers")
        failed = [problem.id for problem in golds if not _passes(problem)]
        mine = [row for problem in golds[: run.args.limit] for row in _judge(name, problem)]
        result["sets"][name] = {"gold": len(golds), "gold_failed": failed, **_summary(mine)}
        rows += mine
    result["changes"] = {
        change: _summary([row for row in rows if row["change"] == change]) for change in _changes(rows)
    }
    every = list(cases(run.args.data, [problem for golds in found.values() for problem in golds], run.args.cases))
    result["corpora"] = measure(every, plain_verdict)
    result["times_ms"] = _times(rows) | {"kill": _kill_ms(run.args.repeats)}
    result["per_second"] = _rates(run.args.repeats)
    result["disagreements"] = [row for row in rows if (row["verdict"] == Verdict.CORRECT) != row["plain"]]
    result["our_failures"] = [row for row in rows if not row["ours_right"]]
    run.path("grading.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _print(run, result)
    return 1 if _print_corpora(run, result["corpora"]) else 0


def plain_grade(prediction: str, gold: str) -> bool:
    """math-verify as its README uses it, on the main thread with its own timeouts."""
    from math_verify import parse, verify

    return bool(verify(parse(f"${gold}$"), parse(f"\\boxed{{{prediction}}}")))


def plain_verdict(text: str, gold: str) -> bool:
    """math-verify on a whole text, from which it takes the answer itself."""
    from math_verify import parse, verify

    return bool(verify(parse(gold if "$" in gold else f"${gold}$"), parse(text)))


def made_answers(gold: str) -> Iterator[Made]:
    """Answers whose verdict against `gold` is known by how they were made."""
    try:
        answer = read(clean(gold, "gold"), "gold")
    except Unreadable:
        return
    yield "boxed", f"So the answer is $\\boxed{{{gold}}}$.", True
    if "\\left" not in gold and ("," not in gold or answer.kind):  # "2, 125" is 2,125 to some and a list to others
        yield "spaces", gold.replace("(", "\\left( ").replace(")", " \\right)").replace(",", ", "), True
    if "\\frac" in gold and "\\dfrac" not in gold:
        yield "dfrac", gold.replace("\\frac", "\\dfrac"), True
    if answer.value is not None and not answer.unit:
        yield from _of_number(answer)
    elif not (answer.kind or answer.relation or answer.name or answer.unit or answer.word is not None):
        yield "twice over two", f"\\frac{{2({gold})}}{{2}}", True
        yield "one part in 10^12", f"({gold})(1+10^{{-12}})", False
        yield "one more", f"{gold}+1", False
    elif answer.kind in ("()", "[]", "(]", "[)") and len(set(answer.items)) > 1 and not answer.name:
        inner = [item.latex for item in answer.items]
        yield "other order", answer.kind[0] + ", ".join(inner[::-1]) + answer.kind[1], False
        yield "a set instead", "\\{" + ", ".join(inner) + "\\}", False


def _of_number(answer: ParsedAnswer) -> Iterator[Made]:
    value = answer.value
    assert value is not None
    number = f"\\frac{{{value.numerator}}}{{{value.denominator}}}" if value.denominator > 1 else str(value.numerator)
    yield "unit", number + " \\text{ cm}", True
    yield "name", f"x = {number}", True
    yield "twice over two", f"\\frac{{{2 * value.numerator}}}{{{2 * value.denominator}}}", True
    yield "as algebra", f"\\sqrt{{({number})^2}}" if value >= 0 else f"-\\sqrt{{({number})^2}}", True
    if value.denominator == 1:
        yield "decimal", f"{value.numerator}.00", True
        yield "thousands", f"{value.numerator:,}", True
    yield "one more", f"{number}+1", False
    yield "hundredth", f"\\frac{{{number}}}{{100}}", value == 0
    yield "one part in 10^12", f"({number})(1+10^{{-12}})", value == 0
    yield "negative", f"-({number})", value == 0


def _golds(folder: Path, name: str) -> list[Problem]:
    path = folder / name / "test.jsonl"
    if not path.exists():
        return []
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            row = json.loads(line)
            question, answer = row.get(QUESTIONS[name]), row.get("answer")
            if not isinstance(question, str) or not isinstance(answer, str):
                raise DataError(f"{path}, line {number}: fields {QUESTIONS[name]} and answer must be texts")
            problems.append(Problem(f"{name}-{number}", question, answer.rpartition("####")[2].strip()))
    return problems


def _passes(problem: Problem) -> bool:
    try:
        check_gold(problem)
    except DataError:
        return False
    return grade(problem.answer, problem.answer) is Verdict.CORRECT


def _judge(name: str, problem: Problem) -> Iterator[dict[str, Any]]:
    gold = problem.answer or ""
    for change, prediction, equal in made_answers(gold):
        verdict, ours_ms = _timed(lambda text=prediction: grade(text, gold))  # type: ignore[misc]
        inner = gold if change == "boxed" else prediction
        plain, plain_ms = _timed(lambda text=inner: plain_grade(text, gold))  # type: ignore[misc]
        yield {
            "set": name,
            "change": change,
            "gold": gold,
            "prediction": prediction,
            "equal": equal,
            "verdict": str(verdict),
            "plain": plain,
            "ours_right": verdict is (Verdict.CORRECT if equal else Verdict.WRONG),
            "plain_right": plain == equal,
            "exact": _is_exact(prediction, gold),
            "ours_ms": ours_ms,
            "plain_ms": plain_ms,
        }


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return work(), 1000 * (time.perf_counter() - start)


def _is_exact(prediction: str, gold: str) -> bool:
    asked = []

    def algebra(one: str, other: str) -> bool:
        asked.append((one, other))
        return False

    try:
        compare(prediction, gold, algebra)
    except Unreadable:
        return True
    return not asked


def _changes(rows: list[dict[str, Any]]) -> list[str]:
    return list(Counter(row["change"] for row in rows))


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    equal = [row for row in rows if row["equal"]]
    other = [row for row in rows if not row["equal"]]
    return {
        "made": len(rows),
        "equal": len(equal),
        "ours_false_negatives": sum(not row["ours_right"] for row in equal),
        "ours_false_positives": sum(row["verdict"] == Verdict.CORRECT for row in other),
        "ours_no_judgement": sum(not Verdict(row["verdict"]).carries_reward for row in rows),
        "plain_false_negatives": sum(not row["plain_right"] for row in equal),
        "plain_false_positives": sum(not row["plain_right"] for row in other),
        "agreement": statistics.fmean((row["verdict"] == Verdict.CORRECT) == row["plain"] for row in rows)
        if rows
        else None,
    }


def _times(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    def median(values: list[float]) -> float | None:
        return statistics.median(values) if values else None

    return {
        "exact_path": median([row["ours_ms"] for row in rows if row["exact"]]),
        "worker_path": median([row["ours_ms"] for row in rows if not row["exact"]]),
        "plain_math_verify": median([row["plain_ms"] for row in rows]),
        "plain_where_worker": median([row["plain_ms"] for row in rows if not row["exact"]]),
    }


def _kill_ms(repeats: int) -> float:
    """Median time from the end of the timeout to the verdict, worker dead: hanging answers, so many."""
    late = []
    for i in range(repeats):
        verdict, ms = _timed(lambda i=i: grade(SLOW, f"\\sqrt{{{2 + i}}}", timeout=1))  # type: ignore[misc]
        if verdict is not Verdict.TIMEOUT:
            raise DataError(f"the slow answer was graded {verdict}; nothing was killed")
        late.append(ms - 1000)
        grade(f"x+{i}+1000", f"{i}+1000+x")  # so that the next one finds a started worker
    return statistics.median(late)


def _rates(repeats: int) -> dict[str, float]:
    """Grades per second from THREADS threads; no pair comes twice, so that nothing is remembered."""
    numbers = [
        (f"{n}/{n % 7 + 2}" if n % 3 else f"{n:,}.5", str(n + n % 2)) for n in range(2000, 2000 + 2000 * repeats)
    ]
    formulas = [(f"x+{n}+x", f"2x+{n + n % 2}") for n in range(80 * repeats)]
    rates = {}
    for name, pairs in (("plain numbers", numbers), ("algebra", formulas)):
        with ThreadPoolExecutor(THREADS) as threads:
            start = time.perf_counter()
            done = list(threads.map(lambda pair: grade(*pair), pairs))
            rates[name] = len(done) / (time.perf_counter() - start)
        if not all(verdict.carries_reward for verdict in done):
            raise DataError(f"{name}: some of the grades that were timed were no judgement: {Counter(done)}")
    return rates


def _print_disagreements(run: Run[_Options], result: dict[str, Any]) -> None:
    """Gold answer, prediction and both verdicts wherever the two graders differ."""

    def line(row: dict[str, Any], truth: bool | None) -> str:
        known = "unlabelled" if truth is None else "equal" if truth else "different"
        plain = "CORRECT" if row["plain"] else "WRONG"
        return (
            f"    {row['prediction']!r} for {row['gold']!r}: ours {row['verdict']}, math-verify {plain}, truth {known}"
        )

    def change(row: dict[str, Any]) -> str:
        return str(row["change"])

    made = result["disagreements"]
    run.say(f"the graders disagree on {len(made)} made answers")
    for name, group in groupby(sorted(made, key=change), change):
        rows = list(group)
        run.say(f"  {name}: {len(rows)}")
        shown = rows if run.args.all else rows[:SHOWN]
        for row in shown:
            run.say(line(row, row["equal"]))
        if len(shown) < len(rows):
            run.say(f"    {len(rows) - len(shown)} more: --all, or grading.json")


def _print(run: Run[_Options], result: dict[str, Any]) -> None:
    from rich.table import Table

    for title, part in (("data set", "sets"), ("change", "changes")):
        table = Table(title=f"made answers by {title}; false negative / false positive")
        for column in (title, "gold ok", "made", "ours", "no judgement", "plain math-verify", "agreement"):
            table.add_column(column, justify="left" if column == title else "right")
        for name, row in result[part].items():
            gold = f"{row['gold'] - len(row['gold_failed'])}/{row['gold']}" if "gold" in row else ""
            errors = [f"{row[f'{who}_false_negatives']} / {row[f'{who}_false_positives']}" for who in ("ours", "plain")]
            agreement = "" if row["agreement"] is None else f"{100 * row['agreement']:.1f} %"
            table.add_row(name, gold, str(row["made"]), errors[0], str(row["ours_no_judgement"]), errors[1], agreement)
        run.console.print(table)
    _print_disagreements(run, result)
    times = ", ".join(f"{name} {ms:.2f}" for name, ms in result["times_ms"].items() if ms is not None)
    run.say(f"median milliseconds: {times}")
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in result["per_second"].items())
    run.say(f"grades per second from {THREADS} threads: {rates}")


def _print_corpora(run: Run[_Options], corpora: dict[str, dict[str, Any]]) -> list[str]:
    """The table of the corpora, our wrong verdicts, and the bars that are missed."""
    from rich.table import Table

    table = Table(title="wrong verdicts (of them false CORRECTs)")
    for column in ("corpus", "answers", "right", "ours", "plain math-verify"):
        table.add_column(column, justify="left" if column == "corpus" else "right")
    missed = []
    for name, row in corpora.items():
        counts = [f"{row[who]} ({row[f'{who}_false']})" for who in ("ours", "plain")]
        table.add_row(name, str(row["answers"]), str(row["right"]), *counts)
        if row["ours_false"]:
            missed.append(f"{name}: {row['ours_false']} false CORRECT")
        if row["ours"] > row["plain"]:
            missed.append(f"{name}: {row['ours']} wrong verdicts, math-verify {row['plain']}")
    run.console.print(table)
    for name, row in corpora.items():
        for wrong in row["wrong"]:
            run.say(f"  {name} {wrong['name']}: {wrong['verdict']}: {wrong['text'][-120:]!r} for {wrong['gold']!r}")
    written = corpora["rewritten"]
    share = 1 - written["ours"] / written["answers"]
    run.say(f"rewritten gold answers that are CORRECT: {100 * share:.1f} % (aim {100 * DEFAULT_SHARE:.1f} %)")
    missed += [f"rewritten: {100 * share:.1f} %"] if share < DEFAULT_SHARE else []
    for bar in missed:
        run.say(f"MISSED {bar}")
    return missed


if __name__ == "__main__":
    raise SystemExit(main())
