"""`Forecast`: how long a planned job will take and why, with a range; from simulating it, or parts of it.

Owns how parts stand for the whole. A job of more work than `MOST_WORK` is not simulated whole, but in three windows of
consecutive rows, at the start, in the middle and at the end. Each window is run twice, its first half and all of it:
what the second half added, for each unit of weight (what a row takes by its lengths alone), has neither the start nor
the end of a job in it. The job is the first window, and the rest of its weight at the mean of these rates.
One idea: weights are known for every row and cheap, rates differ little; so the product is exact where it matters.
A weight is linear in a row's lengths, so that of any number of rows comes from the sums of theirs (`outlines.py`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import NamedTuple

from penstock.config import ELEMENT_BYTES
from penstock.cost import job_cost, least_s
from penstock.outlines import Outlines, Sums
from penstock.profile import Work
from penstock.simulation import SimRow, Simulated, Terms, simulate

MOST_WORK = 60_000  # tokens drawn in simulations of one job, about: one or two seconds
RUN_WORK = 10_000  # those of a run, whose first row waits for it: less than a second
NUM_WINDOWS = 3
GENERATIONS = 2  # of rows that run at once, in a window: one a half, for rows of one length end together
LEAST_ERROR = 0.1  # what a machine differs from itself, from day to day
LENGTH_FACTOR = 4  # a guessed answer may be so many times shorter, or longer up to its max_tokens


LoadRows = Callable[[int, int], list[SimRow]]
Run = Callable[[tuple[SimRow, ...]], Simulated]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a job will take.

    Attributes:
        simulated: the job's numbers, scaled where not all of it was simulated.
        low_s, high_s: the seconds to be reckoned with; rows: of the job; simulated_rows: those that stood for them.
        error: the relative error of `simulated.seconds`, were all lengths as expected.
        optimal_s: what no plan can beat on this machine with answers so long, by `cost.job_cost`; None: the machine's
            limits are not known.
    """

    simulated: Simulated
    low_s: float
    high_s: float
    error: float
    optimal_s: float | None
    rows: int
    simulated_rows: int

    @property
    def seconds(self) -> float:
        """The seconds expected."""
        return self.simulated.seconds


class Limits(NamedTuple):
    """How much of a job to simulate: work in all, about, in so many windows of multiples of `least_rows` rows."""

    work: float
    windows: int
    least_rows: int


def limits_of_run(max_sequences: int) -> Limits:
    """How much a run simulates before its first row."""
    return Limits(RUN_WORK, 1, GENERATIONS * max_sequences)


class Estimate(NamedTuple):
    """A simulated job; the relative spread of its windows; the rows that were simulated."""

    simulated: Simulated
    spread: float
    rows: int


def forecast(
    outlines: Outlines, load: LoadRows, terms: Terms, *, is_certain: bool, limits: Limits | None = None
) -> Forecast:
    """Predict a job from its rows' lengths; `load(first, last)` gives the rows themselves, in the same order.

    Args:
        is_certain: answers have exactly the lengths given, whatever the model says.
        limits: how much to simulate; None: as much as takes a few seconds.
    """
    run = cache(lambda rows: simulate(rows, terms))  # the variants of many rows are what they are
    load = cache(load)
    expected = estimate(outlines, load, terms, limits, run=run)
    error = math.hypot(max(LEAST_ERROR, 2 * terms.profile.error), 2 * expected.spread)
    seconds = [expected.simulated.seconds]
    if not is_certain:
        for change in (shorter, longer):
            loaded = _changed(load, change)
            seconds.append(estimate(outlines, loaded, terms, limits, run=run).simulated.seconds)
    return Forecast(
        simulated=expected.simulated,
        low_s=min(seconds) / (1 + error),
        high_s=max(seconds) * (1 + error),
        error=error,
        optimal_s=_optimal_s(outlines, terms),
        rows=len(outlines),
        simulated_rows=expected.rows,
    )


def _optimal_s(outlines: Outlines, terms: Terms) -> float | None:
    rates = terms.profile.rates
    if not (rates.flops_per_s and rates.bytes_per_s):
        return None
    cost = job_cost(terms.spec, outlines, element_bytes=ELEMENT_BYTES[terms.config.dtype])
    return least_s(cost, flops_per_s=rates.flops_per_s, bytes_per_s=rates.bytes_per_s)


def shorter(row: SimRow) -> SimRow:
    """The row, should its answer be much shorter than it is taken to be."""
    return _with_output(row, max(1, row.output_tokens // LENGTH_FACTOR))


def longer(row: SimRow) -> SimRow:
    """The row, should its answer be much longer than it is taken to be, as far as its max_tokens go."""
    most = row.output_tokens * LENGTH_FACTOR
    return _with_output(row, min(most, max(row.output_tokens, row.params.max_tokens or most)))


def _with_output(row: SimRow, tokens: int) -> SimRow:
    """The row with an answer so long, which is taken to be as long as before."""
    return row if tokens == row.output_tokens else row._replace(output_tokens=tokens, expected_tokens=row.output_tokens)


def _changed(load: LoadRows, change: Callable[[SimRow], SimRow]) -> LoadRows:
    return lambda first, last: [change(row) for row in load(first, last)]


def estimate(
    outlines: Outlines, load: LoadRows, terms: Terms, limits: Limits | None = None, *, run: Run | None = None
) -> Estimate:
    """Simulate a job, or windows of it; `run` simulates rows, on the same terms."""
    run = run or partial(simulate, terms=terms)
    limits = limits or Limits(MOST_WORK, NUM_WINDOWS, GENERATIONS * terms.config.max_sequences)
    windows = _windows(outlines, terms, limits)
    if _amount(outlines.total, terms) <= limits.work or windows == [(0, len(outlines))]:
        return Estimate(run(tuple(load(0, len(outlines)))), 0.0, len(outlines))
    halves = [(first + (last - first) // 2, last) for first, last in windows]
    runs = [
        _halves(tuple(load(*window)), weight(outlines.sums(*half), terms), run)
        for window, half in zip(windows, halves, strict=True)
    ]
    rates = [each.rates for each in runs]
    rest = weight(outlines.total, terms) - weight(outlines.sums(*windows[0]), terms)
    mean = [statistics.fmean(values) for values in zip(*rates, strict=True)]
    whole = _from_numbers([a + rest * b for a, b in zip(_numbers(runs[0].whole), mean, strict=True)], runs)
    counted = _count_tokens(whole, outlines, halves, runs)
    return Estimate(counted, _spread([rate[0] for rate in rates]), sum(last - first for first, last in windows))


def _spread(values: Sequence[float]) -> float:
    """The relative standard error of the mean; nothing is known of it from one value."""
    if len(values) < 2:
        return 0.0
    return statistics.stdev(values) / statistics.fmean(values) / math.sqrt(len(values))


def _count_tokens(
    whole: Simulated, outlines: Outlines, halves: Sequence[tuple[int, int]], runs: Sequence[_Halves]
) -> Simulated:
    """Tokens are known better than by weight: answers by their lengths, prompts by what of them is new.

    What was computed again, or found beyond what is shared with the row before, is taken from the windows.
    """
    total = outlines.total
    prefilled = sum(run.added_prompt_tokens for run in runs)
    computed = round(prefilled / max(1, sum(outlines.sums(*half).new_tokens for half in halves)) * total.new_tokens)
    return replace(
        whole,
        computed_tokens=computed + total.output_tokens - total.rows,
        cached_tokens=max(0, total.prompt_tokens - computed),
        output_tokens=total.output_tokens,
    )


def _amount(sums: Sums, terms: Terms) -> float:
    """What rows take to simulate: a chunk for each of their tokens drawn, and for each piece of their prompts."""
    return sums.output_tokens + sums.rows + sums.new_tokens / terms.config.token_budget


def weight(sums: Sums, terms: Terms) -> float:
    """What rows take by their lengths alone, in full steps, as if no layer had a window: seconds, about."""
    profile, sequences = terms.profile, terms.config.max_sequences
    budget = terms.config.token_budget
    none = Work(*[0] * len(Work._fields))
    prefill = profile.seconds(none._replace(tokens=budget)) / budget
    decode = profile.seconds(none._replace(tokens=sequences, samples=sequences, chunks=sequences)) / sequences
    read = profile.prices.reads
    return sums.new_tokens * prefill + sums.output_tokens * decode + sums.read_tokens * read


def _windows(outlines: Outlines, terms: Terms, limits: Limits) -> list[tuple[int, int]]:
    """Ranges of rows spread over the job, the last one at its end; fewer where they would touch."""
    rows, number = len(outlines), limits.windows
    part = rows // number
    if number > 1 and part < limits.least_rows:
        return _windows(outlines, terms, limits._replace(windows=1))
    most = limits.work / (1.5 * number)
    found = [(n * part, n * part + _reach(outlines, n * part, terms, most, limits.least_rows)) for n in range(number)]
    if number > 1:
        start, end = found[-1]
        found[-1] = (rows - (end - start), rows)
    return [(start, min(end, rows)) for start, end in found]


def _reach(outlines: Outlines, start: int, terms: Terms, most: float, least_rows: int) -> int:
    """How many rows from `start` on have so much work, in whole multiples of `least_rows`."""
    done, count = 0.0, 0
    while start + count < len(outlines) and (done < most or count % least_rows):
        done += _amount(outlines.sums(start + count, start + count + 1), terms)
        count += 1
    return count


class _Halves(NamedTuple):
    """A window's simulation, and what its second half added for each unit of weight; of prompts, in all."""

    whole: Simulated
    rates: list[float]
    added_prompt_tokens: int


def _halves(rows: tuple[SimRow, ...], added_weight: float, run: Run) -> _Halves:
    half = len(rows) // 2
    first, whole = run(rows[:half]), run(rows)
    added = added_weight or 1.0
    prompts = _prompt_tokens(whole, len(rows)) - _prompt_tokens(first, half)
    return _Halves(whole, [(b - a) / added for a, b in zip(_numbers(first), _numbers(whole), strict=True)], prompts)


def _prompt_tokens(found: Simulated, rows: int) -> int:
    """Tokens of prompts that were computed: an answer's last token is drawn, but not computed."""
    return found.computed_tokens - found.output_tokens + rows


# --- the numbers of a simulation, in a row


_SUMS = ("seconds", "steps", "preemptions", "computed_tokens", "cached_tokens", "output_tokens", "failed")


def _numbers(found: Simulated) -> list[float]:
    """All that adds up over a job, `seconds` first."""
    return [*(float(getattr(found, name)) for name in _SUMS), *found.parts.values()]


def _from_numbers(numbers: Iterable[float], runs: Sequence[_Halves]) -> Simulated:
    values = list(numbers)
    first = runs[0].whole
    types = {field.name: field.type for field in fields(Simulated)}
    sums = {
        name: value if types[name] == "float" else round(max(0.0, value))
        for name, value in zip(_SUMS, values, strict=False)
    }
    return replace(
        first,
        **sums,  # type: ignore[arg-type]
        peak_kv_tokens=max(run.whole.peak_kv_tokens for run in runs),
        parts=dict(zip(first.parts, values[len(_SUMS) :], strict=True)),
        ends_s=(),
    )
