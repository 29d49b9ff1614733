"""What routing saved against the strong model alone, estimated from the routed traces: nothing more is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stepwise.errors import DataError
from stepwise.models.budget import Ledger, Prices
from stepwise.routing.metrics import cost_of, usage_by_author
from stepwise.types import Trace, Usage


@dataclass(frozen=True)
class Savings:
    """Strong tokens and money here, and what the strong model alone would take by the estimate.

    The estimate: it writes as many steps as these solutions have, those that the weak model wrote as long as its own
    here are on average (as long as they are, where it wrote none: `own_steps` is 0), in one call per problem, which
    reads the question. Where the strong model alone would take fewer or longer steps, the estimate is off by that; the
    only sure way to know is to run it (`routing.policy=always`). Money is None where a price is not known.
    """

    problems: int
    own_steps: int
    strong_tokens: int
    strong_only_tokens: float
    money: float | None
    strong_only_money: float | None

    @property
    def tokens_saved(self) -> float | None:
        """Share of the strong model's tokens that were not needed, below 0 for a loss; None where it has none."""
        return 1 - self.strong_tokens / self.strong_only_tokens if self.strong_only_tokens else None

    @property
    def money_saved(self) -> float | None:
        """Money that was not spent, below 0 for a loss."""
        if self.money is None or self.strong_only_money is None:
            return None
        return self.strong_only_money - self.money

    def in_words(self) -> list[str]:
        """One line for tokens, and one for money where anything costs any; both say that it is an estimate."""
        saved = self.tokens_saved
        if saved is None:
            return []
        share = f"{saved:.0%} saved" if saved >= 0 else f"{-saved:.0%} more"
        length = f"the strong model's own {self.own_steps} here" if self.own_steps else "they are: it wrote none here"
        lines = [
            f"Strong tokens: {self.strong_tokens:,} here, about {self.strong_only_tokens:,.0f} by the strong model "
            f"alone, {share} (estimated: as many steps as here, each as long as {length})."
        ]
        if self.money_saved is not None and (self.money or self.strong_only_money):
            lines.append(
                f"Money: {self.money:,.6g} here with all models, about {self.strong_only_money:,.6g} by the strong "
                f"model alone (estimated from the same steps, one call per problem)."
            )
        return lines


def savings(traces: Sequence[Trace], prices: Mapping[str, Prices | None] | None = None) -> Savings:
    """Estimate what `traces` saved; `prices` by role, as for a `Ledger`. Raises `DataError` for no traces."""
    if not traces:
        raise DataError("savings: no traces; route at least one problem first")
    steps = [step for trace in traces for step in trace.steps]
    own = [step.usage.generated_tokens for step in steps if step.author == "strong"]
    other = [step.usage.generated_tokens for step in steps if step.author != "strong"]
    alone = float(sum(own) + (len(other) * sum(own) / len(own) if own else sum(other)))
    read, spent = 0, Ledger(None, prices)
    for trace in traces:
        usages = [step.usage for step in trace.steps or trace.abandoned]
        read += min((usage.prompt_tokens for usage in usages if usage != Usage()), default=0)  # least: the question
        for role, usage in usage_by_author(trace).items():
            spent.record(role, usage)
    price = (prices or {}).get("strong")
    return Savings(
        problems=len(traces),
        own_steps=len(own),
        strong_tokens=cost_of(traces).strong_tokens,
        strong_only_tokens=alone,
        money=spent.usage().cost,
        strong_only_money=None if price is None else (price[0] * read + price[1] * alone) / 1_000_000,
    )
