"""The models by what they do in a collection and in the datasets made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, Literal

from stepwise import critics
from stepwise.config import Config
from stepwise.models import load_backend
from stepwise.models.base import Backend, Generator, generator_of
from stepwise.models.shared import shared_engine
from stepwise.types import Usage

Role = Literal["weak", "strong", "localizer", "proposer", "rewriter"]
Task = Literal["locate", "propose"]
Reserve = Callable[[Task, Mapping[str, Any]], AbstractContextManager[Callable[[Usage], None]]]
"""What a call of a critic stands in: it may be refused, and what is yielded hears of its cost."""


class Writers:
    """The models by what they do, each loaded when it is first asked for. Those given are used as they are.

    `weak` and `strong` are backends, the others modules: ErrorLocalizer, InterventionProposer with one candidate, and
    SolutionRewriter. `reserve` is around every call of the first two.
    """

    def __init__(
        self,
        config: Config,
        *,
        weak: Backend | None = None,
        strong: Backend | None = None,
        localizer: Any = None,
        proposer: Any = None,
        rewriter: Any = None,
        reserve: Reserve = lambda task, item: nullcontext(lambda usage: None),
    ) -> None:
        backends = {"weak": weak, "strong": strong}
        given = {"localizer": localizer, "proposer": proposer, "rewriter": rewriter}
        given |= {role: generator_of(backend) for role, backend in backends.items() if backend is not None}
        self._config, self._given = config, {role: writer for role, writer in given.items() if writer is not None}
        self.reserve = reserve
        vars(self).update(self._given)  # what stands there is not loaded

    @cached_property
    def weak(self) -> Generator:
        """The model that is to be trained."""
        return generator_of(load_backend(self._config.models.weak, prompt=self._config.prompt))

    @cached_property
    def strong(self) -> Generator:
        """The model that steps are escalated to."""
        return generator_of(load_backend(self._config.models.strong, prompt=self._config.prompt))

    @cached_property
    def localizer(self) -> Any:
        """Finds first errors."""
        return critics.ErrorLocalizer.from_config(self._config)

    @cached_property
    def proposer(self) -> Any:
        """Writes a step in place of an error."""
        return critics.InterventionProposer.from_config(one_candidate(self._config))

    @cached_property
    def rewriter(self) -> Any:
        """Writes a failed attempt anew."""
        return critics.SolutionRewriter.from_config(self._config)

    def reset_caches(self, *roles: Role) -> None:
        """Empty the caches of the local models that are in use, those in `roles` included."""
        used = {role: getattr(self, role) for role in roles} | vars(self)
        for role in {"weak", "strong"} & used.keys():
            used[role].reset_cache()
        asked = {"localizer", "proposer", "rewriter"} & (vars(self).keys() - self._given.keys())
        if asked and self._config.models.critic.local:
            shared_engine(self._config.models.critic).reset_cache()

    def close(self) -> None:
        """Free the backends that were loaded here."""
        for role in {"weak", "strong"} & (vars(self).keys() - self._given.keys()):
            vars(self).pop(role).close()


@contextmanager
def in_use(writers: Writers | None, config: Config) -> Iterator[Writers]:
    """`writers` as they are, or those of the configuration, which are freed at the end."""
    if writers is not None:
        yield writers
        return
    own = Writers(config)
    try:
        yield own
    finally:
        own.close()


def one_candidate(config: Config) -> Config:
    """The configuration with one candidate for each error; of several, each is a call of its own."""
    critic = config.critic
    warm = critic.temperature or (0.7 if critic.candidates > 1 else 0.0)  # greedy candidates would all be the same
    return config.model_copy(update={"critic": critic.model_copy(update={"candidates": 1, "temperature": warm})})
