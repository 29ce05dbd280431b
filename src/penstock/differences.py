"""Where rows begin to differ although what follows is the same again: what keeps prefixes from being shared.

Owns the comparison of texts, word by word, and the same rows with what differs moved behind everything else. Pure text:
no tokens. A beginning is common where every tenth row has it, and so is a passage, wherever it stands; so a document of
another length in every row hides nothing of the instructions after it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, islice
from typing import NamedTuple

COMMON_SHARE = 0.1  # of the rows: what so many have can be shared
LEAST_ROWS = 4
WORTH_TELLING = 0.1  # of the text, behind the difference
PASSAGE_WORDS = 12  # with the gaps between them: so many in a row are no coincidence
LEAD = 30  # characters shown of what stands before a difference
WORD = re.compile(r"\w+(?:[-+/:.@]\w+)*|\s+|.")  # a date or an address is one; so is what stands between two


class Text(NamedTuple):
    """A message: who speaks, and what."""

    role: str
    content: str


class Place(NamedTuple):
    """A line: the number of its message and its own, from 0."""

    message: int
    line: int


class Difference(NamedTuple):
    """What is another text in nearly every row, up to where the texts are the same again.

    Attributes:
        place: where it begins; lead: the end of what stands before it in that line; example: of one row.
        rows_share: of the rows, those that first differ there; after_share: of their text, the passage right behind it
            that is common to many rows, and yet cannot be shared.
        moved: all rows, with what differs there behind everything else.
    """

    place: Place
    role: str
    lead: str
    example: str
    rows_share: float
    after_share: float
    moved: tuple[tuple[Text, ...], ...]


class _Word(NamedTuple):
    message: int
    start: int
    text: str


class _Gap(NamedTuple):
    """What differs in a row, words start .. end, and the share of the row's text in the common passage behind it."""

    start: int
    end: int
    after_share: float


class _Sharing:
    """How many rows have each beginning, and each passage of PASSAGE_WORDS words wherever it stands."""

    def __init__(self, rows: Sequence[Sequence[_Word]]) -> None:
        self._least = max(2, round(COMMON_SHARE * len(rows)))
        self._beginnings = Counter(key for row in rows for key in _beginnings(row))
        self._passages = Counter(key for row in rows for key in set(_passages(row)))

    def gap(self, row: Sequence[_Word]) -> _Gap | None:
        """From where a row differs to the longest common passage behind; None: it differs nowhere, or to its end."""
        keys = enumerate(_beginnings(row))
        start = next((at for at, key in keys if self._beginnings[key] < self._least), len(row))
        found = max(self._common(row, start), key=lambda passage: _size(row[slice(*passage)]), default=None)
        return None if found is None else _Gap(start, found[0], _size(row[slice(*found)]) / _size(row))

    def _common(self, row: Sequence[_Word], start: int) -> Iterator[tuple[int, int]]:
        """The common passages behind a word, each as long as it is: from which word to which."""
        behind = enumerate(islice(_passages(row), start, None), start)
        for is_common, run in groupby(behind, key=lambda entry: self._passages[entry[1]] >= self._least):
            if is_common:
                places = [at for at, _ in run]
                yield places[0], places[-1] + PASSAGE_WORDS


def find_difference(rows: Sequence[Sequence[Text]]) -> Difference | None:
    """What costs the most rows the passage behind it; None: there is nothing that is worth telling."""
    if len(rows) < LEAST_ROWS:
        return None
    words = [_words(row) for row in rows]
    sharing = _Sharing(words)
    gaps = [sharing.gap(row) for row in words]
    places = [None if gap is None else _place(rows[n], words[n][gap.start]) for n, gap in enumerate(gaps)]
    counts = Counter(place for place in places if place is not None)
    if not counts:
        return None
    place, count = counts.most_common(1)[0]
    there = {n: gap for n, gap in enumerate(gaps) if gap is not None and places[n] == place}
    example, gap = sorted(there.items(), key=lambda entry: entry[1].after_share)[len(there) // 2]
    if gap.after_share < WORTH_TELLING or count < len(rows) / 2:
        return None
    first, text = words[example][gap.start], rows[example][place.message]
    return Difference(
        place=place,
        role=text.role,
        lead=text.content[: first.start].rpartition("\n")[2][-LEAD:].strip(),
        example="".join(word.text for word in words[example][gap.start : gap.end]),
        rows_share=count / len(rows),
        after_share=gap.after_share,
        moved=tuple(_moved(row, words[n], there.get(n)) for n, row in enumerate(rows)),
    )


def _words(row: Sequence[Text]) -> list[_Word]:
    """Words, and what stands between them, of all messages: joined they are the texts."""
    return [_Word(n, word.start(), word[0]) for n, text in enumerate(row) for word in WORD.finditer(text.content)]


def _beginnings(row: Sequence[_Word]) -> Iterator[int]:
    """What stands for a row up to each of its words."""
    return islice(accumulate(row, lambda key, word: hash((key, word.message, word.text)), initial=0), 1, None)


def _passages(row: Sequence[_Word]) -> Iterator[int]:
    """What stands for the passage that begins with each word."""
    texts = [word.text for word in row]
    return (hash(tuple(texts[at : at + PASSAGE_WORDS])) for at in range(len(texts) - PASSAGE_WORDS + 1))


def _size(words: Sequence[_Word]) -> int:
    return sum(len(word.text) for word in words)


def _place(row: Sequence[Text], word: _Word) -> Place:
    return Place(word.message, row[word.message].content.count("\n", 0, word.start))


def _moved(row: Sequence[Text], words: Sequence[_Word], gap: _Gap | None) -> tuple[Text, ...]:
    """A row with what differs on a line of its own at its end."""
    if gap is None:
        return tuple(row)
    kept, moved = [], []
    for number, (role, content) in enumerate(row):
        start, end = (_offset(words[at], number, len(content)) for at in (gap.start, gap.end))
        kept.append(Text(role, content[:start] + content[end:]))
        moved.append(content[start:end])
    return (*kept[:-1], Text(kept[-1].role, "\n".join((kept[-1].content, *filter(None, moved)))))


def _offset(word: _Word, message: int, size: int) -> int:
    """Where a word begins, as seen in a message of that size: at its end where the word comes later."""
    if message != word.message:
        return size if message < word.message else 0
    return word.start
