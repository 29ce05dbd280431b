"""The prefix tree that is drawn: made from sorted rows, cut to what can be seen, no token lost."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.jobs import prefix_picture
from penstock.jobs.prefix_picture import Box, PrefixNode, SortedRow, boxes, draw, tree_of


def shared(one: str, other: str) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def tree(*rows: str) -> PrefixNode:
    ordered = sorted(rows)
    neighbours = [0, *(shared(a, b) for a, b in pairwise(ordered))][: len(ordered)]
    return tree_of(SortedRow(len(row), n) for row, n in zip(ordered, neighbours, strict=True))


def own(tokens: float, rows: int) -> PrefixNode:
    return PrefixNode(tokens, rows, (), "own")


def tokens_in(node: PrefixNode) -> float:
    return node.rows * node.tokens + sum(map(tokens_in, node.children))


def distinct_in(node: PrefixNode) -> float:
    once = node.tokens if node.kind == "shared" else node.rows * node.tokens
    return once + sum(map(distinct_in, node.children))


def test_no_rows_and_one_row() -> None:
    assert tree_of([]) == PrefixNode(0, 0)
    assert tree("abc") == PrefixNode(0, 1, (own(3, 1),))


def test_nested_prefixes_become_nested_nodes() -> None:
    found = tree("sys doc1 q1", "sys doc1 q2", "sys doc2 q1", "sys doc2 q2", "other")
    doc = PrefixNode(3, 2, (own(1, 2),))  # "1 q" behind "sys doc", then a digit each
    system = PrefixNode(7, 4, (doc, doc))
    assert found == PrefixNode(0, 5, (system, own(5, 1)))


def test_equal_rows_and_rows_that_are_prefixes_have_nothing_of_their_own() -> None:
    assert tree("ab", "ab", "ab") == PrefixNode(0, 3, (PrefixNode(2, 3),))
    assert tree("ab", "abcd") == PrefixNode(0, 2, (PrefixNode(2, 2, (own(2, 1),)),))


def trie_size(rows: list[str]) -> int:
    return len({row[:end] for row in rows for end in range(1, len(row) + 1)})


@given(st.lists(st.text("ab", max_size=8), max_size=30))
@settings(deadline=None)
def test_the_tree_has_every_row_every_token_and_computes_each_beginning_once(rows: list[str]) -> None:
    found = tree(*rows)
    assert found.rows == len(rows)
    assert tokens_in(found) == pytest.approx(sum(map(len, rows)))
    assert distinct_in(found) == pytest.approx(trie_size(rows))


@given(st.lists(st.text("abc", max_size=8), min_size=1, max_size=60), st.integers(1, 20))
@settings(deadline=None)
def test_a_cut_picture_still_shows_every_token(rows: list[str], most: int) -> None:
    found = boxes(tree(*rows), most=most)
    assert sum(box.rows * box.tokens for box in found) == pytest.approx(sum(map(len, rows)))
    assert len(found) <= 2 * most + 1  # a node for all others beside each
    for box in found:
        assert 0 <= box.left <= box.left + box.rows <= len(rows)


def test_a_node_with_very_many_children_keeps_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_picture, "MOST_CHILDREN", 3)
    pairs = [letter * size for size, letter in enumerate("abcdefgh", 2) for _ in range(2)]
    found = tree(*pairs)
    assert sorted(child.tokens for child in found.children if child.kind == "shared") == [7, 8, 9]
    assert sum(child.rows for child in found.children) == found.rows == 16
    assert tokens_in(found) == sum(map(len, pairs))


def test_boxes_stand_below_their_node_the_largest_first() -> None:
    root = PrefixNode(10, 6, (PrefixNode(5, 2), own(3, 1), PrefixNode(7, 3)))
    assert boxes(root) == [
        Box(0, 0, 6, 10, "shared", 0),
        Box(0, 10, 3, 7, "shared", 1),
        Box(3, 10, 2, 5, "shared", 1),
        Box(5, 10, 1, 3, "own", 1),
    ]


def test_what_is_not_drawn_is_summed_up_beside_its_siblings() -> None:
    root = PrefixNode(10, 6, (PrefixNode(7, 3), PrefixNode(4, 2, (PrefixNode(2, 2),)), own(3, 1)))
    assert boxes(root, most=2) == [
        Box(0, 0, 6, 10, "shared", 0),
        Box(0, 10, 3, 7, "shared", 1),
        Box(3, 10, 3, 5, "others", 1),  # (2 x (4 + 2) + 1 x 3) / 3
    ]


def test_the_drawing_is_as_wide_as_its_rows_and_says_what_is_saved() -> None:
    html = draw(PrefixNode(10, 4, (PrefixNode(30, 3), own(10, 1))))
    places = re.findall(r'style="left:([\d.]+)%;top:([\d.]+)%;width:([\d.]+)%;height:([\d.]+)%"', html)
    assert [tuple(map(float, place)) for place in places] == [(0, 0, 100, 25), (0, 25, 75, 75), (75, 25, 25, 25)]
    assert "30 tokens shared by 3 rows: computed once, 60 tokens saved" in html
    assert ElementTree.fromstring(html) is not None


def test_the_ends_of_a_few_long_rows_are_cut_off_and_that_is_said() -> None:
    html = draw(PrefixNode(100, 1000, (PrefixNode(300, 1),)))
    assert "100 tokens deep, the ends of the longest rows cut off" in html
    assert "cut off" not in draw(PrefixNode(100, 1000, (PrefixNode(300, 500),)))


def test_a_job_without_tokens_has_no_picture() -> None:
    assert "no prompt tokens" in draw(PrefixNode(0, 0))


def test_a_chain_of_thousands_is_no_trouble() -> None:
    found = tree_of(SortedRow(n + 1, n) for n in range(3000))
    assert len(boxes(found)) <= 401
