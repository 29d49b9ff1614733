"""Both error rates of the form check on labelled proposals (tests/data/proposals.jsonl): good ones that it would drop,
and bad ones that it lets pass.

Good ones are steps of GSM8K's training references, reworded by hand, and of lab-critic. Bad ones are lab-critic's, and
those of Qwen2.5-Coder-1.5B-Instruct as critic on wrong attempts of the 0.5B at GSM8K training problems. `half` says
whether the rules were made with the row in view ("seen") or fixed before it was ("unseen").
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from stepwise.critics.form import form_fault
from stepwise.stats import wilson

PROPOSALS = Path(__file__).parents[1] / "tests" / "data" / "proposals.jsonl"


def rows() -> list[dict[str, Any]]:
    """The labelled proposals, each with what the check says of it under "found"."""
    made = [json.loads(line) for line in PROPOSALS.read_text(encoding="utf-8").splitlines()]
    return [row | {"found": _found(row)} for row in made]


def _found(row: dict[str, Any]) -> str:
    return form_fault(row["content"], problem=row["question"], prefix=row["prefix"], wrong=row["wrong"])


def main() -> None:
    """Print the error rates by half, then every mistake."""
    labelled = rows()
    for half in ("seen", "unseen"):
        for good, what in ((True, "good ones dropped"), (False, "bad ones let pass")):
            part = [row for row in labelled if row["half"] == half and row["good"] == good]
            wrong = sum(bool(row["found"]) == good for row in part)
            share, low, high = wilson(wrong, len(part))
            print(f"{half}: {what}: {wrong} of {len(part)}, {share:.0%} (95 %: {low:.0%} to {high:.0%})")
    print("reasons:", dict(Counter(row["found"] for row in labelled if row["found"] and not row["good"])))
    for row in labelled:
        if bool(row["found"]) == row["good"]:
            print(f"{row['half']}, {row['id']}: {row['found'] or row['fault']}: {row['content']!r}")


if __name__ == "__main__":
    main()
