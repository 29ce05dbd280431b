"""From logits to tokens: bias, temperature, top_k, top_p, min_p, the draw itself, and log-probabilities.

Owns the rules of drawing; the random numbers come in the plan. Every row is computed by itself, so a draw depends on
its own logits and random number alone.
Candidates rank by (logit descending, token id ascending). A weight is a whole number, ONE for the highest logit and
proportional to the probability for the others: sums of whole numbers are exact in any order, so whoever sums (this
file, which is the definition, or the native kernels) draws the same token and finds the same log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from penstock.kernels.exact import exp
from penstock.request import TokenLogprob
from penstock.step import SampleAt

NO_LOGPROB = math.nan
ONE = 2**40  # 2^23 weights fit into an int64 sum, and 10^-12 of the most probable token is still told from nothing
LEAST_TEMPERATURE = 1e-30  # above 0, smaller ones count as this: float32 has no numbers for them
NO_CANDIDATE = "every token is banned"


class Draw(NamedTuple):
    """A token, or why there is none."""

    token: TokenLogprob | None
    problem: str | None = None


def draw_all(logits: Tensor, samples: Sequence[SampleAt]) -> list[Draw]:
    """One draw a row of logits, float32 [rows, vocab]."""
    if not samples:
        return []
    finite = torch.isfinite(logits).all(dim=-1).tolist()
    greedy = lowest_argmax(logits).tolist()
    return [
        _draw(logits[row], sample, greedy=greedy[row]) if finite[row] else Draw(None, _describe(logits[row]))
        for row, sample in enumerate(samples)
    ]


def _describe(logits: Tensor) -> str:
    return describe_bad(int((~torch.isfinite(logits)).sum()), logits.shape[0])


def describe_bad(bad: int, vocab: int) -> str:
    """The problem of a row of `vocab` logits of which `bad` are infinite or not numbers."""
    return f"the model gave {bad} logits of {vocab} that are not finite numbers"


def lowest_argmax(logits: Tensor) -> Tensor:
    """For each row [rows, vocab], the lowest token id among those with the highest logit: int64 [rows]."""
    highest = logits.amax(dim=-1, keepdim=True)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(logits == highest, ids, logits.shape[-1]).amin(dim=-1)


def _draw(logits: Tensor, sample: SampleAt, *, greedy: int) -> Draw:
    adjusted = _adjust(logits, sample)
    if adjusted is not logits and not bool(torch.isfinite(adjusted).any()):
        return Draw(None, NO_CANDIDATE)
    if sample.temperature > 0.0:
        token = _draw_random(adjusted, sample)
    else:
        token = greedy if adjusted is logits else int(lowest_argmax(adjusted[None]))
    if sample.logprobs is None:
        return Draw(TokenLogprob(token, NO_LOGPROB, ()))
    return Draw(log_probabilities(logits, token, num_top=sample.logprobs))


def _adjust(logits: Tensor, sample: SampleAt) -> Tensor:
    """Logits with the bias added and banned tokens at minus infinity; the same tensor where there are neither."""
    if not sample.bias and not sample.banned:
        return logits
    adjusted = logits.clone()
    for token, bias in sample.bias:
        adjusted[token] += bias
    adjusted[list(sample.banned)] = -math.inf
    return adjusted


def weigh(logits: Tensor, temperature: float) -> Tensor:
    """ONE times exp((logit - highest) / temperature), rounded: int64 [vocab]."""
    divisor = torch.full((1,), max(temperature, LEAST_TEMPERATURE), device=logits.device)
    shares = exp((logits - logits.amax()) / divisor)
    return (shares.double() * ONE).round_().to(torch.int64)


def _draw_random(logits: Tensor, sample: SampleAt) -> int:
    """Draw by inverse distribution function among the kept candidates, in order of token id."""
    weights = _keep(weigh(logits, sample.temperature), logits, sample)
    sums = weights.cumsum(0)
    total = int(sums[-1])
    target = min(int(sample.uniform * float(total)), total - 1)
    return int((sums <= target).sum())


def _keep(weights: Tensor, logits: Tensor, sample: SampleAt) -> Tensor:
    """The weights of the candidates that top_k, then top_p, then min_p leave (at least the best); 0 for the others."""
    if sample.top_k or sample.top_p < 1.0:
        ranked = torch.sort(logits, descending=True, stable=True).indices
        in_rank = weights[ranked]
        if sample.top_k:
            in_rank[sample.top_k :] = 0
        if sample.top_p < 1.0:
            before = in_rank.cumsum(0) - in_rank
            in_rank[before >= math.ceil(sample.top_p * float(in_rank.sum()))] = 0
        weights = torch.zeros_like(weights).index_copy_(0, ranked, in_rank)
    return torch.where(weights >= math.ceil(sample.min_p * ONE), weights, 0)


def log_probabilities(logits: Tensor, token: int, *, num_top: int) -> TokenLogprob:
    """Natural-log probabilities under the softmax of logits [vocab], of `token` and of the `num_top` best tokens."""
    best = torch.sort(logits, descending=True, stable=True).indices[:num_top].tolist() if num_top else []
    total, highest = int(weigh(logits, 1.0).sum()), float(logits.amax())
    top = [(index, float(logits[index])) for index in best]
    return normalize((token, float(logits[token])), top, highest=highest, total=total)


def normalize(
    drawn: tuple[int, float], top: Sequence[tuple[int, float]], *, highest: float, total: int
) -> TokenLogprob:
    """Tokens with their logits to tokens with their log-probabilities, by the sum of all weights of the row."""
    base = highest + math.log(float(total) / ONE)
    token, logit = drawn
    return TokenLogprob(token, logit - base, tuple((index, value - base) for index, value in top))
