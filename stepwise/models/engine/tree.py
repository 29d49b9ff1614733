"""A radix tree of token ids: which cached path shares the longest prefix with a prompt, and how many distinct tokens
there were.

An edge holds a run of ids. Nodes stay when their paths are evicted, so that `distinct` counts what any engine would
have had to evaluate at least once over a run: four bytes per token, plus a node per branch.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


def ids_array(ids: object = ()) -> array[int]:
    """Token ids as a compact array, which compares and slices at C speed."""
    return array("i", ids)  # type: ignore[call-overload,no-any-return]


def _common_prefix(a: array[int], b: array[int]) -> int:
    """Length of the longest common prefix of two arrays."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    low, high = 0, n  # a[:low] == b[:low] and a[:high] != b[:high]
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


class Node(Generic[T]):
    """`edge`: the ids from the parent to here; `paths`: what passes through or ends here."""

    __slots__ = ("children", "edge", "parent", "paths")

    def __init__(self, edge: array[int], parent: Node[T] | None):
        self.edge, self.parent = edge, parent
        self.children: dict[int, Node[T]] = {}
        self.paths: dict[T, None] = {}


class PrefixTree(Generic[T]):
    """Paths of token ids by their prefixes; the paths themselves are opaque, hashable objects."""

    def __init__(self) -> None:
        self.root: Node[T] = Node(ids_array(), None)
        self.distinct = 0

    def insert(self, ids: array[int], path: T) -> Node[T]:
        """Add `path` under `ids` and return the node where it ends, for `remove`."""
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

    def _grow(self, node: Node[T], tail: array[int]) -> Node[T]:
        self.distinct += len(tail)
        if node.parent is not None and not node.children and not node.paths:
            node.edge.extend(tail)  # a path that grew by a step, not a branch
            return node
        child = Node(tail, node)
        node.children[tail[0]] = child
        return child

    def _split(self, node: Node[T], n: int) -> Node[T]:
        upper: Node[T] = Node(node.edge[:n], node.parent)
        upper.paths.update(node.paths)
        upper.children[node.edge[n]] = node
        assert node.parent is not None  # the root has no edge and is never split
        node.parent.children[node.edge[0]] = upper
        node.edge, node.parent = node.edge[n:], upper
        return upper

    def remove(self, node: Node[T], path: T) -> None:
        """Take `path`, which ends at `node`, out; its tokens stay counted."""
        while node.parent is not None:
            node.paths.pop(path, None)
            node = node.parent

    def matches(self, ids: array[int]) -> Iterator[tuple[int, Node[T]]]:
        """(length of the common prefix, node) where paths share a prefix of `ids`, longest first."""
        found, node, at = [], self.root, 0
        while at < len(ids):
            child = node.children.get(ids[at])
            if child is None:
                break
            shared = _common_prefix(child.edge, ids[at:])
            node, at = child, at + shared
            if node.paths:
                found.append((at, node))
            if shared < len(child.edge):
                break
        return reversed(found)
