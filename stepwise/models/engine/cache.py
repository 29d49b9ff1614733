"""The prefix cache: which token paths have their keys and values in which stream, or saved in memory.

A path is what one stream holds. A job whose prompt begins with a known path takes that stream over where nobody uses
it, or gets a copy of it; a prefix that another job is evaluating right now is waited for. When streams run out, the
least recently used idle path is saved to main memory, bit for bit, and from there it is dropped, again the least
recently used first. What a running job holds is never touched.

Paths are looked up in a radix tree of token ids, one per adapter. Its nodes stay when their paths are evicted, so that
`distinct` counts what any engine would have had to evaluate at least once: four bytes per token, and a node per branch.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from stepwise.models.engine.context import LlamaContext

T = TypeVar("T")
Blob = npt.NDArray[np.uint8]
_SHORT_TAIL = 64
"""A path that branches off is continued in place where it loses fewer tokens than this; else it is copied and kept."""
_MIN_COPY = 2
"""A shorter common prefix is evaluated again: that costs less than a copy (a copy costs about as much as one token)."""
_MIN_WAIT = 2
"""A job waits for a prefix that is being evaluated where that saves this many tokens."""
_MAX_CANDIDATES = 8
"""Paths looked at per node, newest first: under a chat template thousands share the node of the system message."""


def ids_array(ids: object = ()) -> array[int]:
    """Token ids as a compact array, which compares and slices at C speed.

    >>> ids_array([5, 7, 9])[1:]
    array('i', [7, 9])
    """
    return array("i", ids)  # type: ignore[call-overload,no-any-return]


def _common_prefix(a: array[int], b: array[int]) -> int:
    """Length of the longest common prefix.

    >>> _common_prefix(ids_array([1, 2, 3]), ids_array([1, 2, 9, 3]))
    2
    """
    n = min(len(a), len(b))
    differs = np.asarray(a[:n]) != np.asarray(b[:n])
    return int(differs.argmax()) if differs.any() else n


class _Node(Generic[T]):
    """`edge`: the ids from the parent to here; `paths`: what passes through or ends here."""

    __slots__ = ("children", "edge", "parent", "paths")

    def __init__(self, edge: array[int], parent: _Node[T] | None):
        self.edge, self.parent = edge, parent
        self.children: dict[int, _Node[T]] = {}
        self.paths: dict[T, None] = {}


class PrefixTree(Generic[T]):
    """Paths of token ids by their prefixes; the paths themselves are opaque, hashable objects.

    `distinct` counts the tokens that were in none of the paths so far. What no path passes through any more is kept for
    that count until there are more than `most` nodes; tokens that are dropped then count again when they come back.

    >>> tree: PrefixTree[str] = PrefixTree()
    >>> node = tree.insert(ids_array([1, 2, 3]), "a")
    >>> [length for length, _ in tree.matches(ids_array([1, 2, 9]))], tree.distinct
    ([2], 3)
    """

    def __init__(self, most: int = 1 << 10) -> None:
        self.root: _Node[T] = _Node(ids_array(), None)
        self.distinct = self.nodes = 0
        self.most = most

    def insert(self, ids: array[int], path: T) -> _Node[T]:
        """Add `path` under `ids` and return the node where it ends, for `remove`."""
        if self.nodes > self.most:
            self._prune()
        node, at = self.root, 0
        while at < len(ids):
            child = node.children.get(ids[at])
            if child is None:
                node = self._grow(node, ids[at:])
                break
            shared = _common_prefix(child.edge, ids[at:])
            if shared < len(child.edge):
                child = self._split(child, shared)
            node, at = child, at + shared
        end, up = node, node.parent
        while up is not None:
            node.paths[path] = None
            node, up = up, up.parent
        return end

    def _grow(self, node: _Node[T], tail: array[int]) -> _Node[T]:
        self.distinct += len(tail)
        if node.parent is not None and not node.children and not node.paths:
            node.edge.extend(tail)  # a path that grew by a step, not a branch
            return node
        child = node.children[tail[0]] = _Node(tail, node)
        self.nodes += 1
        return child

    def _prune(self) -> None:
        """Drop every node that no path passes through or ends at; the next time is when as many have come again."""
        self.nodes, left = 0, [self.root]
        while left:
            node = left.pop()
            node.children = {first: child for first, child in node.children.items() if child.paths}
            left += node.children.values()
            self.nodes += len(node.children)
        self.most = max(self.most, 2 * self.nodes)

    def _split(self, node: _Node[T], n: int) -> _Node[T]:
        assert node.parent is not None  # the root has no edge and is never split
        upper: _Node[T] = _Node(node.edge[:n], node.parent)
        self.nodes += 1
        upper.paths.update(node.paths)
        upper.children[node.edge[n]] = node
        node.parent.children[node.edge[0]] = upper
        node.edge, node.parent = node.edge[n:], upper
        return upper

    def remove(self, node: _Node[T], path: T) -> None:
        """Take `path`, which ends at `node`, out; its tokens stay counted."""
        while node.parent is not None:
            node.paths.pop(path, None)
            node = node.parent

    def matches(self, ids: array[int]) -> Iterator[tuple[int, _Node[T]]]:
        """(length of the common prefix, node) where paths share a prefix of `ids`, longest first."""
        matches, node, at = [], self.root, 0
        while at < len(ids) and (child := node.children.get(ids[at])) is not None:
            shared = _common_prefix(child.edge, ids[at:])
            node, at = child, at + shared
            if node.paths:
                matches.append((at, node))
            if shared < len(child.edge):
                break
        return reversed(matches)


class Path:
    """Tokens whose keys and values are held: `ids` as planned, of which the first `ready` are evaluated.

    `stream` is -1 where they are saved in `blob`; `busy` while a job runs on it; `key` is the adapter they were
    computed under; `used` counts releases: the smaller, the longer ago.

    Example:
        path = cache.acquire(ids_array(prompt), len(prompt) - 1, "")
        print(path.ready, "of", len(path.ids), "tokens are evaluated")
    """

    __slots__ = ("blob", "busy", "ids", "key", "node", "ready", "stream", "used")

    def __init__(self, ids: array[int], ready: int, stream: int, key: Hashable, node: _Node[Path], blob: Blob | None):
        self.ids, self.ready, self.stream, self.key, self.node, self.blob = ids, ready, stream, key, node, blob
        self.busy, self.used = blob is None, 0


class PrefixCache:
    """Streams and saved paths of one context, `memory` bytes of saved paths at most.

    Example:
        cache = PrefixCache(context, memory=64 << 20)
        path = cache.acquire(ids_array(prompt), len(prompt) - 1, "")
    """

    def __init__(self, context: LlamaContext, memory: int):
        self.context, self.memory = context, memory
        self.held: list[Path | None] = [None] * context.streams
        self.saved: OrderedDict[Path, int] = OrderedDict()
        self.bytes = 0
        self._trees: dict[Hashable, PrefixTree[Path]] = {}
        self._clock = 0
        self._copies: dict[Path, Blob] = {}  # of this round: many samples of one prompt read its stream once

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
        idle = source if source is not None and not source.busy and source.stream >= 0 else None
        if idle is not None and len(idle.ids) - common < _SHORT_TAIL:
            return self._take_over(idle, ids, common)
        stream = self._free_stream(source)
        if stream is None and idle is not None:  # every other stream is busy: continue in place, save what is lost
            self._save(idle)
            return self._take_over(idle, ids, common)
        if stream is None:
            return None
        if source is not None:
            self._copy(source, common, stream)
        path = Path(ids, common, stream, key, tree.root, None)
        path.node = tree.insert(ids, path)
        self.held[stream] = path
        return path

    def _find(self, tree: PrefixTree[Path], ids: array[int], limit: int) -> tuple[Path | None, int]:
        """The best source and how much of it to use; (None, n) with n > 0 means that waiting gives n tokens."""
        pending = 0
        for common, node in tree.matches(ids):
            common = min(common, limit)
            best: Path | None = None
            for path in islice(reversed(node.paths), _MAX_CANDIDATES):
                if path.ready < common:
                    pending = max(pending, common)
                elif best is None or ((best.stream < 0 or best.busy) and path.stream >= 0):
                    best = path
            if best is not None:
                if pending - common >= _MIN_WAIT:
                    return None, pending
                return (best, common) if common >= _MIN_COPY else (None, 0)
        return None, pending if pending >= _MIN_WAIT else 0

    def _take_over(self, path: Path, ids: array[int], common: int) -> Path:
        self.context.truncate(path.stream, common)
        path.busy, path.ready = True, common
        self._replant(path, ids)
        return path

    def _copy(self, source: Path, common: int, stream: int) -> None:
        """Put the first `common` tokens of `source` into `stream`."""
        blob = self._read(source) if source.blob is None else source.blob
        if source in self.saved:  # it may have made room for the path whose stream this was
            if common == len(source.ids):
                self._drop(source)  # the new path holds all of it
            else:
                self.saved.move_to_end(source)
        self.context.restore(stream, blob)
        self.context.truncate(stream, common)

    def _read(self, path: Path) -> Blob:
        if path not in self._copies:
            self._copies[path] = self.context.save(path.stream)
        return self._copies[path]

    def _free_stream(self, source: Path | None) -> int | None:
        """An empty stream, or that of the idle path used longest ago, which is saved first; never that of `source`."""
        if None in self.held:
            return self.held.index(None)
        idle = [path for path in self.held if path is not None and not path.busy and path is not source]
        if not idle:
            return None
        oldest = min(idle, key=lambda path: path.used)  # the first of several
        self._save(oldest)
        self.discard(oldest)
        return oldest.stream

    def _save(self, path: Path) -> None:
        """Keep a copy of `path` in memory, unless another path holds all of it."""
        if path.ready < _MIN_COPY or len(path.node.paths) > 1:
            return
        blob = self._copies.get(path)
        if blob is None:  # not `_read`: the stream is given away now, and its copy would outlive the path
            blob = self.context.save(path.stream)
        if blob.size > self.memory:
            return
        tree, ids = self._trees[path.key], path.ids[: path.ready]
        copy = Path(ids, path.ready, -1, path.key, tree.root, blob)
        copy.node = tree.insert(ids, copy)
        self.saved[copy] = blob.size
        self.bytes += blob.size
        self.limit(self.memory)

    def limit(self, memory: int) -> None:
        """Keep at most `memory` bytes of saved paths, those used last, from now on."""
        self.memory = memory
        while self.bytes > memory:
            self._drop(next(iter(self.saved)))

    def _drop(self, path: Path) -> None:
        self.bytes -= self.saved.pop(path)
        self._trees[path.key].remove(path.node, path)

    def _replant(self, path: Path, ids: array[int]) -> None:
        tree = self._trees[path.key]
        tree.remove(path.node, path)
        path.ids, path.node = ids, tree.insert(ids, path)

    def release(self, path: Path, ids: array[int]) -> None:
        """The job on `path` ended with `ids` evaluated; they stay for whoever comes next."""
        self._clock += 1
        path.busy, path.used, path.ready = False, self._clock, len(ids)
        self._replant(path, ids)

    def discard(self, path: Path) -> None:
        """Empty the stream of `path`: it is needed for another, or a decode failed and nobody knows what it holds."""
        self.context.truncate(path.stream, 0)
        self._trees[path.key].remove(path.node, path)
        self.held[path.stream] = None

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
