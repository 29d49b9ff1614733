"""Who does the chunks of a run: this process, or the workers of a Ray cluster, by the same code.

A program says how its models are made of a ledger and a store (`Making`), and what is done with a chunk (`Work`). In
one process both are those of the run's directory; a worker has a desk of the books in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

from stepwise.config import Config
from stepwise.models.budget import Ledger
from stepwise.models.caps import Caps
from stepwise.models.store import CallCache
from stepwise.runs.chunks import Part, Work, texts_of
from stepwise.runs.directory import RunDirectory

M = TypeVar("M")


class Making(Protocol[M]):
    """How a worker's models are made; it goes to workers elsewhere, so it is an object of a class, not a closure.

    Example:
        crew = stack.enter_context(at_work(config, directory, RouterMaking(policy)))
    """

    def models(
        self, config: Config, ledger: Ledger, store: CallCache | None, keep_local: bool
    ) -> AbstractContextManager[M]:
        """The models, with caps and store around them, for as long as the block is open."""

    def about(self, models: M) -> Any:
        """What the run must know of the models; plain values."""


class Here:
    """The crew that is this process.

    Example:
        with at_work(config, directory, making) as crew:
            print(crew.ledger.summary())
    """

    def __init__(self, caps: Caps, making: Making[Any], models: Any) -> None:
        self.ledger, self.about, self.models = caps.ledger, making.about(models), models
        self.check = caps.check

    def map(self, work: Work, parts: Iterable[Part]) -> Iterator[tuple[int, Mapping[str, str]]]:
        """One after the other."""
        for number, part in parts:
            yield number, texts_of(work(self.models, part))


@contextmanager
def at_work(config: Config, directory: RunDirectory, making: Making[Any]) -> Iterator[Any]:
    """The crew of a run; what its models answer that are not the lab's is kept in answers.jsonl when it arrives.

    Raises ConfigError where a cap on money lacks a price, and BackendError for a cluster that cannot be reached.

    Example:
        with at_work(config, directory, making) as crew:
            run_chunks(directory, problems, 8, ["traces"], work, finish, crew=crew, label="routing")
    """
    loads = [config.role(role) for role in ("weak", "strong", "critic", "scorer")]
    keep_local = any(role.local and not role.model.startswith("llamacpp/lab-") for role in loads)
    keeps = keep_local or not all(role.local for role in loads)
    if config.workers.backend == "ray":
        from stepwise.models.workers import ray_crew  # Ray is an extra

        with ray_crew(config, directory, making, keeps=keeps, keep_local=keep_local) as crew:
            yield crew
        return
    with ExitStack() as stack:
        caps, store = Caps(config, directory), None
        if keeps:
            store = stack.enter_context(CallCache(directory.claim("answers.jsonl"), replays_are_free=True))
            for lost in store.unanswered:
                caps.add(lost.role, lost.perhaps)
        models = stack.enter_context(making.models(config, caps.ledger, store, keep_local))
        yield Here(caps, making, models)
