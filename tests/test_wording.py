"""How numbers and strangers' texts are written."""

from __future__ import annotations

import pytest

from penstock.jobs.wording import count, percent, plural, runs, safe, short, spell_s, whole_number


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0004, "0 ms"),
        (0.85, "850 ms"),
        (0.9996, "1 s"),
        (1, "1 s"),
        (7.24, "7.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (250, "4 min 10 s"),
        (3599.7, "1 h"),
        (11100, "3 h 5 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_times_have_their_two_largest_units(seconds: float, text: str) -> None:
    assert spell_s(seconds).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 10, "0 %"),
        (1, 0, "0 %"),
        (1, 10000, "< 0.1 %"),
        (3, 1000, "0.3 %"),
        (5, 100, "5 %"),
        (9.96, 100, "10 %"),
        (614, 1000, "61 %"),
    ],
)
def test_shares_are_short_and_never_a_false_zero(part: float, whole: float, text: str) -> None:
    assert percent(part, whole).replace("\u00a0", " ") == text


def test_counts() -> None:
    assert (count(1234567), plural(1, "row"), plural(2000, "row")) == ("1,234,567", "1 row", "2,000 rows")
    assert [whole_number(n) for n in (0, 0.5, 9999, 10_000)] == ["0", "", "9,999", "10k"]
    assert [short(n) for n in (0, 0.5, 950, 1500, 20_000, 3e6)] == ["0", "0.5", "950", "1.5k", "20k", "3M"]


def test_runs_that_follow_each_other_are_one_span() -> None:
    assert [runs(numbers) for numbers in ([2], [2, 4], [1, 2, 3, 7], [4, 5, 6])] == [
        "Run 2",
        "Runs 2, 4",
        "Runs 1 to 3, 7",
        "Runs 4 to 6",
    ]


def test_a_strangers_text_is_shown_and_does_nothing() -> None:
    assert safe("<script>&\"'") == "&lt;script&gt;&amp;&quot;&#x27;"
    assert safe("a\x00b\ud800c\nd\u202ee") == "a\ufffdb\ufffdc\ufffdd\ufffde"
    assert safe("x" * 10, most=5) == "xxxx…"
