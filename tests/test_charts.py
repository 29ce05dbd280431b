"""Pictures: what is drawn is where the numbers are, and every axis has round numbers."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from penstock.jobs.charts import (
    Area,
    Bar,
    Frame,
    Hint,
    Line,
    Mark,
    Point,
    Portion,
    bar_rows,
    chart,
    histogram,
    portions,
    stack,
    ticks,
)


def parsed(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html)


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (0, [0]),
        (1, [0, 0.25, 0.5, 0.75, 1]),
        (7, [0, 2, 4, 6]),
        (311, [0, 100, 200, 300]),
        (0.03, [0, 0.01, 0.02, 0.03]),
    ],
)
def test_ticks_are_round_numbers(most: float, expected: list[float]) -> None:
    assert ticks(most) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("most", "expected"),
    [(146, [0, 60, 120]), (7200, [0, 1800, 3600, 5400, 7200]), (1.5, [0, 0.5, 1, 1.5]), (864000, [0, 172800 * 1.25])],
)
def test_ticks_of_time_are_what_a_clock_has(most: float, expected: list[float]) -> None:
    assert ticks(most, is_time=True)[: len(expected)] == pytest.approx(expected)


def test_there_are_never_more_than_five_ticks() -> None:
    for most in [1.37**power for power in range(-20, 60)]:
        for is_time in (False, True):
            found = ticks(most, is_time=is_time)
            assert 2 <= len(found) <= 5, most
            assert found[-1] <= most * (1 + 1e-9)


def test_a_line_goes_through_its_points() -> None:
    line = Line("Done", "actual", (Point(0, 0), Point(5, 30), Point(10, 60)))
    html = chart(Frame(10, 60), [line], title="t", marks=[Mark(5, "run 2")], hints=[Hint(0, 5, "a < b")])
    [path] = [p for p in parsed(html).iter("path") if p.get("class") == "line actual"]
    assert path.get("d") == "M0.00 400.00 L500.00 200.00 L1000.00 0.00"
    assert 'class="marked" style="left:50.00%">run 2<' in html
    assert "<title>a &lt; b</title>" in html
    assert 'class="key line actual">Done<' in html


def test_areas_stand_on_each_other() -> None:
    low, high = stack([("a", "one"), ("b", "two")], [0.0, 1.0], [(1.0, 2.0), (3.0, 4.0)])
    assert low == Area("a", "one", (Point(0, 0), Point(1, 0)), (Point(0, 1), Point(1, 3)))
    assert high == Area("b", "two", (Point(0, 1), Point(1, 3)), (Point(0, 3), Point(1, 7)))


def test_bars_are_as_high_as_their_number() -> None:
    html = histogram(Frame(20, 8, is_time=False), [Bar(0, 10, 8, "x"), Bar(10, 20, 2, "y")], title="t")
    heights = [rect.get("height") for rect in parsed(html).iter("rect")]
    assert heights == ["400.00", "100.00"]


def test_portions_fill_the_bar() -> None:
    html = portions([Portion("a", "one", 3, "3"), Portion("b", "two", 1, "1")], title="t")
    assert [rect.get("width") for rect in parsed(html).iter("rect")] == ["750.00", "250.00"]


def test_rows_of_bars_are_against_the_largest() -> None:
    html = bar_rows([Portion("<a>", "error", 4, "4"), Portion("b", "error", 1, "1")], note=lambda part: "<i>note</i>")
    assert re.findall(r"width:([\d.]+)%", html) == ["100.00", "25.00"]
    assert "&lt;a&gt;" in html
    assert html.count("<i>note</i>") == 2


def test_nothing_to_draw_is_no_error() -> None:
    html = chart(Frame(0, 0), [Line("", "actual", ()), Area("", "kv", (), ())], title="t")
    assert not [p for p in parsed(html).iter("path") if p.get("class") != "grid"]
    assert parsed(portions([], title="t")) is not None
    assert parsed(bar_rows([])) is not None
