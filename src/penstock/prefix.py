"""`PrefixTree`: which block holds the KV of which tokens, so that a shared prefix is computed once.

A node is one block and the tokens that it holds; its path from the root is all that these tokens depend on. The root
is chosen by namespace (adapter, salt), so sequences that must not share never meet. Knows no tensors and no sequences.
One idea: full blocks are found by hash and confirmed by token ids (a dict of token tuples does both); where that
ends, the child with the longest common beginning gives the last few tokens, to be copied. So a match is to the token.
In the order of their tokens that child is beside the place of the tokens looked for: no other one is looked at.

Why eviction needs no search: whoever uses a block uses all blocks above it, and lets go of the deepest first. So
the block that has been idle longest never has a child.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from penstock.blocks import BlockPool
from penstock.request import Namespace


class Node:
    """One block: 1 .. block_tokens token ids. Only a node with a full block has children."""

    __slots__ = ("block", "children", "in_order", "parent", "tokens")

    def __init__(self, parent: Node | None, tokens: tuple[int, ...], block: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.block = block
        self.children: dict[tuple[int, ...], Node] = {}
        self.in_order: list[tuple[int, ...]] = []  # the keys of `children`, sorted


class PartOfBlock(NamedTuple):
    """The first `num_tokens` positions of `block`."""

    block: int
    num_tokens: int


class Match(NamedTuple):
    """What the tree holds of a token sequence: nodes of full blocks from the start on, then a part of one more."""

    nodes: tuple[Node, ...]
    part: PartOfBlock | None


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of tokens that two sequences have in common from their start on."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


class PrefixTree:
    """The prefix tree over a pool's blocks. Every node's block is kept in the pool, and belongs to that node alone."""

    def __init__(self, pool: BlockPool, block_tokens: int) -> None:
        self._pool = pool
        self._block_tokens = block_tokens
        self._roots: dict[Namespace, Node] = {}
        self._nodes: dict[int, Node] = {}

    def root(self, namespace: Namespace) -> Node:
        """The node above all first blocks of a namespace; it has no block of its own."""
        return self._roots.setdefault(namespace, Node(None, (), -1))

    def match(self, namespace: Namespace, tokens: Sequence[int], *, limit: int) -> Match:
        """The longest beginning of tokens[:limit] that the tree holds. Changes nothing."""
        root = node = self._roots.get(namespace)
        nodes: list[Node] = []
        while node is not None and (end := (len(nodes) + 1) * self._block_tokens) <= limit:
            node = node.children.get(tuple(tokens[end - self._block_tokens : end]))
            if node is not None:
                nodes.append(node)
        last = nodes[-1] if nodes else root
        start = len(nodes) * self._block_tokens
        rest = tuple(tokens[start : min(limit, start + self._block_tokens)])
        return Match(tuple(nodes), self._match_part(last, rest) if last else None)

    def _match_part(self, node: Node, tokens: tuple[int, ...]) -> PartOfBlock | None:
        at = bisect_left(node.in_order, tokens)
        lengths = [(common_length(near, tokens), near) for near in node.in_order[max(0, at - 1) : at + 1]]
        length, child = max(lengths, default=(0, ()))
        return PartOfBlock(node.children[child].block, length) if length else None

    def insert(self, parent: Node, tokens: tuple[int, ...], *, block: int) -> Node:
        """Record that `block`, used by the caller, holds `tokens` behind `parent`; gives the node that holds them.

        Where another block holds them already, the node of that block comes back, unchanged: the caller should use
        it in place of its own. A node whose block has been filled further since is extended in place.
        """
        assert 0 < len(tokens) <= self._block_tokens
        found = parent.children.get(tokens)
        if found is not None:
            return found
        node = self._nodes.get(block)
        if node is not None:
            assert node.parent is parent
            assert tokens[: len(node.tokens)] == node.tokens
            self._unlink(node)
            node.tokens = tokens
        else:
            node = Node(parent, tokens, block)
            self._nodes[block] = node
            self._pool.keep(block)
        parent.children[tokens] = node
        insort(parent.in_order, tokens)
        return node

    def evict(self) -> bool:
        """Give up the block that has been idle longest; False where none is idle."""
        block = self._pool.oldest_idle()
        if block is None:
            return False
        self._forget(block)
        return True

    def forget(self, blocks: Iterable[int]) -> None:
        """Give up those of some blocks that are idle: nobody will look for what they hold. The deepest come first."""
        for block in blocks:
            if self._pool.is_idle(block) and not self._nodes[block].children:  # others went on from it
                self._forget(block)

    def _forget(self, block: int) -> None:
        node = self._nodes.pop(block)
        assert not node.children, f"block {block} is idle above a block that is not"
        self._unlink(node)
        self._pool.evict(block)

    def _unlink(self, node: Node) -> None:
        assert node.parent is not None
        in_order = node.parent.in_order
        del in_order[bisect_left(in_order, node.tokens)]
        del node.parent.children[node.tokens]

    def num_blocks(self) -> int:
        """How many blocks the tree holds."""
        return len(self._nodes)

    def verify(self) -> None:
        """Raise AssertionError where the tree contradicts itself or the pool."""
        for block, node in self._nodes.items():
            assert node.block == block
            assert node.parent is not None
            assert node.parent.children[node.tokens] is node
            assert node.parent.in_order == sorted(node.parent.children)
            assert not node.children or len(node.tokens) == self._block_tokens
            parent_used = node.parent.parent is None or self._pool.num_references(node.parent.block)
            assert parent_used or not self._pool.num_references(block), f"block {block} is used below an idle one"
