"""The prefix cache: which token paths have their keys and values in which stream, or saved in memory.

A path is what one stream holds. A job whose prompt begins with a known path takes that stream over where nobody uses
it, or gets a copy of it; a prefix that another job is evaluating right now is waited for. When streams run out, the
least recently used idle path is saved to main memory, bit for bit, and from there it is dropped, again the least
recently used first. What a running job holds is never touched.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Hashable
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from stepwise.models.engine.tree import Node, PrefixTree, ids_array

Blob = npt.NDArray[np.uint8]
KEEP_TAIL = 64
"""A path that branches off is continued in place where it loses fewer tokens than this; else it is copied and kept."""
LEAST_COPY = 2
"""A shorter common prefix is evaluated again: that costs less than a copy (a copy costs about as much as one token)."""
LEAST_WAIT = 2
"""A job waits for a prefix that is being evaluated where that saves this many tokens."""


class Streams(Protocol):
    """What the cache needs of the context."""

    streams: int

    def truncate(self, stream: int, n: int) -> None: ...
    def save(self, stream: int) -> Blob: ...
    def restore(self, stream: int, data: Blob) -> None: ...


class Path:
    """Tokens whose keys and values are held: `ids` as planned, of which the first `ready` are evaluated.

    `stream` is -1 where they are saved in `blob`; `busy` while a job runs on it; `key` is the adapter they were
    computed under.
    """

    __slots__ = ("blob", "busy", "ids", "key", "node", "ready", "stream", "used")

    def __init__(self, ids: array[int], ready: int, stream: int, key: Hashable):
        self.ids, self.ready, self.stream, self.key = ids, ready, stream, key
        self.blob: Blob | None = None
        self.busy = True
        self.used = 0
        self.node: Node[Path] | None = None


class PrefixCache:
    """Streams and saved paths of one context, `memory` bytes of saved paths at most."""

    def __init__(self, context: Streams, memory: int):
        self.context, self.memory = context, memory
        self.held: list[Path | None] = [None] * context.streams
        self.saved: OrderedDict[Path, int] = OrderedDict()
        self.bytes = 0
        self._trees: dict[Hashable, PrefixTree[Path]] = {}
        self._clock = 0
        self._copies: dict[Path, Blob] = {}

    @property
    def distinct(self) -> int:
        """Distinct tokens over the run: nodes of the token trees, one tree per adapter."""
        return sum(tree.distinct for tree in self._trees.values())

    def end_round(self) -> None:
        """To be called after a round of `acquire`, before anything is evaluated: its copies go out of date then."""
        self._copies.clear()

    def acquire(self, ids: array[int], limit: int, key: Hashable) -> Path | None:
        """A stream for `ids` with as long a prefix of it, at most `limit` tokens, as is known; None where the job has
        to wait.

        The path comes back busy, holding exactly its first `ready` tokens.
        """
        tree = self._trees.setdefault(key, PrefixTree())
        source, common = self._find(tree, ids, limit)
        if source is None and common:
            return None
        if source is not None and not source.busy and source.stream >= 0:
            if len(source.ids) - common < KEEP_TAIL:
                return self._take_over(source, ids, common)
            stream = self._free_stream(source)
            if stream is None:
                self._save(source)
                return self._take_over(source, ids, common)
        else:
            stream = self._free_stream(source)
            if stream is None:
                return None
        self._fill(stream, source, common)
        path = Path(ids, common, stream, key)
        self.held[stream] = path
        path.node = tree.insert(ids, path)
        return path

    def _find(self, tree: PrefixTree[Path], ids: array[int], limit: int) -> tuple[Path | None, int]:
        """The best source and how much of it to use; (None, n) with n > 0 means that waiting gives n tokens."""
        pending = 0
        for common, node in tree.matches(ids):
            common = min(common, limit)
            best: Path | None = None
            for path in islice(reversed(node.paths), 8):
                if path.ready < common:
                    pending = max(pending, common)
                elif best is None or ((best.stream < 0 or best.busy) and path.stream >= 0):
                    best = path
            if best is not None:
                if pending - common >= LEAST_WAIT:
                    return None, pending
                return (best, common) if common >= LEAST_COPY else (None, 0)
        return None, pending if pending >= LEAST_WAIT else 0

    def _take_over(self, path: Path, ids: array[int], common: int) -> Path:
        self.context.truncate(path.stream, common)
        path.busy, path.ready = True, common
        self._reinsert(path, ids)
        return path

    def _fill(self, stream: int, source: Path | None, common: int) -> None:
        if source is None:
            return
        blob = source.blob if source.stream < 0 else self._copies.get(source)
        if blob is None:
            blob = self._copies[source] = self.context.save(source.stream)
        if source in self.saved:  # it may have made room for the path whose stream this was
            if common == len(source.ids):
                self._drop(source)  # the new path holds all of it
            else:
                self.saved.move_to_end(source)
        self.context.restore(stream, blob)
        self.context.truncate(stream, common)

    def _free_stream(self, source: Path | None) -> int | None:
        """An empty stream, or that of the idle path used longest ago, which is saved first; never that of `source`."""
        idle = None
        for stream, path in enumerate(self.held):
            if path is None:
                return stream
            if not path.busy and path is not source and (idle is None or path.used < idle.used):
                idle = path
        if idle is None:
            return None
        self._save(idle)
        stream = idle.stream
        self._forget(idle)
        self.context.truncate(stream, 0)
        return stream

    def _save(self, path: Path) -> None:
        """Keep a copy of `path` in memory, unless another path holds all of it."""
        assert path.node is not None
        if path.ready < LEAST_COPY or len(path.node.paths) > 1:
            return
        blob = self._copies.get(path)
        if blob is None:
            blob = self.context.save(path.stream)
        if blob.size > self.memory:
            return
        copy = Path(path.ids[: path.ready], path.ready, -1, path.key)
        copy.busy, copy.blob = False, blob
        copy.node = self._trees[path.key].insert(copy.ids, copy)
        self.saved[copy] = blob.size
        self.bytes += blob.size
        while self.bytes > self.memory:
            self._drop(next(iter(self.saved)))

    def _drop(self, path: Path) -> None:
        self.bytes -= self.saved.pop(path)
        self._forget(path)

    def _forget(self, path: Path) -> None:
        if path.node is not None:
            self._trees[path.key].remove(path.node, path)
            path.node = None
        if path.stream >= 0:
            self.held[path.stream] = None

    def _reinsert(self, path: Path, ids: array[int]) -> None:
        tree = self._trees[path.key]
        if path.node is not None:
            tree.remove(path.node, path)
        path.ids = ids
        path.node = tree.insert(ids, path)

    def release(self, path: Path, ids: array[int]) -> None:
        """The job on `path` ended with `ids` evaluated; they stay for whoever comes next."""
        self._clock += 1
        path.busy, path.used, path.ready = False, self._clock, len(ids)
        self._reinsert(path, ids)

    def discard(self, path: Path) -> None:
        """The content of the stream of `path` is unknown (a decode failed): forget it."""
        self.context.truncate(path.stream, 0)
        self._forget(path)

    def clear(self) -> None:
        """Forget every path that no job is using; `distinct` goes on counting."""
        for path in [p for p in self.held if p is not None and not p.busy]:
            self.discard(path)
        for path in list(self.saved):
            self._drop(path)

    def swap(self, a: int, b: int) -> None:
        """Exchange the contents of two streams, so that running jobs become neighbours."""
        first, second = self.held[a], self.held[b]
        blobs = [self.context.save(s) if p is not None else None for s, p in ((a, first), (b, second))]
        for stream, path, blob in ((a, second, blobs[1]), (b, first, blobs[0])):
            self.held[stream] = path
            if path is None or blob is None:
                self.context.truncate(stream, 0)
            else:
                path.stream = stream
                self.context.restore(stream, blob)

    def describe(self) -> dict[str, Any]:
        """Streams in use and memory of saved paths, for logs and tests."""
        return {"held": sum(p is not None for p in self.held), "saved": len(self.saved), "bytes": self.bytes}


__all__ = ["Path", "PrefixCache", "ids_array"]
