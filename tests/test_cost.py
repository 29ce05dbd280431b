"""Protects the lower bound of a step: exact counts for small plans, and each shared position once."""

from __future__ import annotations

from dataclasses import replace

from penstock.cost import StepCost, layer_elements, optimal_s, step_cost
from penstock.step import Chunk, SampleAt, StepPlan
from tests.profiles import SPEC

LAYER = 8 * 2 * (2 * 4 + 2 * 2) + 3 * 8 * 16  # q and out, k and v, gate and up and down: 192 + 384
HEAD = 100 * 8
KV = 3 * 2 * (2 + 2)  # elements of one position: layers x heads x (key + value)
PAIR = 3 * 4 * (2 + 2)  # multiplications of one query and one key: layers x heads x (score + value)


def chunk(sequence: int, start: int, count: int, *blocks: int, samples: int = 0) -> Chunk:
    drawn = tuple(SampleAt(count - 1 - i, 0.0, 0.0, 0, 1.0, 0.0) for i in range(samples))
    return Chunk(sequence, start, (7,) * count, (blocks,), drawn)


def cost(*chunks: Chunk, element_bytes: int = 2) -> StepCost:
    return step_cost(SPEC, StepPlan(1, chunks), element_bytes=element_bytes, block_tokens=4)


def test_the_matrices_of_a_layer() -> None:
    assert layer_elements(SPEC) == LAYER == 576
    assert layer_elements(replace(SPEC, mlp="gelu_tanh")) == 192 + 2 * 8 * 16


def test_a_prompt_attends_to_itself_and_samples_once() -> None:
    found = cost(chunk(1, 0, 5, 0, 1, samples=1))
    assert found.flops == 2 * (5 * 3 * LAYER + HEAD + (1 + 2 + 3 + 4 + 5) * PAIR) == 20320
    assert found.moved_bytes == 2 * (3 * LAYER + HEAD + 5 * KV) == 5296


def test_a_part_of_a_prompt_needs_no_head() -> None:
    found = cost(chunk(1, 0, 5, 0, 1))
    assert found == StepCost(20320 - 2 * HEAD, 5296 - 2 * HEAD)


def test_a_decoding_sequence_reads_all_that_it_has() -> None:
    found = cost(chunk(1, 6, 1, 0, 1, samples=1), element_bytes=4)
    assert found.flops == 2 * (3 * LAYER + HEAD + 7 * PAIR)
    assert found.moved_bytes == 4 * (3 * LAYER + HEAD + (6 + 1) * KV)


def test_blocks_that_sequences_share_are_read_once() -> None:
    alone = cost(chunk(1, 9, 1, 5, 6, 7))
    shared = cost(chunk(1, 9, 1, 5, 6, 7), chunk(2, 10, 1, 5, 6, 8))
    assert shared.moved_bytes - alone.moved_bytes == 2 * KV * (2 + 1)  # two positions of block 8, and a new one


def test_a_block_that_is_read_to_different_depths_counts_the_deepest() -> None:
    found = cost(chunk(1, 3, 1, 5), chunk(2, 2, 1, 5))
    assert found.moved_bytes == 2 * (3 * LAYER + (3 + 2) * KV)


def test_the_optimal_time_is_that_of_the_scarcer_resource() -> None:
    assert optimal_s(StepCost(600, 10), flops_per_s=100, bytes_per_s=10) == 6
    assert optimal_s(StepCost(600, 100), flops_per_s=100, bytes_per_s=10) == 10
