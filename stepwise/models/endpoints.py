"""A model that is served at several places: LiteLLM's Router asks the others where one fails, and lets it rest.

1. To the Router each endpoint is a model group of its own, of a provider whose handler asks a `LiteLLMBackend`: what a
   hosted call promises (bounds on time and bytes, no redirects with a key, what was perhaps billed) holds for each as
   it does for one, and no key of ours is in the Router.
2. A problem has an order of endpoints, drawn from its id by their weights (rendezvous hashing): the same in every
   process, so that whoever continues its solution meets a prefix cache that has it. The Router's own affinity
   (`session_affinity`) forgets beyond 200 problems, and knows nothing of other processes.
3. Cooldowns and fallbacks along that order are the Router's. An answer that was received is kept: only samples that
   failed are asked for elsewhere. A request that an endpoint refuses is not sent to others.
4. Where all fail, they are asked again as one endpoint would be, once they have rested.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
import uuid
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache
from itertools import chain
from typing import Any

from stepwise.config import ModelConfig
from stepwise.errors import BackendError
from stepwise.models.base import Completion, Request
from stepwise.models.failures import failure_of
from stepwise.models.http import CallFailed, retried
from stepwise.models.litellm import LiteLLMBackend
from stepwise.models.litellm_handler import import_litellm
from stepwise.models.probe import Findings
from stepwise.prompt import SolvePrompt
from stepwise.seeds import stable_hash
from stepwise.types import Failure, Usage

PROVIDER = "stepwise_endpoint"


class Endpoints(LiteLLMBackend):
    """The model of `config` behind its `endpoints`; see `LiteLLMBackend` for the rest.

    Each is probed; one that does not answer is taken to be like one that does, and without such a one left out. What
    the model can do is what all can. `usages` tells what was spent at each.

    Example:
        places = [{"api_base": "http://gpu1:8000/v1"}, {"api_base": "http://gpu2:8000/v1", "weight": 2.0}]
        with Endpoints(sw.ModelConfig(model="openai/NAME", endpoints=places)) as strong:
            print(strong.capabilities, strong.usages)
    """

    def __init__(
        self, config: ModelConfig, prompt: SolvePrompt | None = None, *, attempts: int = 5, backoff: float = 0.5
    ):
        self.config, self.prompt = config, prompt or SolvePrompt()
        self.backends = [LiteLLMBackend(place, prompt, attempts=1) for place in config.places]
        self.name = "|".join(sorted(backend.name for backend in self.backends))
        self.remote, self.prompt_hash = True, self.prompt.hash
        self.calls_per_sample = max(backend.calls_per_sample for backend in self.backends)
        self._attempts, self._backoff = attempts, backoff
        self._groups = [f"{uuid.uuid4().hex}-{i}" for i in range(len(self.backends))]
        self._router = _router(self._groups, config.cooldown)
        self._findings: Findings | None = None
        self._probing = threading.Lock()
        self._probe_usage = Usage()
        self._pool = ThreadPoolExecutor(config.requests, thread_name_prefix="stepwise-endpoints")

    @property
    def findings(self) -> Findings:
        """What all endpoints can do; how a solution is continued is a matter of each."""
        with self._probing:
            if self._findings is None:
                found, _ = retried(self._probe, attempts=self._attempts, backoff=self._backoff)
                self._findings, self._probe_usage = found, self.usage
            return self._findings

    def _probe(self) -> Findings:
        """Probe all at once. Raises CallFailed where none answers."""

        def probed(backend: LiteLLMBackend) -> Exception | None:
            try:
                _ = backend.findings
            except BackendError as error:
                return error
            return None

        with ThreadPoolExecutor(len(self.backends)) as threads:
            errors = list(threads.map(probed, self.backends))
        known = [backend.findings for backend, error in zip(self.backends, errors, strict=True) if error is None]
        if not known:
            kinds = [failure_of(error).kind for error in errors if error]
            reason = "; ".join(map(str, errors))
            raise CallFailed(Failure("again" if "again" in kinds else "gone", f"no endpoint answers: {reason}"))
        for backend, error in zip(self.backends, errors, strict=True):
            if error:
                twins = [each for each in self.backends if each.probed and each.dialect == backend.dialect]
                fate = "taken to be like another" if twins else "left out"
                warnings.warn(f"an endpoint does not answer and is {fate}: {error}", stacklevel=3)
                backend.adopt(twins[0].findings if twins else None)
        least = next((each for each in known if each.continuation == "prompt"), known[0])
        can: dict[str, Any] = {
            name: all(getattr(each, name) for each in known) for name in ("logprobs", "several", "seed", "schema")
        }
        return dataclasses.replace(least, **can)

    @property
    def probe_bound(self) -> Usage:
        """The most that `prepare` may spend now; nothing once the endpoints are known."""
        return Usage() if self._findings else sum((backend.probe_bound for backend in self.backends), Usage())

    @property
    def usage(self) -> Usage:
        """All that was spent, the probes included."""
        return sum(self.usages.values(), Usage())

    @property
    def usages(self) -> dict[str, Usage]:
        """What was spent at each endpoint, by its name."""
        return {backend.name: backend.usage for backend in self.backends}

    def ranked(self, problem: str) -> list[int]:
        """The endpoints, by their place in the configuration, in the order in which a problem with this id asks them.

        Example:
            first = config.endpoints[endpoints.ranked("problem 7")[0]]
        """
        _ = self.findings  # who is left out is known then

        def key(i: int) -> tuple[int, float]:
            drawn = (stable_hash(problem, self.backends[i].name) + 1) / (2**63 + 1)
            return self.config.endpoints[i].order, -math.log(drawn) / self.config.endpoints[i].weight

        return sorted((i for i, backend in enumerate(self.backends) if backend.probed), key=key)

    def close(self) -> None:
        """Wait for the requests in flight, and end the threads and the Router; calling it twice does nothing."""
        super().close()
        self._router.discard()

    def _part(self, request: Request) -> list[Completion]:
        from litellm.types.router import RouterRateLimitError, RouterRateLimitErrorBasic
        from openai import OpenAIError

        call = _Call(self.backends, request)
        first, *others = (self._groups[i] for i in self.ranked(request.problem.id))
        _CALL.set(call)

        def once() -> None:
            call.failures = []
            try:
                self._router.completion(model=first, messages=[_NOTHING], fallbacks=others)
            except (OpenAIError, RouterRateLimitError, RouterRateLimitErrorBasic) as error:
                if call.bug is not None:
                    raise call.bug from None
                resting = not call.failures  # nobody was asked
                wait = max(0.0, getattr(error, "cooldown_time", 0.0)) if resting else 0.0
                again = resting or any(failure.kind == "again" for failure in call.failures)
                raise CallFailed(Failure("again" if again else "gone", "all endpoints failed"), wait=wait) from None

        with suppress(CallFailed):
            retried(once, attempts=self._attempts, backoff=self._backoff)
        return call.completions()


class _Call:
    """A request on its way through the endpoints: samples that came, and what those cost that did not."""

    def __init__(self, backends: Sequence[LiteLLMBackend], request: Request) -> None:
        self.backends, self.request, self.failures = backends, request, list[Failure]()
        self.bug: Exception | None = None
        """what is no failure of an endpoint, which the Router would take it for"""
        self._open = [request]
        self._made: dict[int, Completion] = {}
        self._lost: dict[int, Completion] = {}

    def ask(self, number: int) -> Failure | None:
        """Ask an endpoint for what is missing; why some of it is missing still."""
        try:
            answers = [] if self.bug else list(chain(*map(self.backends[number]._part, self._open)))
        except Exception as error:
            self.bug = error
        if self.bug is not None:
            raise self.bug
        self._open, failure = [], None
        for made in answers:
            if (before := self._lost.get(made.sample)) is not None:
                # A try that failed is no call of its own, as with one endpoint.
                spent = dataclasses.replace(before.usage, calls=0, retries=before.usage.retries + before.usage.calls)
                usage = dataclasses.replace(spent + made.usage, model=made.usage.model)
                made = dataclasses.replace(made, usage=usage, perhaps=before.perhaps + made.perhaps)
            if made.failed is None or made.failed.kind not in ("again", "gone"):
                self._made[made.sample] = made
                continue
            failure = made.failed
            if before is not None and before.failed is not None and before.failed.kind == "again":
                made = dataclasses.replace(made, failure=before.failed, error=before.error)  # it may pass yet
            self._lost[made.sample] = made
            self._open.append(dataclasses.replace(self.request, n=1, sample=made.sample))
        self.failures += [failure] if failure else []
        return failure

    def completions(self) -> list[Completion]:
        """What there is of each sample."""
        resting = Failure("again", "every endpoint rests after failures; look at the servers, or lower cooldown")
        nothing = Completion.of_failure(resting)
        samples = range(self.request.sample, self.request.sample + self.request.n)
        found = {**self._lost, **self._made}
        return [found.get(i) or dataclasses.replace(nothing, sample=i) for i in samples]


_NOTHING = {"role": "user", "content": ""}  # what is asked stands in `_CALL`
_CALL: ContextVar[_Call | None] = ContextVar("stepwise_endpoint_call", default=None)


class _Handler:
    """What the Router calls for a deployment, whose name ends in the number of an endpoint."""

    def completion(self, model: str, messages: list[Any], *, model_response: Any, **_: Any) -> Any:
        call, litellm, number = _CALL.get(), import_litellm(), int(model.rpartition("-")[2])
        assert call is not None
        failure = call.ask(number)
        if failure is None:
            return model_response
        # Of LiteLLM's errors these two have the Router let an endpoint rest at once.
        kind = litellm.ServiceUnavailableError if failure.kind == "again" else litellm.AuthenticationError
        error = kind(failure.reason, model=model, llm_provider=PROVIDER)
        if (wait := call.backends[number].api.rest_until - time.monotonic()) > 0:  # as long as the server asked for
            error.litellm_response_headers = {"retry-after": str(math.ceil(wait))}
        raise error


@lru_cache(maxsize=1)
def _register() -> None:
    litellm = import_litellm()
    from litellm.llms.custom_llm import CustomLLM

    handler = type("EndpointHandler", (_Handler, CustomLLM), {})()
    litellm.custom_provider_map.append({"provider": PROVIDER, "custom_handler": handler})
    litellm.utils.custom_llm_setup()
    # It prints an error wherever all fail, which whoever asked is told.
    logging.getLogger("LiteLLM Router").addFilter(lambda _: _CALL.get() is None)


def _router(groups: Sequence[str], cooldown: float | None) -> Any:
    _register()
    deployments = [
        {"model_name": group, "litellm_params": {"model": f"{PROVIDER}/{group}"}, "model_info": {"id": group}}
        for group in groups
    ]
    return import_litellm().Router(
        deployments, num_retries=0, allowed_fails=0, cooldown_time=cooldown, max_fallbacks=len(groups)
    )
