"""Where rows begin to differ although what follows is the same again: what keeps prefixes from being shared.

Owns the comparison of texts, line by line, and the same rows with that line moved behind everything else. Pure text: no
tokens. A line is common where every tenth row has it, at the same place counted from the start of its message or from
its end; so a document of another length in every row hides nothing of the instructions after it.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

COMMON_SHARE = 0.1  # of the rows: a line that so many have can be shared
LEAST_ROWS = 4
WORTH_TELLING = 0.2  # of the text, behind the difference


class Text(NamedTuple):
    """A message: who speaks, and its lines."""

    role: str
    lines: tuple[str, ...]


class Place(NamedTuple):
    """A line: the number of its message and its own, from 0."""

    message: int
    line: int


class Difference(NamedTuple):
    """A line that is another in nearly every row.

    Attributes:
        rows_share: of the rows, those that first differ there; after_share: of their text, what stands behind that line
            and is common to many rows, and yet cannot be shared.
    """

    place: Place
    role: str
    example: str
    rows_share: float
    after_share: float


class _Lines:
    """How many rows have each line, by its place from the start of its message and from its end."""

    def __init__(self, rows: Sequence[Sequence[Text]]) -> None:
        self._least = max(2, round(COMMON_SHARE * len(rows)))
        self._counts: Counter[tuple[int, int, str]] = Counter()
        for row in rows:
            for place, text in _walk(row):
                size = len(row[place.message].lines)
                self._counts[place.message, place.line, text] += 1
                self._counts[place.message, place.line - size, text] += 1

    def has(self, row: Sequence[Text], place: Place, text: str) -> bool:
        """Whether a line is common."""
        ends = place.line - len(row[place.message].lines)
        return any(self._counts[place.message, at, text] >= self._least for at in (place.line, ends))


def find_difference(rows: Sequence[Sequence[Text]]) -> Difference | None:
    """The line that costs the most rows what stands behind it; None: there is none that is worth telling."""
    if len(rows) < LEAST_ROWS:
        return None
    lines = _Lines(rows)
    found = [(first, row) for row in rows if (first := _first_difference(row, lines)) is not None]
    if not found:
        return None
    place, count = Counter(place for place, _ in found).most_common(1)[0]
    there = [row for first, row in found if first == place]
    share = statistics.median(_common_behind(row, place, lines) for row in there)
    if share < WORTH_TELLING or count < len(rows) / 2:
        return None
    example = there[0][place.message]
    return Difference(place, example.role, example.lines[place.line], count / len(rows), share)


def _first_difference(row: Sequence[Text], lines: _Lines) -> Place | None:
    return next((place for place, text in _walk(row) if not lines.has(row, place, text)), None)


def _common_behind(row: Sequence[Text], place: Place, lines: _Lines) -> float:
    """The share of a row's characters in lines behind `place` that are common."""
    sizes = [(where > place and lines.has(row, where, text), len(text) + 1) for where, text in _walk(row)]
    return sum(size for is_common, size in sizes if is_common) / sum(size for _, size in sizes)


def _walk(row: Sequence[Text]) -> Iterator[tuple[Place, str]]:
    for number, message in enumerate(row):
        for at, text in enumerate(message.lines):
            yield Place(number, at), text


def move_line(row: Sequence[Text], place: Place) -> tuple[Text, ...]:
    """The same texts with a line put behind everything else; as they are where there is no such line."""
    if place.message >= len(row) or place.line >= len(row[place.message].lines):
        return tuple(row)
    moved = row[place.message].lines[place.line]
    rest = [list(message.lines) for message in row]
    del rest[place.message][place.line]
    rest[-1].append(moved)
    return tuple(Text(message.role, tuple(lines)) for message, lines in zip(row, rest, strict=True))
