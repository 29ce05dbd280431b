"""`BlockPool`: block ids, reference counts and the order in which idle blocks are given up.

Owns only numbers: no tokens (see `prefix.py`) and no tensors (see `kv.py`).
One idea: a block that no sequence uses, but whose content is still known to the prefix tree, is *idle*, and idle
blocks stand in the order in which they were let go, so the first is always the one to evict. Of the free blocks the
one that was used last is taken first: memory that was never touched is not there yet.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class PoolCounts(NamedTuple):
    """How many blocks are in each state; free + idle + used == total."""

    free: int
    idle: int
    used: int
    total: int


class BlockPool:
    """Blocks 0 .. total, each in one of three states.

    - free: in no table and unknown to the prefix tree.
    - idle: in no table, but kept for its content (`keep`).
    - used: in the tables of `references[block]` sequences; kept for its content or not.

    Invariant: free + idle + used == total.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = deque(range(total))
        self._idle: dict[int, None] = {}
        self._references = [0] * total
        self._kept = [False] * total

    def take(self) -> int | None:
        """A free block, now used once; None where none is free (evict one first)."""
        if not self._free:
            return None
        block = self._free.popleft()
        self._references[block] = 1
        return block

    def lock(self, block: int) -> None:
        """One more user of a used or idle block."""
        assert self._references[block] or block in self._idle, f"block {block} is free"
        self._references[block] += 1
        self._idle.pop(block, None)

    def release(self, block: int) -> None:
        """One user less; the last one leaves the block idle where its content is kept, else free."""
        assert self._references[block] > 0, f"block {block} has no user"
        self._references[block] -= 1
        if self._references[block]:
            return
        if self._kept[block]:
            self._idle[block] = None
        else:
            self._free.appendleft(block)

    def keep(self, block: int) -> None:
        """Keep a used block's content once its users are gone."""
        assert self._references[block] > 0, f"block {block} has no user"
        self._kept[block] = True

    def evict(self, block: int) -> None:
        """Give up an idle block's content: it is free."""
        del self._idle[block]
        self._kept[block] = False
        self._free.appendleft(block)

    def postpone(self, block: int) -> None:
        """Give up an idle block after all others that are idle now; other blocks stay as they are."""
        if block in self._idle:
            del self._idle[block]
            self._idle[block] = None

    def oldest_idle(self) -> int | None:
        """The block that has been idle longest."""
        return next(iter(self._idle), None)

    def is_idle(self, block: int) -> bool:
        """Whether no sequence uses a block whose content is kept."""
        return block in self._idle

    def num_references(self, block: int) -> int:
        """How many users a block has."""
        return self._references[block]

    @property
    def num_available(self) -> int:
        """Blocks that can be had without taking one from a sequence: free or idle."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Blocks that no sequence uses and whose content is kept."""
        return len(self._idle)

    def counts(self) -> PoolCounts:
        """The number of blocks in each state, counted afresh."""
        used = sum(1 for references in self._references if references)
        return PoolCounts(len(self._free), len(self._idle), used, self.total)
