"""The tables of `evals.conditioning`, and whether its bars were met."""

from __future__ import annotations

from typing import Any

from stepwise.runs.shell import Run

from .lab_tables import table

FOUND, RATIO = 70.0, 3.0  # percent of first errors; lower bound against resampling from the correct prefix


def show(run: Run[Any], figures: dict[str, Any]) -> bool:
    """Prints both tables; true when the bars were met."""
    _localization(run, figures["localization"])
    return _conditioning(run, figures["conditioning"]) and (_critic(figures)["acc_err"] or 0.0) >= FOUND


def _critic(figures: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(figures["localization"].values()))
    return found


def _localization(run: Run[Any], rows: dict[str, Any]) -> None:
    def interval(r: dict[str, Any]) -> str:
        return "" if r["interval"] is None else "{:.0f} to {:.0f}".format(*r["interval"])

    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    table(
        run,
        "First errors of lab-weak's own attempts at held-out problems, in percent",
        ("", "F1", "95 %", "found", "cleared", "of"),
        [
            (name, percent(r["f1"]), interval(r), percent(r["acc_err"]), percent(r["acc_cor"]), r["wrong"] + r["right"])
            for name, r in rows.items()
        ],
    )
    asked = [r for r in rows.values() if r["calls"]]
    calls, tokens, failed = (sum(r[key] for r in asked) for key in ("calls", "tokens", "failed"))
    run.say(f"found: share of wrong attempts whose first error was named; cleared: share of right ones, passed. "
            f"Tokens per call of lab-critic: {tokens / max(1, calls):.0f}; failures: {failed}.")  # fmt: skip


def _conditioning(run: Run[Any], found: dict[str, Any]) -> bool:
    title = (
        f"{found['hard']} problems that lab-weak failed {found['samples']} times of {found['samples']}, continued on "
        f"{found['samples']} fresh rollouts each from"
    )
    rows = [
        (
            name,
            f"{100 * r['accuracy']:.2f} %",
            "{:.2f} to {:.2f}".format(*(100 * x for x in r["interval"])),
            r["covered"],
            r["of"],
        )
        for name, r in found["rows"].items()
    ]
    table(run, title, ("", "accuracy", "95 %", "covered", "of"), rows)
    ratio, ceiling = found["ratio_to_prefix"], found["share_of_ceiling"]
    held = (ratio["low"] is None or ratio["low"] >= RATIO) and found["hard"] >= 100
    run.say(
        f"Proposed intervention / correct prefix: {_times(ratio['ratio'])} times (95 %: {_times(ratio['low'])} to "
        f"{_times(ratio['high'])}); the lower bound should be at least {RATIO:g}: {'ok' if held else 'MISSED'}"
    )
    run.say(
        f"It reaches {_percent(ceiling['ratio'])} % of what the true step reaches ({_percent(ceiling['low'])} to "
        f"{_percent(ceiling['high'])}). Located rightly: {found['located']} of {found['hard']}; told the true "
        f"location, {found['right_result']} of the proposed steps come to the right result; in {found['sound']} of "
        "these every equation holds."
    )
    return bool(held)


def _times(ratio: float | None) -> str:
    return "unbounded" if ratio is None else f"{ratio:.1f}"


def _percent(ratio: float | None) -> str:
    return "?" if ratio is None else f"{100 * ratio:.0f}"
