"""`Outlines`: the lengths of the rows of a job, in the order of its plan, and their sums.

Owns how ten million rows fit beside all else, in four columns of four bytes: no more is held of each.
One idea: what is estimated of lengths is linear in `Sums`, so no variant of a whole job is another walk over its rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Outline(NamedTuple):
    """A row's lengths in the order of the plan: its prompt, what of it is new, and all of its samples, so many."""

    prompt_tokens: int
    new_tokens: int
    output_tokens: int
    samples: int = 1


class Sums(NamedTuple):
    """The lengths of some rows, summed.

    `read_tokens`: the positions that their answers' tokens look back at, those of each as from its middle.
    """

    rows: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    output_tokens: int = 0
    read_tokens: int = 0

    def plus(self, row: Outline) -> Sums:
        """The sums with one row more."""
        prompt, new, output, samples = row
        more = (1, prompt, new, output, output * (prompt + output // (2 * samples)))
        return Sums(*map(int.__add__, self, more))


class Outlines:
    """The lengths of many rows, in 16 bytes each. `total`: their sums."""

    def __init__(self, outlines: Iterable[Outline] = ()) -> None:
        self._columns = tuple(array("i") for _ in Outline._fields)
        prompts, new, outputs, samples = self._columns
        for prompt_tokens, new_tokens, output_tokens, number in outlines:
            prompts.append(prompt_tokens)
            new.append(new_tokens)
            outputs.append(output_tokens)
            samples.append(number)
        self.total = self.sums(0, len(self))

    def __len__(self) -> int:
        return len(self._columns[0])

    def __iter__(self) -> Iterator[Outline]:
        return map(Outline._make, zip(*self._columns, strict=True))

    def sums(self, first: int, last: int) -> Sums:
        """The sums of the rows number first .. last."""
        prompts, new, outputs, samples = (column[first:last] for column in self._columns)
        rows = zip(prompts, outputs, samples, strict=True)
        read = sum(output * (prompt + output // (2 * number)) for prompt, output, number in rows)
        return Sums(len(prompts), sum(prompts), sum(new), sum(outputs), read)
