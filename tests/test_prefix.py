"""Protects the prefix tree: matches are to the token, sharing needs equal namespaces, eviction takes leaves first."""

from __future__ import annotations

from penstock.blocks import BlockPool
from penstock.prefix import Node, PartOfBlock, PrefixTree
from penstock.request import Namespace

SPACE = Namespace()


def tree_with(*paths: list[int], total: int = 16) -> tuple[BlockPool, PrefixTree]:
    """A tree of 4-token blocks that holds each path; nobody uses a block any more."""
    pool = BlockPool(total)
    tree = PrefixTree(pool, 4)
    for path in paths:
        node, used = tree.root(SPACE), []
        for start in range(0, len(path), 4):
            block = pool.take()
            assert block is not None
            node = tree.insert(node, tuple(path[start : start + 4]), block=block)
            if node.block != block:
                pool.lock(node.block)
                pool.release(block)
            used.append(node.block)
        for block in reversed(used):
            pool.release(block)
    tree.verify()
    return pool, tree


def blocks(nodes: tuple[Node, ...]) -> list[int]:
    return [node.block for node in nodes]


def test_a_match_covers_full_blocks_and_then_a_part_of_one() -> None:
    _, tree = tree_with([1, 2, 3, 4, 5, 6, 7, 8])
    match = tree.match(SPACE, [1, 2, 3, 4, 5, 6, 9], limit=7)
    assert blocks(match.nodes) == [0]
    assert match.part == PartOfBlock(1, 2)


def test_the_limit_keeps_the_last_token_out_of_a_match() -> None:
    _, tree = tree_with([1, 2, 3, 4, 5, 6, 7, 8])
    match = tree.match(SPACE, [1, 2, 3, 4, 5, 6, 7, 8], limit=7)
    assert blocks(match.nodes) == [0]
    assert match.part == PartOfBlock(1, 3)


def test_the_longest_of_several_beginnings_wins() -> None:
    _, tree = tree_with([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 9, 9], [1, 2, 3, 4, 5])
    match = tree.match(SPACE, [1, 2, 3, 4, 5, 6, 9, 1, 1], limit=8)
    assert blocks(match.nodes) == [0]
    assert match.part == PartOfBlock(2, 3)


def test_nothing_is_shared_between_namespaces() -> None:
    _, tree = tree_with([1, 2, 3, 4])
    match = tree.match(Namespace(adapter="french"), [1, 2, 3, 4, 5], limit=4)
    assert match.nodes == ()
    assert match.part is None


def test_a_second_block_of_the_same_tokens_is_not_inserted() -> None:
    pool, tree = tree_with([1, 2, 3, 4])
    twin = pool.take()
    assert twin is not None
    assert tree.insert(tree.root(SPACE), (1, 2, 3, 4), block=twin).block == 0
    assert tree.num_blocks() == 1


def test_a_block_that_was_filled_further_is_extended_in_place() -> None:
    pool = BlockPool(2)
    tree = PrefixTree(pool, 4)
    block = pool.take()
    assert block == 0
    part = tree.insert(tree.root(SPACE), (1, 2), block=block)
    assert tree.insert(tree.root(SPACE), (1, 2, 3, 4), block=block) is part
    assert blocks(tree.match(SPACE, [1, 2, 3, 4, 5], limit=4).nodes) == [0]
    tree.verify()


def test_leaves_are_evicted_before_what_they_depend_on() -> None:
    pool, tree = tree_with([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 9, 9])
    held = []
    while tree.evict():
        tree.verify()
        held.append(blocks(tree.match(SPACE, [1, 2, 3, 4, 5, 6, 7, 8, 9], limit=8).nodes))
    assert held == [[0], [0], []]
    assert pool.counts().free == 16


def test_what_nobody_will_look_for_is_given_up_unless_others_use_it_or_went_on_from_it() -> None:
    pool, tree = tree_with([1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 9, 9, 9, 9])
    pool.lock(0)
    pool.lock(1)
    tree.forget([2, 1, 0])
    tree.verify()
    assert blocks(tree.match(SPACE, [1, 2, 3, 4, 5, 6, 7, 8, 9, 9], limit=9).nodes) == [0, 1]
    pool.release(1)
    pool.release(0)
    tree.forget([1, 0])
    tree.verify()
    assert blocks(tree.match(SPACE, [1, 2, 3, 4, 9, 9, 9, 9, 9], limit=8).nodes) == [0, 3]
    assert (pool.counts().free, pool.counts().idle) == (14, 2)
