"""Protects the measuring: from an executor with known times, their profile; steps that fit what they are run on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from penstock.disturbance import CpuTimes
from penstock.measuring import FULL, QUICK, Effort, Sheet, Size, measure, powers_to, sample_knots, size_of, unmeasured
from penstock.measuring import synthetic_steps as steps_of
from penstock.profile import Point, Prices, Profile, Rates, work_of
from penstock.simulation import Terms
from penstock.step import StepPlan, StepResult, Ticket
from tests.profiles import BLOCK_BYTES, KV_BYTES, SPEC, config, profile

SIZE = Size(tokens=64, sequences=8, blocks=200, block_tokens=4, context=100)


class Pretended:
    """An executor whose steps take what a profile says, on a clock of its own."""

    def __init__(self, truth: Profile) -> None:
        self.truth = truth
        self.now_s = 0.0
        self.written: set[int] = set()

    def submit(self, plan: StepPlan) -> Ticket:
        self.written |= {copy.target for copy in plan.copies}
        self.now_s += self.truth.step_s(plan)
        return Ticket(plan.step)

    def collect(self, ticket: Ticket) -> StepResult:
        return StepResult(ticket, ())

    def clock(self) -> float:
        return self.now_s


def test_what_an_executor_takes_is_found() -> None:
    truth = profile(prices=Prices(0.05, 0.2, 0.1, 0.3, 1e-3, 3e-4, 5e-4, 2e-5))
    executor = Pretended(truth)
    terms = Terms(SPEC, config(), unmeasured({"model": "tiny"}, {}))
    counts = iter([CpuTimes(0.0, 0.0, 0.0, 0.0), CpuTimes(100.0, 5.0, 90.0, 60.0)])
    found = measure(
        executor,
        terms,
        size=SIZE,
        effort=Effort(3, 3, 0, 64),
        clock=executor.clock,
        cpu=counts.__next__,
        rates=Rates(1e9, 1e9),
    )
    assert found.disturbance == pytest.approx((0.05, 0.3))
    assert found.spread == pytest.approx(0.0)
    assert found.error < 1e-3
    assert (found.about, found.rates, found.decide_s) == ({"model": "tiny"}, Rates(1e9, 1e9), 0.0)
    for plan in steps_of(Sheet(SIZE, vocab=100, seed=5), SIZE):
        assert found.step_s(plan) == pytest.approx(truth.step_s(plan), rel=0.02)
    assert executor.written >= set(range(200)) - {0} or len(executor.written) >= 199


class Uneven(Pretended):
    """A step takes as long as it should, half as long again, and twice as long, in turn."""

    def __init__(self, truth: Profile) -> None:
        super().__init__(truth)
        self.seen: Counter[StepPlan] = Counter()

    def submit(self, plan: StepPlan) -> Ticket:
        self.now_s += self.truth.step_s(plan) * (self.seen[plan] % 3) / 2
        self.seen[plan] += 1
        return super().submit(plan)


def test_how_far_repeated_steps_lie_apart_is_noted() -> None:
    fast = replace(profile(), tokens=(Point(1, 0.001), Point(64, 0.031)), samples=(Point(1, 0.001),))
    executor, effort = Uneven(fast), Effort(3, 3, 0, 64)
    terms = Terms(SPEC, config(), unmeasured({}, {}))
    found = measure(
        executor, terms, size=SIZE, effort=effort, clock=executor.clock, cpu=lambda: None, rates=Rates(1e9, 1e9)
    )
    assert found.spread == pytest.approx(0.5)


def test_what_was_reached_is_no_limit() -> None:
    executor = Pretended(profile())
    terms = Terms(SPEC, config(), unmeasured({}, {}))
    effort = Effort(1, 1, 0, 64)
    found = measure(
        executor, terms, size=SIZE, effort=effort, clock=executor.clock, cpu=lambda: None, rates=Rates(1.0, None)
    )
    assert found.disturbance is None
    whole = 8 * 2 * (2 * 4 + 2 * 2) + 3 * 8 * 16  # elements: q and out, k and v; gate and up and down
    layers = 2 * whole + 8 * 2 * 2 * 2  # of the last layer k and v: nothing is drawn from these tokens
    assert found.rates.flops_per_s == pytest.approx(2 * layers * 4, rel=1e-3)  # four tokens a second at best
    assert found.rates.bytes_per_s is None


def test_every_kind_of_work_is_measured_apart_from_the_others() -> None:
    works = [work_of(plan, block_tokens=4, tile_queries=32) for plan in steps_of(Sheet(SIZE, vocab=100), SIZE)]
    for name in works[0]._fields:
        assert any(getattr(work, name) for work in works), name
    assert len(set(works)) > 20


@pytest.mark.parametrize("size", [SIZE, Size(2, 1, 3, 16, 24), Size(512, 64, 400, 16, 1024), Size(1, 1, 1, 16, 8)])
def test_steps_fit_what_they_are_run_on(size: Size) -> None:
    for plan in steps_of(Sheet(size, vocab=50), size):
        assert len(plan.chunks) <= max(size.sequences + 4, 8)
        for chunk in plan.chunks:
            assert len(chunk.tables[0]) * size.block_tokens >= chunk.end
            assert all(0 <= block < size.blocks for block in chunk.tables[0])
            assert all(isinstance(token, int) and 0 <= token < 50 for token in chunk.tokens)
        assert len({chunk.sequence for chunk in plan.chunks}) == len(plan.chunks)


def test_sizes_stay_within_memory_and_context() -> None:
    def size(blocks: int, **asked: int) -> Size:
        return size_of(SPEC, config(blocks=blocks, **asked), kv_bytes_per_token=KV_BYTES, effort=FULL)

    assert size(1000) == Size(511, 8, 1000, 4, 511)
    assert size(3).sequences == 1
    assert size(3).context <= 6
    quick = size_of(SPEC, config(), kv_bytes_per_token=KV_BYTES, effort=QUICK)
    assert quick.tokens == 256
    assert BLOCK_BYTES == 4 * KV_BYTES


def test_knots() -> None:
    assert powers_to(6) == [1, 2, 4, 6]
    assert powers_to(8) == [1, 2, 4, 8]
    assert sample_knots(64) == [1, 8, 64]
    assert sample_knots(20) == [1, 8, 20]
