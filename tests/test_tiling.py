"""Protects stacking: shared blocks are attended once, every query sees exactly its keys, and no bit changes."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from penstock import profile
from penstock.kernels import native
from penstock.kernels.reference import SEGMENT, AttentionTiles, tile_queries
from penstock.kernels.table import select
from penstock.step import Chunk
from penstock.tiling import Tiling, make_tiles
from tests.models import native_isas, opened

pytestmark = pytest.mark.torch

ZERO_BLOCK = 9999


def how(width: int, *, block_tokens: int = 64, zero_block: int = ZERO_BLOCK) -> Tiling:
    return Tiling(width, block_tokens, zero_block, "cpu")


def chunk(start: int, count: int, *table: int) -> Chunk:
    return Chunk(1, start, (0,) * count, (table,))


class Read(NamedTuple):
    """Keys `begin` .. `end` that a query reads, by their blocks, in a tile of `beside` queries."""

    begin: int
    end: int
    blocks: tuple[int, ...]
    beside: int
    kept: bool


def reads_of(tiles: tuple[AttentionTiles, ...], *, block_tokens: int) -> dict[int, list[Read]]:
    """What each row of the step reads, in order; checks what must hold for every tile."""
    found: dict[int, list[Read]] = defaultdict(list)
    for some in tiles:
        width = some.rows.shape[1]
        assert list(some.num_segments) == sorted(some.num_segments, reverse=True)
        assert some.targets.tolist() == some.rows.flatten()[some.places].tolist()
        for n in range(some.rows.shape[0]):
            begin, end = int(some.begins[n]), int(some.ends[n])
            assert begin % SEGMENT == 0
            assert some.num_segments[n] == -(-(end - begin) // SEGMENT)
            real = int((some.positions[n] >= 0).sum())
            assert [p - n * width for p in some.places.tolist() if p // width == n] == list(range(real))
            assert all(end % SEGMENT == 0 and end <= p + 1 for p in some.positions[n, :real].tolist() if some.kept)
            assert some.kept or end == int(some.positions[n, real - 1]) + 1
            blocks = tuple(some.tables[n].tolist())
            used = -(-(end - begin) // block_tokens)
            assert set(blocks[used:]) <= {ZERO_BLOCK}
            for row in some.rows[n, :real].tolist():
                found[row].append(Read(begin, end, blocks[:used], real, some.kept))
    return found


def test_new_tokens_of_sequences_that_share_blocks_are_stacked_and_go_on_alone() -> None:
    chunks = (chunk(300, 1, 1, 2, 3, 4, 5), chunk(257, 1, 1, 2, 3, 4, 6), chunk(10, 1, 7), chunk(130, 1, 8, 9, 10))
    found = reads_of(make_tiles(chunks, how(16)), block_tokens=64)
    assert found == {
        0: [Read(0, 256, (1, 2, 3, 4), 2, True), Read(256, 301, (5,), 1, False)],
        1: [Read(0, 256, (1, 2, 3, 4), 2, True), Read(256, 258, (6,), 1, False)],
        2: [Read(0, 11, (7,), 1, False)],
        3: [Read(0, 131, (8, 9, 10), 1, False)],
    }


def test_only_whole_segments_that_every_query_sees_are_shared() -> None:
    chunks = (chunk(127, 1, 1, 2), chunk(126, 1, 1, 2), chunk(120, 9, 1, 2, 3), chunk(200, 1, 1, 2, 4, 5))
    found = reads_of(make_tiles(chunks, how(16)), block_tokens=64)
    assert found[0] == [Read(0, 128, (1, 2), 2, True), Read(128, 128, (), 1, False)]
    assert found[1] == [Read(0, 127, (1, 2), 1, False)]  # it does not see the segment's last key
    assert found[2] == [Read(0, 129, (1, 2, 3), 9, False)]  # nor do all of these
    assert found[11] == [Read(0, 128, (1, 2), 2, True), Read(128, 201, (4, 5), 1, False)]


def test_sequences_that_share_more_with_some_are_stacked_with_all_and_then_with_those() -> None:
    shared, more = (1, 2), (3, 4, 5, 6)
    chunks = tuple(chunk(400, 1, *shared, *more, 20 + i) for i in range(3))
    chunks += (chunk(200, 1, *shared, 30, 31), chunk(400, 1, *shared, *more[:2], 40, 41, 42))
    found = reads_of(make_tiles(chunks, how(16)), block_tokens=64)
    assert found[0] == [
        Read(0, 128, (1, 2), 5, True),
        Read(128, 256, (3, 4), 4, True),
        Read(256, 384, (5, 6), 3, True),
        Read(384, 401, (20,), 1, False),
    ]
    assert found[3] == [Read(0, 128, (1, 2), 5, True), Read(128, 201, (30, 31), 1, False)]


def test_short_questions_fill_tiles_and_full_tiles_stay_as_they_are() -> None:
    chunks = (*(chunk(128, 8, 1, 2, 10 + i) for i in range(5)), chunk(128, 35, 1, 2, 20))
    tiles = make_tiles(chunks, how(32))
    found = reads_of(tiles, block_tokens=64)
    assert [some.kept for some in tiles] == [True, False]
    assert tiles[0].rows.shape == (2, 32)  # 5 x 8 and the last 3 of 35, in equal parts
    assert found[0] == [Read(0, 128, (1, 2), 21, True), Read(128, 136, (10,), 8, False)]
    assert found[40] == [Read(0, 160, (1, 2, 20), 32, False)]
    assert found[74] == [Read(0, 128, (1, 2), 22, True), Read(128, 163, (20,), 3, False)]


@pytest.mark.parametrize(("queries", "sizes"), [(30, [8, 8, 8, 6]), (70, [18, 18, 18, 16]), (500, [64] * 7 + [52])])
def test_where_threads_would_wait_tiles_are_narrower_but_no_less_than_is_worth_one(
    queries: int, sizes: list[int]
) -> None:
    wanting = replace(how(64), least=8, tiles=4)
    (tiles,) = make_tiles((chunk(0, queries, *range(8)),), wanting)
    assert sorted((tiles.positions >= 0).sum(dim=1).tolist(), reverse=True) == sizes


def test_steps_are_predicted_with_tiles_as_wide_as_the_native_kernels_have_them_at_most() -> None:
    assert profile.QUERY_ROWS == native.QUERY_ROWS


def test_tiles_of_one_query_have_nothing_to_stack() -> None:
    assert [some.kept for some in make_tiles((chunk(300, 2, 1, 2, 3, 4, 5),) * 2, how(1))] == [False]


class Tree(NamedTuple):
    """Chunks of sequences whose tables begin alike, more or less; each block belongs to one place of the tree."""

    chunks: tuple[Chunk, ...]
    num_blocks: int


def tree(seed: int, *, block_tokens: int, least: int = 1, longest: int = 700) -> Tree:
    rng = random.Random(seed)
    made: list[Chunk] = []
    free = iter(rng.sample(range(3000), 3000))
    for _ in range(rng.randint(least, 16)):
        parent: tuple[int, ...] = rng.choice(made).tables[0] if made and rng.random() < 0.8 else ()
        kept = rng.choice([0, len(parent), rng.randint(0, len(parent)), 128 // block_tokens])
        own = rng.randint(1, longest // block_tokens)
        table = (*parent[:kept], *(next(free) for _ in range(own)))
        shared = min(kept, len(parent)) * block_tokens
        end = rng.randint(shared + 1, len(table) * block_tokens)
        count = min(rng.choice([1, 1, 1, 3, 8, 40]), end - shared)
        made.append(Chunk(len(made), end - count, (0,) * count, (table,)))
    used = sorted({block for one in made for block in one.tables[0]})
    place = {block: i for i, block in enumerate(rng.sample(used, len(used)))}
    chunks = tuple(Chunk(c.sequence, c.start, c.tokens, (tuple(place[b] for b in c.tables[0]),)) for c in made)
    return Tree(chunks, len(used))


@settings(max_examples=50)
@given(st.integers(0, 10**9), st.sampled_from([2, 4, 32]), st.sampled_from([16, 64, 128]))
def test_every_query_reads_its_keys_once_in_order(seed: int, width: int, block_tokens: int) -> None:
    chunks, _ = tree(seed, block_tokens=block_tokens)
    found = reads_of(make_tiles(chunks, how(width, block_tokens=block_tokens)), block_tokens=block_tokens)
    rows = [(one, position) for one in chunks for position in range(one.start, one.end)]
    assert sorted(found) == list(range(len(rows)))
    for row, (one, position) in enumerate(rows):
        reads = found[row]
        assert [read.kept for read in reads] == [True] * (len(reads) - 1) + [False]
        assert [read.begin for read in reads] == [0, *(read.end for read in reads[:-1])]
        assert reads[-1].end > position
        blocks = [block for read in reads for block in read.blocks]
        assert blocks == list(one.tables[0][: len(blocks)])


@settings(max_examples=50)
@given(st.integers(0, 10**9))
def test_no_two_tiles_of_new_tokens_read_the_same_segment_that_a_tile_could_hold(seed: int) -> None:
    chunks, _ = tree(seed, block_tokens=64)
    singles = tuple(one for one in chunks if len(one.tokens) == 1)
    if not singles:
        return
    seen = set()
    for some in make_tiles(singles, how(32)):
        for n in range(some.rows.shape[0]):
            for segment in range((int(some.ends[n]) - int(some.begins[n])) // SEGMENT):
                blocks = tuple(some.tables[n, segment * 2 : segment * 2 + 2].tolist())
                assert blocks not in seen
                seen.add(blocks)


def caches(num_blocks: int, *, kv_heads: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(num_blocks)
    made = [torch.randn(num_blocks + 1, kv_heads, 16, width, generator=noise).to(dtype) for _ in range(2)]
    for cache in made:
        cache[num_blocks] = 0
    return made[0], made[1]


@pytest.mark.parametrize("kernels", ["reference", *native_isas()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 2, 64), (8, 1, 80), (3, 3, 12), (6, 2, 128)])
@pytest.mark.parametrize("seed", [0, 1, 8])
def test_a_query_has_the_same_bits_alone_and_stacked(
    kernels: str, dtype: torch.dtype, heads: int, kv_heads: int, width: int, seed: int
) -> None:
    chunks, num_blocks = tree(seed, block_tokens=16, least=16)
    keys, values = caches(num_blocks, kv_heads=kv_heads, width=width, dtype=dtype)
    noise = torch.Generator().manual_seed(seed)
    query = torch.randn(sum(len(c.tokens) for c in chunks), heads, width, generator=noise).to(dtype)
    selection = select("cpu", opened(kernels))
    attend = selection.kernels.attention
    full = tile_queries(heads, kv_heads, rows=selection.tile_rows.most)
    tiling = how(full, block_tokens=16, zero_block=num_blocks)
    stacked = make_tiles(chunks, tiling)
    assert sum(some.kept for some in stacked) > 1, "nothing is stacked twice"
    together = attend(query, keys, values, tiles=stacked)
    assert not math.isnan(float(together.sum()))
    row = 0
    for one in chunks:
        rows = slice(row, row + len(one.tokens))
        alone = make_tiles((one,), tiling)
        assert not any(some.kept for some in alone)
        assert torch.equal(attend(query[rows], keys, values, tiles=alone), together[rows])
        row = rows.stop
