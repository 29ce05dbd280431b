"""Protects the timers: every op is the same op, its seconds go to the right part, and plans pass through."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from penstock.bench.timers import StepWatch
from penstock.step import Executor, StepPlan, StepResult, Ticket


class Ops(NamedTuple):
    """A kernel table of another shape."""

    linear: object
    attention: object
    layers: object
    anything: object


class Echo:
    def submit(self, plan: StepPlan) -> Ticket:
        return Ticket(plan.step)

    def collect(self, ticket: Ticket) -> StepResult:
        return StepResult(ticket, ())


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves by 1, 2, 3 ... seconds a look."""
    looks = iter(range(1, 100))
    monkeypatch.setattr("time.perf_counter", lambda: sum(range(next(looks) + 1)))


@pytest.mark.usefixtures("ticking")
def test_seconds_go_to_the_part_of_the_op() -> None:
    watch = StepWatch()
    ops = Ops(lambda x, *, y: x + y, lambda: "seen", None, lambda: None)
    wrap: Any = watch.wrap_kernels
    timed = wrap(ops, None)
    assert timed.linear(1, y=2) == 3
    assert timed.attention() == "seen"
    timed.anything()
    assert timed.linear(3, y=4) == 7
    assert watch.seconds() == {"linear": 2 + 8, "attention": 4, "other": 6}


class LayerSeconds(NamedTuple):
    linear: float
    attention: float
    other: float


class Native:
    def layer_seconds(self) -> LayerSeconds:
        return LayerSeconds(linear=10.0, attention=20.0, other=30.0)


@pytest.mark.usefixtures("ticking")
def test_what_runs_whole_layers_says_where_their_time_went() -> None:
    watch = StepWatch()
    wrap: Any = watch.wrap_kernels
    timed = wrap(Ops(lambda: 1, None, lambda: "layer", None), Native())
    assert (timed.layers(), timed.linear()) == ("layer", 1)
    assert watch.seconds() == {"linear": 12.0, "attention": 20.0, "other": 30.0}


def test_the_last_plan_is_kept_and_the_result_passes() -> None:
    watch = StepWatch()
    executor: Executor = watch.wrap_executor(Echo())
    plan = StepPlan(5, ())
    assert executor.collect(executor.submit(plan)) == StepResult(5, ())
    assert watch.last_plan is plan
