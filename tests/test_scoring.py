"""Protects windows, soft caps and sinks: what a plain softmax says, on every kernel; the same bits in any company."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from penstock.kernels.exact import tanh
from penstock.kernels.reference import SEGMENT, Scoring, tile_queries
from penstock.kernels.table import Attention, select
from penstock.step import Chunk
from penstock.tiling import Tiling, make_tiles
from tests.models import native_isas, opened
from tests.test_tiling import caches, tree

pytestmark = pytest.mark.torch

KERNELS = ["reference", *native_isas()]
SCORINGS = {
    "window-1": Scoring(window=1),
    "window-100": Scoring(window=100),
    "window-128": Scoring(window=128),
    "window-900": Scoring(window=900),
    "cap": Scoring(cap=2.0),
    "sinks": Scoring(sinks=torch.linspace(-3, 4, 32)),
    "all": Scoring(window=150, cap=5.0, sinks=torch.linspace(-1, 6, 32)),
}


def scoring_of(name: str, heads: int) -> Scoring:
    made = SCORINGS[name]
    return made if made.sinks is None else made._replace(sinks=made.sinks[:heads].clone())


def tiling(kernels: str, *, heads: int, kv_heads: int, num_blocks: int) -> Tiling:
    width = tile_queries(heads, kv_heads, rows=select("cpu", opened(kernels)).tile_rows.most)
    return Tiling(width, block_tokens=16, zero_block=num_blocks, device="cpu")


def attention_of(kernels: str) -> Attention:
    return select("cpu", opened(kernels)).kernels.attention


def expected(query: Tensor, plain: tuple[Tensor, Tensor], *, positions: list[int], scoring: Scoring) -> Tensor:
    """Attention of queries [rows, heads, width] at these positions in float64, from the formula."""
    heads, width = query.shape[1:]
    k, v = (x.double().repeat_interleave(heads // x.shape[1], dim=1) for x in plain)
    scores = torch.einsum("rhd,phd->rhp", query.double(), k) * width**-0.5
    if scoring.cap:
        scores = scoring.cap * torch.tanh(scores / scoring.cap)
    behind = torch.tensor(positions)[:, None] - torch.arange(len(k))  # how far a key is behind a query
    sees = (behind >= 0) & (behind < (scoring.window or len(k)))
    scores = scores.masked_fill(~sees[:, None], -math.inf)
    sinks = torch.full((heads,), -math.inf) if scoring.sinks is None else scoring.sinks
    sinks = sinks.double().expand(len(positions), heads)[:, :, None]
    weights = torch.cat((scores, sinks), dim=2).softmax(-1)[:, :, :-1]
    return torch.einsum("rhp,phd->rhd", weights, v)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(4, 2, 64), (32, 1, 80), (3, 3, 96), (6, 2, 128), (2, 1, 256)]
)
@pytest.mark.parametrize("name", SCORINGS)
def test_scores_are_windowed_capped_and_sunk_as_the_formulas_say(
    kernels: str, dtype: torch.dtype, heads: int, kv_heads: int, width: int, name: str
) -> None:
    blocks = 19
    keys, values = caches(blocks, kv_heads=kv_heads, width=width, dtype=dtype)
    table = torch.randperm(blocks, generator=torch.Generator().manual_seed(1)).tolist()
    plain = tuple(cache[table].transpose(1, 2).reshape(-1, kv_heads, width) for cache in (keys, values))
    scoring = scoring_of(name, heads)
    query = torch.randn(40, heads, width, generator=torch.Generator().manual_seed(2)).to(dtype)
    how = tiling(kernels, heads=heads, kv_heads=kv_heads, num_blocks=blocks)
    chunks = (Chunk(1, 250, (0,) * 39, (tuple(table),)), Chunk(2, 20, (0,), (tuple(table),)))
    ours = attention_of(kernels)(query, keys, values, tiles=make_tiles(chunks, how), scoring=scoring)
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    right = expected(query, (plain[0], plain[1]), positions=[*range(250, 289), 20], scoring=scoring)
    torch.testing.assert_close(ours.double(), right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SCORINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_query_has_the_same_bits_alone_and_stacked_whatever_is_done_to_scores(
    kernels: str, dtype: torch.dtype, name: str, seed: int
) -> None:
    heads, kv_heads, width = 6, 2, 80
    chunks, num_blocks = tree(seed, block_tokens=16, least=16)
    keys, values = caches(num_blocks, kv_heads=kv_heads, width=width, dtype=dtype)
    rows = sum(len(one.tokens) for one in chunks)
    query = torch.randn(rows, heads, width, generator=torch.Generator().manual_seed(seed)).to(dtype)
    scoring = scoring_of(name, heads)
    how = tiling(kernels, heads=heads, kv_heads=kv_heads, num_blocks=num_blocks)
    attend = attention_of(kernels)
    together = attend(query, keys, values, tiles=make_tiles(chunks, how), scoring=scoring)
    row = 0
    for one in chunks:
        mine = slice(row, row + len(one.tokens))
        alone = attend(query[mine], keys, values, tiles=make_tiles((one,), how), scoring=scoring)
        assert torch.equal(alone, together[mine])
        row = mine.stop


@pytest.mark.parametrize("kernels", native_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 1), (4, 2)])
@pytest.mark.parametrize("name", SCORINGS)
def test_a_query_has_the_same_bits_alone_and_among_as_many_as_a_tile_holds_which_see_less_or_more(
    kernels: str, dtype: torch.dtype, heads: int, kv_heads: int, name: str
) -> None:
    keys, values = caches(20, kv_heads=kv_heads, width=80, dtype=dtype)
    query = torch.randn(310, heads, 80, generator=torch.Generator().manual_seed(3)).to(dtype)
    how = tiling(kernels, heads=heads, kv_heads=kv_heads, num_blocks=20)
    chunks, scoring = (Chunk(1, 0, (0,) * 310, (tuple(range(20)),)),), scoring_of(name, heads)
    together, alone = (
        attention_of(kernels)(query, keys, values, tiles=make_tiles(chunks, tiles), scoring=scoring)
        for tiles in (how, replace(how, width=1))
    )
    assert how.width * heads // kv_heads > 2 * SEGMENT - heads, "no tile has rows that see nothing of its last segment"
    assert torch.equal(together, alone)


def long_chunks(queries: int) -> tuple[Chunk, ...]:
    """Queries at the end of 1,600 positions, where there are few tiles for many keys; two sequences share 1,280."""
    own, shared = tuple(range(100)), tuple(range(80))
    other = Chunk(2, 1450, (0,), ((*shared, *range(100, 120)),))
    return (Chunk(1, 1600 - queries, (0,) * queries, (own,)), other)


@pytest.mark.parametrize("kernels", native_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (6, 2)])
@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("name", ["window-900", "sinks"])
def test_threads_that_share_the_keys_of_a_long_sequence_change_no_bit(
    kernels: str, dtype: torch.dtype, heads: int, kv_heads: int, queries: int, name: str
) -> None:
    keys, values = caches(120, kv_heads=kv_heads, width=80, dtype=dtype)
    chunks = long_chunks(queries)
    query = torch.randn(queries + 1, heads, 80, generator=torch.Generator().manual_seed(3)).to(dtype)
    how = tiling(kernels, heads=heads, kv_heads=kv_heads, num_blocks=120)
    tiles, scoring = make_tiles(chunks, how), scoring_of(name, heads)

    def attend(threads: int) -> Tensor:
        return select("cpu", opened(kernels, threads)).kernels.attention(
            query, keys, values, tiles=tiles, scoring=scoring
        )

    alone = attend(1)
    assert alone.isfinite().all()
    for threads in (2, 3, 8):
        assert torch.equal(attend(threads), alone)


@pytest.mark.parametrize("kernels", native_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [1, 70, 200])
def test_what_is_before_every_window_of_a_tile_is_not_multiplied(kernels: str, dtype: torch.dtype, window: int) -> None:
    keys, values = caches(30, kv_heads=2, width=64, dtype=dtype)
    query = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(3)).to(dtype)
    how = tiling(kernels, heads=4, kv_heads=2, num_blocks=30)
    tiles = make_tiles((Chunk(1, 450, (0,) * 3, (tuple(range(30)),)),), how)
    attend, scoring = attention_of(kernels), Scoring(window=window)
    clean = attend(query, keys, values, tiles=tiles, scoring=scoring)
    for cache in (keys, values):
        first = 450 - window + 1
        cache[: first // 16] = math.nan
        cache[first // 16, :, : first % 16] = math.nan
    assert torch.equal(attend(query, keys, values, tiles=tiles, scoring=scoring), clean)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("cache", "bad"), [("values", math.nan), ("values", math.inf), ("keys", math.nan)])
def test_what_is_not_finite_reaches_the_queries_that_see_it_and_no_other(
    kernels: str, dtype: torch.dtype, window: int | None, cache: str, bad: float
) -> None:
    keys, values = caches(20, kv_heads=2, width=80, dtype=dtype)
    query = torch.randn(60, 4, 80, generator=torch.Generator().manual_seed(3)).to(dtype)
    how = tiling(kernels, heads=4, kv_heads=2, num_blocks=20)
    tiles = make_tiles((Chunk(1, 230, (0,) * 60, (tuple(range(20)),)),), how)
    attend, scoring = attention_of(kernels), Scoring(window=window)
    clean = attend(query, keys, values, tiles=tiles, scoring=scoring)
    (keys if cache == "keys" else values)[250 // 16, 0, 250 % 16, 7] = bad
    found = attend(query, keys, values, tiles=tiles, scoring=scoring)
    seeing = slice(20, 60 if window is None else 40)
    spoiled = slice(None) if cache == "keys" else slice(7, 8)  # a key spoils weights, a value its own sum
    assert not found[seeing, :2, spoiled].isfinite().any()
    found[seeing, :2, spoiled] = clean[seeing, :2, spoiled]
    assert torch.equal(found, clean)


def test_tanh_is_right_to_seven_digits_and_the_same_on_every_set() -> None:
    x = torch.cat((torch.linspace(-100, 100, 4001), torch.tensor([0.0, -0.0, 1e-30])))
    torch.testing.assert_close(tanh(x).double(), torch.tanh(x.double()), rtol=0, atol=3e-7)
