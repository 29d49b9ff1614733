"""A made-up report for the tests of this folder; none of its figures was measured."""

from __future__ import annotations

import random

from stepwise.report.shell import Report
from stepwise.routing.compare import PolicyRow, TraceView
from stepwise.types import Problem, Step, Trace, Usage

FRUIT = ("apples", "pears", "plums", "figs", "limes")


def row(
    policy: str, family: str, setting: float | None, accuracy: float, share: float, tokens: int, n: int = 200
) -> PolicyRow:
    half = 1.96 * (accuracy * (1 - accuracy) / n) ** 0.5
    strong = round(share * 24_000)
    low, high = max(0.0, accuracy - half), min(1.0, accuracy + half)
    weights = 1.3e6 * (tokens - strong) * 3.1 + 4.8e6 * strong * 2.2
    return PolicyRow(
        policy, family, setting, accuracy, low, high, share, strong, tokens, weights, tokens // 14, tokens / 2900, n
    )


def rows() -> tuple[PolicyRow, ...]:
    thresholds = [
        (0.1, 0.52, 0.04),
        (0.2, 0.62, 0.08),
        (0.3, 0.72, 0.13),
        (0.5, 0.83, 0.22),
        (0.7, 0.9, 0.34),
        (0.9, 0.92, 0.55),
    ]
    rates = [(0.1, 0.49, 0.1), (0.25, 0.565, 0.25), (0.5, 0.7, 0.5), (0.75, 0.82, 0.76)]
    return (
        row("weak alone", "never", None, 0.435, 0.0, 24_000),
        *(row(f"threshold {x:g}", "threshold", x, a, s, round(24_000 * (1 + s))) for x, a, s in thresholds),
        *(row(f"random {x:g}", "random", x, a, s, round(24_000 * (1 + 0.9 * s))) for x, a, s in rates),
        row("strong alone", "always", None, 0.945, 1.0, 24_300),
    )


def problem(number: int) -> Problem:
    fruit = FRUIT[number % len(FRUIT)]
    return Problem(
        f"lab-test-{number:04d}",
        f"A market stall starts the day with {12 + number} crates of {fruit}. Each crate holds 8 {fruit}. By noon "
        f"37 of them are sold, and a cousin then brings half as many again as are left."
        f" How many {fruit} are there in the end?",
        str((8 * (12 + number) - 37) * 3 // 2),
        f"We have {8 * (12 + number)} {fruit} at first.\n\nAfter the sale {8 * (12 + number) - 37} remain.",
        "lab",
    )


def usage(author: str, tokens: int) -> Usage:
    return Usage(f"llamacpp/lab-{author}", 1, 140 + tokens, tokens, tokens)


def trace(number: int, threshold: float, rng: random.Random) -> Trace:
    asked = problem(number)
    total = 8 * (12 + number)
    texts = [
        f"First count the fruit in the crates: {12 + number} * 8 = {total}.",
        f"By noon 37 are sold, so {total} - 37 = {total - 37} are left.",
        f"The cousin brings half as many again: {total - 37} + {(total - 37) // 2} = {(total - 37) * 3 // 2}.",
        rf"There are $\boxed{{{(total - 37) * 3 // 2}}}$ in the end.",
    ]
    steps = []
    for index, text in enumerate(texts):
        score = round(rng.betavariate(3, 1.2), 3)
        score = score if index < 3 else max(score, 0.93)
        if score < threshold:
            draft = Step(text.replace("= ", "= 1"), "weak", score, usage("weak", 21))
            why = f"escalate: score {score:.2f} is below {threshold:g}"
            after = round(0.7 + 0.3 * rng.random(), 3)
            steps.append(Step(text, "strong", after, usage("strong", 24), (), (draft,), why))
        else:
            steps.append(
                Step(
                    text, "weak", score, usage("weak", 22), (), (), f"keep: score {score:.2f} is at least {threshold:g}"
                )
            )
    scored = Usage("llamacpp/lab-scorer", len(steps), 400, 120, 0)
    return Trace(asked, tuple(steps), "answer", scored)


def traces(problems: int = 12) -> tuple[TraceView, ...]:
    rng = random.Random(3)
    views = []
    for threshold in (0.3, 0.7):
        for number in range(problems):
            made = trace(number, threshold, rng)
            verdict = "correct" if rng.random() < 0.6 + 0.3 * threshold else "wrong"
            views.append(TraceView(made, f"threshold {threshold:g}", verdict, 3.1e8 + number))
    cut = Trace(problem(90), views[0].trace.steps[:2], "repeat", note="step 2 repeated the step before it three times")
    views.append(TraceView(cut, "threshold 0.7", "no_answer"))
    mended = Trace(problem(91), (views[0].trace.steps[0], Step("Half of 59 again is 29.", "intervention")), "")
    views.append(TraceView(mended, "by hand", ""))
    return tuple(views)


def report() -> Report:
    return Report(
        "Routing between a weak and a strong model",
        "200 held-out problems, seven policies, one run of the demo program",
        rows(),
        traces(),
        {
            "program": "programs.demo",
            "config": "3f9c51d20b7e",
            "weak": "llamacpp/lab-weak (1.3 M weights)",
            "strong": "llamacpp/lab-strong (4.8 M weights)",
            "scorer": "llamacpp/lab-scorer (1.3 M weights)",
            "temperature": "0.7",
        },
        ("Threshold 0.7 comes within 4.5 points of the strong model alone with 34 % of its tokens.",),
        lab=True,
    )
