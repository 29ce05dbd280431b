"""Protects the meaning of a request: its limits, its identity, and random draws that depend on their names alone."""

from __future__ import annotations

import pytest

from penstock.request import Request, SamplingParams, TokenSpan, stream_key, uniform


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", 2.0),
        ("stop", ("x",) * 17),
        ("stop", ("",)),
        ("logprobs", 21),
        ("logit_bias", ((1, 101.0),)),
        ("logit_bias", ((1, float("inf")),)),
        ("n", 0),
        ("min_tokens", -1),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name_and_value(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field} is .*; it must be"):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


def test_min_tokens_cannot_exceed_max_tokens() -> None:
    with pytest.raises(ValueError, match="min_tokens is 9; it must be at most max_tokens, 8"):
        SamplingParams(max_tokens=8, min_tokens=9)


def test_plain_python_values_are_taken_for_what_they_mean() -> None:
    params = SamplingParams(stop="abc", stop_token_ids=[4], logit_bias={9: 1, 2: -1})  # type: ignore[arg-type]
    assert params == SamplingParams(stop=("abc",), stop_token_ids=(4,), logit_bias=((2, -1.0), (9, 1.0)))
    assert hash(params) == hash(SamplingParams(stop=("abc",), stop_token_ids=(4,), logit_bias=((2, -1.0), (9, 1.0))))


def test_draws_depend_on_seed_sample_and_position_alone() -> None:
    key = stream_key(7, job_seed=0, custom_id="a")
    assert key == stream_key(7, job_seed=1, custom_id="b")
    assert key != stream_key(None, job_seed=7, custom_id="a")
    draws = [uniform(key, sample=s, position=p) for s in range(4) for p in range(250)]
    assert len(set(draws)) == 1000
    assert all(0.0 <= u < 1.0 for u in draws)
    assert abs(sum(draws) / 1000 - 0.5) < 0.05
    assert uniform(key, sample=1, position=3) == draws[253]


def test_equal_requests_have_equal_fingerprints() -> None:
    one = Request((TokenSpan((1, 2)), TokenSpan((3,))), SamplingParams(max_tokens=4))
    two = Request((TokenSpan((1, 2, 3)),), SamplingParams(max_tokens=4))
    other = Request((TokenSpan((1, 2, 3)),), SamplingParams(max_tokens=5))
    assert one.fingerprint() == two.fingerprint() != other.fingerprint()


def test_greedy_answers_do_not_depend_on_a_seed_and_drawn_ones_do() -> None:
    def asks(seed: int | None, temperature: float, row: str = "a") -> Request:
        params = SamplingParams(temperature=temperature, seed=seed)
        return Request((TokenSpan((1, 2)),), params, stream_key=stream_key(seed, job_seed=0, custom_id=row))

    assert asks(1, 0.0).fingerprint() == asks(None, 0.0, "b").fingerprint()
    assert asks(1, 0.5).fingerprint() == asks(1, 0.5, "b").fingerprint() != asks(2, 0.5).fingerprint()
    assert asks(None, 0.5).fingerprint() != asks(None, 0.5, "b").fingerprint()
    repeatable = [asks(1, 0.0), asks(None, 0.0), asks(1, 0.5), asks(None, 0.5)]
    assert [request.is_repeatable for request in repeatable] == [True, True, True, False]
