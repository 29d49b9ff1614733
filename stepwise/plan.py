"""What a run would spend, shown by --dry-run before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stepwise.config import Config, LoadConfig, Roles
from stepwise.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

# Round assumptions of an estimate, all stated in its footnote: a local model reads its weights once per token and
# batches eight sequences a time; a small one is bound by arithmetic instead.
_BYTES_PER_SECOND = 10e9
_BATCH = 8
_TOKENS_PER_SECOND = 1500.0
_PREFILL_FACTOR = 4.0
_API_TOKENS_PER_SECOND = 50.0
_INSTRUCTIONS = 2000  # tokens of a critic's prompt beside the texts, at most
_FOOTNOTE = (
    "Upper bounds for tokens and calls; budget caps are not in them. Times are rough: 10 GB/s of memory, 8 sequences a "
    "batch and at most 1,500 tokens/s for a local model, 50 tokens/s per request for an API."
)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Planned:
    """The most that one role of a run would be asked for.

    `prompt_tokens` counts tokens that are not cached. `at_once` bounds the requests that can be in flight together
    (None: all of them): the steps of one solution follow on one another.
    """

    role: Roles
    calls: int
    prompt_tokens: int
    generated_tokens: int
    at_once: int | None = None


def plan_localizing(config: Config, attempts: Sequence[tuple[int, int]]) -> list[Planned]:
    """The most that finding first errors as [critic] says could ask for.

    Each attempt is the length of all its texts in bytes, which no tokenizer exceeds, and its number of steps. Each
    reply of the critic is reckoned to be asked for twice.
    """
    how = config.critic
    texts = [length for length, _ in attempts]
    if how.method == "scorer":
        return [Planned("scorer", len(texts), sum(texts), 0)] if config.scorer.kind != "constant" else []
    passes = [{"vote": how.samples, "bisect": 1 + (n - 1).bit_length()}.get(how.method, 1) for _, n in attempts]
    return [_asked_twice(config, texts, passes, 0)] if texts else []


def plan_proposing(config: Config, attempts: Sequence[tuple[int, int]]) -> list[Planned]:
    """The most that proposing interventions as [critic] says could ask for; attempts as in `plan_localizing`."""
    how = config.critic
    checks = 2 * how.revisions + 1 if how.revisions else 0
    texts = [length for length, _ in attempts]
    return [_asked_twice(config, texts, [how.candidates * (1 + how.solve_first + checks)] * len(texts), 3)]


def _asked_twice(config: Config, texts: Sequence[int], calls: Sequence[int], replies: int) -> Planned:
    """`calls` of the critic for each of `texts`, and as many repairs; a prompt may hold `replies` earlier replies."""
    width, total = config.critic.max_tokens, sum(calls)
    beside = 2 * (_INSTRUCTIONS + replies * width) + width  # the repair shows the model its reply
    prompts = sum(n * (2 * text + beside) for text, n in zip(texts, calls, strict=True))
    return Planned("critic", 2 * total, prompts, 2 * total * width, len(texts))


def money(planned: Planned, model: LoadConfig) -> float | None:
    """What `planned` costs at the model's prices; None when no price is known."""
    prices = model.prices
    if prices is None:
        return None
    return (planned.prompt_tokens * prices[0] + planned.generated_tokens * prices[1]) / 1e6


def seconds(planned: Planned, model: LoadConfig) -> float | None:
    """A rough time; None when the model's file is not there to be measured."""
    if not model.local:
        together = min(model.sequences, planned.calls if planned.at_once is None else planned.at_once)
        return planned.generated_tokens / _API_TOKENS_PER_SECOND / max(together, 1)
    size = _file_size(model.model.removeprefix("llamacpp/"))
    if size is None:
        return None
    rate = min(_TOKENS_PER_SECOND, _BATCH * _BYTES_PER_SECOND / size)
    return planned.generated_tokens / rate + planned.prompt_tokens / (_PREFILL_FACTOR * rate)


def show_plan(plan: Sequence[Planned], config: Config, console: Console) -> None:
    """Print the table: role, model, calls, tokens, money, time."""
    from rich.table import Table

    if not plan:
        console.print("This program asks no model for anything.")
        return
    table = Table(title=f"Dry run: what this would spend at most (configuration {config.hash})")
    table.add_column("role")
    table.add_column("model", overflow="fold")
    for heading in ("calls", "prompt tokens", "generated tokens", "money", "time"):
        table.add_column(heading, justify="right")
    costs, times = [], []
    for part in plan:
        model = config.role(part.role)
        costs.append(money(part, model))
        times.append(seconds(part, model))
        counts = (f"{n:,}" for n in (part.calls, part.prompt_tokens, part.generated_tokens))
        table.add_row(part.role, model.model, *counts, _money(costs[-1]), _time(times[-1]))
    table.add_section()
    sums = [sum(part.calls for part in plan), sum(p.prompt_tokens for p in plan), sum(p.generated_tokens for p in plan)]
    total_cost = None if None in costs else sum(cost for cost in costs if cost is not None)
    total_time = None if None in times else sum(time for time in times if time is not None)
    table.add_row("all", "", *(f"{n:,}" for n in sums), _money(total_cost), _time(total_time))
    console.print(table)
    console.print(_FOOTNOTE, highlight=False)


def _file_size(name: str) -> int | None:
    path = Path(name)
    if path.suffix != ".gguf":
        from stepwise import lab

        if name not in (*lab.MODELS, *lab.ADAPTERS):
            return None
        try:
            path = lab.model_path(name)
        except DataError:
            return None
    return path.stat().st_size if path.exists() else None


def _money(value: float | None) -> str:
    return "no price known" if value is None else f"{value:,.4f}"


def _time(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"about {value:.0f} s" if value < 120 else f"about {value / 60:.0f} min"
