"""Protects the arithmetic of the bench: rates, shares, medians and ratios, with exact numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from penstock.bench.results import Inside, Run, median_run, median_s, ratio
from penstock.bench.workloads import Amount

INSIDE = Inside(
    cached_tokens=30,
    steps=7,
    preemptions=0,
    flops=10,
    moved_bytes=20,
    least_s=3.0,
    tile_s=2.5,
    linear_s=2.0,
    attention_s=1.5,
    other_s=0.5,
    python_s=1.0,
)
AMOUNT = Amount(requests=4, prompt_tokens=100, output_tokens=20, distinct_tokens=50, fed_back_tokens=15)
RUN = Run(wall_s=5.0, amount=AMOUNT, start_s=1.0, peak_bytes=8, computed_tokens=90, inside=INSIDE)


def timed(*seconds: float) -> list[Run]:
    return [replace(RUN, wall_s=s, inside=None) for s in seconds]


def test_rates_and_shares() -> None:
    assert RUN.rates() == {
        "prompt_tokens_per_s": 20.0,
        "output_tokens_per_s": 4.0,
        "computed_tokens_per_s": 18.0,
        "cached_tokens_per_s": 6.0,
    }
    shares = RUN.shares()
    assert (shares.pop("least_share"), shares.pop("tile_share")) == (0.6, 0.5)
    assert list(shares.values()) == pytest.approx([0.4, 0.3, 0.1, 0.2])


def test_without_limits_there_is_no_share_of_the_least_time() -> None:
    shares = replace(RUN, inside=replace(INSIDE, least_s=None, tile_s=None)).shares()
    assert shares["least_share"] is shares["tile_share"] is None


def test_computed_tokens_are_set_against_the_distinct_ones() -> None:
    found = RUN.as_json()
    assert (found["computed_prompt_tokens"], found["computed_ratio"]) == (75, 1.5)
    assert (found["distinct_tokens"], found["fed_back_tokens"], found["prompt_tokens"]) == (50, 15, 100)
    assert replace(RUN, computed_tokens=None).computed_ratio is None


def test_a_peer_s_run_has_no_inside() -> None:
    peer = replace(RUN, computed_tokens=None, inside=None)
    assert peer.shares() == {}
    assert set(peer.rates()) == {"prompt_tokens_per_s", "output_tokens_per_s"}
    assert json.loads(json.dumps(peer.as_json()))["wall_s"] == 5.0


def test_a_whole_process_is_timed_from_its_start() -> None:
    whole = replace(RUN, process_s=10.0)
    assert whole.timed_s == 10.0
    assert whole.rates()["output_tokens_per_s"] == 2.0
    assert whole.shares()["linear_share"] == 0.4


def test_medians_and_ratios() -> None:
    assert median_run(timed(3.0, 1.0, 2.0)).wall_s == 2.0
    assert median_run(timed(4.0, 1.0, 2.0, 3.0)).wall_s == 2.0
    assert median_s(timed(4.0, 1.0, 2.0, 3.0)) == 2.5
    assert ratio(timed(2.0, 9.0, 1.0), timed(5.0, 3.0, 4.0)) == 2.0
