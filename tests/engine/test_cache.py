"""The prefix cache on a model of streams that remembers what each one holds."""

from __future__ import annotations

import random
from array import array

import numpy as np
import pytest

from stepwise.models.engine.cache import Blob, Path, PrefixCache, PrefixTree, _common_prefix, ids_array


class Streams:
    """Streams as lists of ids; a saved copy is their bytes. An empty copy leaves a stream as it is unless it
    was cleared.
    """

    def __init__(self, n: int):
        self.streams = n
        self.content: list[list[int]] = [[] for _ in range(n)]
        self.copies = 0

    def truncate(self, stream: int, n: int) -> None:
        del self.content[stream][n:]

    def save(self, stream: int) -> Blob:
        self.copies += 1
        return np.array(self.content[stream], np.int32).view(np.uint8)

    def restore(self, stream: int, data: Blob) -> None:
        self.content[stream] = data.view(np.int32).tolist()


def make_cache(streams: Streams, memory: int = 10**6) -> PrefixCache:
    return PrefixCache(streams, memory)  # type: ignore[arg-type]


def evaluate(streams: Streams, cache: PrefixCache, ids: list[int], key: str = "") -> Path | None:
    """What a job does: acquire, evaluate the rest, release. None where it would have to wait."""
    path = cache.acquire(ids_array(ids), len(ids) - 1, key)
    if path is None:
        return None
    assert streams.content[path.stream] == ids[: path.ready]
    reused = path.ready
    streams.content[path.stream] = list(ids)
    cache.end_round()
    cache.release(path, ids_array(ids))
    path.used = max(path.used, 1)
    evaluate.reused = reused  # type: ignore[attr-defined]
    return path


def test_random_use_always_finds_streams_that_hold_what_the_cache_says() -> None:
    rng = random.Random(0)
    streams = Streams(5)
    cache = make_cache(streams, 4000)
    known: list[list[int]] = [[1, 2, 3]]
    running: list[tuple[Path, list[int]]] = []
    for _ in range(4000):
        base = rng.choice(known[-40:])
        ids = base[: rng.randint(1, len(base))] + [rng.randint(0, 4) for _ in range(rng.randint(1, 90))]
        key = rng.choice(["", "adapter"])
        path = cache.acquire(ids_array(ids), len(ids) - 1, key)
        cache.end_round()
        if path is not None:
            assert path.busy
            assert streams.content[path.stream] == ids[: path.ready]
            running.append((path, ids))
        for item in [item for item in running if rng.random() < 0.5]:
            running.remove(item)
            mine, planned = item
            done = rng.randint(mine.ready, len(planned))
            streams.content[mine.stream] = planned[:done]
            cache.release(mine, ids_array(planned[:done]))
            if done:
                known.append(planned[:done])
        if len(running) >= 2 and rng.random() < 0.2:
            a, b = rng.sample(range(5), 2)
            cache.swap(a, b)
        for mine, planned in running:
            assert streams.content[mine.stream] == planned[: mine.ready]
        for stream, held in enumerate(cache.held):
            if held is not None:
                assert held.stream == stream
                assert streams.content[stream] == list(held.ids[: held.ready])
        assert cache.bytes == sum(cache.saved.values()) <= 4000
    assert len(known) > 1000


def test_a_path_that_is_taken_over_for_a_short_tail_is_not_copied_and_a_long_tail_is_kept() -> None:
    streams = Streams(3)
    cache = make_cache(streams)
    evaluate(streams, cache, list(range(100)))
    evaluate(streams, cache, [*range(90), 777, 778])
    assert streams.copies == 0
    evaluate(streams, cache, [*range(10), 888])
    assert streams.copies == 1
    assert sum(content[:90] == list(range(90)) for content in streams.content) == 1


def test_the_least_recently_used_path_goes_to_memory_and_comes_back() -> None:
    streams = Streams(2)
    cache = make_cache(streams)
    first, second, third = ([n] * 20 for n in (1, 2, 3))
    for ids in (first, second, third):
        evaluate(streams, cache, ids)
    assert len(cache.saved) == 1
    evaluate(streams, cache, [*first, 9])
    assert evaluate.reused == 20  # type: ignore[attr-defined]


def test_another_key_shares_nothing() -> None:
    streams = Streams(4)
    cache = make_cache(streams)
    evaluate(streams, cache, list(range(30)), "a")
    evaluate(streams, cache, list(range(31)), "b")
    assert evaluate.reused == 0  # type: ignore[attr-defined]
    assert cache.distinct == 61


def test_a_job_waits_for_a_prefix_that_is_being_evaluated_and_when_no_stream_is_free() -> None:
    streams = Streams(2)
    cache = make_cache(streams)
    first = cache.acquire(ids_array(range(50)), 49, "")
    assert first is not None
    assert cache.acquire(ids_array([*range(40), 99]), 40, "") is None
    other = cache.acquire(ids_array([5, 6, 7]), 2, "")
    assert other is not None
    assert cache.acquire(ids_array([8, 9]), 1, "") is None


def test_the_tree_counts_each_distinct_prefix_once_whatever_the_order() -> None:
    rng = random.Random(1)
    for _ in range(50):
        paths = [[rng.randint(0, 2) for _ in range(rng.randint(1, 12))] for _ in range(12)]
        tree: PrefixTree[int] = PrefixTree()
        nodes = {}
        for i, ids in enumerate(paths):
            nodes[i] = tree.insert(ids_array(ids), i)
            if rng.random() < 0.3:
                tree.remove(nodes.pop(i), i)
        assert tree.distinct == len({tuple(ids[: n + 1]) for ids in paths for n in range(len(ids))})
        probe = [rng.randint(0, 2) for _ in range(12)]
        best = max((_common_prefix(ids_array(paths[i]), ids_array(probe)) for i in nodes), default=0)
        found = next(iter(tree.matches(ids_array(probe))), (0, tree.root))
        assert found[0] == best
        for path in found[1].paths:
            assert _common_prefix(ids_array(paths[path]), ids_array(probe)) == best


def test_a_tree_with_a_bound_keeps_what_paths_stand_on_and_stays_small() -> None:
    rng = random.Random(2)
    small, large = PrefixTree[int](most=20), PrefixTree[int](most=1 << 30)
    ends: dict[int, tuple[object, object]] = {}
    for i in range(2000):
        ids = ids_array([rng.randint(0, 2) for _ in range(rng.randint(1, 12))])
        ends[i] = small.insert(ids, i), large.insert(ids, i)
        if len(ends) > 4:
            path = rng.choice(list(ends))
            for tree, node in zip((small, large), ends.pop(path), strict=True):
                tree.remove(node, path)  # type: ignore[arg-type]
        probe = ids_array([rng.randint(0, 2) for _ in range(12)])
        (ours, here), (theirs, there) = (next(iter(t.matches(probe)), (0, t.root)) for t in (small, large))
        assert (ours, set(here.paths)) == (theirs, set(there.paths))
        assert small.nodes <= 120  # of at most four paths of twelve tokens, and what was dropped since
    assert large.nodes > 300
    assert small.distinct > large.distinct


@pytest.mark.parametrize(
    ("a", "b", "n"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3, 4], [1, 2, 9, 4], 2), ([5], [6], 0)]
)
def test_common_prefixes(a: list[int], b: list[int], n: int) -> None:
    assert _common_prefix(array("i", a), array("i", b)) == n
