"""`Scheduler`: which tokens of which sequence run in the next step.

Owns the queue, the running sequences, their blocks and the token budget. Never sees a tensor; runs without torch.
One idea: sequences that are decoding always run (there are never more of them than the token budget), and what is
left of the budget computes prompts, oldest first. A sequence is admitted where all that run are expected to find
blocks until they end. Where blocks run out all the same, the youngest sequence gives its own back and will be computed
again; what it had computed stays in the prefix tree as long as nobody needs the room. Of what nobody uses, the prefix
of the next sequence in the queue is given up last: where the queue is in the order of a plan, nothing else is needed.

`plan` decides and takes blocks; nothing counts as computed before `commit`. So a step that failed can be planned again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from penstock.blocks import BlockPool
from penstock.prefix import Match, Node, PrefixTree
from penstock.sequence import End, Sequence
from penstock.step import BlockCopy, StepPlan, StepResult

LOOKAHEAD = 64  # how many waiting sequences are looked at past one that must wait for a prefix in flight


class Wait(StrEnum):
    """Why a sequence is not admitted now."""

    TOKEN_BUDGET = "token budget"
    SEQUENCES = "number of sequences"
    BLOCKS = "KV blocks"
    PREFIX_IN_FLIGHT = "prefix in flight"


class SchedulerStats(NamedTuple):
    """Counts since the start, and the state of now."""

    num_waiting: int
    num_running: int
    computed_tokens: int
    decode_tokens: int
    cached_tokens: int
    preemptions: int
    steps: int


class Progress(NamedTuple):
    """What a committed step did to one sequence: it drew a token, or it failed for this reason."""

    sequence: Sequence
    problem: str | None = None


class Demand(NamedTuple):
    """Blocks that running sequences will take: for the tokens that they have and one more, and until they end."""

    soon: int
    in_all: int


class Scheduler:
    """Plans steps over a pool of `num_blocks` blocks.

    Invariants: every decoding sequence has a chunk in every plan; a plan has at most `token_budget` tokens; the running
    sequences are in order of admission.
    """

    def __init__(self, *, num_blocks: int, block_tokens: int, token_budget: int, max_sequences: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.tree = PrefixTree(self.pool, block_tokens)
        self.block_tokens = block_tokens
        self.token_budget = token_budget
        self.max_sequences = max_sequences
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.outgrown: list[Sequence] = []  # ran alone and still found no block: taken by the engine after `plan`
        self._step = 0
        self._postponed_step = 0  # in which the next sequence's prefix was put behind all that is idle
        self._computed_tokens = 0
        self._decode_tokens = 0  # those of the computed that lie behind their prompt
        self._cached_tokens = 0
        self._preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        self.waiting.append(sequence)

    def plan(self) -> StepPlan:
        """The next step. Empty where nothing can run: then nothing is waiting either, or some have outgrown the KV."""
        self._step += 1
        lengths = self._grow_running()
        self._admit(lengths, self.token_budget - sum(lengths.values()))
        chunks = tuple(s.chunk(lengths[s.number]) for s in self.running if s.number in lengths)
        copies = tuple(s.copy for s in self.running if s.copy is not None)
        return StepPlan(self._step, chunks, copies)

    def _grow_running(self) -> dict[int, int]:
        """Tokens and blocks for each running sequence, decoding ones first; preempts where blocks run out."""
        lengths: dict[int, int] = {}
        left = self.token_budget
        for sequence in sorted(self.running, key=lambda s: not s.is_decoding):  # stable: oldest first in each half
            length = min(sequence.num_to_compute, left)
            if not length or not sequence.blocks:  # no blocks: it was preempted for an older one
                continue
            running = len(self.running)
            if self._make_room(sequence, length, lengths):
                lengths[sequence.number] = length
                left -= length
            if len(self.running) < running:  # some had to go, with what they were to compute
                left = self.token_budget - sum(lengths.values())
        return lengths

    def _make_room(self, sequence: Sequence, length: int, lengths: dict[int, int]) -> bool:
        """Take blocks for `length` more tokens, preempting the youngest; False where the sequence itself had to go."""
        while not self._take_blocks(sequence, sequence.num_computed + length):
            youngest = self.running[-1]
            if youngest is sequence and len(self.running) == 1:
                self._leave(sequence)
                self.outgrown.append(sequence)
            else:
                self._preempt(youngest)
                lengths.pop(youngest.number, None)
            if youngest is sequence:
                return False
        return True

    def _take_blocks(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give a sequence blocks for its first `num_tokens` tokens; False, keeping what it got, where they run out."""
        while len(sequence.blocks) * self.block_tokens < num_tokens:
            block = self.pool.take()
            if block is None and self._evict():
                block = self.pool.take()
            if block is None:
                return False
            sequence.blocks.append(block)
        return True

    def _evict(self) -> bool:
        """Give up an idle block: one that the next sequence in the queue needs only where there is no other."""
        if self.waiting and self._postponed_step != self._step:
            self._postponed_step = self._step
            first = self.waiting[0]
            match = self.tree.match(first.request.namespace, first.tokens, limit=len(first.tokens) - 1)
            for node in reversed(match.nodes):
                self.pool.postpone(node.block)
        return self.tree.evict()

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        self.waiting.appendleft(sequence)
        self._preemptions += 1

    def _leave(self, sequence: Sequence) -> None:
        """Stop running: blocks go back, the deepest first; nothing counts as computed."""
        self.running.remove(sequence)
        self._drop_copy(sequence)
        for block in reversed(sequence.blocks):
            self.pool.release(block)
        sequence.blocks, sequence.nodes, sequence.num_computed = [], [], 0

    def _drop_copy(self, sequence: Sequence) -> None:
        if sequence.copy is not None:
            self.pool.release(sequence.copy.source)
            sequence.copy = None

    # Admission

    def _admit(self, lengths: dict[int, int], budget: int) -> None:
        """Admit waiting sequences in order while they fit, skipping over those that wait for a prefix in flight."""
        skipped: list[Sequence] = []
        # Of all that run: worked out once a step, and only where somebody may join them.
        demand: Demand | None = None
        prefilling: list[Sequence] = []
        while self.waiting and len(skipped) < LOOKAHEAD and self._reason_to_admit_none(budget) is None:
            if demand is None:
                demand = self._demand(self.running)
                prefilling = [s for s in self.running if not s.is_decoding]
            sequence = self.waiting[0]
            match = self.tree.match(sequence.request.namespace, sequence.tokens, limit=len(sequence.tokens) - 1)
            wait = self._reason_to_wait(sequence, match, demand, prefilling)
            if wait is Wait.BLOCKS and match.part is not None:
                match = Match(match.nodes, None)  # the block copied from would be one too many
                wait = self._reason_to_wait(sequence, match, demand, prefilling)
            if wait is Wait.BLOCKS:
                break
            self.waiting.popleft()
            if wait is Wait.PREFIX_IN_FLIGHT:
                skipped.append(sequence)
                continue
            budget -= self._start(sequence, match, budget, lengths)
            demand = Demand(*map(int.__add__, demand, self._demand([sequence])))
            prefilling.append(sequence)
        self.waiting.extendleft(reversed(skipped))

    def _reason_to_admit_none(self, budget: int) -> Wait | None:
        if budget <= 0:
            return Wait.TOKEN_BUDGET
        return Wait.SEQUENCES if len(self.running) >= min(self.max_sequences, self.token_budget) else None

    def _reason_to_wait(
        self, sequence: Sequence, match: Match, demand: Demand, prefilling: Iterable[Sequence]
    ) -> Wait | None:
        if self._prefix_in_flight(sequence, match, prefilling):
            return Wait.PREFIX_IN_FLIGHT
        return None if self._blocks_fit(sequence, match, demand) else Wait.BLOCKS

    def _prefix_in_flight(self, sequence: Sequence, match: Match, prefilling: Iterable[Sequence]) -> bool:
        """Whether one of those running is about to compute more of this one's beginning than can be matched: a block,
        or all of it (another sample of the same prompt), but for the last token.
        """
        matched = len(match.nodes) * self.block_tokens + (match.part.num_tokens if match.part else 0)
        needed = min(matched + self.block_tokens, len(sequence.tokens) - 1)
        if needed <= matched:
            return False
        return any(
            other.num_computed < needed <= len(other.prompt_tokens)
            and other.tokens[needed - 1] == sequence.tokens[needed - 1]  # most differ here already
            and other.request.namespace == sequence.request.namespace
            and other.tokens[:needed] == sequence.tokens[:needed]
            for other in prefilling
        )

    def _blocks_fit(self, sequence: Sequence, match: Match, demand: Demand) -> bool:
        """Whether all known tokens fit beside what runs, and all that will come is expected to."""
        needed = self._num_blocks(len(sequence.tokens) + 1) - len(match.nodes)
        locked = [node.block for node in match.nodes] + ([match.part.block] if match.part else [])
        idle = sum(1 for block in locked if not self.pool.num_references(block))
        free = self.pool.num_available - idle - needed
        if demand.soon > free:
            return False
        growth = (
            demand.in_all + self._num_blocks(len(sequence.tokens) + sequence.num_to_come) - needed - len(match.nodes)
        )
        return growth <= free or not self.running or self._peak_blocks(sequence, needed) <= free + needed

    def _demand(self, sequences: Iterable[Sequence]) -> Demand:
        pairs = [(self._blocks_to_come(s, 1), self._blocks_to_come(s, s.num_to_come)) for s in sequences]
        return Demand(sum(soon for soon, _ in pairs), sum(in_all for _, in_all in pairs))

    def _peak_blocks(self, sequence: Sequence, needed: int) -> float:
        """The most blocks that will be taken at any time, from now on, if `sequence` joins and answers end as expected.

        After t more tokens each sequence that has not ended has taken t / block_tokens blocks and begun another (half
        of one on average), and those that have ended have given theirs back, but for what others use too.
        """
        ends = [(s.num_to_come, self._blocks_to_come(s, 1), self._num_own_blocks(s)) for s in self.running]
        ends = sorted([*ends, (sequence.num_to_come, needed, 0)])
        taken: float = sum(now for _, now, _ in ends)
        peak = taken
        for number, (end, now, own) in enumerate(ends):
            peak = max(peak, taken + (len(ends) - number) * (end / self.block_tokens + 0.5))
            taken -= now + own
        return peak

    def _num_own_blocks(self, sequence: Sequence) -> int:
        return sum(1 for block in sequence.blocks if self.pool.num_references(block) == 1)

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    def _blocks_to_come(self, sequence: Sequence, num_tokens: int) -> int:
        """Blocks that a running sequence will take for the tokens that it has and `num_tokens` more."""
        return max(0, self._num_blocks(len(sequence.tokens) + num_tokens) - len(sequence.blocks))

    def _start(self, sequence: Sequence, match: Match, budget: int, lengths: dict[int, int]) -> int:
        """Admit: take over what the tree has, give blocks to the first chunk; the number of tokens of that chunk."""
        for node in match.nodes:
            self.pool.lock(node.block)
        if match.part is not None:
            self.pool.lock(match.part.block)
        sequence.nodes = list(match.nodes)
        sequence.blocks = [node.block for node in match.nodes]
        cached = len(match.nodes) * self.block_tokens + (match.part.num_tokens if match.part else 0)
        length = min(len(sequence.tokens) - cached, budget)
        fits = self._take_blocks(sequence, cached + length)
        assert fits, "admission promised these blocks"
        if match.part is not None:
            sequence.copy = BlockCopy(0, match.part.block, sequence.blocks[len(match.nodes)], match.part.num_tokens)
        sequence.num_computed = cached
        self._count_cached(sequence, cached)
        self.running.append(sequence)
        lengths[sequence.number] = length
        return length

    def _count_cached(self, sequence: Sequence, cached: int) -> None:
        if not sequence.was_admitted:
            sequence.was_admitted = True
            sequence.num_cached = cached
            self._cached_tokens += cached

    # Results

    def commit(self, plan: StepPlan, result: StepResult) -> list[Progress]:
        """Count a plan's tokens as computed, share its full blocks, append what was drawn; in the plan's order."""
        by_number = {s.number: s for s in self.running}
        progress = []
        for chunk, outcome in zip(plan.chunks, result.chunks, strict=True):
            sequence = by_number.get(chunk.sequence)
            if sequence is None:
                continue  # aborted while the step ran
            self._drop_copy(sequence)
            sequence.num_computed = chunk.end
            self._computed_tokens += len(chunk.tokens)
            self._decode_tokens += max(0, chunk.end - max(chunk.start, len(sequence.prompt_tokens)))
            self._share(sequence)
            for drawn in outcome.sampled:
                sequence.append(drawn)
            if outcome.sampled or outcome.problem is not None:
                progress.append(Progress(sequence, outcome.problem))
        return progress

    def _share(self, sequence: Sequence) -> None:
        """Put newly filled blocks into the tree, and a prompt's last, partly filled one as soon as it is computed."""
        size = self.block_tokens
        while (len(sequence.nodes) + 1) * size <= sequence.num_computed:
            at = len(sequence.nodes)
            sequence.nodes.append(self._insert(sequence, at, tuple(sequence.tokens[at * size : (at + 1) * size])))
        at = len(sequence.nodes)
        if sequence.num_computed == len(sequence.prompt_tokens) > at * size:
            self.tree.insert(self._parent(sequence), sequence.prompt_tokens[at * size :], block=sequence.blocks[at])

    def _insert(self, sequence: Sequence, at: int, tokens: tuple[int, ...]) -> Node:
        """Insert block number `at`; where the tree has its content already, use the tree's block instead."""
        own = sequence.blocks[at]
        node = self.tree.insert(self._parent(sequence), tokens, block=own)
        if node.block != own:
            self.pool.lock(node.block)
            self.pool.release(own)
            sequence.blocks[at] = node.block
        return node

    def _parent(self, sequence: Sequence) -> Node:
        return sequence.nodes[-1] if sequence.nodes else self.tree.root(sequence.request.namespace)

    def finish(self, sequence: Sequence, end: End | None) -> None:
        """End a sequence, running or waiting; None: it was aborted or failed."""
        if sequence in self.running:
            shared = sequence.shared_tokens
            own = [] if shared is None else sequence.blocks[self._num_blocks(shared) :]
            self._leave(sequence)
            self.tree.forget(reversed(own))
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        sequence.end = end

    def shrink(self, num_tokens: int) -> int:
        """Plan less than half of the `num_tokens` that did not fit from now on; the new token budget (1 at least)."""
        self.token_budget = max(1, min(self.token_budget, num_tokens) // 2)
        while len(self.running) > self.token_budget:
            self._preempt(self.running[-1])
        return self.token_budget

    def stats(self) -> SchedulerStats:
        """Counts since the start, and the state of now."""
        return SchedulerStats(
            len(self.waiting),
            len(self.running),
            self._computed_tokens,
            self._decode_tokens,
            self._cached_tokens,
            self._preemptions,
            self._step,
        )
