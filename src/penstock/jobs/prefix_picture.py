"""The prefix tree of a job as a picture: which beginnings its rows share, how many rows and how long.

Owns the tree that is drawn (`PrefixNode`), how it is cut out of the plan's `Forest`, and the drawing. Knows no store.
One idea: a node is as wide as its rows are many and as tall as its tokens are, so an area is a number of prompt tokens:
what lies side by side under a node is computed for each, the node itself once.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Literal, NamedTuple

from penstock.jobs.wording import count, plural, short
from penstock.planner import Forest

MOST_NODES = 200  # that are drawn; the rest is summed up beside its siblings
CUT_SHARE = 0.99  # of the tokens must be drawn; the rest, the ends of a few long rows, is cut off where that makes
CUT_DEPTH = 0.7  # the picture no deeper than this share of it
LEAST_LABEL_SHARE = 0.055  # of the height: lower nodes have no room for a line of text
THIN_SHARE, SMALL_SHARE = 0.004, 0.012  # of the width: narrower nodes would be all border, on a desk and on a phone

Kind = Literal["shared", "own", "others"]


class PrefixNode(NamedTuple):
    """A run of `tokens` tokens with which `rows` rows go on.

    kind: shared by its rows; or what rows have of their own, or smaller nodes, summed up: then `tokens` is the mean.
    """

    tokens: float
    rows: int
    children: tuple[PrefixNode, ...] = ()
    kind: Kind = "shared"


class OwnRows(NamedTuple):
    """The rows right below a node of a forest, and the tokens of their prompts, from the first on."""

    node: int
    rows: int
    prompt_tokens: int


class Box(NamedTuple):
    """A node in its place: `left` and `rows` are in rows, `top` and `tokens` in tokens."""

    left: float
    top: float
    rows: int
    tokens: float
    kind: Kind
    depth: int


class _Weights:
    """For each node of a forest the rows below it, their tokens from where it starts, and those of its own rows."""

    def __init__(self, forest: Forest, own: Iterable[OwnRows]) -> None:
        size = len(forest.depths)
        self._forest = forest
        self.rows, self.tokens, self.own_rows, self.own_tokens = (array("q", bytes(8 * size)) for _ in range(4))
        for node, rows, prompt_tokens in own:
            self.rows[node] = self.own_rows[node] = rows
            self.tokens[node] = self.own_tokens[node] = prompt_tokens - rows * forest.depths[node]
        for node in sorted(range(size), key=forest.depths.__getitem__, reverse=True):  # children before parents
            self.tokens[node] += self.rows[node] * self.length(node)
            parent = forest.parents[node]
            if parent >= 0:
                self.rows[parent] += self.rows[node]
                self.tokens[parent] += self.tokens[node]

    def length(self, node: int) -> int:
        """The tokens of a node that the node above it has not."""
        parent = self._forest.parents[node]
        return self._forest.depths[node] - (self._forest.depths[parent] if parent >= 0 else 0)


def tree_of(forest: Forest, own: Iterable[OwnRows], *, most: int = MOST_NODES) -> PrefixNode:
    """The `most` largest prefixes of a forest, each with the sum of what is left out below it."""
    weights = _Weights(forest, own)
    below: dict[int, list[int]] = {}  # the chosen children of each chosen node
    made: dict[int, PrefixNode] = {}
    chosen = _choose(forest, weights, most)
    for node in chosen:
        below.setdefault(forest.parents[node], []).append(node)
    for node in reversed(chosen):  # children before parents
        made[node] = _node(weights, node, [(child, made[child]) for child in below.get(node, [])])
    roots = [node for node, parent in enumerate(forest.parents) if parent < 0]
    kept = [made[root] for root in roots if root in made]
    left_out = [root for root in roots if root not in made]
    rest = _summed(sum(weights.rows[r] for r in left_out), sum(weights.tokens[r] for r in left_out), "others")
    return PrefixNode(0, sum(weights.rows[root] for root in roots), (*_in_order(kept), *rest))


def _choose(forest: Forest, weights: _Weights, most: int) -> list[int]:
    """Nodes, each behind its parent: always the largest whose parent is chosen."""
    by_parent = sorted(range(len(forest.parents)), key=forest.parents.__getitem__)
    heap = [(-weights.tokens[node], node) for node, parent in enumerate(forest.parents) if parent < 0]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < most:
        _, node = heapq.heappop(heap)
        chosen.append(node)
        at = bisect_left(by_parent, node, key=forest.parents.__getitem__)
        while at < len(by_parent) and forest.parents[by_parent[at]] == node:
            heapq.heappush(heap, (-weights.tokens[by_parent[at]], by_parent[at]))
            at += 1
    return chosen


def _node(weights: _Weights, node: int, kept: Sequence[tuple[int, PrefixNode]]) -> PrefixNode:
    """A chosen node: its chosen children, what its own rows have for themselves, and all else that is below it."""
    rows, own = weights.rows[node], weights.own_rows[node]
    tokens = weights.tokens[node] - rows * weights.length(node) - weights.own_tokens[node]
    rest_rows = rows - own - sum(weights.rows[child] for child, _ in kept)
    rest_tokens = tokens - sum(weights.tokens[child] for child, _ in kept)
    children = (
        *_in_order([made for _, made in kept]),
        *_summed(own, weights.own_tokens[node], "own"),
        *_summed(rest_rows, rest_tokens, "others"),
    )
    return PrefixNode(weights.length(node), rows, children)


def _in_order(nodes: Iterable[PrefixNode]) -> list[PrefixNode]:
    return sorted(nodes, key=lambda node: -node.rows)


def _summed(rows: int, tokens: int, kind: Kind) -> Iterator[PrefixNode]:
    """One node for all of them, if they have any tokens."""
    if rows and tokens:
        yield PrefixNode(tokens / rows, rows, (), kind)


def boxes(tree: PrefixNode) -> list[Box]:
    """Where the nodes are drawn, from the top down."""
    found: list[Box] = []
    todo = [(tree, 0.0, 0.0, 0)]
    while todo:
        node, left, top, depth = todo.pop()
        if node.tokens:
            found.append(Box(left, top, node.rows, node.tokens, node.kind, depth))
            depth += 1
        for child in node.children:
            todo.append((child, left, top + node.tokens, depth))
            left += child.rows
    return sorted(found, key=lambda box: (box.top, box.left))


def draw(tree: PrefixNode) -> str:
    """The tree as HTML, with its two axes."""
    found = boxes(tree)
    if not found:
        return '<p class="quiet">The rows of this job have no prompt tokens.</p>'
    deepest = _depth_to_draw(found)
    drawn = "".join(_draw(box, tree.rows, deepest) for box in found if box.top < deepest)
    cut = any(box.top + box.tokens > deepest for box in found)
    end = f"{short(deepest)} tokens deep" + (", the ends of the longest rows cut off" if cut else "")
    return (
        f'<figure class="tree"><div class="room">{drawn}</div>'
        f"<figcaption><span>0 to {count(tree.rows)} rows, left to right</span><span>{end}</span></figcaption></figure>"
    )


def _depth_to_draw(found: Sequence[Box]) -> float:
    """All of it, or the depth above which CUT_SHARE of the tokens lie, where that is much less."""
    ends = sorted({box.top + box.tokens for box in found})
    whole = sum(box.rows * box.tokens for box in found)
    for end in ends:
        above = sum(box.rows * min(box.tokens, max(0.0, end - box.top)) for box in found)
        if above >= CUT_SHARE * whole:
            return end if end <= CUT_DEPTH * ends[-1] else ends[-1]
    return ends[-1]


def _draw(box: Box, rows: int, deepest: float) -> str:
    tall = min(box.tokens, deepest - box.top) / deepest
    place = (
        f"left:{100 * box.left / rows:.3f}%;top:{100 * box.top / deepest:.3f}%;"
        f"width:{100 * box.rows / rows:.3f}%;height:{100 * tall:.3f}%"
    )
    label = _label(box) if tall >= LEAST_LABEL_SHARE else ""
    width = box.rows / rows
    style = f"node {box.kind} d{min(box.depth, 5)}{' thin' * (width < THIN_SHARE)}{' small' * (width < SMALL_SHARE)}"
    return f'<div class="{style}" style="{place}" title="{escape(_tell(box))}">{label}</div>'


def _label(box: Box) -> str:
    """Tokens and rows, in a form for each width."""
    tokens = short(round(box.tokens))
    return (
        f'<span class="long">{tokens} tokens x {plural(box.rows, "row")}</span>'
        f'<span class="short">{tokens} x {short(box.rows)}</span>'
    )


def _tell(box: Box) -> str:
    rows = plural(box.rows, "row")
    if box.kind == "shared":
        saved = (box.rows - 1) * box.tokens
        return f"{count(box.tokens)} tokens shared by {rows}: computed once, {count(saved)} tokens saved"
    what = "of their own" if box.kind == "own" else "in smaller branches"
    return f"{count(box.tokens)} tokens {what} in each of {rows} (mean)"
