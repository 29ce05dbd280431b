"""Protects the forecast: small jobs are simulated whole, large ones in parts that stand for the whole."""

from __future__ import annotations

import random

import pytest

from penstock import forecast as module
from penstock.forecast import LoadRows, estimate, forecast, longer, shorter, weight
from penstock.outlines import Outline, Outlines, Sums
from penstock.profile import Rates
from penstock.request import SamplingParams
from penstock.simulation import SimRow, simulate
from tests.profiles import profile, terms


def job(rows: int, *, seed: int = 0, is_fixed: bool = True) -> tuple[Outlines, list[SimRow]]:
    """Rows of all lengths that share nothing."""
    draw = random.Random(seed)
    found = []
    for number in range(rows):
        output = draw.randint(2, 12)
        params = SamplingParams(max_tokens=output if is_fixed else 40, ignore_eos=is_fixed, temperature=0.0)
        found.append(SimRow(tuple(range(1000 * number, 1000 * number + draw.randint(4, 40))), output, params))
    return Outlines(Outline(len(r.prompt), len(r.prompt), r.output_tokens) for r in found), found


def loading(rows: list[SimRow]) -> LoadRows:
    return lambda first, last: rows[first:last]


def test_a_small_job_is_simulated_whole() -> None:
    outlines, rows = job(40)
    found = forecast(outlines, loading(rows), terms(), is_certain=True)
    assert found.simulated == simulate(rows, terms())
    assert (found.rows, found.simulated_rows, found.error) == (40, 40, 0.1)
    assert found.low_s == pytest.approx(found.seconds / 1.1)
    assert found.high_s == pytest.approx(found.seconds * 1.1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_parts_of_a_large_job_stand_for_the_whole(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    outlines, rows = job(1200, seed=seed)
    whole = simulate(rows, terms())
    monkeypatch.setattr(module, "MOST_WORK", 2000)
    loaded: list[int] = []

    def load(first: int, last: int) -> list[SimRow]:
        loaded.append(last - first)
        return rows[first:last]

    found = forecast(outlines, load, terms(), is_certain=True)
    assert found.simulated_rows == sum(loaded) < 400
    assert found.seconds == pytest.approx(whole.seconds, rel=0.05)
    assert found.low_s < whole.seconds < found.high_s
    assert found.simulated.computed_tokens == pytest.approx(whole.computed_tokens, rel=0.05)
    assert found.simulated.steps == pytest.approx(whole.steps, rel=0.2)
    assert sum(found.simulated.parts.values()) == pytest.approx(found.seconds)


def test_a_job_that_changes_in_the_middle_is_less_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WORK", 1500)
    outlines, rows = job(900)
    even = estimate(outlines, loading(rows), terms()).spread
    crowded = [SimRow(row.prompt, row.output_tokens, row.params) for row in rows[:450]]
    shared = [SimRow((*range(32), row.prompt[0]), row.output_tokens, row.params) for row in rows[450:]]
    uneven = estimate(outlines, loading(crowded + shared), terms()).spread
    assert uneven > even


def test_answers_that_may_end_early_or_late_make_the_range_wide() -> None:
    outlines, rows = job(40, is_fixed=False)
    found = forecast(outlines, loading(rows), terms(), is_certain=False)
    assert found.low_s < simulate([shorter(row) for row in rows], terms()).seconds
    assert found.high_s > simulate([longer(row) for row in rows], terms()).seconds
    assert found.low_s < found.seconds < found.high_s


def test_a_weight_grows_with_what_is_new_and_what_is_drawn() -> None:
    known = terms()
    assert weight(Sums().plus(Outline(8, 8, 0)), known) == pytest.approx(8 * 31 / 64)
    assert weight(Sums().plus(Outline(8, 0, 2)), known) == pytest.approx(2 * (3.0 + 0.25) / 8)
    assert weight(Sums().plus(Outline(8, 0, 0)), known) == 0


def test_no_rows_take_no_time() -> None:
    found = forecast(Outlines(), loading([]), terms(), is_certain=True)
    assert found.seconds == 0


def test_the_optimal_time_is_the_jobs_own_whatever_its_settings() -> None:
    outlines, rows = job(40)
    usual, thin, small = (
        forecast(outlines, loading(rows), terms(**asked), is_certain=True)
        for asked in ({}, {"sequences": 1}, {"blocks": 20, "budget": 8})
    )
    assert usual.optimal_s == thin.optimal_s == small.optimal_s
    assert usual.optimal_s is not None
    assert 0 < usual.optimal_s < usual.seconds < thin.seconds
    known = terms()
    nothing = known._replace(profile=profile(rates=Rates(None, 1e5)))
    assert forecast(outlines, loading(rows), nothing, is_certain=True).optimal_s is None
