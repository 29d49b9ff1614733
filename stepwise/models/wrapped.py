"""Models around models: `Wrapped` is the start of every wrapper, `generator_of` makes a coroutine of what knows only
batches.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from stepwise.errors import BackendError
from stepwise.models.base import Backend, Completion, Generator, Request, first_of
from stepwise.models.driver import Batcher
from stepwise.types import Usage


class BatchGenerator(Generator):
    """A model that knows only batches (`continue_solutions`): its coroutine asks it for everything that waits.

    Example:
        class Mine(BatchGenerator):
            def continue_solutions(self, requests):
                return [Completion(i, 0, solve(r), "answer") for i, r in enumerate(requests)]
    """

    def __init__(self) -> None:
        self._batcher: Batcher[Request, Completion] = Batcher(self._work)

    async def generate(self, request: Request) -> Completion:
        """One request in a batch with all that wait; raises what the model raises."""
        return await self._batcher.ask(request)

    @abstractmethod
    def continue_solutions(self, requests: Sequence[Request]) -> list[Completion]:
        """A flat list in request order, `n` per request."""

    def _work(self, requests: Sequence[Request]) -> list[Completion]:
        results = self.continue_solutions(requests)
        if len(results) != sum(request.n for request in requests):
            raise BackendError(
                f"backend {self.name!r} gave {len(results)} answers to {len(requests)} requests; "
                "it must answer each, with finish 'error' where it failed"
            )
        left = iter(results)
        return [first_of([next(left) for _ in range(request.n)]) for request in requests]


class _Batched(BatchGenerator):
    """`BatchGenerator` around a backend of anybody's."""

    def __init__(self, backend: Backend):
        super().__init__()
        self.backend, self.parameters = backend, backend.parameters

    name: Any = property(attrgetter("backend.name"), doc="The backend's.")
    capabilities: Any = property(attrgetter("backend.capabilities"), doc="The backend's.")

    def continue_solutions(self, requests: Sequence[Request]) -> list[Completion]:
        """The backend's."""
        return self.backend.continue_solutions(requests)

    def close(self) -> None:
        """Free the backend."""
        self.backend.close()


def generator_of(backend: Backend | Generator) -> Generator:
    """`backend` itself where it has the coroutine, else `_Batched` around it.

    Example:
        model = generator_of(my_backend)  # `await model.generate(request)`, whatever it had before
    """
    return backend if isinstance(backend, Generator) else _Batched(backend)


class Wrapped(Generator):
    """A wrapper that does nothing yet: everything is the model's inside; see `stepwise.models.wrappers`.

    Example:
        class Logged(Wrapped):
            async def generate(self, request):
                print(request.problem.id)
                return await super().generate(request)
    """

    def __init__(self, model: Generator | Backend) -> None:
        self.model = inner = generator_of(model)
        self.parameters, self.calls_per_sample = inner.parameters, inner.calls_per_sample
        self.prompt_hash, self.remote = inner.prompt_hash, inner.remote

    name: Any = property(attrgetter("model.name"), doc="The model's.")
    capabilities: Any = property(attrgetter("model.capabilities"), doc="The model's.")
    engines: Any = property(attrgetter("model.engines"), doc="The model's.")
    probe_bound: Any = property(attrgetter("model.probe_bound"), doc="The model's.")

    async def generate(self, request: Request) -> Completion:
        """The model's."""
        return await self.model.generate(request)

    def prepare(self) -> Usage:
        """The model's."""
        return self.model.prepare()

    async def ready(self) -> None:
        """The model's."""
        await self.model.ready()

    def prefix_ids(self, request: Request) -> list[int]:
        """The model's."""
        return self.model.prefix_ids(request)

    def parts(self, request: Request) -> list[Request]:
        """The model's."""
        return self.model.parts(request)

    def reset_cache(self) -> None:
        """Drop the model's cached prefixes."""
        self.model.reset_cache()

    def close(self) -> None:
        """Free the model."""
        self.model.close()
