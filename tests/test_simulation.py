"""Protects the simulation: the numbers of small jobs by hand, the same ones every time, from the real scheduler."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.profile import Prices
from penstock.request import SamplingParams
from penstock.simulation import SimRow, simulate
from tests.profiles import profile, terms

ONE = SamplingParams(max_tokens=10, temperature=0.0)


def row(first: int, tokens: int, output: int, params: SamplingParams = ONE) -> SimRow:
    return SimRow(tuple(range(first, first + tokens)), output, params)


def test_one_row_takes_a_step_for_each_token() -> None:
    found = simulate([row(0, 6, 3)], terms())
    assert (found.steps, found.computed_tokens, found.output_tokens) == (3, 8, 3)
    assert (found.cached_tokens, found.preemptions, found.failed) == (0, 0, 0)
    assert found.seconds == pytest.approx((2.0 + 0.25) + 2 * 1.25)  # six tokens, then one and one
    assert found.parts == pytest.approx({"matrices": 4.0, "logits": 0.75, "attention": 0.0, "python": 0.0})


def test_it_is_known_when_each_row_ends_those_that_cannot_run_too() -> None:
    found = simulate([row(0, 60, 2), row(0, 6, 3), row(20, 6, 2)], terms(blocks=8))
    assert found.failed == 1
    start, second, last = found.ends_s
    assert start == 0
    assert second < last == found.seconds


def test_an_answer_ends_where_its_row_says_and_at_max_tokens_at_the_latest() -> None:
    assert simulate([row(0, 6, 4)], terms()).output_tokens == 4
    assert simulate([row(0, 6, 40)], terms()).output_tokens == 10
    least = SamplingParams(max_tokens=10, min_tokens=7, temperature=0.0)
    assert simulate([row(0, 6, 4, least)], terms()).output_tokens == 7
    assert simulate([row(0, 6, 4, replace(ONE, ignore_eos=True))], terms()).output_tokens == 10


def test_what_rows_share_is_computed_once_and_what_they_draw_is_not_shared() -> None:
    rows = [SimRow((*range(16), 50 + n), 5, ONE) for n in range(3)]
    found = simulate(rows, terms())
    assert (found.computed_tokens, found.cached_tokens) == (17 + 1 + 1 + 3 * 4, 2 * 16)
    again = simulate([rows[0], rows[0]], terms())
    assert again.output_tokens == 10
    assert again.cached_tokens == 16


def test_samples_of_a_prompt_are_sequences_of_their_own() -> None:
    found = simulate([row(0, 8, 3, replace(ONE, n=4))], terms())
    assert found.output_tokens == 12
    assert found.cached_tokens == 3 * 7


def test_rows_wait_for_memory_and_one_that_can_never_fit_fails() -> None:
    rows = [row(20 * n, 16, 8) for n in range(6)]
    roomy, tight = simulate(rows, terms()), simulate(rows, terms(blocks=14))
    assert tight.steps > roomy.steps
    assert tight.output_tokens == roomy.output_tokens == 48
    assert tight.peak_kv_tokens <= 14 * 4
    assert simulate([row(0, 60, 2), row(0, 4, 2)], terms(blocks=8)).failed == 1


def test_the_same_rows_give_the_same_numbers() -> None:
    rows = [row(7 * n % 31, 5 + n % 9, 1 + n % 6) for n in range(60)]
    assert simulate(rows, terms(blocks=40)) == simulate(iter(rows), terms(blocks=40))


def test_the_parts_are_the_whole() -> None:
    prices = Prices(0.1, 0.2, 0.3, 0.4, 1e-2, 1e-3, 1e-3, 1e-4)
    priced = terms()._replace(profile=profile(prices=prices, decide_s=0.01))
    rows = [SimRow((*range(8 + n), 60), 4, SamplingParams(max_tokens=9, top_k=5)) for n in range(5)]
    found = simulate(rows, priced)
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert all(found.parts.values())


def test_no_rows_take_no_time() -> None:
    assert simulate([], terms()).seconds == 0
