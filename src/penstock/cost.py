"""What a step must cost at least: arithmetic and bytes of a `StepPlan`, and the seconds that a machine's limits allow.

Counts only what no engine can leave out: products of matrices, attention, weights read once a step, each cached
position read once however many sequences share it, new positions written. Norms, activations, embedding rows, block
copies and sampling are left out, so the time is a lower bound. Pure arithmetic: no tensors, no clock.
"""

from __future__ import annotations

from typing import NamedTuple

from penstock.models.spec import DecoderSpec, KVGroup
from penstock.step import Chunk, StepPlan


class StepCost(NamedTuple):
    """Floating-point operations (a multiply and an add are two), and bytes read from or written to memory."""

    flops: int
    moved_bytes: int


def step_cost(spec: DecoderSpec, plan: StepPlan, *, element_bytes: int, block_tokens: int) -> StepCost:
    """The cost of a plan, with weights and KV in elements of `element_bytes`."""
    samples = sum(len(chunk.samples) for chunk in plan.chunks)
    layers, head = spec.layers * layer_elements(spec), spec.vocab * spec.hidden
    products = plan.num_tokens * layers + samples * head
    elements = layers + (head if samples else 0)
    for number, group in enumerate(spec.kv_groups):
        products += sum(_attended(chunk) for chunk in plan.chunks) * _attention_products(spec, group)
        positions = plan.num_tokens + _cached_positions(plan.chunks, number, block_tokens)
        elements += positions * len(group.layers) * group.kv_heads * (group.k_width + group.v_width)
    return StepCost(2 * products, elements * element_bytes)


def layer_elements(spec: DecoderSpec) -> int:
    """Elements of the matrices of one layer (norms and biases left out)."""
    attention = spec.hidden * spec.head_dim * (2 * spec.heads + 2 * spec.kv_heads)
    return attention + spec.hidden * spec.mlp_width * (3 if spec.mlp == "swiglu" else 2)


def optimal_s(cost: StepCost, *, flops_per_s: float, bytes_per_s: float) -> float:
    """The least time for a cost: arithmetic and memory at their limits, entirely at the same time."""
    return max(cost.flops / flops_per_s, cost.moved_bytes / bytes_per_s)


def _attended(chunk: Chunk) -> int:
    """Pairs of a query and a key that it sees: position p sees p + 1 keys."""
    return (chunk.end * (chunk.end + 1) - chunk.start * (chunk.start + 1)) // 2


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
