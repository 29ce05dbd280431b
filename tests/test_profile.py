"""Protects the arithmetic of predicted steps: work counted by hand, curves between their points, and the fit."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from penstock.profile import (
    Measured,
    Point,
    Prices,
    Profile,
    Work,
    fit,
    interpolate,
    least_squares,
    queries_of_tile,
    work_of,
)
from penstock.step import BlockCopy, Chunk, SampleAt, StepPlan
from tests.profiles import profile

GREEDY = SampleAt(0, 0.0, 0.0, 0, 1.0, 0.0)
DRAWN = SampleAt(0, 0.5, 1.0, 0, 1.0, 0.0)
CUT = SampleAt(0, 0.5, 1.0, 20, 1.0, 0.0)
CURVE = (Point(2, 1.0), Point(4, 3.0), Point(8, 4.0))


def chunk(start: int, tokens: int, *blocks: int, sample: SampleAt | None = None) -> Chunk:
    return Chunk(1, start, (7,) * tokens, (blocks,), (sample,) if sample else ())


def work(*chunks: Chunk, copies: int = 0) -> Work:
    plan = StepPlan(1, chunks, (BlockCopy(0, 0, 1, 2),) * copies)
    return work_of(plan, block_tokens=4, tile_queries=2)


def test_single_tokens_read_shared_blocks_once_and_then_again() -> None:
    found = work(chunk(9, 1, 5, 6, 7, sample=GREEDY), chunk(10, 1, 5, 6, 8, sample=DRAWN), copies=3)
    assert found == Work(2, 2, 2, 1, 0, 3, reads=16, shared_reads=5, tile_reads=0, pairs=0)


def test_what_is_alone_is_not_shared_whatever_room_its_blocks_have() -> None:
    assert work(chunk(5, 1, 3, 4)).reads == 6
    assert work(chunk(5, 1, 3, 4)).shared_reads == 0


def test_longer_chunks_are_cut_into_tiles_of_which_each_reads_up_to_its_end() -> None:
    found = work(chunk(4, 5, 1, 2, 3, sample=CUT))
    assert found == Work(5, 1, 1, 1, 1, 0, 0, 0, tile_reads=6 + 8 + 9, pairs=5 + 6 + 7 + 8 + 9)


def test_layers_with_windows_read_less_and_all_layers_count_in_the_mean() -> None:
    """Two layers of three see 3 positions."""
    windows = ((None, 1), (3, 2))
    single = StepPlan(1, (chunk(9, 1, 5, 6, 7), chunk(10, 1, 5, 6, 8)))
    found = work_of(single, block_tokens=4, tile_queries=2, windows=windows)
    assert (found.reads, found.shared_reads) == (round((16 + 2 * 6) / 3), round((5 + 2 * 0) / 3))
    found = work_of(StepPlan(1, (chunk(4, 5, 1, 2, 3),)), block_tokens=4, tile_queries=2, windows=windows)
    tiles = (6 - 2) + (8 - 4) + (9 - 6)
    assert (found.tile_reads, found.pairs) == (round((23 + 2 * tiles) / 3), round((35 + 2 * 5 * 3) / 3))


def test_a_tile_has_as_many_queries_as_its_rows_have_heads_to_a_key() -> None:
    assert [queries_of_tile(16, 8), queries_of_tile(4, 4), queries_of_tile(512, 1)] == [128, 256, 1]


@pytest.mark.parametrize(
    ("number", "seconds"), [(0, 0.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 3.0), (6, 3.5), (8, 4.0), (16, 6.0)]
)
def test_a_curve_is_level_then_straight(number: int, seconds: float) -> None:
    assert interpolate(CURVE, number) == pytest.approx(seconds)


def test_a_curve_that_falls_at_its_end_does_not_go_on_falling() -> None:
    assert interpolate((Point(1, 3.0), Point(2, 2.0)), 8) == 2.0


def test_a_curve_of_one_point_is_a_line_from_zero() -> None:
    assert interpolate((Point(4, 2.0),), 6) == pytest.approx(3.0)


def test_a_step_is_the_sum_of_its_work() -> None:
    found = profile(prices=Prices(chunks=10, draws=20, cuts=30, copies=40, reads=1, pairs=2), decide_s=0.5)
    some = Work(
        tokens=8, samples=2, chunks=3, draws=1, cuts=1, copies=1, reads=7, shared_reads=9, tile_reads=5, pairs=4
    )
    assert found.seconds(some) == pytest.approx(3.0 + 0.25 + 3 * 10.5 + 20 + 30 + 40 + 7 + 8)


def test_the_fit_finds_the_prices_that_made_the_times() -> None:
    draw = random.Random(1)
    true = profile(prices=Prices(0.05, 0.2, 0.1, 0.3, 1e-3, 3e-4, 5e-4, 2e-5))
    steps = []
    for _ in range(80):
        most = (63, 8, 8, 8, 8, 8, 2000, 2000, 2000, 20000)
        some = Work(1 + draw.randint(0, most[0]), *[draw.randint(0, top) for top in most[1:]])
        steps.append(Measured(some, true.seconds(some)))
    found = fit(steps, token_knots=[1, 4, 64], sample_knots=[1, 8])
    assert found.error < 1e-6
    assert found.prices == pytest.approx(true.prices, rel=1e-3)
    assert [p.seconds for p in found.tokens] == pytest.approx([1.0, 1.0, 31.0], rel=1e-3)


def test_nothing_is_worth_less_than_zero() -> None:
    assert least_squares([[1.0, 1.0], [1.0, 0.0]], [1.0, 2.0]) == pytest.approx([1.5, 0.0])
    assert least_squares([[1.0, 0.0]], [3.0]) == pytest.approx([3.0, 0.0])


def test_the_knee_is_the_first_point_that_no_other_beats_by_5_percent() -> None:
    def knee(*speeds: float) -> int:
        points = tuple(Point(2**n, 2**n / speed) for n, speed in enumerate(speeds))
        return Profile({}, {}, "2026-11-25T", 16, 32, points, (), Prices()).knee().tokens

    assert knee(10, 50, 90, 96, 100) == 8
    assert knee(10, 96, 90, 80, 100) == 2
    assert knee(10, 20, 30) == 4
    assert profile().knee().source == "profile of 2026-11-25"


def test_a_profile_survives_its_file() -> None:
    whole = replace(profile(prices=Prices(chunks=0.1)), windows=((None, 1), (3, 2)))
    assert Profile.loads(whole.dumps()) == whole
    for text in ("", "{}", "[]", '{"tokens": 3}'):
        with pytest.raises(ValueError, match=r"no profile|Expecting value"):
            Profile.loads(text)
