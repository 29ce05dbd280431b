"""Protects native drawing: on every instruction set here the same draws, bit for bit, as the rules in sampling.py."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from penstock.kernels.native import Native
from penstock.sampling import NO_CANDIDATE, Draw, draw_all
from penstock.step import SampleAt
from tests.models import native_isas, opened

pytestmark = pytest.mark.torch

ISAS = native_isas()
PLAIN = SampleAt(0, uniform=0.0, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
VOCABS = [1, 2, 15, 127, 128, 129, 1000, 4099]
KINDS = ["normal", "peaked", "equal", "few values", "huge", "outlier", "tiny", "steps", "zeros of both signs"]


def native(isa: str, threads: int = 2) -> Native:
    kernels = opened(isa, threads).native
    assert kernels is not None
    return kernels


def row(kind: str, vocab: int, seed: int) -> Tensor:
    noise = torch.randn(vocab, generator=torch.Generator().manual_seed(seed))
    if kind == "peaked":
        return noise * 9 - 30
    if kind == "equal":
        return torch.full((vocab,), float(noise[0]))
    if kind == "few values":
        return noise.round()
    if kind == "huge":
        return noise.clamp(-1, 1) * torch.finfo(torch.float32).max
    if kind == "outlier":
        return noise.index_fill(0, torch.tensor([vocab // 2]), -1e30)
    if kind == "tiny":
        return noise * 1e-42
    if kind == "steps":
        return torch.arange(vocab).flip(0).float() * 0.01
    if kind == "zeros of both signs":
        return noise.sign() * 0.0
    return noise * 3


def some_samples(vocab: int, seed: int, count: int) -> list[SampleAt]:
    """Samples of every kind: filters on and off, at their ends, biased, banned, with log-probabilities."""
    rng = random.Random(seed)
    tokens = rng.sample(range(vocab), k=min(vocab, 5))
    return [
        SampleAt(
            0,
            uniform=rng.choice([0.0, rng.random(), rng.random(), 1 - 2**-53]),
            temperature=rng.choice([0.0, 1e-310, 1e-30, 1e-3, 0.6, 1.0, 1.0, 2.0]),
            top_k=rng.choice([0, 0, 0, 1, 2, 3, 40, vocab - 1, vocab, vocab + 9, 2**70]),
            top_p=rng.choice([1.0, 1.0, 1e-9, 0.1, 0.5, 0.9, 0.99, 1 - 2**-30, 1 - 2**-53]),
            min_p=rng.choice([0.0, 0.0, 1e-12, 0.02, 0.5, 1.0]),
            bias=tuple(sorted((t, rng.choice([-100.0, 0.1, 100.0])) for t in rng.choice([[], [], tokens]))),
            banned=tuple(rng.choice([[], [], tokens[:2], tokens[:2] * (vocab > 2)])),
            logprobs=rng.choice([None, 0, 1, 5, 20]),
        )
        for _ in range(count)
    ]


@cache
def drawn_by_the_rules(kind: str, vocab: int, *, seed: int, count: int) -> tuple[Tensor, list[SampleAt], list[Draw]]:
    """Logits, samples, and their draws: the same for every instruction set, and slow."""
    samples = some_samples(vocab, seed, count)
    logits = torch.stack([row(kind, vocab, seed) for seed in range(count)])
    return logits, samples, draw_all(logits, samples)


def same(ours: list[Draw], slow: list[Draw]) -> bool:
    return repr(ours) == repr(slow)  # NaN is not equal to itself


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", VOCABS)
def test_draws_are_those_of_the_rules_to_the_bit(isa: str, kind: str, vocab: int) -> None:
    logits, samples, expected = drawn_by_the_rules(kind, vocab, seed=vocab, count=40)
    assert same(native(isa).draw(logits, samples), expected)
    assert same(native(isa, 1).draw(logits.flip(0), samples[::-1]), expected[::-1])


@pytest.mark.parametrize("isa", ISAS)
def test_a_vocabulary_of_150_000_is_drawn_from_as_the_rules_say(isa: str) -> None:
    for kind in ("normal", "peaked", "few values"):
        logits, samples, expected = drawn_by_the_rules(kind, 151_936, seed=5, count=16)
        assert same(native(isa).draw(logits, samples), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 7, 130, 299])
def test_rows_that_are_no_numbers_and_rows_without_a_candidate_have_a_reason(isa: str, bad: float, place: int) -> None:
    logits = torch.stack([row("normal", 300, seed) for seed in range(3)])
    logits[1, place] = bad
    everything = tuple(range(300))
    samples = [
        replace(PLAIN, banned=everything),
        PLAIN,
        replace(PLAIN, banned=everything[:place] + everything[place + 1 :]),
    ]
    ours = native(isa).draw(logits, samples)
    assert same(ours, draw_all(logits, samples))
    assert ours[0] == Draw(None, NO_CANDIDATE)
    assert ours[1] == Draw(None, "the model gave 1 logits of 300 that are not finite numbers")
    assert ours[2].token is not None
    assert ours[2].token.token == place


@pytest.mark.parametrize("isa", ISAS)
def test_frequencies_are_the_probabilities(isa: str) -> None:
    logits = row("normal", 20, 1)
    count = 4000
    samples = [replace(PLAIN, uniform=(i + 0.5) / count) for i in range(count)]
    drawn = torch.tensor(
        [d.token.token for d in native(isa).draw(logits.expand(count, -1).contiguous(), samples) if d.token]
    )
    found = torch.bincount(drawn, minlength=20) / count
    torch.testing.assert_close(found, logits.softmax(-1), rtol=0, atol=1.1 / count)


def test_what_does_not_fit_is_refused() -> None:
    kernels = native(ISAS[-1])
    assert kernels.draw(torch.empty(0, 9), []) == []
    with pytest.raises(ValueError, match="there are 1 samples"):
        kernels.draw(torch.zeros(2, 9), [PLAIN])
    with pytest.raises(IndexError, match="tokens 3 to 9 are biased or banned, of a vocabulary of 9"):
        kernels.draw(torch.zeros(1, 9), [replace(PLAIN, bias=((3, 1.0),), banned=(9,))])
