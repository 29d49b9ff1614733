"""Nodes that differ, clusters that do not answer and errors on their way; a fake Ray where there is none."""

from __future__ import annotations

import pickle
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from stepwise.config import WorkersConfig
from stepwise.errors import BackendError, BudgetExceededError, ConfigError
from stepwise.models.workers import _connect, _got, _Raised, _RayCluster, compared
from stepwise.runs.pool import WorkerLostError

MINE = {"stepwise": "0.1.0", "Ray": "2.60.0", "llama.cpp": "0.3.36 aa", "processor": "A"}


class Fake(ModuleType):
    """As much of Ray as is asked here: refs are what they stand for, exceptions are raised."""

    def __init__(self, *nodes: dict[str, Any]) -> None:
        super().__init__("ray")
        names = ("RayActorError", "WorkerCrashedError", "NodeDiedError", "ObjectLostError", "ObjectStoreFullError",
                 "OutOfDiskError")  # fmt: skip
        self.exceptions = SimpleNamespace(**{name: type(name, (Exception,), {}) for name in names})
        self._nodes, self.values = nodes, dict[Any, Any]()

    def nodes(self) -> list[dict[str, Any]]:
        return list(self._nodes)

    def get(self, ref: Any) -> Any:
        if isinstance(ref, Exception):
            raise ref
        return self.values.get(ref, ref) if isinstance(ref, str) else ref


@pytest.fixture
def ray() -> Fake:
    return Fake(
        {"NodeID": "a", "NodeManagerAddress": "10.0.0.1", "Alive": True, "Resources": {"CPU": 4.0}},
        {"NodeID": "b", "NodeManagerAddress": "10.0.0.2", "Alive": True, "Resources": {"CPU": 1.0, "GPU": 1.0}},
        {"NodeID": "c", "NodeManagerAddress": "10.0.0.3", "Alive": False, "Resources": {"CPU": 64.0}},
    )


def cluster_of(ray: Fake, **settings: Any) -> _RayCluster:
    return _RayCluster(ray, WorkersConfig(backend="ray", **settings), (), None, MINE)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["stepwise", "Ray"])
def test_a_node_of_another_version_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"node 10\.0\.0\.7 has {name} 9\.9, here it is .*; install the same there"):
        compared(MINE, MINE | {name: "9.9"}, "10.0.0.7")


def test_another_build_and_processor_are_said_and_an_equal_node_is_not() -> None:
    words = compared(MINE, MINE | {"llama.cpp": "0.3.37 bb", "processor": "B"}, "10.0.0.7")
    assert "another llama.cpp (0.3.37 bb, here 0.3.36 aa), another processor (B, here A)" in words
    assert words.endswith("what is drawn there may differ in its last digits")
    assert compared(MINE, MINE, "10.0.0.7") == ""


def test_actors_are_wanted_on_every_live_node_that_has_what_they_take(ray: Fake) -> None:
    assert cluster_of(ray, actors_per_node=3).size == 6
    assert cluster_of(ray, resources={"CPU": 2}).size == 1
    with pytest.raises(
        BackendError, match=r"no node has workers\.resources = \{'GPU': 8\.0\} \(10\.0\.0\.1: 4 CPU, 0 GPU;"
    ):
        cluster_of(ray, resources={"GPU": 8})


def test_a_file_that_a_node_lacks_and_another_file_under_its_name_are_told_with_the_node(ray: Fake) -> None:
    cluster = cluster_of(ray)
    lacks = _Raised(ConfigError("models.weak.model: /m.gguf: no such file"))
    ray.values = {"0": (MINE, "weak@11"), "1": (MINE, "weak@22"), "2": lacks}
    for ref, node in zip("012", "aba", strict=True):
        cluster._starting[ref], cluster._actors[ref] = ref, node
    assert cluster.result("0") == "weak@11"
    with pytest.raises(ConfigError, match=r"node 10\.0\.0\.2 has other models under the same names \(weak@22"):
        cluster.result("1")
    with pytest.raises(ConfigError, match=r"node 10\.0\.0\.1: models\.weak\.model: /m\.gguf: no such file"):
        cluster.result("2")


def test_errors_of_ray_are_told_in_ours(ray: Fake) -> None:
    for name in ("RayActorError", "WorkerCrashedError", "NodeDiedError"):
        with pytest.raises(WorkerLostError, match=name):
            _got(ray, getattr(ray.exceptions, name)("gone"))
    for name in ("ObjectStoreFullError", "OutOfDiskError"):
        with pytest.raises(BackendError, match=r"object store is full.*smaller chunks.*same command again"):
            _got(ray, getattr(ray.exceptions, name)("full"))


def test_an_error_of_ours_comes_back_as_it_was_raised(ray: Fake) -> None:
    sent = pickle.loads(pickle.dumps(_Raised(BudgetExceededError("budget.calls = 3", cap="budget.calls"))))
    with pytest.raises(BudgetExceededError, match=r"budget\.calls = 3") as caught:
        _got(ray, sent)
    assert caught.value.cap == "budget.calls"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("Could not find any running Ray instance"), "cannot be used, Could not find any"),
        (
            RuntimeError("Version mismatch: The cluster was started with: Ray: 2.9.0"),
            "of another version: Version mismatch",
        ),
    ],
)
def test_a_cluster_that_cannot_be_used_is_told_with_the_remedy(ray: Fake, error: Exception, words: str) -> None:
    def init(**_: Any) -> None:
        raise error

    ray.init = init  # type: ignore[attr-defined]
    with pytest.raises(BackendError, match=rf"workers\.address = 'auto'.*{words}.*ray start --head"):
        _connect(ray, WorkersConfig(address="auto"))


def test_an_address_that_nobody_answers_at_is_told_at_once(ray: Fake) -> None:
    with pytest.raises(BackendError, match=r"workers\.address = '127\.0\.0\.1:9'.*leave the address out"):
        _connect(ray, WorkersConfig(address="127.0.0.1:9"))


@pytest.mark.parametrize("amount", [-1, "two", True])
def test_resources_are_amounts(amount: Any) -> None:
    with pytest.raises(ValueError, match=r"CPU is .*; give a number of at least 0"):
        WorkersConfig(resources={"CPU": amount})
