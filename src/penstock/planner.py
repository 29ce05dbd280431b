"""`Forest`: the global prefix tree of a job, grown from its sorted prompts, and the order in which its rows run.

Owns the decisions of the plan: which prefixes are worth a node, what runs before what. Knows no files and no tensors;
prompts come as big-endian token ids, so that their order as bytes is the depth-first order of their prefix tree, and
the longest common prefixes of neighbours give its edges (the LCP-interval tree of Abouelhoda, Kurtz and Ohlebusch,
2004), whatever the number of rows.
One idea: any order that takes one subtree after the other computes every prefix once. That leaves the order of the
children of a node free, and the longest expected answers go first, so that the last rows to run are short.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

TOKEN_BYTES = 4
FIRST_GUESS_TOKENS = 256  # of an answer without max_tokens, before any row has finished
MIN_SHARED_TOKENS = 16  # what a prefix must save to be worth an order of its own: about a block of KV
MAX_BUCKET = 63
RATIO_UNIT = 2.0**-32


class Place(NamedTuple):
    """Where a prompt is: the deepest node above it, and the tokens that it shares with the prompt before it."""

    node: int
    shared_tokens: int


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Token ids as big-endian words of 32 bits: as bytes they sort as the lists of ids do."""
    words = array("I", tokens)
    if sys.byteorder == "little":
        words.byteswap()
    return words.tobytes()


def unpack_tokens(packed: bytes) -> tuple[int, ...]:
    """The token ids that `pack_tokens` packed."""
    words = array("I", packed)
    if sys.byteorder == "little":
        words.byteswap()
    return tuple(words)


def common_tokens(one: bytes, other: bytes) -> int:
    """How many tokens two packed prompts have in common at their beginning."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size // TOKEN_BYTES
    differing = int.from_bytes(one[:size], "big") ^ int.from_bytes(other[:size], "big")
    return (size * 8 - differing.bit_length()) // (8 * TOKEN_BYTES)


def guess_tokens(max_tokens: int | None, room_tokens: int) -> int:
    """The length that an answer is taken to have before anything is known, with `room_tokens` left in the context."""
    return min(max_tokens or FIRST_GUESS_TOKENS, room_tokens)


def bucket(expected_tokens: int) -> int:
    """Expected lengths that count as equal in the order: powers of two, so that a small difference moves no row."""
    return min(expected_tokens.bit_length(), MAX_BUCKET)


def is_surprise(tokens: int, expected_tokens: int) -> bool:
    """Whether a length is quite another than was expected: less than 3/4 of it, or more than 3/2."""
    return not 3 * expected_tokens <= 4 * tokens <= 6 * expected_tokens


class Forest:
    """Prefix trees, one for each class of rows that may not be mixed (priorities), under roots of their own.

    A node is a prefix that two prompts or more share and that is at least `min_tokens` longer than the node above it.

    Attributes:
        parents: the node above each node; -1: it is a root.
        depths: the tokens of each node's prefix, those of the nodes above it included.
    """

    def __init__(self, *, min_tokens: int) -> None:
        self.parents = array("q")
        self.depths = array("q")
        self._min_tokens = min_tokens

    def grow(self, prompts: Iterable[bytes]) -> Iterator[Place]:
        """Add a tree for sorted prompts; the place of each, in order."""
        open_nodes = [self._new(0)]  # around the prompt at hand, from the root down
        before, shared_before = None, 0
        for prompt in prompts:
            if before is not None:
                shared = common_tokens(before, prompt)
                yield Place(self._settle(open_nodes, shared), shared_before)
                shared_before = shared
            before = prompt
        if before is not None:
            yield Place(open_nodes[-1], shared_before)
        for above, below in pairwise(open_nodes):
            self.parents[below] = above

    def _settle(self, open_nodes: list[int], shared: int) -> int:
        """The node of a prompt that shares `shared` tokens with the next one; opens and closes nodes for that one."""
        if self._is_worth_a_node(shared, open_nodes[-1]):
            open_nodes.append(self._new(shared))
            return open_nodes[-1]
        node = open_nodes[-1]
        while self.depths[open_nodes[-1]] > shared:
            closed = open_nodes.pop()
            above = open_nodes[-1]
            if self._is_worth_a_node(shared, above):
                open_nodes.append(self._open_above(closed, shared))
                above = open_nodes[-1]
            if above != closed:
                self.parents[closed] = above
        return node

    def _open_above(self, closed: int, depth: int) -> int:
        """A node between a closed one and that above it: the closed one itself, cut shorter, where little is lost."""
        if self.depths[closed] >= depth + self._min_tokens:
            return self._new(depth)
        self.depths[closed] = depth
        return closed

    def _is_worth_a_node(self, depth: int, above: int) -> bool:
        return depth >= self.depths[above] + self._min_tokens

    def _new(self, depth: int) -> int:
        self.parents.append(-1)
        self.depths.append(depth)
        return len(self.depths) - 1


class Ranks:
    """The order of a forest's rows, given the highest bucket among the rows of each node itself."""

    def __init__(self, forest: Forest, peaks: Iterable[int]) -> None:
        self._peaks = list(peaks)
        self._raise_peaks(forest)
        # Children one behind the other, grouped by parent, those with the longest answers first; -1: the roots.
        self._children = [key & (2**40 - 1) for key in sorted(self._child_keys(forest))]
        self._starts = self._count_children(forest)
        self._slots = array("q", bytes(8 * len(self._children)))  # behind each child
        self._first_slots = array("q", bytes(8 * len(self._children)))  # of each node, before its children
        self._number()

    def rank(self, node: int, row_bucket: int) -> int:
        """What to sort a row of a node by; rows of equal rank go in the order of their places."""
        start, end = self._starts[node + 1], self._starts[node + 2]
        # Children whose longest answers are at least as long as this row's go before it.
        at = bisect_right(self._children, -row_bucket, start, end, key=lambda child: -self._peaks[child])
        slot = self._first_slots[node] if at == start else self._slots[at - 1]
        return slot * (MAX_BUCKET + 1) + MAX_BUCKET - row_bucket

    def _raise_peaks(self, forest: Forest) -> None:
        """A node's peak is at least that of each of its children, which are deeper than it is."""
        for node in sorted(range(len(self._peaks)), key=forest.depths.__getitem__, reverse=True):
            parent = forest.parents[node]
            if parent >= 0:
                self._peaks[parent] = max(self._peaks[parent], self._peaks[node])

    def _child_keys(self, forest: Forest) -> Iterator[int]:
        """One number a node, to sort by parent, then peak, then age. Roots stay in the order of their classes."""
        for node, parent in enumerate(forest.parents):
            below = MAX_BUCKET - self._peaks[node] if parent >= 0 else 0
            yield ((parent + 1) << 48 | below << 40) | node

    def _count_children(self, forest: Forest) -> array[int]:
        """Where the children of each node start; entry 0 is that of the roots, entry node + 1 that of a node."""
        starts = array("q", bytes(8 * (len(forest.parents) + 2)))
        for parent in forest.parents:
            starts[parent + 2] += 1
        for at in range(1, len(starts)):
            starts[at] += starts[at - 1]
        return starts

    def _number(self) -> None:
        """Walk the trees depth first and number the slots: before, between and behind the children of each node."""
        slot = 0
        walk = [(-1, self._starts[0])]  # a node, and which of its children comes next
        while walk:
            node, at = walk.pop()
            if at > self._starts[node + 1]:  # the child before it is done
                self._slots[at - 1] = slot
                slot += 1
            if at < self._starts[node + 2]:
                child = self._children[at]
                self._first_slots[child] = slot
                slot += 1
                walk += [(node, at + 1), (child, self._starts[child + 1])]


class _Mean:
    """The sum and number of some ratios, in whole RATIO_UNITs, so that the sum does not depend on their order."""

    __slots__ = ("number", "total")

    def __init__(self) -> None:
        self.number = 0
        self.total = 0

    def add(self, ratio: int) -> None:
        self.number += 1
        self.total += ratio


class _Below(_Mean):
    """The ratios below a prefix, and in how many branches they were seen."""

    __slots__ = ("branches",)

    def __init__(self) -> None:
        super().__init__()
        self.branches = 0


class Lengths:
    """How long answers turn out to be, against the first guess: by prefix, and below it by length of prompt.

    A row's guess is corrected by the mean ratio of the nearest prefix above it of which enough answers are known, in
    its own branch or in several others. Among the rows of that prefix, those whose prompts go on about as long behind
    it (by `bucket`) have a mean of their own: each of their answers counts once, and beside them the mean of all counts
    as PRIOR answers. So one answer moves what is expected by a fifth of the way, and many say all. Where lengths of
    prompts mean nothing, both means are nearly the same: at most a 16th of the variance of an answer is lost.
    All of this depends on which answers are known, and not on the order in which they came.
    """

    ENOUGH = 8
    SEVERAL = 3
    PRIOR = 4

    def __init__(self, forest: Forest) -> None:
        self._parents = forest.parents
        self._depths = forest.depths
        self._by_node: defaultdict[int, _Below] = defaultdict(_Below)
        self._alike: defaultdict[tuple[int, int], _Mean] = defaultdict(_Mean)  # by node and length behind it
        self.number = 0
        self.surprises = 0  # answers that were not as long as guessed at first
        self._expect_again_at = self.ENOUGH

    def add(self, node: int, *, prompt_tokens: int, guess_tokens: int, output_tokens: int) -> bool:
        """An answer is known; gives whether twice as many are as when it last said so: time to expect anew."""
        ratio = output_tokens / max(1, guess_tokens)
        units = round(ratio / RATIO_UNIT)
        is_new_branch = True
        for above in self._path(node):
            below = self._by_node[above]
            below.branches += is_new_branch
            is_new_branch = below.number == 0
            below.add(units)
            self._alike[above, bucket(prompt_tokens - self._depths[above])].add(units)
        self.number += 1
        self.surprises += is_surprise(output_tokens, guess_tokens)
        if self.number < self._expect_again_at:
            return False
        self._expect_again_at = 2 * self.number
        return True

    def expect(self, node: int, prompt_tokens: int, guess_tokens: int) -> int:
        """The length to reckon with for an answer that is not known yet; at least 1."""
        for above in self._path(node):
            below = self._by_node.get(above)
            if below is None or below.number < self.ENOUGH or (above != node and below.branches < self.SEVERAL):
                continue
            mean = below.total / below.number
            alike = self._alike.get((above, bucket(prompt_tokens - self._depths[above])))
            if alike is not None:
                mean = (alike.total + self.PRIOR * mean) / (alike.number + self.PRIOR)
            return max(1, round(guess_tokens * mean * RATIO_UNIT))
        return guess_tokens

    def _path(self, node: int) -> Iterator[int]:
        while node >= 0:
            yield node
            node = self._parents[node]


class ListPlan:
    """The plan of prompts (token ids) that a program holds in a list: what a job has on disk, all in memory.

    `guesses` are the lengths that their answers are taken to have before any is known (see `guess_tokens`).

    Attributes:
        order: the prompts' indices as they should run, by `Forest` and `Ranks`.
        shared_tokens: of each prompt, with how many of its first tokens another one begins.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], guesses: Sequence[int]) -> None:
        packed = [pack_tokens(prompt) for prompt in prompts]
        by_bytes = sorted(range(len(packed)), key=packed.__getitem__)
        forest = Forest(min_tokens=MIN_SHARED_TOKENS)
        self._nodes = [0] * len(packed)
        self.shared_tokens = [0] * len(packed)
        before = 0
        for index, place in zip(by_bytes, forest.grow(packed[index] for index in by_bytes), strict=True):
            self._nodes[index] = place.node
            self.shared_tokens[index] = place.shared_tokens
            self.shared_tokens[before] = max(self.shared_tokens[before], place.shared_tokens)
            before = index
        peaks = [0] * len(forest.depths)
        for node, guess in zip(self._nodes, guesses, strict=True):
            peaks[node] = max(peaks[node], bucket(guess))
        ranks = Ranks(forest, peaks)
        self.order = sorted(by_bytes, key=lambda index: ranks.rank(self._nodes[index], bucket(guesses[index])))
        self._prompt_tokens = [len(prompt) for prompt in prompts]
        self._guesses = guesses
        self._lengths = Lengths(forest)

    def expect(self, index: int) -> int:
        """How long a prompt's answer is taken to be, by all that is known now."""
        return self._lengths.expect(self._nodes[index], self._prompt_tokens[index], self._guesses[index])

    def learn(self, index: int, output_tokens: int) -> bool:
        """An answer is known; gives whether it is time to expect anew (see `Lengths.add`)."""
        return self._lengths.add(
            self._nodes[index],
            prompt_tokens=self._prompt_tokens[index],
            guess_tokens=self._guesses[index],
            output_tokens=output_tokens,
        )
