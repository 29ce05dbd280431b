"""The prefix tree that is drawn: cut out of the plan's forest, no row and no token lost."""

from __future__ import annotations

import re
from collections import Counter
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.jobs.prefix_picture import Box, OwnRows, PrefixNode, boxes, draw, tree_of
from penstock.planner import Forest, pack_tokens


def tree(*rows: str, most: int = 200, classes: int = 1) -> PrefixNode:
    """The tree of texts, a token a letter; in `classes` forests that share nothing."""
    forest = Forest(min_tokens=1)
    number: Counter[int] = Counter()
    tokens: Counter[int] = Counter()
    for start in range(classes):
        ordered = sorted(pack_tokens(list(row.encode())) for row in rows[start::classes])
        for prompt, place in zip(ordered, forest.grow(ordered), strict=True):
            number[place.node] += 1
            tokens[place.node] += len(prompt) // 4
    return tree_of(forest, [OwnRows(node, number[node], tokens[node]) for node in number], most=most)


def own(tokens: float, rows: int) -> PrefixNode:
    return PrefixNode(tokens, rows, (), "own")


def others(tokens: float, rows: int) -> PrefixNode:
    return PrefixNode(tokens, rows, (), "others")


def tokens_in(node: PrefixNode) -> float:
    return node.rows * node.tokens + sum(map(tokens_in, node.children))


def distinct_in(node: PrefixNode) -> float:
    once = node.tokens if node.kind == "shared" else node.rows * node.tokens
    return once + sum(map(distinct_in, node.children))


def nodes_in(node: PrefixNode) -> int:
    return (node.kind == "shared") + sum(map(nodes_in, node.children))


def root(tokens: float, rows: int, *children: PrefixNode) -> PrefixNode:
    """A tree as `tree` gives it: the root of its one class below the root of all."""
    return PrefixNode(0, rows, (PrefixNode(tokens, rows, children),))


def test_no_rows_and_one_row() -> None:
    assert tree_of(Forest(min_tokens=1), []) == PrefixNode(0, 0)
    assert tree("abc") == root(0, 1, own(3, 1))


def test_nested_prefixes_become_nested_nodes_the_most_rows_first() -> None:
    found = tree("sys doc1 q1", "sys doc1 q2", "sys doc2 q1", "sys doc2 q2", "sys doc2 q3", "other")
    system = PrefixNode(7, 5, (PrefixNode(3, 3, (own(1, 3),)), PrefixNode(3, 2, (own(1, 2),))))
    assert found == root(0, 6, system, own(5, 1))


def test_equal_rows_have_nothing_of_their_own() -> None:
    assert tree("ab", "ab", "ab") == root(0, 3, PrefixNode(2, 3))


def test_classes_of_rows_that_may_not_be_mixed_stand_side_by_side() -> None:
    found = tree("aaaa1", "aa1", "aaaa2", "aa2", "aaaa3", classes=2)
    first, second = found.children
    assert found.rows == 5
    assert first.children == (PrefixNode(4, 3, (own(1, 3),)),)
    assert second.children == (PrefixNode(2, 2, (own(1, 2),)),)


def test_what_is_not_drawn_is_summed_up_beside_its_siblings() -> None:
    rows = ("aaaa1", "aaaa2", "aaaa3", "bbb1", "bbb2", "c")
    assert tree(*rows, most=2) == root(0, 6, PrefixNode(4, 3, (own(1, 3),)), own(1, 1), others(4, 2))
    assert tree(*rows, most=1) == root(0, 6, own(1, 1), others(23 / 5, 5))
    assert tree(*rows, most=0) == PrefixNode(0, 6, (others(4, 6),))


def trie_size(rows: list[str]) -> int:
    return len({row[:end] for row in rows for end in range(1, len(row) + 1)})


@given(st.lists(st.text("ab", min_size=1, max_size=8), max_size=30))
def test_the_tree_has_every_row_every_token_and_computes_each_beginning_once(rows: list[str]) -> None:
    found = tree(*rows)
    assert found.rows == len(rows)
    assert tokens_in(found) == pytest.approx(sum(map(len, rows)))
    assert distinct_in(found) == pytest.approx(trie_size(rows))


@given(st.lists(st.text("abc", min_size=1, max_size=8), min_size=1, max_size=60), st.integers(1, 20), st.integers(1, 3))
def test_a_cut_picture_still_shows_every_row_and_every_token(rows: list[str], most: int, classes: int) -> None:
    found = tree(*rows, most=most, classes=classes)
    assert nodes_in(found) <= most + 1
    drawn = boxes(found)
    assert sum(box.rows * box.tokens for box in drawn) == pytest.approx(sum(map(len, rows)))
    for box in drawn:
        assert 0 <= box.left <= box.left + box.rows <= len(rows)


def test_boxes_stand_below_their_node_from_left_to_right() -> None:
    assert boxes(PrefixNode(10, 6, (PrefixNode(7, 3), PrefixNode(5, 2), own(3, 1)))) == [
        Box(0, 0, 6, 10, "shared", 0),
        Box(0, 10, 3, 7, "shared", 1),
        Box(3, 10, 2, 5, "shared", 1),
        Box(5, 10, 1, 3, "own", 1),
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
    found = tree(*("a" * n for n in range(1, 800)))
    assert nodes_in(found) == 201  # with the root of all
    assert tokens_in(found) == 799 * 800 / 2
