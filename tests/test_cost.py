"""Protects lower bounds: of a step, exact counts for small plans; of a job, which no plan of it can beat."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cost import Cost, job_cost, least_s, step_cost, token_elements
from penstock.outlines import Outline
from penstock.prefix import common_length
from penstock.request import SamplingParams
from penstock.simulation import SimRow, SimulatedExecutor, simulate
from penstock.step import Chunk, SampleAt, StepPlan, Ticket
from tests.profiles import SPEC, terms

LAYER = 8 * 2 * (2 * 4 + 2 * 2) + 3 * 8 * 16  # q and out, k and v, gate and up and down: 192 + 384
HEAD = 100 * 8
KEPT = 8 * 2 * 2 * 2  # the elements of keys and values
REST = LAYER - KEPT  # what a token needs of the last layer only where something is drawn from it
KV = 3 * 2 * (2 + 2)  # elements of one position: layers x heads x (key + value)
PAIR = 3 * 4 * (2 + 2)  # multiplications of one query and one key: layers x heads x (score + value)


def chunk(sequence: int, start: int, count: int, *blocks: int, samples: int = 0) -> Chunk:
    drawn = tuple(SampleAt(count - 1 - i, 0.0, 0.0, 0, 1.0, 0.0) for i in range(samples))
    return Chunk(sequence, start, (7,) * count, (blocks,), drawn)


def cost(*chunks: Chunk, element_bytes: int = 2) -> Cost:
    return step_cost(SPEC, StepPlan(1, chunks), element_bytes=element_bytes, block_tokens=4)


def test_the_matrices_of_a_layer() -> None:
    assert SPEC.layer_elements == LAYER == 576
    assert replace(SPEC, mlp="gelu_tanh").layer_elements == 192 + 2 * 8 * 16


def test_a_prompt_attends_to_itself_and_samples_once() -> None:
    found = cost(chunk(1, 0, 5, 0, 1, samples=1))
    assert token_elements(SPEC) == 3 * LAYER - REST
    products = 5 * 3 * LAYER - 4 * REST + HEAD
    pairs = (1 + 2 + 3 + 4 + 5) * PAIR - (1 + 2 + 3 + 4) * PAIR // 3
    assert found.flops == 2 * (products + pairs) == 15904
    assert found.moved_bytes == 2 * (3 * LAYER + HEAD + 5 * KV) == 5296


def test_a_part_of_a_prompt_needs_no_head_and_of_the_last_layer_keys_and_values_only() -> None:
    found = cost(chunk(1, 0, 5, 0, 1))
    assert found == Cost(15904 - 2 * (HEAD + REST + 5 * PAIR // 3), 5296 - 2 * (HEAD + REST))


def test_a_decoding_sequence_reads_all_that_it_has() -> None:
    found = cost(chunk(1, 6, 1, 0, 1, samples=1), element_bytes=4)
    assert found.flops == 2 * (3 * LAYER + HEAD + 7 * PAIR)
    assert found.moved_bytes == 4 * (3 * LAYER + HEAD + (6 + 1) * KV)


def test_a_layer_with_a_window_sees_and_reads_no_more_than_that() -> None:
    """One of the three layers sees 3 positions, the new one among them."""
    spec = replace(SPEC, windows=(None, 3, None))
    full = cost(chunk(1, 6, 1, 4, 5, samples=1))
    found = step_cost(spec, StepPlan(1, (chunk(1, 6, 1, 4, 5, samples=1),)), element_bytes=2, block_tokens=4)
    assert full.flops - found.flops == 2 * (7 - 3) * PAIR // 3
    assert full.moved_bytes - found.moved_bytes == 2 * (6 - 2) * KV // 3
    prompt = (chunk(1, 2, 5, 4, 5),)  # queries at 2 .. 6 see 3 each; positions 0 and 1 are read
    found, full = step_cost(spec, StepPlan(1, prompt), element_bytes=2, block_tokens=4), cost(*prompt)
    assert full.flops - found.flops == 2 * (3 + 4 + 5 + 6 + 7 - 5 * 3) * PAIR // 3
    assert full.moved_bytes == found.moved_bytes


def test_a_window_of_the_last_layer_is_that_of_the_tokens_that_are_drawn_from() -> None:
    """Positions 6 .. 9 with a window of 3: only the last one is wanted, and sees none of those that were cached."""
    spec, drawing = replace(SPEC, windows=(None, None, 3)), chunk(1, 6, 4, 4, 5, 6, samples=1)
    found = step_cost(spec, StepPlan(1, (drawing,)), element_bytes=2, block_tokens=4)
    assert found.moved_bytes == 2 * (3 * LAYER + HEAD + 4 * KV + 6 * KV * 2 // 3)
    before = replace(drawing, samples=(replace(drawing.samples[0], offset=1),))  # position 7 sees 5
    found = step_cost(spec, StepPlan(1, (before,)), element_bytes=2, block_tokens=4)
    assert found.moved_bytes == 2 * (3 * LAYER + HEAD + 4 * KV + 6 * KV * 2 // 3 + KV // 3)


def test_blocks_that_sequences_share_are_read_once() -> None:
    alone = cost(chunk(1, 9, 1, 5, 6, 7, samples=1))
    shared = cost(chunk(1, 9, 1, 5, 6, 7, samples=1), chunk(2, 10, 1, 5, 6, 8, samples=1))
    assert shared.moved_bytes - alone.moved_bytes == 2 * KV * (2 + 1)  # two positions of block 8, and a new one


def test_a_block_that_is_read_to_different_depths_counts_the_deepest() -> None:
    found = cost(chunk(1, 3, 1, 5), chunk(2, 2, 1, 5))
    assert found.moved_bytes == 2 * (3 * LAYER - REST + (3 + 2) * KV - 3 * KV // 3)


def test_the_least_time_is_that_of_the_scarcer_resource() -> None:
    assert least_s(Cost(600, 10), flops_per_s=100, bytes_per_s=10) == 6
    assert least_s(Cost(600, 100), flops_per_s=100, bytes_per_s=10) == 10


def test_a_job_of_one_row_costs_what_its_steps_do() -> None:
    prompt, first, second = chunk(1, 0, 5, 0, 1, samples=1), chunk(1, 5, 1, 0, 1, samples=1), chunk(1, 6, 1, 0, 1)
    steps = [cost(prompt), cost(first), cost(replace(second, samples=first.samples))]
    assert job_cost(SPEC, [Outline(5, 5, 3)], element_bytes=2) == Cost(*map(sum, zip(*steps, strict=True)))


def test_all_rows_of_a_job_decode_together_and_what_they_share_is_computed_once() -> None:
    found = job_cost(SPEC, [Outline(10, 10, 4), Outline(12, 2, 6, samples=3)], element_bytes=2)
    tokens = 10 + 2 + 3 + 3 * 1
    pairs = (55 + 11 + 12 + 13) + (11 + 12) + 3 * 13
    reads = 3 * 10 + (0 + 1 + 2) + 1 * 2  # the prompt of the first, then its own tokens; what is new of the second
    wanted, wanted_pairs = 1 + 1 + 3 + 3 * 1, (10 + 12) + (11 + 12 + 13) + 3 * 13
    products = tokens * 3 * LAYER - (tokens - wanted) * REST + (4 + 6) * HEAD
    assert found.flops == 2 * (products + pairs * PAIR - (pairs - wanted_pairs) * PAIR // 3)
    assert found.moved_bytes == 2 * (4 * (3 * LAYER + HEAD) + (tokens + reads) * KV)
    assert job_cost(SPEC, [], element_bytes=2) == Cost(0, 0)


class Watched(SimulatedExecutor):
    """Adds up what the steps of a plan must cost."""

    cost = Cost(0, 0)
    spec = SPEC

    def submit(self, plan: StepPlan) -> Ticket:
        step = step_cost(self.spec, plan, element_bytes=2, block_tokens=4)
        self.cost = Cost(*map(int.__add__, self.cost, step))
        return super().submit(plan)


ROWS = st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=12), st.integers(1, 9), st.integers(1, 3))


@given(
    st.lists(ROWS, max_size=12),
    st.integers(1, 6),
    st.integers(6, 40),
    st.integers(8, 60),
    st.tuples(*[st.none() | st.integers(1, 12)] * SPEC.layers),
    st.randoms(),
)
@settings(max_examples=100)
def test_no_plan_of_a_job_beats_its_cost(
    asked: list[tuple[list[int], int, int]],
    sequences: int,
    budget: int,
    blocks: int,
    windows: tuple[int | None, ...],
    draw: random.Random,
) -> None:
    outlines, rows = [], []
    before: tuple[int, ...] = ()
    for prompt, output_tokens, samples in sorted(asked):
        new = len(prompt) - common_length(prompt, before)
        outlines.append(Outline(len(prompt), new, output_tokens * samples, samples))
        before = tuple(prompt)
        rows.append(SimRow(before, output_tokens, SamplingParams(max_tokens=output_tokens, n=samples)))
    draw.shuffle(rows)
    known = terms(sequences=sequences, budget=budget, blocks=blocks)
    executor = Watched(known)
    executor.spec = spec = replace(SPEC, windows=windows)
    assert simulate(rows, known, executor=executor).failed == 0
    least = job_cost(spec, outlines, element_bytes=2)
    assert least.flops <= executor.cost.flops
    assert least.moved_bytes <= executor.cost.moved_bytes
