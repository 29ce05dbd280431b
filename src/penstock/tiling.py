"""`make_tiles`: a step's chunks to tiles of queries, as attention wants them.

Owns which queries share a tile. A chunk is cut in pieces of queries, in ascending order. Pieces that do not fill a
tile, single new tokens above all, are stacked where their sequences begin with the same blocks: those are attended to
once for all of them, and each piece goes on behind them by itself.
One idea: stacking is a walk down the tree of shared segments, level by level. A stack is what a node's pieces share
before they part, so sequences that share more with some than with others are stacked with all of them, then with those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from penstock.kernels.reference import SEGMENT, AttentionTiles
from penstock.step import Chunk


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a cache and its kernels want tiles: `width` queries each, at most; `zero_block` holds zeros only.

    Where there are fewer than `tiles` of them, threads would wait: they are narrower, but not below `least` queries.
    """

    width: int
    block_tokens: int
    zero_block: int
    device: str
    least: int = 1
    tiles: int = 1

    @property
    def segment_blocks(self) -> int:
        """Blocks in a segment."""
        return SEGMENT // self.block_tokens

    def narrowed(self, queries: int) -> Tiling:
        """The same for a step of so many queries."""
        wanted = max(-(-queries // self.tiles), self.least)
        return replace(self, width=min(wanted, self.width))


class Queries(NamedTuple):
    """What a tile is made of: the rows of its queries, their positions, and the keys that they attend to.

    The keys are those at positions `begin` .. `end` (a begin is a multiple of SEGMENT), in blocks of `table`.
    """

    rows: list[int]
    positions: list[int]
    begin: int
    end: int
    table: tuple[int, ...]

    @property
    def segments(self) -> int:
        """Segments of keys, the last one perhaps in part."""
        return -(-(self.end - self.begin) // SEGMENT)


def make_tiles(chunks: tuple[Chunk, ...], how: Tiling, *, only_wanted: bool = False) -> tuple[AttentionTiles, ...]:
    """Sets of tiles for every token of the chunks, or for those that something is drawn from, which then are the rows.

    They are in the order in which they are to be computed.
    """
    offsets = [chunk.wanted_offsets if only_wanted else range(len(chunk.tokens)) for chunk in chunks]
    how = how.narrowed(sum(map(len, offsets)))
    pieces = list(_cut_all(chunks, offsets, how.width))
    full = [piece for piece in pieces if len(piece.rows) == how.width]
    levels, rest = stack([piece for piece in pieces if len(piece.rows) < how.width], how)
    single = [piece for piece in (*full, *rest) if len(piece.rows) == 1]
    several = [piece for piece in (*full, *rest) if len(piece.rows) > 1]
    kept = [_set_of_tiles(level, how, width=how.width, kept=True) for level in levels]
    plain = [_set_of_tiles(some, how, width=n) for some, n in ((several, how.width), (single, 1)) if some]
    return (*kept, *plain)


def _cut_all(chunks: tuple[Chunk, ...], offsets: Sequence[Sequence[int]], width: int) -> Iterator[Queries]:
    """The pieces of `width` queries of every chunk, of these of its tokens; its last one may be shorter."""
    row = 0
    for chunk, mine in zip(chunks, offsets, strict=True):
        for first in range(0, len(mine), width):
            positions = [chunk.start + offset for offset in mine[first : first + width]]
            yield Queries(list(range(row, row + len(positions))), positions, 0, positions[-1] + 1, chunk.tables[0])
            row += len(positions)


def stack(pieces: list[Queries], how: Tiling) -> tuple[list[list[Queries]], list[Queries]]:
    """Tiles of stacked queries by level, and the pieces with what is left for each of them."""
    levels: list[list[Queries]] = []
    done: list[Queries] = []
    groups = [pieces]
    while groups:
        level: list[Queries] = []
        groups = [group for some in groups for group in _part(some, how, done)]
        for number, group in enumerate(groups):
            end = _shared_end(group, how)
            level += _fill(group, end, how.width)
            groups[number] = [piece._replace(begin=end) for piece in group]
        if level:
            levels.append(level)
    return levels, done


def _part(pieces: list[Queries], how: Tiling, done: list[Queries]) -> list[list[Queries]]:
    """Pieces that share their next segment, two at least; those that share it with none are done."""
    found: dict[tuple[int, ...], list[Queries]] = {}
    for piece in pieces:
        first = piece.begin // how.block_tokens
        if piece.positions[0] + 1 < piece.begin + SEGMENT:  # some of its queries do not see all of the segment
            done.append(piece)
        else:
            found.setdefault(piece.table[first : first + how.segment_blocks], []).append(piece)
    done += [group[0] for group in found.values() if len(group) == 1]
    return [group for group in found.values() if len(group) > 1]


def _shared_end(group: list[Queries], how: Tiling) -> int:
    """The position up to which all of a group share whole segments and see them."""
    tables = [piece.table for piece in group]
    low, high = min(tables), max(tables)  # whatever these two begin with, the ones between begin with as well
    shared = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    seen = min(piece.positions[0] + 1 for piece in group)
    return min(shared * how.block_tokens, seen) // SEGMENT * SEGMENT


def _fill(group: list[Queries], end: int, width: int) -> Iterator[Queries]:
    """The queries of a group in tiles of equal size."""
    rows = [row for piece in group for row in piece.rows]
    positions = [position for piece in group for position in piece.positions]
    count = -(-len(rows) // width)
    for i in range(count):
        mine = slice(len(rows) * i // count, len(rows) * (i + 1) // count)
        yield Queries(rows[mine], positions[mine], group[0].begin, end, group[0].table)


def _set_of_tiles(queries: list[Queries], how: Tiling, *, width: int, kept: bool = False) -> AttentionTiles:
    tiles = sorted(queries, key=lambda tile: -tile.segments)
    num_blocks = tiles[0].segments * how.segment_blocks
    missing = [width - len(tile.rows) for tile in tiles]
    return AttentionTiles(
        rows=_tensor([[*t.rows, *[0] * n] for t, n in zip(tiles, missing, strict=True)], how),
        positions=_tensor([[*t.positions, *[-1] * n] for t, n in zip(tiles, missing, strict=True)], how),
        begins=_tensor([t.begin for t in tiles], how),
        ends=_tensor([t.end for t in tiles], how),
        tables=_tensor([_table(t, num_blocks, how) for t in tiles], how),
        num_segments=tuple(t.segments for t in tiles),
        places=_tensor([n * width + q for n, t in enumerate(tiles) for q in range(len(t.rows))], how),
        targets=_tensor([row for t in tiles for row in t.rows], how),
        kept=kept,
    )


def _table(tile: Queries, num_blocks: int, how: Tiling) -> list[int]:
    """The blocks of a tile's keys, and then the zero block: what lies beyond may hold anything."""
    table = tile.table[tile.begin // how.block_tokens : -(-tile.end // how.block_tokens)]
    return [*table, *[how.zero_block] * (num_blocks - len(table))]


def _tensor(values: list[int] | list[list[int]], how: Tiling) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=how.device)
