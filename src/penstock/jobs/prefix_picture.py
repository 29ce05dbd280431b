"""The prefix tree of a job as a picture: which beginnings its rows share, how many rows and how long.

Owns the tree that is drawn (`PrefixNode`), how it comes from sorted rows, how it is cut to a size that can be seen, and
the drawing. Knows no planner and no store.
One idea: a node is as wide as its rows are many and as tall as its tokens are, so an area is a number of prompt tokens:
what lies side by side under a node is computed for each, the node itself once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Literal, NamedTuple

from penstock.jobs.wording import count, plural, short

MOST_NODES = 200  # that are drawn; the rest is summed up beside its siblings
MOST_CHILDREN = 400  # that a node keeps while the tree is built
CUT_SHARE = 0.99  # of the tokens must be drawn; the rest, the ends of a few long rows, is cut off where that makes
CUT_DEPTH = 0.7  # the picture no deeper than this share of it
LEAST_LABEL_SHARE = 0.055  # of the height: lower nodes have no room for a line of text
THIN_SHARE, SMALL_SHARE = 0.004, 0.012  # of the width: narrower nodes would be all border, on a desk and on a phone

Kind = Literal["shared", "own", "others"]


class PrefixNode(NamedTuple):
    """A run of `tokens` tokens with which `rows` rows go on.

    kind: shared by its rows; or what rows have of their own, or other nodes, summed up: then `tokens` is the mean.
    """

    tokens: float
    rows: int
    children: tuple[PrefixNode, ...] = ()
    kind: Kind = "shared"


class SortedRow(NamedTuple):
    """A row in the order of its tokens: how many it has, and how many its beginning shares with the row before."""

    tokens: int
    shared_tokens: int


class Box(NamedTuple):
    """A node in its place: `left` and `rows` are in rows, `top` and `tokens` in tokens."""

    left: float
    top: float
    rows: int
    tokens: float
    kind: Kind
    depth: int


class _Open:
    """A node whose rows are still coming in; it ends `end` tokens from the start of the row."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.children: list[PrefixNode] = []
        self.rows = self.own_rows = self.own_tokens = 0

    def add_row(self, tokens: int) -> None:
        """A row that shares nothing beyond this node with any other."""
        self.rows += 1
        if tokens > self.end:
            self.own_rows += 1
            self.own_tokens += tokens - self.end

    def add(self, node: PrefixNode) -> None:
        self.rows += node.rows
        self.children.append(node)
        if len(self.children) >= 2 * MOST_CHILDREN:
            self.children = list(_largest(self.children, MOST_CHILDREN))

    def close(self, start: int) -> PrefixNode:
        """The node, which starts where its parent ends."""
        own = [PrefixNode(self.own_tokens / self.own_rows, self.own_rows, (), "own")] if self.own_rows else []
        return PrefixNode(self.end - start, self.rows, (*_largest(self.children, MOST_CHILDREN), *own))


def tree_of(rows: Iterable[SortedRow]) -> PrefixNode:
    """The tree of rows that come in the order of their tokens. It keeps the nodes of one path open, and no row."""
    path = [_Open(0)]
    waiting: int | None = None  # tokens of the row before, whose parent the next row decides
    for tokens, shared in rows:
        if waiting is not None:
            _settle(path, waiting, shared)
        waiting = tokens
    if waiting is not None:
        _settle(path, waiting, 0)
    return path[0].close(0)


def _settle(path: list[_Open], tokens: int, shared: int) -> None:
    """Hang a row below the deepest node that it shares with a neighbour; close the nodes that the next row leaves."""
    if shared > path[-1].end:
        path.append(_Open(shared))
    path[-1].add_row(tokens)
    while path[-1].end > shared:
        closed = path.pop()
        if path[-1].end < shared:
            path.append(_Open(shared))
        path[-1].add(closed.close(path[-1].end))


def _tokens_below(node: PrefixNode) -> float:
    """Prompt tokens of the rows of a node, from where it begins."""
    todo, total = [node], 0.0
    while todo:
        at = todo.pop()
        total += at.rows * at.tokens
        todo += at.children
    return total


def _largest(nodes: Sequence[PrefixNode], most: int) -> Iterator[PrefixNode]:
    """The `most` nodes with the most tokens, in their order, and one for all others (and for earlier others)."""
    places = [place for place, node in enumerate(nodes) if node.kind != "others"]
    if len(places) <= most:
        yield from nodes
        return
    sizes = [_tokens_below(node) for node in nodes]
    kept = set(heapq.nlargest(most, places, key=sizes.__getitem__))
    yield from (node for place, node in enumerate(nodes) if place in kept)
    yield _others([node for place, node in enumerate(nodes) if place not in kept])


def _others(nodes: Sequence[PrefixNode]) -> PrefixNode:
    rows = sum(node.rows for node in nodes)
    return PrefixNode(sum(map(_tokens_below, nodes)) / max(1, rows), rows, (), "others")


def boxes(tree: PrefixNode, *, most: int = MOST_NODES) -> list[Box]:
    """Where the nodes are drawn: the largest `most` of them from the top down, and the others summed up beside them."""
    chosen = _choose(tree, most)
    found: list[Box] = []
    todo = [(tree, 0.0, 0.0, 0)]
    while todo:
        node, left, top, depth = todo.pop()
        if node.tokens:
            found.append(Box(left, top, node.rows, node.tokens, node.kind, depth))
            depth += 1
        for child in _drawn_children(node, chosen):
            todo.append((child, left, top + node.tokens, depth))
            left += child.rows
    return sorted(found, key=lambda box: (box.top, box.left))


def _drawn_children(node: PrefixNode, chosen: set[int]) -> list[PrefixNode]:
    """The largest first, then what rows have of their own, then the rest."""
    kept = [child for child in node.children if id(child) in chosen]
    kept.sort(key=lambda child: (child.kind == "others", child.kind == "own", -child.rows))
    rest = [child for child in node.children if id(child) not in chosen]
    return kept + ([_others(rest)] if rest else [])


def _choose(tree: PrefixNode, most: int) -> set[int]:
    """The nodes to draw, by identity: always the largest whose parent is drawn."""
    chosen: set[int] = set()
    heap = [(-_tokens_below(tree), 0, tree)]
    number = 0  # decides between equals
    while heap and len(chosen) < most:
        _, _, node = heapq.heappop(heap)
        chosen.add(id(node))
        for child in node.children:
            number += 1
            heapq.heappush(heap, (-_tokens_below(child), number, child))
    return chosen


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
