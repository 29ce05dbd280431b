"""Protects the rules of drawing: ranks and ties, top_k, top_p, min_p, bias, bans, log-probabilities, frequencies."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from penstock.request import stream_key, uniform
from penstock.sampling import draw_all, log_probabilities, lowest_argmax
from penstock.step import SampleAt

pytestmark = pytest.mark.torch

PLAIN = SampleAt(0, uniform=0.0, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
GREEDY = replace(PLAIN, temperature=0.0)


def logits_of(probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities).log()


def draws(logits: Tensor, sample: SampleAt, *, count: int = 2000) -> Counter[int]:
    key = stream_key(1, job_seed=0, custom_id="")
    samples = [replace(sample, uniform=uniform(key, sample=0, position=p)) for p in range(count)]
    results = draw_all(logits.expand(count, -1), samples)
    return Counter(r.token.token for r in results if r.token is not None)


def token(logits: Tensor, sample: SampleAt) -> int:
    (result,) = draw_all(logits[None], [sample])
    assert result.token is not None
    return result.token.token


def test_greedy_takes_the_lowest_id_of_a_tie() -> None:
    assert lowest_argmax(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])).tolist() == [1, 0]
    assert token(torch.tensor([1.0, 3.0, 3.0]), GREEDY) == 1


def test_draws_follow_the_probabilities() -> None:
    counts = draws(logits_of([0.1, 0.5, 0.4]), PLAIN)
    assert counts.keys() == {0, 1, 2}
    assert abs(counts[0] / 2000 - 0.1) < 0.03
    assert abs(counts[1] / 2000 - 0.5) < 0.04


def test_temperature_sharpens() -> None:
    counts = draws(logits_of([0.2, 0.8]), replace(PLAIN, temperature=0.5))
    assert abs(counts[0] / 2000 - 0.04 / 0.68) < 0.02


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 2}),
        ({"top_p": 0.4}, {1}),
        ({"top_p": 0.45}, {1, 2}),
        ({"top_p": 0.9}, {1, 2, 3}),
        ({"min_p": 0.5}, {1, 2}),
        ({"min_p": 1.0}, {1}),
        ({"top_k": 3, "top_p": 0.5}, {1, 2}),
    ],
)
def test_filters_keep_the_candidates_that_they_should(change: dict[str, float], kept: set[int]) -> None:
    logits = logits_of([0.06, 0.44, 0.30, 0.2])
    assert draws(logits, replace(PLAIN, **change)).keys() == kept  # type: ignore[arg-type]


def test_equal_candidates_rank_by_token_id() -> None:
    logits = torch.zeros(50)
    assert draws(logits, replace(PLAIN, top_k=3)).keys() == {0, 1, 2}


def test_bias_and_bans_change_what_can_be_drawn() -> None:
    logits = logits_of([0.2, 0.5, 0.3])
    assert token(logits, replace(GREEDY, bias=((2, 5.0),))) == 2
    assert token(logits, replace(GREEDY, banned=(1,))) == 2
    assert draws(logits, replace(PLAIN, banned=(0, 1))).keys() == {2}


@pytest.mark.parametrize("number", [0.0, 0.5, 1.0 - 2**-53])
def test_the_ends_of_the_unit_interval_give_a_candidate(number: float) -> None:
    logits = logits_of([0.25, 0.25, 0.25, 0.25])
    assert token(logits, replace(PLAIN, uniform=number, top_k=2)) in {0, 1}


def test_log_probabilities_are_those_of_the_model_before_any_change() -> None:
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 4
    true = logits.double().log_softmax(-1)
    found = log_probabilities(logits, 7, num_top=3)
    assert math.isclose(found.logprob, float(true[7]), rel_tol=1e-6)
    values, ids = true.topk(3)
    assert [index for index, _ in found.top] == ids.tolist()
    assert all(math.isclose(mine, other, rel_tol=1e-6) for (_, mine), other in zip(found.top, values, strict=True))
    sample = replace(GREEDY, temperature=0.7, bias=((7, 100.0),), logprobs=0)
    (drawn,) = draw_all(logits[None], [sample])
    assert drawn.token is not None
    assert (drawn.token.token, drawn.token.logprob) == (7, found.logprob)


def test_a_draw_depends_on_its_own_row_alone() -> None:
    logits = torch.randn(70, 513, generator=torch.Generator().manual_seed(3)).bfloat16().float() * 3
    kinds = [GREEDY, replace(PLAIN, top_p=0.9), replace(PLAIN, top_k=40, min_p=0.05), replace(PLAIN, temperature=1.7)]
    samples = [replace(kinds[i % 4], uniform=i / 70, logprobs=i % 6) for i in range(70)]
    together = draw_all(logits, samples)
    assert together[::-1] == draw_all(logits.flip(0), samples[::-1])
    assert together == [draw_all(logits[i : i + 1], [samples[i]])[0] for i in range(70)]


def test_logits_that_are_no_numbers_give_a_reason_and_no_token() -> None:
    results = draw_all(torch.tensor([[1.0, math.nan], [1.0, 2.0], [math.inf, 0.0]]), [GREEDY] * 3)
    assert [r.token is None for r in results] == [True, False, True]
    assert results[0].problem == "the model gave 1 logits of 2 that are not finite numbers"
