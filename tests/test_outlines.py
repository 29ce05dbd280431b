"""Protects `Outlines`: sums of any rows are those of the rows one by one."""

from __future__ import annotations

import random

from penstock.outlines import Outline, Outlines, Sums


def test_sums_are_those_of_the_rows_one_by_one() -> None:
    draw = random.Random(3)
    rows = [Outline(draw.randint(1, 2000), draw.randint(0, 2000), draw.randint(0, 9)) for _ in range(50)]
    outlines = Outlines(rows)
    assert len(outlines) == 50
    for first, last in ((0, 50), (0, 0), (7, 8), (13, 41)):
        by_hand = Sums()
        for row in rows[first:last]:
            by_hand = by_hand.plus(row)
        assert outlines.sums(first, last) == by_hand
    assert outlines.total == outlines.sums(0, 50)
    assert Sums().plus(Outline(10, 4, 3)) == Sums(1, 10, 4, 3, 33)  # three tokens that look back at 10 + 1 positions
