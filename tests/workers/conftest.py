"""A cluster of two nodes on this machine, where Ray is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes with room for one worker each; ended with all that belongs to it."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'stepwise[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # at 15, its default, a busy machine leaves workers nothing
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "4")
    small = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=small)
    made.second = made.add_node(num_cpus=1, object_store_memory=80_000_000)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
