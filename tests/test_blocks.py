"""Protects the pool: every block is in exactly one state, and idle blocks leave in the order in which they came."""

from __future__ import annotations

from penstock.blocks import BlockPool, PoolCounts


def test_blocks_are_taken_in_order_and_run_out() -> None:
    pool = BlockPool(2)
    assert [pool.take(), pool.take(), pool.take()] == [0, 1, None]
    assert pool.counts() == PoolCounts(free=0, idle=0, used=2, total=2)


def test_the_last_user_leaves_a_kept_block_idle_and_another_free() -> None:
    pool = BlockPool(3)
    kept, other = pool.take(), pool.take()
    assert kept == 0
    assert other == 1
    pool.keep(kept)
    pool.lock(kept)
    pool.release(kept)
    pool.release(other)
    assert pool.counts() == PoolCounts(free=2, idle=0, used=1, total=3)
    pool.release(kept)
    assert pool.counts() == PoolCounts(free=2, idle=1, used=0, total=3)
    assert pool.num_available == 3
    assert pool.num_idle == 1


def test_idle_blocks_are_evicted_in_the_order_in_which_they_were_let_go() -> None:
    pool = BlockPool(3)
    for block in range(3):
        pool.take()
        pool.keep(block)
    for block in (1, 0, 2):
        pool.release(block)
    pool.lock(1)
    pool.release(1)
    order = []
    while (block_or_none := pool.oldest_idle()) is not None:
        order.append(block_or_none)
        pool.evict(block_or_none)
    assert order == [0, 2, 1]


def test_of_the_free_blocks_the_one_that_was_used_last_is_taken_first() -> None:
    """Memory that was never touched is not there yet: the others' is."""
    pool = BlockPool(4)
    assert [pool.take(), pool.take()] == [0, 1]
    pool.release(0)
    pool.release(1)
    assert [pool.take() for _ in range(4)] == [1, 0, 2, 3]


def test_a_postponed_block_goes_after_all_that_are_idle() -> None:
    pool = BlockPool(3)
    for block in range(3):
        pool.take()
        pool.keep(block)
        pool.release(block)
    pool.lock(2)
    pool.postpone(0)
    pool.postpone(2)  # used: nothing happens
    assert pool.oldest_idle() == 1
    pool.evict(1)
    assert pool.oldest_idle() == 0
