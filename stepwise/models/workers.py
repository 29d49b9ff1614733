"""Chunks on a Ray cluster: an actor for the books beside the run's directory, and one for each worker with its models.

Ray does what it is for: processes on nodes, resources, messages, noticing that one is gone. What is asked again, what
counts and what is sealed is `runs.pool`'s, `models.books`' and `runs.chunks`'. Nodes need the same stepwise, Ray and
model files under the same paths; they share no disk with the run's directory.
"""

from __future__ import annotations

import asyncio
import os
import platform
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

from stepwise import __version__
from stepwise.config import Config, Roles, WorkersConfig
from stepwise.errors import BackendError, ConfigError, MissingDependencyError, StepwiseError, keep_secret
from stepwise.models.books import ANSWERS, FROZEN, HOLDS, Books
from stepwise.models.crew import Making
from stepwise.models.desk import Desk
from stepwise.models.engine.context import build_id
from stepwise.models.machine import processor
from stepwise.runs.chunks import Work, texts_of
from stepwise.runs.directory import CURRENT, RunDirectory
from stepwise.runs.pool import Pool, WorkerLostError
from stepwise.runs.progress import announce
from stepwise.runs.shell import check_files


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError:
        raise MissingDependencyError(
            'workers.backend = "ray" needs Ray: pip install "stepwise[ray]", on every node in the same version'
        ) from None
    return ray


class RayCrew:
    """The crew that is a Ray cluster: see `stepwise.models.crew`.

    Example:
        with at_work(config, directory, making) as crew:  # where workers.backend is "ray"
            print(crew.pool.num_lost)
    """

    def __init__(self, line: _RayLine, pool: Pool, about: Any) -> None:
        self.pool, self.about, self.map = pool, about, pool.map
        self.models: Any = None
        self.ledger: Any = _Ledger(line)
        self.check = partial(line.call, "check")
        self.books = line


class _Ledger:
    """The books' ledger, seen from the run."""

    def __init__(self, line: _RayLine) -> None:
        self._line = line

    @property
    def _places(self) -> Any:
        return self._line.call("of_ledger", "_places")

    def __getattr__(self, name: str) -> Any:
        return partial(self._line.call, "of_ledger", name)


@contextmanager
def ray_crew(
    config: Config, directory: RunDirectory, making: Making[Any], *, keeps: bool, keep_local: bool
) -> Iterator[RayCrew]:
    """Connects (or begins a cluster of this machine), starts books and workers, and ends what it began.

    Raises MissingDependencyError without Ray; BackendError for a cluster that does not answer, is of another version or
    has no room; ConfigError where a node lacks a file of a model or has another one.

    Example:
        with ray_crew(config, directory, making, keeps=False, keep_local=False) as crew: ...
    """
    ray, settings = _ray(), config.workers
    with ExitStack() as stack:
        if not ray.is_initialized():
            stack.callback(ray.shutdown)
            _connect(ray, settings)
        for name in ("spent.jsonl", *([ANSWERS] if keeps else [])):
            directory.claim(name)
        for name in (HOLDS, FROZEN):
            directory.claim(name, is_input=True)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        books = ray.remote(_BooksActor).options(
            num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=1000, scheduling_strategy=here
        ).remote(config, directory.path.resolve(), keeps, uuid.uuid4().hex[:8])  # fmt: skip
        stack.callback(ray.kill, books)
        line = _RayLine(ray, books)
        line.call("totals")  # raises what opening them raised
        cluster = _RayCluster(ray, settings, (config, books, making, keeps, keep_local), line, _facts())
        stack.callback(cluster.close)
        pool = Pool(cluster, settings.patience)
        yield RayCrew(line, pool, pool.first())


def _connect(ray: Any, settings: WorkersConfig) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster that begins here: the workers are the run
    quiet: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False} if settings.address is None else {}
    quiet["logging_level"] = "ERROR"
    try:
        host, _, port = (settings.address or "").rpartition(":")
        if host and port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=settings.address or "local", **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        what = "of another version: " if "ersion" in str(error) else ""
        raise BackendError(
            f"workers.address = {settings.address!r}: the Ray cluster cannot be used, {what}{str(error).strip()[:300]}"
            "; start one of this Ray and Python (ray start --head), or leave the address out"
        ) from None


class _RayLine:
    """From any process of the cluster to the books."""

    def __init__(self, ray: Any, books: Any) -> None:
        self._ray, self._books, self._said = ray, books, list[Any]()

    def call(self, method: str, *args: Any) -> Any:
        return _got(self._ray, self._books.call.remote(method, *args))

    async def acall(self, method: str, *args: Any) -> Any:
        future = self._books.call.remote(method, *args).future()
        return _unwrapped(lambda result: result, await asyncio.wrap_future(future))

    def tell(self, method: str, *args: Any) -> None:
        self._said.append(self._books.call.remote(method, *args))
        if len(self._said) > 256:
            self.flush()

    def flush(self) -> None:
        said, self._said = self._said, []
        for ref in said:
            _got(self._ray, ref)


def _got(ray: Any, ref: Any) -> Any:
    """What a ref stands for; raises WorkerLostError, or an error of ours as it was raised elsewhere."""
    errors = ray.exceptions
    try:
        return _unwrapped(ray.get, ref)
    except (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError) as error:
        raise WorkerLostError(f"{type(error).__name__}: {str(error).strip()[:300]}") from None
    except (errors.ObjectStoreFullError, errors.OutOfDiskError) as error:
        raise BackendError(
            f"Ray's object store is full ({type(error).__name__}): a chunk's rows go through it; take smaller chunks, "
            "or start the nodes with a larger --object-store-memory or more room for spilling, then run the same "
            "command again"
        ) from None


def _unwrapped(get: Callable[[Any], Any], value: Any) -> Any:
    result = get(value)
    if isinstance(result, _Raised):
        raise result.error
    return result


class _Raised:
    """An error of ours on its way: Ray would wrap it into one of its own, with a traceback as its text."""

    def __init__(self, error: StepwiseError) -> None:
        self.error = error


class _BooksActor:
    def __init__(self, config: Config, folder: Path, keeps: bool, start: str) -> None:
        self._books: Books | _Raised
        try:
            self._books = Books(config, folder, keeps=keeps, start=start)
        except StepwiseError as error:
            self._books = _Raised(error)

    async def call(self, method: str, *args: Any) -> Any:
        if isinstance(self._books, _Raised):
            return self._books
        try:
            result = self._books.call(method, *args)
            return await result if asyncio.iscoroutine(result) else result
        except StepwiseError as error:
            return _Raised(error)


class _WorkerActor:
    """Models, loaded once, and the desk that they go by."""

    def __init__(self, config: Config, books: Any, making: Making[Any], keeps: bool, keep_local: bool) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in `runs.shell`: threads that spin starve one another
        self._given = config, making, keep_local
        self._desk = Desk(config, _RayLine(_ray(), books), keeps=keeps)
        self._stack, self._models = ExitStack(), None

    def ready(self) -> Any:
        """Facts about the node and the models; an error where they cannot be loaded."""
        config, making, keep_local = self._given
        for role in get_args(Roles):
            if variable := config.role(role).api_key_env:
                keep_secret(variable)
        CURRENT.set(self._desk)  # type: ignore[arg-type]
        try:
            check_files(config)
            self._models = self._stack.enter_context(
                making.models(config, self._desk.ledger, self._desk.store, keep_local)
            )
            return _facts(), making.about(self._models)
        except StepwiseError as error:
            return _Raised(error)

    def do(self, task: str, work: Work, part: Sequence[Any]) -> Any:
        CURRENT.set(self._desk)  # type: ignore[arg-type]
        try:
            return self._desk.run(task, lambda: texts_of(work(self._models, part)))
        except StepwiseError as error:
            return _Raised(error)


def _facts() -> dict[str, str]:
    """What nodes may differ in."""
    return {"stepwise": __version__, "Python": platform.python_version(), "Ray": _ray().__version__,
            "llama.cpp": build_id(), "processor": processor()}  # fmt: skip


def compared(mine: Mapping[str, str], theirs: Mapping[str, str], node: str) -> str:
    """What to say of a node that differs from where the run was begun, "" for nothing; raises ConfigError for one that
    cannot do the same work.

    >>> compared({"stepwise": "1", "processor": "A"}, {"stepwise": "1", "processor": "B"}, "10.0.0.7")
    'node 10.0.0.7 has another processor (B, here A): what is drawn there may differ in its last digits'
    """
    other = [name for name, value in mine.items() if theirs.get(name) != value]
    for name in other:
        if name in ("stepwise", "Ray"):
            raise ConfigError(
                f"node {node} has {name} {theirs.get(name)}, here it is {mine[name]}; install the same there"
            )
    said = ", ".join(f"another {name} ({theirs.get(name)}, here {mine[name]})" for name in other)
    return said and f"node {node} has {said}: what is drawn there may differ in its last digits"


class _RayCluster:
    """`stepwise.runs.pool.Cluster`, of actors."""

    def __init__(
        self, ray: Any, settings: WorkersConfig, given: tuple[Any, ...], line: _RayLine, facts: Mapping[str, str]
    ) -> None:
        self._ray, self._settings, self._given, self._line, self._facts = ray, settings, given, line, facts
        self._actors: dict[Any, str] = {}  # by actor, its node
        self._starting: dict[Any, Any] = {}  # by ref, its actor
        self._said: set[str] = set()
        self._about: Any = None
        self.size = settings.actors_per_node * len(self._nodes())

    def _nodes(self) -> dict[str, str]:
        """Address by id of the nodes that have what a worker takes."""
        needs = self._settings.resources
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        fit = {
            node["NodeID"]: node["NodeManagerAddress"] for node in nodes
            if all(node["Resources"].get(name, 0.0) >= amount for name, amount in needs.items())
        }  # fmt: skip
        if not fit:
            has = "; ".join(f"{node['NodeManagerAddress']}: {node['Resources'].get('CPU', 0):g} CPU, "
                            f"{node['Resources'].get('GPU', 0):g} GPU" for node in nodes)  # fmt: skip
            raise BackendError(f"no node has workers.resources = {needs} ({has or 'none is alive'}); set them lower")
        return fit

    def start(self) -> tuple[Any, Any]:
        nodes = self._nodes()
        counts = {node: sum(at == node for at in self._actors.values()) for node in nodes}
        node = min(nodes, key=lambda each: counts[each])
        needs = dict(self._settings.resources)
        takes = {"num_cpus": needs.pop("CPU", 0.0), "num_gpus": needs.pop("GPU", 0.0)}
        takes |= {"memory": needs.pop("memory")} if "memory" in needs else {}
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=True)
        actor = self._ray.remote(_WorkerActor).options(
            max_restarts=0, resources=needs, scheduling_strategy=strategy, **takes
        ).remote(*self._given)  # fmt: skip
        self._actors[actor] = node
        ref = actor.ready.remote()
        self._starting[ref] = actor
        return actor, ref

    def submit(self, worker: Any, task: str, work: Work, part: Sequence[Any]) -> Any:
        return worker.do.remote(task, work, part)

    def wait(self, refs: Sequence[Any], seconds: float) -> list[Any]:
        ready, _ = self._ray.wait(list(refs), num_returns=1, timeout=seconds)
        return list(ready)

    def result(self, ref: Any) -> Any:
        actor = self._starting.pop(ref, None)
        if actor is None:
            return _got(self._ray, ref)
        node = self._nodes().get(self._actors[actor], "of the cluster")
        try:
            facts, about = _got(self._ray, ref)
        except WorkerLostError:
            raise
        except StepwiseError as error:
            raise type(error)(f"node {node}: {error}") from None
        if (words := compared(self._facts, facts, node)) and words not in self._said:
            self._said.add(words)
            announce(words, beside_bar=True)
        if self._about is not None and about != self._about:
            raise ConfigError(
                f"node {node} has other models under the same names ({about}, elsewhere {self._about}); copy the same "
                "files there"
            )
        self._about = about
        return about

    def lost(self, worker: Any, task: str) -> None:
        self._actors.pop(worker, None)
        chunk = f" with chunk {task.partition('/')[0]}, which is done again" if task else ""
        announce(f"a worker was lost{chunk}", beside_bar=True)
        if task:
            self._line.call("lose", task)

    def close(self) -> None:
        """End the workers."""
        for actor in self._actors:
            self._ray.kill(actor)
