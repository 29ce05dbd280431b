"""Protects the advice on messages: what differs, the passage behind it, and the rows with what differs moved."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from penstock.differences import Place, Text, find_difference

RULES = "\n".join(f"Rule {n}: be brief and name the source." for n in range(4))
ONE_LINE = (
    "You answer questions on the tables of a shop. Be brief, name the row and the column, and never guess a number."
)


def system(number: int) -> Text:
    return Text("system", f"Now: 2026-11-25 21:{number:02}\n{RULES}")


def user(number: int) -> Text:
    return Text("user", f"Question {number}?")


def document(number: int) -> str:
    """Lines of words that no other document has, more in some than in others."""
    draw = random.Random(number)
    return "\n".join(" ".join(f"w{draw.randrange(10**6)}" for _ in range(7)) for _ in range(2 + number % 5))


def test_a_time_in_the_first_line_costs_all_that_follows() -> None:
    rows = [(system(n), user(n)) for n in range(30)]
    found = find_difference(rows)
    assert found is not None
    assert (found.place, found.role, found.rows_share) == (Place(0, 0), "system", 1.0)
    assert (found.lead, found.example[:3], len(found.example)) == ("Now: 2026-11-25", "21:", 5)
    assert found.after_share == pytest.approx(0.87, abs=0.01)
    assert found.moved[7] == (Text("system", f"Now: 2026-11-25 \n{RULES}"), Text("user", "Question 7?\n21:07"))


@pytest.mark.parametrize(
    ("date_of", "lead", "example"),
    [
        (lambda n: f"2026-01-{n + 1:02}", "Today is", r"2026-01-\d\d"),
        (lambda n: f"the {n + 1}th of January, 2026", "Today is the", r"\d+th"),
    ],
)
def test_a_date_within_a_line_is_found_and_shown(date_of: Callable[[int], str], lead: str, example: str) -> None:
    found = find_difference([(Text("system", f"Today is {date_of(n)}. {ONE_LINE}"), user(n)) for n in range(30)])
    assert found is not None
    assert (found.place, found.role, found.rows_share, found.lead) == (Place(0, 0), "system", 1.0, lead)
    assert re.fullmatch(example, found.example)
    assert found.after_share > 0.6
    assert ONE_LINE in found.moved[0][0].content


def test_a_text_without_spaces_is_compared_by_its_clauses() -> None:
    rules = "。".join(f"规则{n}请简短" for n in range(12))
    found = find_difference([(Text("system", f"今天。2026-11-{n:02}。{rules}"),) for n in range(30)])
    assert found is not None
    assert (found.place, found.lead) == (Place(0, 0), "今天。")
    assert re.fullmatch(r"2026-11-\d\d", found.example)


def test_all_lines_of_a_document_before_the_instructions_are_moved_whatever_their_number() -> None:
    rows = [(Text("user", f"Read this.\n{document(d)}\n{RULES}"),) for d in range(30)]
    found = find_difference(rows)
    assert found is not None
    assert (found.place, found.rows_share, found.lead) == (Place(0, 1), 1.0, "")
    assert found.after_share > 0.3
    assert found.moved[4] == (Text("user", f"Read this.\n\n{RULES}\n{document(4)}"),)


def test_a_document_in_a_message_before_that_of_the_instructions_is_moved() -> None:
    rows = [(Text("user", f"Read this.\n{document(d)}"), Text("user", RULES)) for d in range(30)]
    found = find_difference(rows)
    assert found is not None
    assert found.place == Place(0, 1)
    assert found.moved[4] == (Text("user", "Read this.\n"), Text("user", f"{RULES}\n{document(4)}"))


def test_what_stands_before_the_longest_common_passage_is_moved() -> None:
    """A short passage that the documents have in common does not hide the long one behind it."""
    aside = "\nThis is a table of a shop as it was at that time, from the first row to the last.\n"
    rows = [(Text("user", f"{document(d)}{aside}{document(d + 50)}\n{RULES}\n{ONE_LINE}"),) for d in range(30)]
    found = find_difference(rows)
    assert found is not None
    assert found.moved[0][0].content.startswith(f"\n{RULES}")


def test_rows_that_differ_only_at_their_end_need_no_advice() -> None:
    assert find_difference([(Text("system", RULES), user(n)) for n in range(30)]) is None
    assert find_difference([(user(n),) for n in range(30)]) is None
    assert find_difference([(Text("user", f"{RULES}\n{document(n)}"),) for n in range(30)]) is None
    assert find_difference([(Text("user", RULES),)] * 30) is None
    assert find_difference([(Text("user", ""),)] * 30) is None
    assert find_difference([(system(n), user(n)) for n in range(3)]) is None
    assert find_difference([]) is None


def test_rows_that_have_nothing_in_common_need_no_advice() -> None:
    assert find_difference([(Text("user", document(n)),) for n in range(30)]) is None


def test_groups_of_rows_share_their_own_lines() -> None:
    def group(number: int) -> Text:
        return Text("system", f"You are assistant {number % 5}.\n{RULES}")

    assert find_difference([(group(n), user(n)) for n in range(50)]) is None


def test_rows_that_differ_elsewhere_stay_as_they_are() -> None:
    rows = [(system(n), user(n)) for n in range(20)] + [(Text("system", ONE_LINE), user(n)) for n in range(10)]
    found = find_difference(rows)
    assert found is not None
    assert found.rows_share == pytest.approx(2 / 3)
    assert found.moved[20:] == tuple(rows[20:])
