"""Protects the advice on messages: which line differs, what stands behind it, and the rows with it moved."""

from __future__ import annotations

import pytest

from penstock.differences import Difference, Place, Text, find_difference, move_line

RULES = tuple(f"Rule {n}: be brief and name the source." for n in range(4))


def system(number: int) -> Text:
    return Text("system", (f"Now: 2026-11-25 21:{number:02}", *RULES))


def user(number: int) -> Text:
    return Text("user", (f"Question {number}?",))


def test_a_date_in_the_first_line_costs_all_that_follows() -> None:
    rows = [(system(n), user(n)) for n in range(30)]
    found = find_difference(rows)
    assert found is not None
    assert found._replace(after_share=0.8) == Difference(Place(0, 0), "system", "Now: 2026-11-25 21:00", 1.0, 0.8)
    assert found.after_share == pytest.approx(0.80, abs=0.02)


def test_a_document_before_the_instructions_is_found_whatever_its_length() -> None:
    rows = [(Text("user", (*(f"line {n} of document {d}" for n in range(1 + d % 3)), *RULES)),) for d in range(30)]
    found = find_difference(rows)
    assert found is not None
    assert (found.place, found.rows_share) == (Place(0, 0), 1.0)
    assert found.after_share > 0.5


def test_rows_that_differ_only_at_their_end_need_no_advice() -> None:
    assert find_difference([(Text("system", RULES), user(n)) for n in range(30)]) is None
    assert find_difference([(user(n),) for n in range(30)]) is None
    assert find_difference([(Text("user", RULES),)] * 30) is None
    assert find_difference([(system(n), user(n)) for n in range(3)]) is None
    assert find_difference([]) is None


def test_groups_of_rows_share_their_own_lines() -> None:
    def group(number: int) -> Text:
        return Text("system", (f"You are assistant {number % 5}.", *RULES))

    assert find_difference([(group(n), user(n)) for n in range(50)]) is None


def test_a_line_is_moved_behind_everything() -> None:
    assert move_line((system(1), user(1)), Place(0, 0)) == (
        Text("system", RULES),
        Text("user", ("Question 1?", "Now: 2026-11-25 21:01")),
    )
    assert move_line((user(1),), Place(0, 5)) == (user(1),)
    assert move_line((user(1),), Place(3, 0)) == (user(1),)
