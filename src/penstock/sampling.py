"""From logits to tokens: bias, temperature, top_k, top_p, min_p, the draw itself, and log-probabilities.

Owns the rules of drawing; the random numbers come in the plan. Every row is computed by itself, from exact functions
in a fixed order, so a draw depends on its own logits and random number alone.
Candidates rank by (logit descending, token id ascending); normalizers sum over the vocabulary in order of token id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from penstock.kernels.exact import exp, tree_sum
from penstock.request import TokenLogprob
from penstock.step import SampleAt

NO_LOGPROB = math.nan


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
    bad = int((~torch.isfinite(logits)).sum())
    return f"the model gave {bad} logits of {logits.shape[0]} that are not finite numbers"


def lowest_argmax(logits: Tensor) -> Tensor:
    """For each row [rows, vocab], the lowest token id among those with the highest logit: int64 [rows]."""
    highest = logits.amax(dim=-1, keepdim=True)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(logits == highest, ids, logits.shape[-1]).amin(dim=-1)


def _draw(logits: Tensor, sample: SampleAt, *, greedy: int) -> Draw:
    adjusted = _adjust(logits, sample)
    if sample.temperature > 0.0:
        token = _draw_random(adjusted / sample.temperature, sample)
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


def _draw_random(scaled: Tensor, sample: SampleAt) -> int:
    """Draw by inverse distribution function among the kept candidates, in order of rank."""
    ranked = torch.sort(scaled, descending=True, stable=True).indices
    weights = torch.where(scaled > -math.inf, exp(scaled - scaled.amax()), 0.0).double()  # in order of token id
    kept = _keep(weights, ranked, sample)
    chosen = weights[ranked[:kept]]
    mass = torch.zeros_like(weights).index_copy_(0, ranked[:kept], chosen)
    target = sample.uniform * float(tree_sum(mass))
    passed = torch.cumsum(chosen, dim=0) <= target
    return int(ranked[min(int(passed.sum()), kept - 1)])


def _keep(weights: Tensor, ranked: Tensor, sample: SampleAt) -> int:
    """How many of the ranked candidates top_k, then top_p, then min_p leave; at least one."""
    kept = int((weights > 0).sum())
    if sample.top_k:
        kept = min(kept, sample.top_k)
    in_rank = weights[ranked[:kept]]
    if sample.top_p < 1.0:
        mass = torch.zeros_like(weights).index_copy_(0, ranked[:kept], in_rank)
        before = torch.cumsum(in_rank, dim=0) - in_rank
        kept = max(1, int((before < sample.top_p * float(tree_sum(mass))).sum()))
    if sample.min_p > 0.0:
        kept = max(1, int((in_rank[:kept] >= sample.min_p * in_rank[0]).sum()))
    return kept


def log_probabilities(logits: Tensor, token: int, *, num_top: int) -> TokenLogprob:
    """Natural-log probabilities under the softmax of logits [vocab], of `token` and of the `num_top` best tokens."""
    highest = logits.amax()
    log_total = math.log(float(tree_sum(exp(logits - highest).double())))
    base = float(highest) + log_total
    best = torch.sort(logits, descending=True, stable=True).indices[:num_top].tolist() if num_top else []
    top = tuple((index, float(logits[index]) - base) for index in best)
    return TokenLogprob(token, float(logits[token]) - base, top)
