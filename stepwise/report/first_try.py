"""What a first try of two models came to, as a table and in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

from stepwise.config import Prices
from stepwise.models.budget import Ledger
from stepwise.routing.compare import Measured, TraceView
from stepwise.routing.first_try import SHARE, FirstTry
from stepwise.stats import wilson

COLUMNS = ("", "n", "right", "95 % interval", "strong tokens\na problem", "all tokens\na problem", "s")
_CUT = ("length", "repetition")


def table_rows(first: FirstTry) -> list[tuple[str, ...]]:
    """A row of `COLUMNS` for the weak model alone, the policy, and the strong model alone where it came to an end.

    Example:
        for cells in table_rows(first_try(router, problems)):
            print(*cells)  # weak alone, routed, strong alone
    """
    arms = [("weak alone", first.measured[0]), ("routed", first.measured[1])]
    arms += [("strong alone", first.strong)] if first.strong else []
    return [(name, *_cells(measured)) for name, measured in arms]


def _cells(measured: Measured) -> Iterator[str]:
    row = measured.row
    yield f"{row.n}"
    yield "no answers given" if row.accuracy is None else f"{row.accuracy:.1%}"
    yield "" if row.accuracy_low is None else f"{row.accuracy_low:.1%} to {row.accuracy_high:.1%}"
    yield f"{row.strong_tokens / row.n:,.0f}"
    yield f"{row.generated_tokens / row.n:,.0f}"
    yield "" if row.seconds is None else f"{row.seconds:,.0f}"


def in_words(first: FirstTry, prices: Mapping[str, Prices | None]) -> list[str]:
    r"""The policy and where it was set, how the arms compare on the same problems, money, and what looks wrong.

    Example:
        print(*in_words(first_try(router, problems), router.prices), sep="\n")
    """
    weak, routed = first.measured
    side = "above" if first.policy.signal.worse == "high" else "below"
    lines = [
        f"Policy: a step is escalated where its signal {first.policy.signal.name} (how sure the weak model was of its "
        f"tokens) is {side} {first.policy.threshold:.3g}. There is no scorer; the threshold was set on {first.aside} "
        f"problems that are not in the table, where it escalates {SHARE:.0%} of the steps."
    ]
    if weak.accuracy is not None and weak.correct == routed.correct:
        lines.append("Routed and weak alone are right on the same problems: routing changed no verdict.")
    elif weak.accuracy is not None:
        gap = first.measured.difference(routed.label, weak.label)
        ends = (
            f" ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})" if gap.low is not None and gap.high is not None else ""
        )
        lines.append(f"Routed less weak alone, paired: {100 * (gap.value or 0.0):+.1f} points{ends}.")
    seen = 280 * math.sqrt(0.3 / len(weak.views))  # 80 % power, where 30 % of the problems are discordant
    lines.append(
        f"{len(weak.views)} problems show differences of {seen:.0f} points and more. On the models of docs/real.md no "
        "signal that costs nothing was worth routing by; a scorer is what helps (docs/scorers.md)."
    )
    if first.strong is not None:
        count, ids = len(first.strong.views), {view.trace.problem.id for view in first.strong.views}
        same = [sum(right for view, right in zip(m.views, m.correct, strict=True) if view.trace.problem.id in ids)
                for m in (weak, routed, first.strong)]  # fmt: skip
        lines.append(
            f"The strong model alone wrote {count} solutions, under a cap of {first.strong_cap:,} tokens; "
            f"on these {count} problems weak, routed and strong solve {same[0]}, {same[1]} and {same[2]}."
        )
    else:
        lines.append(f"The strong model alone wrote no whole solution within {first.strong_cap:,} tokens.")
    money = [money_of(m, prices) for m in first.measured]
    if any(spent is None or spent for spent in money):
        lines.append(f"Money: weak alone {_shown(money[0])}, routed {_shown(money[1])}.")
    return [*lines, *_looks_wrong(weak)]


def money_of(measured: Measured, prices: Mapping[str, Prices | None]) -> float | None:
    """What the traces cost at `prices`, by role, per million (prompt, generated) tokens; None where one is not known.

    Example:
        money_of(compare(router, "always", problems)[0], {"strong": (2.5, 10.0)})
    """
    spent = Ledger(None, prices)
    for view in measured.views:
        for role, usage in view.trace.usage.items():
            spent.record(role, dataclasses.replace(usage, cost=None))
    return spent.usage().cost


def _shown(money: float | None) -> str:
    return "unknown (no prices given)" if money is None else f"{money:,.4g}"


def _looks_wrong(weak: Measured) -> Iterator[str]:
    """Shares of the weak model's solutions that say nothing of how well it reasons, with what to change."""
    n = len(weak.views)

    def share(kind: str, views: list[TraceView], remedy: str) -> str:
        ends = wilson(len(views), n)
        return f"{len(views)} of {n} solutions of the weak model {kind} ({ends.low:.0%} to {ends.high:.0%}): {remedy}."

    cut = [view for view in weak.views if view.trace.finish in _CUT]
    boxless = [view for view in weak.views if view not in cut and view.trace.answer is None]
    if cut:
        yield share("were cut", cut, "raise sampling.max_step_tokens, routing.max_steps or models.weak.context")
    if boxless:
        yield share(
            "have no boxed answer", boxless, "the prompt ([prompt] system) has to ask this model for it plainly"
        )
