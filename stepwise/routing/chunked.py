"""Routing in chunks, each sealed whole: by this process, or by the workers of a cluster, with the same files.

What differs from `StepRouter.solve_all`: which problems are open together follows from their place in the file, not
from when others end, and each chunk begins with empty caches; so traces do not depend on who did which chunk, nor on
what was killed. They are those of `solve_all` up to the rounding of batches of another shape.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise import routing
from stepwise.config import Config, Prices
from stepwise.data.streamed import digest_of
from stepwise.errors import DataError
from stepwise.io import iter_rows, read_rows, whole_file
from stepwise.models.base import Generator
from stepwise.models.budget import Ledger
from stepwise.models.crew import at_work
from stepwise.models.scorers.base import Scorer
from stepwise.models.store import CallCache
from stepwise.routing.compare import Measured, PolicyRow, judge
from stepwise.routing.metrics import Cost, cost_of
from stepwise.routing.names import ModelNames
from stepwise.routing.policy import Policy
from stepwise.routing.saved import SavedPolicy
from stepwise.runs.chunks import Members, run_chunks, sealed_files
from stepwise.runs.directory import RunDirectory
from stepwise.stats import wilson
from stepwise.types import Problem, Trace

if TYPE_CHECKING:
    from stepwise.routing.router import StepRouter


@dataclasses.dataclass(frozen=True)
class About:
    """The models of a router: their names, weights (by role) and prices.

    Example:
        routed.about.card.weak  # lab-weak@11989165
    """

    card: ModelNames
    sizes: Mapping[str, int | None]
    prices: Mapping[str, Prices | None]


@dataclasses.dataclass(frozen=True)
class Routed:
    """A router as reports see it, wherever its models are.

    Example:
        measured = judge(routed, traces)
    """

    policy: Policy
    about: About
    crew: Any

    @property
    def ledger(self) -> Any:
        """What was spent."""
        return self.crew.ledger

    @property
    def card(self) -> ModelNames:
        """Names of the models."""
        return self.about.card

    @property
    def prices(self) -> dict[str, Prices | None]:
        """By role."""
        return dict(self.about.prices)

    def cost(self, traces: Sequence[Trace]) -> Cost:
        """As of a router."""
        return cost_of(traces, **self.about.sizes)


@dataclasses.dataclass(frozen=True)
class RouterMaking:
    """How a worker makes its router. `checked`: the policy must have been set for these models.

    Example:
        with at_work(config, directory, RouterMaking(saved)) as crew: ...
    """

    saved: SavedPolicy
    checked: bool = True

    @contextmanager
    def models(self, config: Config, ledger: Ledger, store: CallCache | None, keep_local: bool) -> Iterator[StepRouter]:
        """The router, with this ledger and store."""
        with routing.StepRouter.from_config(config, policy=self.saved.policy) as router:
            if self.checked:
                self.saved.check(config, router.card)
            router.ledger, router.cache = ledger, store
            router.settings = dataclasses.replace(router.settings, keep_local=keep_local)
            yield router

    def about(self, models: StepRouter) -> About:
        """Names, sizes and prices."""
        sizes = {role: getattr(model, "parameters", None) for role, model in models.models._asdict().items()}
        return About(models.card, sizes, models.prices)


@contextmanager
def routed_chunks(
    config: Config, directory: RunDirectory, saved: SavedPolicy, *, checked: bool = True
) -> Iterator[tuple[Routed, Callable[..., Path]]]:
    """The router of a run as reports see it, and a function that routes `problems`, `size` at a time, and returns
    traces.jsonl; `on_trace` (None: nobody) is told of each trace once its chunk is sealed.

    Raises as `StepRouter.from_config` and `at_work` do; the function as `run_chunks` does, and DataError where the run
    was begun with other problems.

    Example:
        with routed_chunks(config, directory, SavedPolicy(Threshold(0.5), None)) as (routed, route):
            path = route(problems, 16)
    """
    with at_work(config, directory, RouterMaking(saved, checked)) as crew:

        def finish() -> Path:
            path = directory.claim("traces.jsonl")
            with whole_file(path) as draft, draft.open("wb") as out:
                for file in sealed_files(directory.path, "traces"):
                    with file.open("rb") as part:
                        shutil.copyfileobj(part, out)
            return path

        def route(problems: Members, size: int, on_trace: Callable[[Trace], object] | None = None) -> Path:
            def sealed(folder: Path, num: int, before: bool) -> str:
                for trace in read_rows(folder / "traces.jsonl", Trace) if on_trace is not None else ():
                    on_trace(trace)  # type: ignore[misc]
                return ""

            same = {"digest": digest_of(problems)}
            if directory.freeze("problems", same) != same:
                raise DataError(
                    f"--out {directory.path} was begun with other problems; give another --out, or --overwrite to "
                    "begin anew"
                )

            return run_chunks(
                directory, problems, size, ["traces"], _solve, finish, crew=crew, label="routing", on_sealed=sealed
            )

        yield Routed(saved.policy, crew.about, crew), route


SHOWN = 10_000
"""Traces that a report holds at most."""


def shown(path: Path, routed: Routed, most: int = SHOWN) -> tuple[list[Trace], PolicyRow | None]:
    """The first traces of a file, and where there are more of them the row of all, a part in memory at a time.

    Example:
        traces, row = shown(path, routed)
    """
    rest = iter_rows(path, Trace)
    first = list(islice(rest, most))
    if (further := next(rest, None)) is None:
        return first, None
    parts = iter(lambda: list(islice(rest, 1000)), [])
    return first, _total_of(judge(routed, part) for part in chain([first], [[further]], parts))


def _total_of(batches: Iterable[Measured]) -> PolicyRow:
    """The row of many batches of one policy, of which only one is held at a time; without seconds."""
    rows, right, kept, strong = list[PolicyRow](), 0, 0, 0
    for batch in batches:
        rows.append(batch.row)
        right += sum(batch.correct)
        steps = [step for view in batch.views for step in view.trace.steps]
        kept += sum(step.usage.generated_tokens for step in steps)
        strong += sum(step.usage.generated_tokens for step in steps if step.author == "strong")
    n, weights = sum(row.n for row in rows), [row.parameter_tokens for row in rows]
    spread = None if any(row.accuracy is None for row in rows) else wilson(right, n)
    known = [each for each in weights if each is not None]
    total: PolicyRow = dataclasses.replace(
        rows[0],
        accuracy=right / n if spread else None,
        accuracy_low=spread.low if spread else None,
        accuracy_high=spread.high if spread else None,
        strong_share=strong / kept if kept else None,
        strong_tokens=sum(row.strong_tokens for row in rows),
        generated_tokens=sum(row.generated_tokens for row in rows),
        parameter_tokens=sum(known) if len(known) == len(weights) else None,
        calls=sum(row.calls for row in rows),
        seconds=None,
        n=n,
        failed=sum(row.failed for row in rows),
    )
    return total


def _solve(router: StepRouter, problems: Sequence[Problem]) -> dict[str, Sequence[Trace]]:
    for model in router.models:
        if isinstance(model, Generator | Scorer):
            model.reset_cache()
    return {"traces": router.solve_all(problems, progress=False)}
