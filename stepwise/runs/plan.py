"""What a run would spend, shown by --dry-run before anything is spent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from rich import box
from rich.console import Console
from rich.table import Table

from stepwise.config import Config, LoadConfig, Roles
from stepwise.types import Problem

if TYPE_CHECKING:
    from stepwise.interventions.settings import CollectSettings

_INSTRUCTIONS = 2000  # tokens of a critic's prompt beside the texts, at most
_BYTES = 3  # of a text, for one token: what a likely case reckons with
_LIKELY_INSTRUCTIONS = 500  # tokens
_FOOTNOTE = "Upper bounds for tokens and calls; budget caps are not in them."
_CACHED = "Likely money bills what a model was sent before at price_cached_in; the most it could take assumes no cache."
_LIKELY_TOKENS = 300  # of a solution; on GSM8K, instruct models of 0.5 and 1.5 billion weights write 290
_LIKELY_STEPS = 6  # of a solution
_LIKELY_ROUTING = (
    f"Likely: six steps and {_LIKELY_TOKENS} tokens a solution (more, where its reference is longer), of which three "
    "steps in ten are escalated."
)
_LIKELY_FOOTNOTE = (
    "Likely: half of the attempts fail, a solution is as long as its reference (as the question, where there is none), "
    "half of the interventions help at once and the others never, and every reply of the critic can be read."
)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PlannedCalls:
    """The most that one role of a run would be asked for.

    `prompt_tokens` counts tokens that are not in this process's cache. `likely` is a usual case beside the worst, and
    its `cached_tokens` are those of the prompts that an API was sent before, which it may bill at `price_cached_in`.

    >>> PlannedCalls("weak", calls=100, prompt_tokens=20_000, generated_tokens=50_000).calls
    100
    """

    role: Roles
    calls: int
    prompt_tokens: int
    generated_tokens: int
    likely: PlannedCalls | None = None
    cached_tokens: int = 0


def plan_critiques(
    config: Config, attempts: Sequence[tuple[int, int]], likely: Sequence[tuple[int, int]] = ()
) -> PlannedCalls | None:
    """The most that a generative scorer could be asked for, None for another; attempts as in `plan_localizing`. Each
    vote on a step is a call that reads the attempt and the vote's critiques of the steps before.

    Example:
        >>> plan_critiques(Config(scorer={"kind": "generative", "votes": 2, "critique_tokens": 100}), [(300, 3)])
        PlannedCalls(role='scorer', calls=6, prompt_tokens=15600, generated_tokens=600, likely=None, cached_tokens=0)
    """
    votes, tokens = config.scorer.votes, config.scorer.critique_tokens
    if config.scorer.kind != "generative":
        return None
    calls = votes * sum(steps for _, steps in attempts)
    read = sum(votes * steps * (length + steps * tokens + _INSTRUCTIONS) for length, steps in attempts)
    usual = plan_critiques(config, likely) if likely else None
    return PlannedCalls("scorer", calls, read, calls * tokens, usual)


def plan_localizing(config: Config, attempts: Sequence[tuple[int, int]]) -> list[PlannedCalls]:
    """The most that finding first errors as [critic] says could ask for.

    Each attempt is the length of all its texts in bytes, which no tokenizer exceeds, and its number of steps. Each
    reply of the critic is reckoned to be asked for twice.

    >>> plan_localizing(Config.load(None, ["critic.method=reference"]), [(400, 5)])  # it asks no model
    []
    """
    how = config.critic
    texts = [length for length, _ in attempts]
    if how.method == "reference":
        return []
    if how.method == "scorer":
        if critiques := plan_critiques(config, attempts):
            return [critiques]
        return [PlannedCalls("scorer", len(texts), sum(texts), 0)] if config.scorer.kind != "constant" else []
    passes = [{"vote": how.samples, "bisect": 1 + (n - 1).bit_length()}.get(how.method, 1) for _, n in attempts]
    return [_asked_twice(config, texts, passes, 0)] if texts else []


def plan_proposing(config: Config, attempts: Sequence[tuple[int, int]]) -> list[PlannedCalls]:
    """The most that proposing interventions as [critic] says could ask for; attempts as in `plan_localizing`.

    >>> plan_proposing(Config.load(None, ["critic.method=reference"]), [(400, 5)])  # it asks no model
    []
    """
    how = config.critic
    if how.method == "reference":
        return []
    checks = 2 * how.revisions + 1 if how.revisions else 0
    texts = [length for length, _ in attempts]
    return [_asked_twice(config, texts, [how.candidates * (1 + how.solve_first + checks)] * len(texts), 3)]


def plan_collecting(config: Config, settings: CollectSettings, problems: Sequence[Problem]) -> list[PlannedCalls]:
    """The most that collecting interventions for `problems` could ask for, with a likely case beside it.

    At most every attempt is wrong, as long as it may be, and every candidate is guided to the end. The tokens of an
    attempt are those of the weak model's tokenizer, for the critic too.

    Example:
        plan = plan_collecting(config, CollectSettings(rollouts=8), problems)
        show_plan(plan, config, Console())
    """
    attempts = min(settings.rollouts, settings.attempts or settings.rollouts)
    room, local = settings.max_tokens, config.models.weak.local
    texts = [len(f"{p.question}{p.reference or ''}".encode()) + room for p in problems for _ in range(attempts)]
    sizes = [(length, room // 2) for length in texts]  # a step has a token and a blank line at least
    asked = [*plan_localizing(config, sizes), *plan_proposing(config, sizes)]
    questions = sum(len(p.question.encode()) + 64 for p in problems)
    most, requests = settings.worst_guiding(config.critic.candidates)
    guided = attempts * most
    # A local model reads what the samples of one request have in common once; an API may read it for each of them.
    times = attempts * (requests if local else most)
    prompts = questions * (1 if local else settings.rollouts)
    prompts += times * (questions + len(problems) * (room + config.critic.max_tokens))
    calls = len(problems) * (settings.rollouts + guided)
    weak = PlannedCalls("weak", calls, prompts, calls * room)
    likely = _likely_collecting(config, settings, problems)
    parts = [weak, *(_together(asked, role) for role in dict.fromkeys(p.role for p in asked))]
    return [dataclasses.replace(part, likely=likely.get(part.role)) for part in parts]


def likely_tokens(problem: Problem, most: int) -> int:
    """Tokens of a usual solution, at most `most`.

    Example:
        >>> likely_tokens(Problem("p", "1 + 1?", "2", "One and one are two."), 3840)
        300
    """
    return min(most, max(_LIKELY_TOKENS, len((problem.reference or "").encode()) // _BYTES))


def _likely_collecting(
    config: Config, settings: CollectSettings, problems: Sequence[Problem]
) -> dict[Roles, PlannedCalls]:
    """As `_LIKELY_FOOTNOTE` says, by role."""
    how, tries = config.critic, settings.rollouts
    failures = min((tries + 1) // 2, settings.attempts or tries)
    questions = [len(p.question.encode()) // _BYTES for p in problems]
    lengths = [min(settings.max_tokens, len((p.reference or p.question).encode()) // _BYTES) for p in problems]
    solution, n = sum(lengths), len(problems)
    soon = min(settings.batch, settings.guided) if settings.enough is not None else settings.guided
    late = min(settings.guided, settings.drop_after or settings.guided)
    guided = failures * how.candidates * (soon + late) // 2
    weak = PlannedCalls("weak", n * (tries + guided), sum(questions) * tries, solution * tries + solution // 2 * guided)
    seen = sum(questions) + 2 * solution + n * (0 if config.critic_is_bare else _LIKELY_INSTRUCTIONS)
    passes = {"vote": how.samples, "bisect": 3, "scorer": 0}.get(how.method, 1)
    proposals = how.candidates * (1 + how.solve_first + (1 if how.revisions else 0))
    asked, written = failures * (passes + proposals), failures * (passes * solution + proposals * solution // 4)
    found: dict[Roles, PlannedCalls] = {
        "weak": weak,
        "critic": PlannedCalls("critic", n * asked, asked * seen, written),
    }
    if how.method == "scorer":
        usual = [(question + length, _LIKELY_STEPS) for question, length in zip(questions, lengths, strict=True)]
        found["scorer"] = plan_critiques(config, usual * failures) or PlannedCalls(
            "scorer", n * failures, failures * seen, 0
        )
    return found


def _together(parts: Sequence[PlannedCalls], role: Roles) -> PlannedCalls:
    """What `parts` ask of one role."""
    own = [part for part in parts if part.role == role]
    return PlannedCalls(
        role, sum(p.calls for p in own), sum(p.prompt_tokens for p in own), sum(p.generated_tokens for p in own)
    )  # fmt: skip


def _asked_twice(config: Config, texts: Sequence[int], calls: Sequence[int], replies: int) -> PlannedCalls:
    """`calls` of the critic for each of `texts`, and as many repairs; a prompt may hold `replies` earlier replies."""
    width, total = config.critic.max_tokens, sum(calls)
    beside = 2 * (_INSTRUCTIONS + replies * width) + width  # the repair shows the model its reply
    prompts = sum(n * (2 * text + beside) for text, n in zip(texts, calls, strict=True))
    return PlannedCalls("critic", 2 * total, prompts, 2 * total * width)


def _money(planned: PlannedCalls, model: LoadConfig) -> float | None:
    """What `planned` costs at the model's prices; None when no price is known."""
    prices = model.prices
    if prices is None:
        return None
    fresh, cached = planned.prompt_tokens - planned.cached_tokens, planned.cached_tokens * (prices[2:] or prices)[0]
    return (fresh * prices[0] + cached + planned.generated_tokens * prices[1]) / 1e6


def show_plan(plan: Sequence[PlannedCalls], config: Config, console: Console) -> None:
    """Print the table: role, model, calls, tokens, money.

    >>> show_plan([], Config.lab(), Console(width=80))
    This program asks no model for anything.
    """
    if not plan:
        console.print("This program asks no model for anything.")
        return
    table = Table(title=f"Dry run: what this would spend at most (configuration {config.hash})", box=box.SIMPLE_HEAD)
    table.add_column("role", no_wrap=True)
    table.add_column("model", overflow="fold")
    for heading in ("calls", "prompt\ntokens", "generated\ntokens"):
        table.add_column(heading, justify="right", no_wrap=True)  # a figure that is cut says something else
    table.add_column("money", justify="right")
    for part in plan:
        table.add_row(part.role, config.role(part.role).model, *_cells([part], config))
        if part.likely is not None:
            table.add_row("  likely", "", *_cells([part.likely], config), style="dim")
    table.add_section()
    table.add_row("all", "", *_cells(plan, config))
    likely = [part.likely for part in plan if part.likely is not None]
    if likely and len(likely) == len(plan):
        table.add_row("  likely", "", *_cells(likely, config), style="dim")
    console.print(table)
    console.print(_FOOTNOTE, highlight=False)
    for line in _caps_that_may_bind(plan, config):
        console.print(line, highlight=False)
    if likely:
        collects = any(part.role == "critic" for part in plan)
        console.print(_LIKELY_FOOTNOTE if collects else _LIKELY_ROUTING, highlight=False)
        if any(part.cached_tokens and config.role(part.role).price_cached_in is not None for part in likely):
            console.print(_CACHED, highlight=False)


def _caps_that_may_bind(plan: Sequence[PlannedCalls], config: Config) -> list[str]:
    """A line for each cap of the run that is below the most that it could spend."""
    money = [_money(part, config.role(part.role)) for part in plan]
    bounds: dict[str, float | None] = {
        "strong_tokens": sum(part.generated_tokens for part in plan if part.role == "strong"),
        "total_tokens": sum(part.generated_tokens for part in plan),
        "calls": sum(part.calls for part in plan if part.role != "scorer"),
        "money": None if None in money else sum(cost for cost in money if cost is not None),
    }
    rows = ((name, getattr(config.budget, name), most) for name, most in bounds.items())
    return [
        f"budget.{name} = {cap:,.10g} is less than the {most:,.10g} that this could take: what it forbids is left out, "
        f"{'steps stay with the weak model' if name == 'strong_tokens' else 'solutions may end early'}."
        for name, cap, most in rows if cap is not None and most is not None and cap < most
    ]  # fmt: skip


def _cells(plan: Sequence[PlannedCalls], config: Config) -> list[str]:
    """Calls, prompt tokens, generated tokens and money of all of `plan` together."""
    costs = [_money(part, config.role(part.role)) for part in plan]
    sums = [sum(part.calls for part in plan), sum(p.prompt_tokens for p in plan), sum(p.generated_tokens for p in plan)]
    cost = None if None in costs else sum(cost for cost in costs if cost is not None)
    return [*map(_count, sums), "no price known" if cost is None else f"{cost:,.4f}"]


def _count(value: int) -> str:
    return f"{value:,}" if value < 10_000_000 else f"{value / 1e6:,.1f}M"  # so that a column stays narrow
