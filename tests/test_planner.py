"""Protects the plan of a job: every prefix computed once, long answers first, classes apart; against slow twins."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import planner
from penstock.planner import (
    Forest,
    Lengths,
    ListPlan,
    Place,
    Ranks,
    common_tokens,
    guess_tokens,
    pack_tokens,
    unpack_tokens,
)

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=30)


def common(one: list[int], other: list[int]) -> int:
    """The slow twin of `common_tokens`."""
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


def order(prompts: list[list[int]], expected: list[int], *, min_tokens: int = 1) -> list[int]:
    """The prompts' indices in the order in which they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "MIN_SHARED_TOKENS", min_tokens)
        return ListPlan(prompts, expected).order


@given(PROMPTS)
def test_each_prompt_knows_how_much_of_it_another_one_begins_with(prompts: list[list[int]]) -> None:
    plan = ListPlan(prompts, [1] * len(prompts))
    for index, prompt in enumerate(prompts):
        others = (other for number, other in enumerate(prompts) if number != index)
        assert plan.shared_tokens[index] == max((common(prompt, other) for other in others), default=0)


def distinct_tokens(prompts: list[list[int]]) -> int:
    return len({tuple(p[:n]) for p in prompts for n in range(1, len(p) + 1)})


def computed_in_order(prompts: list[list[int]], *, min_tokens: int = 1) -> int:
    """Tokens computed where only the path of the prompt before is kept; shorter gains than `min_tokens` are not had."""
    total, kept = 0, []  # type: ignore[var-annotated]
    for prompt in prompts:
        total += len(prompt) - common(kept, prompt)
        kept = prompt
    return total


@given(st.lists(st.integers(0, 2**32 - 1)), st.lists(st.integers(0, 2**32 - 1)))
def test_packed_prompts_sort_as_their_tokens_do(one: list[int], other: list[int]) -> None:
    assert unpack_tokens(pack_tokens(one)) == tuple(one)
    assert (pack_tokens(one) < pack_tokens(other)) == (one < other)
    assert common_tokens(pack_tokens(one), pack_tokens(other)) == common(one, other)


def test_nodes_are_shared_prefixes() -> None:
    forest = Forest(min_tokens=2)
    prompts = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 2, 7], [1, 8], [2]]
    places = list(forest.grow(map(pack_tokens, prompts)))
    # Node 1 is 1 2 3 4, node 2 is 1 2; that the fourth prompt shares the 1 alone is worth no node.
    assert places == [Place(1, 0), Place(1, 4), Place(2, 2), Place(0, 1), Place(0, 0)]
    assert list(forest.depths) == [0, 4, 2]
    assert list(forest.parents) == [-1, 2, 0]


def test_children_with_long_answers_come_first_and_rows_of_a_node_by_length() -> None:
    prompts = [[1, 1, 1], [1, 1, 2], [1, 1, 3], [2, 2, 1], [2, 2, 2], [3]]
    expected = [10, 20, 300, 16, 1000, 600]
    # The group of 2 has the longest answer; then the row of 3 alone; then the group of 1. In each the longest first.
    assert order(prompts, expected, min_tokens=2) == [4, 3, 5, 2, 1, 0]


def test_lengths_that_are_nearly_equal_move_nothing() -> None:
    assert order([[3], [1], [2]], [17, 18, 31]) == [1, 2, 0]


@given(PROMPTS, st.data())
def test_whatever_the_lengths_each_prefix_is_computed_once(prompts: list[list[int]], data: st.DataObject) -> None:
    lengths = st.lists(st.integers(1, 1000), min_size=len(prompts), max_size=len(prompts))
    expected = data.draw(lengths)
    in_order = order(prompts, expected)
    assert sorted(in_order) == list(range(len(prompts)))
    assert computed_in_order([prompts[i] for i in in_order]) == distinct_tokens(prompts)


@given(PROMPTS, st.integers(1, 4))
def test_places_tell_the_distinct_tokens(prompts: list[list[int]], min_tokens: int) -> None:
    by_bytes = sorted(map(pack_tokens, prompts))
    forest = Forest(min_tokens=min_tokens)
    places = list(forest.grow(by_bytes))
    assert sum(len(p) // 4 - place.shared_tokens for p, place in zip(by_bytes, places, strict=True)) == distinct_tokens(
        prompts
    )
    for node, parent in enumerate(forest.parents):
        assert parent < 0 or forest.depths[node] >= forest.depths[parent] + min_tokens
    for packed, place in zip(by_bytes, places, strict=True):
        sharing = [other for other in by_bytes if common_tokens(other, packed) >= forest.depths[place.node]]
        assert len(sharing) >= 2 or place.node == 0


def test_classes_stay_apart() -> None:
    forest = Forest(min_tokens=1)
    first = list(forest.grow([pack_tokens([1, 2]), pack_tokens([1, 3])]))
    second = list(forest.grow([pack_tokens([1, 2])]))
    assert [p.node for p in (*first, *second)] == [1, 1, 2]
    peaks = [0, 1, 9]
    ranks = Ranks(forest, peaks)
    assert ranks.rank(1, 1) < ranks.rank(2, 9), "the second class has longer answers and still comes later"


def test_guesses() -> None:
    assert guess_tokens(16, 1000) == 16
    assert guess_tokens(None, 1000) == 256
    assert guess_tokens(None, 100) == 100


def test_prompts_in_a_list_are_learned_of_as_a_job_is() -> None:
    prompts = [[*range(20), 100 + n] for n in range(30)] + [[*range(20, 40), 100 + n] for n in range(30)]
    plan = ListPlan(prompts, [64] * 60)
    assert plan.expect(3) == 64
    assert [plan.learn(index, 4) for index in range(17)] == [n in (7, 15) for n in range(17)], "at 8, 16, 32 .. answers"
    assert plan.expect(20) == 4
    assert plan.expect(40) == 64, "one branch says nothing of the others"


SHARED = 1000


def lengths_of_a_group() -> tuple[Lengths, int]:
    """What is learned of rows that share `SHARED` tokens, of which nothing is known yet, and their node."""
    forest = Forest(min_tokens=16)
    places = list(forest.grow(pack_tokens([*range(SHARED), last]) for last in (1, 2)))
    assert forest.depths[places[0].node] == SHARED
    return Lengths(forest), places[0].node


def learn(lengths: Lengths, node: int, own_tokens: int, output_tokens: int) -> None:
    lengths.add(node, prompt_tokens=SHARED + own_tokens, guess_tokens=256, output_tokens=output_tokens)


def test_expectations_grow_with_what_prompts_add_to_a_beginning_that_they_share() -> None:
    lengths, group = lengths_of_a_group()
    for own_tokens in (10, 40, 160) * 100:
        learn(lengths, group, own_tokens, own_tokens)
    expected = [lengths.expect(group, SHARED + own_tokens, 256) for own_tokens in (10, 40, 160)]
    assert expected == pytest.approx([10, 40, 160], abs=4)
    assert lengths.expect(group, SHARED + 5000, 256) == 70, "of such prompts nothing was seen, but of the group"


def test_a_few_answers_to_prompts_of_a_length_say_little_of_the_next() -> None:
    lengths, group = lengths_of_a_group()
    for _ in range(100):
        learn(lengths, group, 10, 20)
    learn(lengths, group, 160, 256)
    mean = (100 * 20 + 256) / 101
    assert lengths.expect(group, SHARED + 160, 256) == round(mean + (256 - mean) / 5)
    assert lengths.expect(group, SHARED + 10, 256) == 20


def test_where_lengths_of_prompts_mean_nothing_little_is_lost_by_them() -> None:
    draw = random.Random(7)
    lengths, group = lengths_of_a_group()
    for _ in range(400):
        learn(lengths, group, 2 ** draw.randrange(8), draw.randint(1, 128))
    expected = [lengths.expect(group, SHARED + 2**n, 256) for n in range(8)]
    assert expected == pytest.approx([64] * 8, rel=0.2)
