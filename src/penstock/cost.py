"""What work must cost at least: arithmetic and bytes, and the seconds that a machine's limits allow.

Counts only what no engine can leave out: products of matrices, attention, weights read once a step, each cached
position read once a step however many sequences share it, new positions written. Norms, activations, embedding rows,
block copies and sampling are left out, so the time is a lower bound. Pure arithmetic: no tensors, no clock.
Two things are counted so: the steps that a plan chose (`step_cost`), and a job whatever its plan (`job_cost`). No sum
of steps that do a job is below the job's own cost, so only that one tells a good plan from a bad one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from penstock.models.spec import DecoderSpec, KVGroup
from penstock.outlines import Outline
from penstock.step import Chunk, StepPlan


class Cost(NamedTuple):
    """Floating-point operations (a multiply and an add are two), and bytes read from or written to memory."""

    flops: int
    moved_bytes: int


class _Counts(NamedTuple):
    """What costs: tokens through the layers and through the head, pairs of a query and a key that it sees, how often
    the weights of layers and head are read, and the positions of each KV group that are read or written.
    """

    tokens: int
    drawn: int
    pairs: int
    layer_reads: int
    head_reads: int
    positions: list[int]


def step_cost(spec: DecoderSpec, plan: StepPlan, *, element_bytes: int, block_tokens: int) -> Cost:
    """The cost of a step, with weights and KV in elements of `element_bytes`."""
    drawn = sum(len(chunk.samples) for chunk in plan.chunks)
    pairs = sum(_pairs(chunk.start, chunk.end) for chunk in plan.chunks)
    groups = range(len(spec.kv_groups))
    positions = [plan.num_tokens + _cached_positions(plan.chunks, group, block_tokens) for group in groups]
    return _cost(spec, _Counts(plan.num_tokens, drawn, pairs, 1, min(1, drawn), positions), element_bytes)


def job_cost(spec: DecoderSpec, rows: Iterable[Outline], *, element_bytes: int) -> Cost:
    """The cost of a job's rows, whatever its plan and its memory: that of computing all of them together.

    Each distinct token of the prompts and each token of the answers is computed once (but for an answer's last, which
    is only drawn). A sequence draws one token a step, so the weights are read as often as the longest answer has
    tokens; and a position is read in each step in which an answer behind it goes on, so at least by the row that is
    the first to have it, for each of that one's own tokens.
    """
    tokens = drawn = pairs = reads = longest = 0
    for prompt_tokens, new_tokens, output_tokens, samples in rows:
        each = output_tokens // samples
        more = max(0, each - 1)  # tokens of each sample that are computed
        tokens += new_tokens + samples * more
        drawn += output_tokens
        pairs += _pairs(prompt_tokens - new_tokens, prompt_tokens)
        pairs += samples * _pairs(prompt_tokens, prompt_tokens + more)
        reads += more * new_tokens + samples * (more * (more - 1) // 2)
        longest = max(longest, each)
    positions = [tokens + reads] * len(spec.kv_groups)
    return _cost(spec, _Counts(tokens, drawn, pairs, longest, longest, positions), element_bytes)


def _cost(spec: DecoderSpec, counts: _Counts, element_bytes: int) -> Cost:
    layers, head = spec.layers * layer_elements(spec), spec.vocab * spec.hidden
    products = counts.tokens * layers + counts.drawn * head
    elements = counts.layer_reads * layers + counts.head_reads * head
    for group, positions in zip(spec.kv_groups, counts.positions, strict=True):
        products += counts.pairs * _attention_products(spec, group)
        elements += positions * len(group.layers) * group.kv_heads * (group.k_width + group.v_width)
    return Cost(2 * products, elements * element_bytes)


def layer_elements(spec: DecoderSpec) -> int:
    """Elements of the matrices of one layer (norms and biases left out)."""
    attention = spec.hidden * spec.head_dim * (2 * spec.heads + 2 * spec.kv_heads)
    return attention + spec.hidden * spec.mlp_width * (3 if spec.mlp == "swiglu" else 2)


def least_s(cost: Cost, *, flops_per_s: float, bytes_per_s: float) -> float:
    """The least time for a cost: arithmetic and memory at their limits, entirely at the same time."""
    return max(cost.flops / flops_per_s, cost.moved_bytes / bytes_per_s)


def _pairs(start: int, end: int) -> int:
    """Pairs of a query at a position from start to end and a key that it sees: position p sees p + 1 keys."""
    return (end * (end + 1) - start * (start + 1)) // 2


def _attention_products(spec: DecoderSpec, group: KVGroup) -> int:
    """Multiplications for one pair of a query and a key, over the group's layers and all query heads."""
    return len(group.layers) * spec.heads * (group.k_width + group.v_width)


def _cached_positions(chunks: tuple[Chunk, ...], group: int, block_tokens: int) -> int:
    """Positions computed in earlier steps that the chunks attend to, each once however many chunks share it."""
    filled: dict[int, int] = {}
    for chunk in chunks:
        whole, rest = divmod(chunk.start, block_tokens)
        table = chunk.tables[group]
        filled.update(dict.fromkeys(table[:whole], block_tokens))
        if rest:
            filled[table[whole]] = max(rest, filled.get(table[whole], 0))
    return sum(filled.values())
