"""`PlannedJob`: a plan as the forecast needs it, and `Outlook`: all that `penstock plan` says of a job.

Owns the way from a plan's rows to rows that can be simulated. Of each row only lengths are held and its place in the
order; the rows that are simulated, or looked at as texts, are read again from the plan and the input.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from penstock.forecast import Forecast, forecast, limits_of_run, weight
from penstock.jobs.advice import Advice, advise
from penstock.jobs.formats import LineReader
from penstock.jobs.plan_file import PlacedRow, PlanFile, PlannedRow, PlanTotals
from penstock.jobs.timeline import PredictedAt, Prediction
from penstock.jobs.tokenizing import Setup
from penstock.outlines import Outline, Outlines, Sums
from penstock.planner import unpack_tokens
from penstock.protocol import BatchRow, parse_row
from penstock.request import SamplingParams
from penstock.simulation import SimRow, Terms

SAMPLE_ROWS = 200
CURVE_POINTS = 100


class PlannedJob:
    """The rows of a plan that are computed: not those that cannot be answered, nor those that get another's answer."""

    def __init__(self, plan: PlanFile, input_file: Path, is_done: Callable[[int], bool] = lambda row: False) -> None:
        """`is_done` tells of a row that nothing needs to be computed for it any more."""
        self._plan = plan
        self._is_done = is_done
        self._lines = LineReader(input_file)
        self._positions = array("q")
        self.repeated = Sums()  # of the rows that ask what the row before them asks, and are drawn anew all the same
        self.outlines = Outlines(self._read())

    def _read(self) -> Iterator[Outline]:
        """The rows in the order in which they run; what of each is new, in that of the tree, where neighbours are."""
        tree = _Tree(self._plan.placed_rows(), self._is_done)
        for position, place, expected_tokens in self._plan.run_order():
            if tree.samples[place]:
                self._positions.append(position)
                samples = tree.samples[place]
                outline = Outline(tree.prompts[place], tree.new[place], expected_tokens * samples, samples)
                self.repeated = self.repeated if outline.new_tokens else self.repeated.plus(outline)
                yield outline

    def load(self, first: int, last: int) -> list[SimRow]:
        """The rows number first .. last, as they can be simulated."""
        return [
            SimRow(
                unpack_tokens(row.tokens or b""),
                row.expected_tokens,
                self._asks(row).params,
                shared_tokens=row.shared_tokens,
            )
            for row in self._rows(first, last)
        ]

    @cached_property
    def sample(self) -> list[BatchRow]:
        """Some rows, evenly spread over the job."""
        count = len(self._positions)
        numbers = sorted({n * count // SAMPLE_ROWS for n in range(min(SAMPLE_ROWS, count))} if count else ())
        if count <= SAMPLE_ROWS:
            numbers = list(range(count))
        return [self._asks(row) for number in numbers for row in self._rows(number, number + 1)]

    @property
    def is_certain(self) -> bool:
        """Whether answers have the lengths that the rows ask for, by those of the sample."""
        return all(is_fixed(asks.params) for asks in self.sample)

    def prediction(self, found: Forecast, terms: Terms, *, rows: int, before_s: float = 0.0) -> Prediction:
        """What is said of a run of so many rows, bad and equal ones too, that begins to compute after `before_s`."""
        simulated = found.simulated
        return Prediction(
            rows=rows,
            predicted_s=before_s + found.seconds,
            least_s=before_s + found.low_s,
            most_s=before_s + found.high_s,
            optimal_s=found.optimal_s,
            prefill_tokens=max(0, simulated.computed_tokens - simulated.output_tokens + len(self.outlines)),
            cached_tokens=simulated.cached_tokens,
            output_tokens=simulated.output_tokens,
            parts_s=simulated.parts,
            curve=tuple(PredictedAt(before_s + at_s, round(rows * share)) for at_s, share in self._curve(found, terms)),
        )

    def _curve(self, found: Forecast, terms: Terms) -> Iterator[tuple[float, float]]:
        """After how many seconds which share of the rows is expected to be finished, as it was simulated; else in the
        order of the plan, each row at its share of the weight.

        Rows that cost nothing (bad ones, and those that get another's answer) are spread over the others.
        """
        number, ends_s = len(self.outlines), found.simulated.ends_s
        step = max(1, number // CURVE_POINTS)
        parts = [(start, min(start + step, number)) for start in range(0, number, step)]
        if ends_s:
            yield ends_s[0], 0.0
            yield from ((ends_s[end - 1], end / number) for _, end in parts)
            return
        whole, done = weight(self.outlines.total, terms), 0.0
        for start, end in parts:
            done += weight(self.outlines.sums(start, end), terms)
            yield found.seconds * done / whole, end / number

    def _rows(self, first: int, last: int) -> Iterator[PlannedRow]:
        if first < last:
            before, end = self._positions[first] - 1, self._positions[last - 1]
            yield from filter(self._is_computed, self._plan.page(before, end - before))

    def _asks(self, row: PlannedRow) -> BatchRow:
        return parse_row(row.text(self._lines))

    def _is_computed(self, row: PlannedRow) -> bool:
        is_own = row.tokens is not None and row.leader == row.row and row.first_line is None
        return is_own and not self._is_done(row.row)

    def close(self) -> None:
        """Close the input."""
        self._lines.close()


class _Tree:
    """The lengths of prompts by their place (from 1): of each prompt, and of what is new after the one before it.

    Only rows that are computed count; `samples` is 0 for the others.
    """

    def __init__(self, rows: Iterable[PlacedRow], is_done: Callable[[int], bool]) -> None:
        self.prompts, self.new, self.samples = (array("i", [0]) for _ in range(3))
        shared = 0  # with the last prompt that counts: the least of what neighbours share since then
        for row, leader, prompt_tokens, shared_tokens, samples in rows:
            shared = min(shared, shared_tokens)
            is_computed = leader == row and not is_done(row)
            self.prompts.append(prompt_tokens)
            self.new.append(prompt_tokens - shared)
            self.samples.append(samples if is_computed else 0)
            if is_computed:
                shared = prompt_tokens


def is_fixed(params: SamplingParams) -> bool:
    """Whether an answer has max_tokens, whatever the model says."""
    if params.max_tokens is None:
        return False
    never_ends = params.ignore_eos and not params.stop and not params.stop_token_ids
    return never_ends or params.min_tokens >= params.max_tokens or params.max_tokens == 1


class Price(NamedTuple):
    """What an hour of the machine costs, and what it draws; None where it was not said."""

    per_hour: float | None = None
    watts: float | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """What `penstock plan` says of a job.

    Attributes:
        totals: the plan's numbers; forecast: what it will take; advice: what would help most, best first.
        prediction: of a run, from the first look at the input to the last answer.
        kv_bytes: what the job's keys and values take at most at once; kv_memory_bytes: what they may take.
        is_certain: whether answers have exactly the lengths expected.
        reading_s: what it took to read the rows, put them in order and simulate as many as a run does, all of which a
            run does too before its first row.
    """

    totals: PlanTotals
    forecast: Forecast
    prediction: Prediction
    advice: tuple[Advice, ...]
    kv_bytes: int
    kv_memory_bytes: int
    is_certain: bool
    price: Price
    reading_s: float

    @property
    def seconds(self) -> float:
        """The seconds expected."""
        return self.prediction.predicted_s

    @property
    def low_s(self) -> float:
        """The least of them to be reckoned with."""
        return self.prediction.least_s

    @property
    def high_s(self) -> float:
        """The most of them."""
        return self.prediction.most_s

    @property
    def optimal_share(self) -> float | None:
        """What part of the time no plan can save on this machine."""
        least = self.forecast.optimal_s
        return least / self.seconds if least is not None and self.seconds else None

    @property
    def hit_share(self) -> float:
        """The share of prompt tokens that are found in the cache."""
        found = self.forecast.simulated
        total = found.cached_tokens + found.computed_tokens - found.output_tokens
        return found.cached_tokens / total if total > 0 else 0.0

    @property
    def money(self) -> float | None:
        """What the machine costs for that long."""
        return None if self.price.per_hour is None else self.price.per_hour * self.seconds / 3600

    @property
    def energy_kwh(self) -> float | None:
        """What it draws meanwhile, in kilowatt-hours."""
        return None if self.price.watts is None else self.price.watts * self.seconds / 3.6e6


def look_ahead(
    plan: PlanFile,
    input_file: Path,
    *,
    terms: Terms,
    setup: Setup,
    price: Price,
    reading_s: float,
    memory_bytes: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outlook:
    """Forecast a job, planned in `reading_s` seconds within `memory_bytes`, and look for what would help it."""
    job = PlannedJob(plan, input_file)
    try:
        before_s = clock()
        limits = limits_of_run(terms.config.max_sequences)
        found = forecast(job.outlines, job.load, terms, is_certain=job.is_certain, limits=limits)
        reading_s += clock() - before_s
        if found.simulated_rows < found.rows:  # nobody waits for a first row here
            found = forecast(job.outlines, job.load, terms, is_certain=job.is_certain)
        totals = plan.totals()
        return Outlook(
            totals=totals,
            forecast=found,
            prediction=job.prediction(found, terms, rows=totals.rows, before_s=reading_s),
            advice=advise(job, terms=terms, setup=setup, seconds=found.seconds, memory_bytes=memory_bytes),
            kv_bytes=found.simulated.peak_kv_tokens * terms.kv_bytes_per_token,
            kv_memory_bytes=terms.config.kv_memory_bytes,
            is_certain=job.is_certain,
            price=price,
            reading_s=reading_s,
        )
    finally:
        job.close()
