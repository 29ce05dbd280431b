"""The pictures of a report that have time as their axis, each with the words that belong to it.

Owns what is drawn of a timeline: rows against their prediction, what the steps computed, the KV memory, the sequences.
Runs stand behind each other, with a mark where each begins.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from penstock.jobs.charts import Area, Frame, Hint, Line, Mark, Point, chart, stack
from penstock.jobs.report_facts import Facts, Stretch
from penstock.jobs.timeline import PredictedAt, Prediction, Sample
from penstock.jobs.wording import SPACE, count, percent, plural, runs, safe, short, spell_s, whole_number

T = TypeVar("T")
MOST_POINTS = 400  # of a curve: about one for each pixel of a phone
MOST_BINS = 90
MOST_COMPARED = 6  # predictions in words
MOST_MARKS = 40
MARK_SHARE = 0.22  # of the axis: the room that the name of a run takes on a phone, at its end too
HEADROOM = 1.08
KINDS = (
    ("Prefill", "prefill", "prefill_tokens"),
    ("Decode", "decode", "decode_tokens"),
    ("Reused from the prefix cache", "reused", "cached_tokens"),
)
NOTHING = '<p class="quiet">Not known: the runs of this job recorded no timeline.</p>'


def progress(facts: Facts) -> str:
    """Rows finished over time, and what was predicted of each run."""
    if not facts.engine_s:
        return NOTHING
    actual = _curve(facts, lambda sample: sample.rows)
    expected = [shape for s in facts.stretches if s.history.prediction for shape in _expected(s, s.history.prediction)]
    shapes = [*expected, Line("Finished", "actual", _fewer(actual))]
    end_s = _end_of(facts)
    drawn = chart(
        Frame(end_s, _most_rows(facts, actual) * HEADROOM, write_y=whole_number),
        shapes,
        title="rows finished over time",
        marks=_marks(facts, end_s),
    )
    return drawn + "".join(f'<p class="quiet">{safe(line)}</p>' for line in _compared(facts))


def composition(facts: Facts) -> str:
    """Tokens a second by kind, each bin's mean; below, on an axis of its own, what did not have to be computed."""
    if not facts.engine_s:
        return NOTHING
    bins = _bins(facts)
    rates = [_rates(facts, field, bins) for _, _, field in KINDS]
    width = facts.engine_s / bins
    told = [Hint(place * width, width, _tell(place * width, row)) for place, row in enumerate(zip(*rates, strict=True))]
    computed = _rate_chart(facts, KINDS[:2], rates[:2], hints=told, title="tokens a second that were computed")
    reused = _rate_chart(facts, KINDS[2:], rates[2:], hints=told, title="tokens a second that were reused")
    return f'{computed}<div class="strip">{reused}</div><p class="quiet">{safe(_in_all(facts))}</p>'


def _rate_chart(
    facts: Facts,
    kinds: Sequence[tuple[str, str, str]],
    rates: Sequence[Sequence[float]],
    *,
    hints: list[Hint],
    title: str,
) -> str:
    rows = list(zip(*rates, strict=True))
    areas = stack([(name, style) for name, style, _ in kinds], *_to_the_edges(rows, facts.engine_s))
    frame = Frame(facts.engine_s, max(map(sum, rows)) * HEADROOM or 1.0)
    return chart(frame, areas, title=title, marks=_marks(facts, facts.engine_s), hints=hints)


def _rates(facts: Facts, field: str, bins: int) -> list[float]:
    """A count a second, in each of `bins` equal bins."""
    edges = _at_edges(_sums(facts, field), bins, facts.engine_s)
    return [(after - before) * bins / facts.engine_s for before, after in pairwise(edges)]


def kv_residency(facts: Facts) -> str:
    """The shares of the KV memory that running sequences hold, that keep prefixes for later rows, and that are free."""
    if not facts.engine_s:
        return NOTHING
    end_s = facts.engine_s
    ground, full = ((Point(0.0, y), Point(end_s, y)) for y in (0.0, 100.0))
    used, held = (_kv_shares(facts, field) for field in ("kv_used_tokens", "kv_held_tokens"))
    areas = [
        Area("Free", "free", ground, full),
        Area("Prefixes kept for later rows", "kept", ground, held),
        Area("Running sequences", "kv", ground, used),
    ]
    most = 100.0
    unknown = [s.run.run for s in facts.stretches if any(at.kv_kept_tokens is None for at in s.history.samples)]
    if unknown:
        areas, most = areas[-1:], min(100.0, max(point.y for point in used) * 1.25) or 1.0
    frame = Frame(end_s, most, write_y=lambda y: f"{y:.3g}{SPACE}%")
    drawn = chart(frame, areas, title="shares of the KV memory", marks=_marks(facts, end_s))
    if not unknown:
        return drawn
    return f'{drawn}<p class="quiet">{safe(runs(unknown))}: how much kept prefixes took was not recorded.</p>'


def _kv_shares(facts: Facts, field: str) -> tuple[Point, ...]:
    return _states(facts, lambda s: 100 * getattr(s, field) / s.kv_total_tokens if s.kv_total_tokens else 0.0)


def sequences(facts: Facts) -> str:
    """How many sequences run and wait."""
    if not facts.engine_s:
        return NOTHING
    running, waiting = _states(facts, lambda s: s.running), _states(facts, lambda s: s.waiting)
    most = max(point.y for point in (*running, *waiting)) or 1.0
    lines = [Line("Waiting", "waiting", waiting), Line("Running", "running", running)]
    frame = Frame(facts.engine_s, most * HEADROOM, write_y=whole_number)
    return chart(frame, lines, title="sequences running and waiting", marks=_marks(facts, facts.engine_s))


# --- predictions ------------------------------------------------------------------------------------------------


def _expected(stretch: Stretch, said: Prediction) -> list[Line | Area]:
    """The predicted curve of a run, and the range around it."""
    curve = said.curve or (PredictedAt(said.predicted_s, said.rows),)
    middle, early, late = (
        _placed(stretch, curve, by=end_s / said.predicted_s if said.predicted_s else 1.0)
        for end_s in (said.predicted_s, said.least_s, said.most_s)
    )
    return [Area("Its range", "range", early, late), Line("Predicted", "predicted", middle)]


def _placed(stretch: Stretch, curve: Sequence[PredictedAt], *, by: float) -> tuple[Point, ...]:
    start = Point(stretch.start_s, stretch.start_rows)
    return (start, *(Point(start.x + at.at_s * by, start.y + at.rows) for at in _fewer(curve)))


def _most_rows(facts: Facts, actual: Sequence[Point]) -> float:
    """The rows that are done or were predicted to be: of a job that has only begun, not all."""
    ends = [s.start_rows + s.history.prediction.rows for s in facts.stretches if s.history.prediction]
    return max([actual[-1].y, *ends]) or 1.0


def _end_of(facts: Facts) -> float:
    ends = [s.start_s + s.history.prediction.most_s for s in facts.stretches if s.history.prediction]
    return max([facts.engine_s, *ends])


def _compared(facts: Facts) -> list[str]:
    if not any(stretch.history.prediction for stretch in facts.stretches):
        return ["No prediction was recorded for this job, so this is only what happened."]
    lines = [_compare(s, s.history.prediction, facts) for s in facts.stretches if s.history.prediction]
    without = [s.run.run for s in facts.stretches if not s.history.prediction]
    more = len(lines) - MOST_COMPARED
    return [
        *lines[:MOST_COMPARED],
        *([f"And {plural(more, 'run')} more with a prediction."] if more > 0 else []),
        *([f"{runs(without)}: no prediction was recorded."] if without else []),
    ]


def _compare(stretch: Stretch, said: Prediction, facts: Facts) -> str:
    begin = f"Run {stretch.run.run}: predicted" if len(facts.stretches) > 1 else "Predicted"
    ran_s = stretch.end_s - stretch.start_s
    expected = (
        f"{begin} {spell_s(said.predicted_s)} (between {spell_s(said.least_s)} and {spell_s(said.most_s)}) "
        f"for {plural(said.rows, 'row')}; "
    )
    if stretch.run.done < said.rows:
        return f"{expected}it finished {count(stretch.run.done)} of them in {spell_s(ran_s)}."
    return f"{expected}it took {spell_s(ran_s)}, {_off(ran_s, said.predicted_s)}."


def _off(actual: float, predicted: float) -> str:
    if not predicted:
        return "where none was expected"
    more = actual / predicted - 1
    if abs(more) < 0.005:
        return "as predicted"
    return f"{percent(abs(more), 1)} {'more' if more > 0 else 'less'}"


# --- curves -----------------------------------------------------------------------------------------------------


def _curve(facts: Facts, count_of: Callable[[Sample], float]) -> tuple[Point, ...]:
    """A count, which goes on from run to run."""
    points = [Point(0.0, 0.0)]
    for stretch in facts.stretches:
        points += [Point(stretch.start_s + s.at_s, stretch.start_rows + count_of(s)) for s in stretch.history.samples]
    return tuple(points)


def _sums(facts: Facts, field: str) -> tuple[Point, ...]:
    """A count of the engine, which starts anew with each run, added up over the runs."""
    points, before = [Point(0.0, 0.0)], 0
    for stretch in facts.stretches:
        points += [Point(stretch.start_s + s.at_s, before + getattr(s, field)) for s in stretch.history.samples]
        before += getattr(stretch.last, field) if stretch.last else 0
    return tuple(points)


def _states(facts: Facts, state_of: Callable[[Sample], float]) -> tuple[Point, ...]:
    """A state, which is gone between two runs."""
    points: list[Point] = []
    for stretch in facts.stretches:
        found = [Point(stretch.start_s + s.at_s, state_of(s)) for s in stretch.history.samples]
        points += [Point(stretch.start_s, 0.0), *_fewer(found), Point(stretch.end_s, 0.0)]
    return tuple(points)


def _fewer(points: Sequence[T]) -> tuple[T, ...]:
    """At most MOST_POINTS of them and the last."""
    every = -(-len(points) // MOST_POINTS) or 1
    return (*points[:-1:every], *points[-1:])


def _bins(facts: Facts) -> int:
    """No more bins than there are samples to tell them apart."""
    return max(1, min(MOST_BINS, sum(len(s.history.samples) for s in facts.stretches) // 2))


def _at_edges(points: Sequence[Point], bins: int, end: float) -> list[float]:
    """A curve at the edges of `bins` equal bins, straight between its points."""
    xs = [point.x for point in points]
    return [_between(points, xs, end * place / bins) for place in range(bins + 1)]


def _between(points: Sequence[Point], xs: Sequence[float], x: float) -> float:
    after = bisect_right(xs, x)
    if after == len(points):
        return points[-1].y
    low, high = points[after - 1], points[after]
    return low.y + (high.y - low.y) * (x - low.x) / (high.x - low.x)


def _to_the_edges(rows: Sequence[Sequence[float]], end: float) -> tuple[list[float], list[Sequence[float]]]:
    """Means at the middle of their bins, with the first and the last drawn out to the ends of the axis."""
    middles = [(place + 0.5) * end / len(rows) for place in range(len(rows))]
    return [0.0, *middles, end], [rows[0], *rows, rows[-1]]


def _marks(facts: Facts, end_s: float) -> list[Mark]:
    """Where each run begins, but the first; a name only where it does not run into the one before."""
    marks: list[Mark] = []
    named_s = -end_s
    for stretch in facts.stretches[1:]:
        has_room = stretch.start_s - named_s >= MARK_SHARE * end_s
        named_s = stretch.start_s if has_room else named_s
        if has_room or len(facts.stretches) <= MOST_MARKS:
            marks.append(Mark(stretch.start_s, f"run {stretch.run.run}" if has_room else ""))
    return marks


def _tell(at_s: float, rates: Sequence[float]) -> str:
    parts = ", ".join(f"{name.lower()} {count(rate)}" for (name, _, _), rate in zip(KINDS, rates, strict=True))
    return f"at {spell_s(at_s)}: tokens a second: {parts}"


def _in_all(facts: Facts) -> str:
    sums = [(name.lower(), facts.sum(field)) for name, _, field in KINDS]
    whole = sum(number for _, number in sums)
    parts = ", ".join(f"{short(number)} {name} ({percent(number, whole)})" for name, number in sums)
    return f"In all: {parts}."
