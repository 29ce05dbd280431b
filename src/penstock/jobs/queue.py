"""`Queue`: which rows of a plan run next, and what is learned of their answers' lengths meanwhile.

Owns the way through the plan's order: rows that have a result, run already or get an equal row's answer are passed
over. Reads the plan and the store; what becomes of a row is the loop's business.
One idea: the order may change while the job runs, because nothing but the store says what is done. The store knows too
how long the answers are, so a process that goes on starts with all that was learned.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import islice

from penstock.jobs.plan_file import ROWS_A_PAGE, OwnLengths, PlanFile, PlannedRow
from penstock.jobs.store import CRASHES_TO_SUSPECT, State, Store
from penstock.planner import Lengths

FIRST_REVISION = 0.02  # the share of the rows that are answered when the plan is revised for the first time
MIN_ANSWERS = 32
REVISE_AGAIN = 3  # times as many answers as at the revision before
SURPRISES = 0.1  # the share of answers that were not as long as guessed, for a revision to be worth it


class Queue:
    """The rows of a plan that are still to run, in order."""

    def __init__(self, plan: PlanFile, store: Store) -> None:
        self._plan = plan
        self._store = store
        self._lengths = Lengths(plan.forest())
        self._first_revision = self._revise_at = max(MIN_ANSWERS, int(FIRST_REVISION * plan.totals().rows))
        self._is_revised = False
        self._recall()

    def missing(self, is_running: Callable[[int], bool]) -> Iterator[PlannedRow]:
        """The rows without a result that do not run yet, but for those that run last, alone."""
        position = 0
        while page := self._plan.page(position):
            position = page[-1].position
            states = self._store.states([number for row in page for number in (row.row, row.leader)])
            due = [row for row in page if _is_due(row, states) and not is_running(row.row)]  # as of now, all of them
            for row in due:
                if self._is_revised:
                    break
                yield row
            if self._is_revised:
                self._is_revised, position = False, 0

    def suspects(self) -> Iterator[PlannedRow]:
        """The rows that were in flight at too many crashes, in the order of the input."""
        for row in self._store.suspects():
            yield self._plan.find(row)

    def find(self, row: int) -> PlannedRow:
        """One row of the plan."""
        return self._plan.find(row)

    def followers(self, leader: int) -> Generator[list[PlannedRow], None, None]:
        """The rows that get the answer of this one and have none yet, part by part: there may be any number of them."""
        with closing(self._plan.followers(leader)) as rows:
            while part := list(islice(rows, ROWS_A_PAGE)):
                states = self._store.states([row.row for row in part])
                yield [row for row in part if row.row not in states or not states[row.row].is_done]

    def learn(self, row: PlannedRow, output_tokens: int) -> bool:
        """An answer has come: revise the plan where enough answers were not as long as it takes them to be.

        Gives whether it is time to expect anew of the rows that run (see `Lengths.add`).
        """
        if row.tokens is None:
            return False
        knows_more = self._add(row, output_tokens)
        if self._lengths.number >= self._revise_at:
            self._revise_at *= REVISE_AGAIN
            self._revise()
        return knows_more

    def expect(self, row: PlannedRow) -> int | None:
        """How long a row's answer is taken to be, by all that is known now; None: it was not tokenized."""
        if row.tokens is None:
            return None
        return self._lengths.expect(row.node, row.prompt_tokens, row.guess_tokens)

    def _recall(self) -> None:
        """Learn from the answers that there are, whichever process got them."""
        with closing(self._plan.own_lengths()) as rows, closing(self._store.answers()) as answers:
            for row, output_tokens in _answered(rows, answers):
                self._add(row, output_tokens)
        while self._lengths.number >= self._revise_at:
            self._revise_at *= REVISE_AGAIN
        if self._lengths.number >= self._first_revision and not self._plan.is_reordered:
            self._revise()  # a plan that was made anew

    def _add(self, row: PlannedRow | OwnLengths, output_tokens: int) -> bool:
        return self._lengths.add(
            row.node,
            prompt_tokens=row.prompt_tokens,
            guess_tokens=row.guess_tokens,
            output_tokens=output_tokens // row.samples,
        )

    def _revise(self) -> None:
        """Put the plan in the order that is asked for by all that is known, if that is much else than was guessed."""
        if self._lengths.surprises >= SURPRISES * self._lengths.number:
            self._plan.reorder(self._lengths.expect)
            self._is_revised = True


def _answered(rows: Iterator[OwnLengths], answers: Iterator[tuple[int, int]]) -> Iterator[tuple[OwnLengths, int]]:
    """Those of the rows that have an answer, each with its output tokens; all in the order of the input."""
    row: OwnLengths | None = None
    for number, output_tokens in answers:
        while row is None or row.row < number:
            row = next(rows, None)
            if row is None:
                return
        if row.row == number:
            yield row, output_tokens


def _is_due(row: PlannedRow, states: dict[int, State]) -> bool:
    state = states.get(row.row)
    if state is not None and (state.is_done or state.crashes >= CRASHES_TO_SUSPECT):
        return False
    leader = states.get(row.leader)
    return row.leader == row.row or (leader is not None and leader.is_done)
