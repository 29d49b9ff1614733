"""The leak check of interventions beside InT's substring rule, on labelled cases.

Cases are sentences that give nothing away, changed in ways whose effect on the label is known: the answer asserted in
some phrase, an equivalent value, a sentence that gives it away in words of its own, a number of the problem or of the
steps before as the answer, an operand or a digit as the answer, a wrong value asserted. The rule was tuned on one half
of the sentences and phrases; what counts is the other half. The substring rule (arXiv 2601.14209) drops what contains
the answer's string. Recall: share of leaks that are caught. Precision: share of what is dropped that leaks. Intervals
are Wilson's, 95 %; cases of one sentence are not independent, so they are narrower than they should be. A step whose
rightful content is the answer is excluded by our rule and counted apart. Writes leaks.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stepwise.errors import DataError
from stepwise.interventions.checks.leaks import LeakVerdict, check_leak
from stepwise.io import read_rows
from stepwise.runs.shell import Options, Run, program
from stepwise.stats import wilson

from .lab_tables import table

CASES = Path(__file__).parent.parent / "tests" / "interventions" / "leak_cases.jsonl"
Case = dict[str, Any]


class _Options(Options):
    cases: Path = CASES
    """labelled cases (those of the tests)"""


@program(_Options, doc=__doc__, resumable=False)
def main(run: Run[_Options]) -> None:
    cases = read_rows(run.args.cases, finished=True)
    if not cases:
        raise DataError(f"--cases {run.args.cases}: no cases; in a checkout they are in tests/interventions")
    rules: dict[str, Callable[[Case], bool]] = {"ours": ours, "substring": substring}
    result: dict[str, Any] = {"splits": {}, "changes": {}, "missed": []}
    for split in dict.fromkeys(case["split"] for case in cases):
        part = [case for case in cases if case["split"] == split]
        result["splits"][split] = {name: figures(part, rule) for name, rule in rules.items()}
        due = [case for case in part if case["expected"] == LeakVerdict.ANSWER_STEP]
        kept = sum(verdict(case) is LeakVerdict.ANSWER_STEP for case in due)
        result["splits"][split]["answer_steps"] = {"cases": len(due), "excluded": kept}
        result["changes"][split] = {
            change: {name: dropped([c for c in part if c["change"] == change], rule) for name, rule in rules.items()}
            for change in dict.fromkeys(case["change"] for case in part)
        }
        wrong = (case for case in part if verdict(case) != case["expected"])
        result["missed"] += [{"id": case["id"], "expected": case["expected"]} for case in wrong]
    run.path("leaks.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(run, result)


def verdict(case: Case) -> LeakVerdict:
    given = {"problem": case["problem"], "prefix": case["prefix"], "answer_due": case["due"]}
    return check_leak(case["content"], case["answer"], **given).verdict


def ours(case: Case) -> bool:
    return verdict(case) is LeakVerdict.LEAK


def substring(case: Case) -> bool:
    return case["answer"] in case["content"]


def dropped(cases: Sequence[Case], rule: Callable[[Case], bool]) -> dict[str, int]:
    return {"dropped": sum(map(rule, cases)), "of": len(cases)}


def figures(cases: Sequence[Case], rule: Callable[[Case], bool]) -> dict[str, Any]:
    """Recall and precision of a rule on the cases that are no answer steps."""
    judged = [(rule(case), case["expected"] == LeakVerdict.LEAK) for case in cases if not case["due"]]
    caught = sum(hit and leak for hit, leak in judged)
    leaks, hits = sum(leak for _, leak in judged), sum(hit for hit, _ in judged)
    counts: dict[str, Any] = {"cases": len(judged), "leaks": leaks, "dropped": hits, "caught": caught}
    for name, total in (("recall", leaks), ("precision", hits)):
        counts[name] = tuple(wilson(caught, total)) if total else None
    return counts


def show(run: Run[_Options], result: dict[str, Any]) -> None:
    def share(interval: Any) -> str:
        return "" if interval is None else "{:.3f} ({:.3f} to {:.3f})".format(*interval)

    rows = [
        (split, name, share(f["recall"]), share(f["precision"]), f["leaks"], f["cases"] - f["leaks"])
        for split, rules in result["splits"].items()
        for name, f in rules.items()
        if name != "answer_steps"
    ]
    table(run, "Leaks found (95 %)", ("split", "rule", "recall", "precision", "leaks", "clean"), rows)
    changes = [
        (split, change, f["ours"]["dropped"], f["substring"]["dropped"], f["ours"]["of"])
        for split, by in result["changes"].items()
        for change, f in by.items()
    ]
    table(run, "Dropped, by how the case was made", ("split", "change", "ours", "substring", "of"), changes)
    for split, rules in result["splits"].items():
        found = rules["answer_steps"]
        run.say(f"{split}: {found['excluded']} of {found['cases']} answer steps excluded and counted apart.")


if __name__ == "__main__":
    raise SystemExit(main())
