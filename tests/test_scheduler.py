"""Protects the scheduler: exact plans, and invariants that hold after any sequence of add, step, abort and shrink."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.request import FinishReason, Namespace, Request, SamplingParams, TokenLogprob, TokenSpan
from penstock.scheduler import Scheduler
from penstock.sequence import End, Sequence
from penstock.step import BlockCopy, ChunkResult, StepPlan, StepResult


def next_token(tokens: list[int]) -> int:
    """A model that needs no tensors: the next token depends on all tokens so far."""
    return random.Random(str(tokens)).randrange(50)


@dataclass
class Bench:
    """A scheduler with that model behind it, and a record of what its blocks hold."""

    scheduler: Scheduler
    sequences: dict[int, Sequence] = field(default_factory=dict)
    content: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)

    def add(
        self,
        tokens: list[int],
        *,
        max_tokens: int = 4,
        expected: int | None = None,
        shared: int | None = None,
        namespace: Namespace | None = None,
    ) -> Sequence:
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        request = Request((TokenSpan(tuple(tokens)),), params, namespace=namespace or Namespace())
        number = len(self.sequences)
        sequence = Sequence(
            number,
            request,
            sample=0,
            eos_ids=frozenset(),
            context_tokens=10_000,
            expected_tokens=expected,
            shared_tokens=shared,
        )
        self.sequences[number] = sequence
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> StepPlan:
        plan = self.scheduler.plan()
        for sequence in self.scheduler.outgrown:
            self.scheduler.finish(sequence, None)
        self.scheduler.outgrown.clear()
        self.write(plan)
        results = []
        for chunk in plan.chunks:
            token = next_token(self.sequences[chunk.sequence].tokens[: chunk.end])
            drawn = tuple(TokenLogprob(token, 0.0, ()) for _ in chunk.samples)
            results.append(ChunkResult(chunk.sequence, drawn))
        for progress in self.scheduler.commit(plan, StepResult(plan.step, tuple(results))):
            end = progress.sequence.find_end(lambda ids: "")
            if end is not None:
                self.scheduler.finish(progress.sequence, end)
        return plan

    def write(self, plan: StepPlan) -> None:
        """Do to a model of the KV what an executor would, and check that every chunk finds what it needs."""
        size = self.scheduler.block_tokens
        for copy in plan.copies:
            for slot in range(copy.num_tokens):
                self.content[copy.target, slot] = self.content[copy.source, slot]
        for chunk in plan.chunks:
            table, tokens = chunk.tables[0], self.sequences[chunk.sequence].tokens
            for position in range(chunk.end):
                key = table[position // size], position % size
                if position >= chunk.start:
                    self.content[key] = tuple(tokens[: position + 1])
                assert self.content[key] == tuple(tokens[: position + 1]), f"wrong KV at {position} of {chunk}"

    def check(self) -> None:
        scheduler = self.scheduler
        counts = scheduler.pool.counts()
        assert counts.free + counts.idle + counts.used == counts.total
        held = {block for s in scheduler.running for block in s.blocks}
        held |= {s.copy.source for s in scheduler.running if s.copy}
        assert counts.used == len(held)
        scheduler.tree.verify()
        for sequence in scheduler.running:
            assert len(sequence.blocks) * scheduler.block_tokens >= sequence.num_computed
            assert [n.block for n in sequence.nodes] == sequence.blocks[: len(sequence.nodes)]
        assert not any(s.blocks for s in scheduler.waiting)


def bench(*, num_blocks: int = 32, token_budget: int = 16, max_sequences: int = 8) -> Bench:
    return Bench(
        Scheduler(num_blocks=num_blocks, block_tokens=4, token_budget=token_budget, max_sequences=max_sequences)
    )


def shape(plan: StepPlan) -> list[tuple[int, int, int]]:
    """(sequence, start, tokens) of each chunk."""
    return [(c.sequence, c.start, len(c.tokens)) for c in plan.chunks]


def test_a_long_prompt_is_computed_in_chunks_beside_those_that_decode() -> None:
    b = bench(token_budget=8)
    b.add([1, 2, 3])
    b.add(list(range(10, 22)))
    assert shape(b.step()) == [(0, 0, 3), (1, 0, 5)]
    assert shape(b.step()) == [(0, 3, 1), (1, 5, 7)]
    assert shape(b.step()) == [(0, 4, 1), (1, 12, 1)]


def test_a_prefix_that_is_being_computed_is_waited_for_and_then_shared() -> None:
    b = bench(token_budget=12)
    b.add([*range(8), 20, 21])
    b.add([*range(8), 30, 31])
    b.add([9, 9])
    assert shape(b.step()) == [(0, 0, 10), (2, 0, 2)]
    plan = b.step()
    assert shape(plan) == [(0, 10, 1), (2, 2, 1), (1, 8, 2)]
    assert b.sequences[1].num_cached == 8
    assert plan.chunks[2].tables[0][:2] == plan.chunks[0].tables[0][:2]


def test_a_hit_that_ends_inside_a_block_copies_its_part() -> None:
    b = bench()
    b.add([1, 2, 3, 4, 5, 6, 7], max_tokens=1)
    b.step()
    b.add([1, 2, 3, 4, 5, 6, 8, 9])
    plan = b.step()
    assert shape(plan) == [(1, 6, 2)]
    assert plan.copies == (BlockCopy(0, 1, 2, 2),)
    b.check()


def test_an_equal_prompt_computes_its_last_token_again() -> None:
    b = bench()
    b.add([1, 2, 3, 4], max_tokens=1)
    b.step()
    b.add([1, 2, 3, 4], max_tokens=1)
    assert shape(b.step()) == [(1, 3, 1)]


def test_the_youngest_gives_its_blocks_back_when_they_run_out_and_comes_back() -> None:
    b = bench(num_blocks=4, token_budget=16)
    old = b.add([1, 2, 3, 4, 5, 6], max_tokens=6, expected=2)
    young = b.add([11, 12, 13, 14, 15, 16], max_tokens=6, expected=1)  # a wrong guess
    while old.end is None or young.end is None:
        b.step()
        b.check()
    assert b.scheduler.stats().preemptions == 1
    assert old.end == young.end == End(FinishReason.LENGTH)
    expected = [11, 12, 13, 14, 15, 16]
    for _ in range(6):
        expected.append(next_token(expected))
    assert young.tokens == expected


def test_a_sequence_that_would_have_to_go_again_is_not_admitted() -> None:
    b = bench(num_blocks=4, token_budget=16)
    old = b.add([1, 2, 3, 4, 5, 6], max_tokens=6)
    young = b.add([11, 12, 13, 14, 15, 16], max_tokens=6)
    while old.end is None:
        b.step()
        assert young not in b.scheduler.running
    while young.end is None:
        b.step()
    assert b.scheduler.stats().preemptions == 0


def test_what_ends_in_time_makes_room_for_what_grows() -> None:
    """The three grow to 13 blocks together, but never at one time: 11 are surely enough, and 9 are not."""
    for num_blocks, num_running in ((11, 3), (9, 2)):
        b = bench(num_blocks=num_blocks, token_budget=16)
        for first, max_tokens in ((1, 1), (2, 1), (3, 30)):
            b.add([first] * 4, max_tokens=max_tokens + 1)
        b.step()
        assert len(b.scheduler.running) == num_running
        while b.scheduler.running or b.scheduler.waiting:
            b.step()
            b.check()
        assert b.scheduler.stats().preemptions == 0


def test_of_what_is_idle_the_prefix_of_the_next_one_goes_last() -> None:
    b = bench(num_blocks=6, token_budget=16, max_sequences=1)
    b.add([1, 2, 3, 4, 5], max_tokens=1)  # leaves 1 2 3 4 idle, the oldest of all
    b.add([9, 9, 9, 9, 9, 9, 9, 9, 9], max_tokens=1)
    for _ in range(2):
        b.step()
    b.add([7] * 17, max_tokens=1)  # needs 5 blocks of 6
    b.add([1, 2, 3, 4, 6], max_tokens=1)
    for _ in range(4):
        b.step()
        b.check()
    assert b.scheduler.stats().cached_tokens == 4


def test_what_no_other_one_begins_with_makes_room_at_once() -> None:
    b = bench(num_blocks=20, max_sequences=1)
    used = set()
    for last in range(4):
        sequence = b.add([1, 2, 3, 4, last, *range(last, last + 7)], max_tokens=5, shared=4)
        while sequence.end is None:
            b.step()
            b.check()
            used |= set(sequence.blocks)
    assert used == {0, 1, 2, 3}, "one block of what is shared, and three that all used"
    assert b.scheduler.stats().cached_tokens == 3 * 4
    assert b.scheduler.pool.counts().idle == 1


def test_a_sequence_that_outgrows_all_blocks_is_given_up_alone() -> None:
    b = bench(num_blocks=2)
    lonely = b.add([1, 2, 3, 4, 5, 6], max_tokens=20)
    for _ in range(4):
        b.step()
    assert lonely.end is None
    assert not b.scheduler.running
    assert b.scheduler.pool.num_available == 2


def test_decoding_sequences_never_exceed_the_budget_and_never_wait() -> None:
    b = bench(token_budget=3, max_sequences=8)
    for start in range(6):
        b.add([100 + start], max_tokens=5)
    while b.scheduler.running or b.scheduler.waiting:
        decoding = {s.number for s in b.scheduler.running if s.is_decoding}
        plan = b.step()
        assert plan.num_tokens <= 3
        assert decoding <= {c.sequence for c in plan.chunks}


def test_a_step_that_failed_is_planned_again_smaller() -> None:
    b = bench(token_budget=16)
    b.add([1, 2, 3, 4, 5, 6, 7], max_tokens=1)
    b.step()
    b.add([1, 2, 3, 4, 5, 6, 8, 9, 10, 11])
    lost = b.scheduler.plan()
    assert b.scheduler.shrink(lost.num_tokens) == 2
    plan = b.step()
    assert shape(plan) == [(1, 6, 2)]
    assert plan.copies == lost.copies
    b.check()


def test_namespaces_do_not_share() -> None:
    b = bench()
    b.add([1, 2, 3, 4, 5], max_tokens=1)
    b.step()
    b.add([1, 2, 3, 4, 5], namespace=Namespace(salt="other"))
    assert shape(b.step()) == [(1, 0, 5)]


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=20)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), prompts, st.integers(1, 8)),
        st.tuples(st.just("step"), st.integers(1, 3), st.just(0)),
        st.tuples(st.just("abort"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("shrink"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


def test_tokens_behind_the_prompt_count_as_decode() -> None:
    bench = Bench(Scheduler(num_blocks=32, block_tokens=4, token_budget=6, max_sequences=4))
    bench.add(list(range(10)), max_tokens=4)
    seen = []
    for _ in range(5):
        bench.step()
        stats = bench.scheduler.stats()
        seen.append((stats.computed_tokens, stats.decode_tokens))
    assert seen == [(6, 0), (10, 0), (11, 1), (12, 2), (13, 3)]


@settings(max_examples=300)
@given(actions, st.integers(3, 24), st.integers(1, 24), st.integers(1, 6))
def test_any_sequence_of_actions_keeps_the_invariants(
    todo: list[tuple[str, object, int]], num_blocks: int, token_budget: int, max_sequences: int
) -> None:
    b = bench(num_blocks=num_blocks, token_budget=token_budget, max_sequences=max_sequences)
    for action, argument, number in todo:
        if action == "add":
            assert isinstance(argument, list)
            if -(-(len(argument) + 1) // 4) <= num_blocks:
                b.add(argument, max_tokens=number, shared=None if number % 2 else number)
        elif action == "step":
            assert isinstance(argument, int)
            for _ in range(argument):
                b.step()
        elif action == "shrink":
            b.scheduler.shrink(b.scheduler.plan().num_tokens)
            b.scheduler.outgrown.clear()
        elif isinstance(argument, int) and argument in b.sequences:
            b.scheduler.finish(b.sequences[argument], None)
        b.check()
    for _ in range(600):
        if not (b.scheduler.running or b.scheduler.waiting):
            break
        b.step()
        b.check()
    assert not b.scheduler.running
    assert not b.scheduler.waiting
    assert b.scheduler.pool.counts().used == 0
    for sequence in b.sequences.values():
        if sequence.end is not None:
            tokens = list(sequence.prompt_tokens)
            while len(tokens) < len(sequence.tokens):
                tokens.append(next_token(tokens))
            assert tokens == sequence.tokens
