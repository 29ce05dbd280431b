"""`Profile`: what a step takes on one machine with one model, in seconds: measured once, asked for any `StepPlan`.

Owns what of a step takes time (`Work`), the curve and prices that turn work into seconds, and their fit to measured
steps. Pure arithmetic: `measuring.py` runs the steps, `profile_store.py` keeps the result.
One idea: a step's time is a sum, so the points of two curves (matrices by tokens; logits by samples, with what of the
last layer only they need) and eight prices are the unknowns of one linear system, in which every measured step is an
equation. It is solved for least relative errors, with no unknown below zero; what is left of those errors is how far a
prediction may be trusted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import NamedTuple

from penstock.config import Knee
from penstock.cost import num_pairs
from penstock.step import Chunk, StepPlan

QUERY_ROWS = 256  # of a tile of queries: heads that share keys stand below each other in it
KNEE_GAIN = 0.05  # beyond the knee of the curve, less than this is gained
RIDGE = 1e-9  # of the diagonal: what no step measured comes out as zero


Windows = tuple[tuple[int | None, int], ...]  # a window, and how many layers have it
NO_WINDOWS: Windows = ((None, 1),)


class Work(NamedTuple):
    """What of a step takes time.

    tokens, samples, chunks: how many; draws: samples that are not greedy; cuts: those with top_k, top_p or min_p;
    copies: of blocks. Chunks of one token read positions: `reads`, each position once, and `shared_reads`, for every
    further chunk that reads the same one. Longer ones are cut into tiles of queries: `tile_reads` positions over all
    tiles, and `pairs` of a query and a key. These four are means over the layers where some have windows.
    """

    tokens: int
    samples: int
    chunks: int
    draws: int
    cuts: int
    copies: int
    reads: int
    shared_reads: int
    tile_reads: int
    pairs: int


class Prices(NamedTuple):
    """Seconds for one of each kind of work that is neither a token nor a sample."""

    chunks: float = 0.0
    draws: float = 0.0
    cuts: float = 0.0
    copies: float = 0.0
    reads: float = 0.0
    shared_reads: float = 0.0
    tile_reads: float = 0.0
    pairs: float = 0.0


class Point(NamedTuple):
    """A measured point of a curve: so many tokens, or samples, take so long."""

    number: int
    seconds: float


class Measured(NamedTuple):
    """A step that was run, and what it took: the median of several times."""

    work: Work
    seconds: float


class Rates(NamedTuple):
    """The limits of the machine, as measured: see `bench/limits.py`; None where they could not be."""

    flops_per_s: float | None = None
    bytes_per_s: float | None = None


NO_RATES = Rates()


class Disturbance(NamedTuple):
    """What of the processors' time was taken from the steps while they were measured, as shares of it."""

    stolen: float
    others: float

    @property
    def share(self) -> float:
        """All of it."""
        return self.stolen + self.others


@dataclass(frozen=True, slots=True)
class Profile:
    """The times of one model on one machine.

    Attributes:
        about: all that the times depend on; another value of any of these is another profile.
        numerics: the numerics signature of the steps that were measured.
        tokens, samples: the two curves, in ascending order; zero of either takes nothing.
        decide_s: seconds of planning and commit for each chunk of a step, beside the executor's own.
        error: root of the mean square of the fit's relative errors.
        measured: the steps that the fit rests on.
        disturbance: what else the machine did meanwhile; None: not known.
        spread: how much longer than their fastest times those taken are, over all steps; None: not known.
        windows: how many layers have which window, see `DecoderSpec`.
    """

    about: dict[str, str]
    numerics: dict[str, str]
    measured_at: str
    block_tokens: int
    tile_queries: int
    tokens: tuple[Point, ...]
    samples: tuple[Point, ...]
    prices: Prices
    decide_s: float = 0.0
    error: float = 0.0
    rates: Rates = NO_RATES
    measured: tuple[Measured, ...] = field(default=(), repr=False)
    disturbance: Disturbance | None = None
    spread: float | None = None
    windows: Windows = NO_WINDOWS

    def step_s(self, plan: StepPlan) -> float:
        """The seconds that a step takes."""
        return self.seconds(self.work(plan))

    def work(self, plan: StepPlan) -> Work:
        """What of a step takes time."""
        return work_of(plan, block_tokens=self.block_tokens, tile_queries=self.tile_queries, windows=self.windows)

    def seconds(self, work: Work) -> float:
        """The seconds that such work takes in one step."""
        prices = sum(price * count for price, count in zip(self.prices, work[2:], strict=True))
        curves = interpolate(self.tokens, work.tokens) + interpolate(self.samples, work.samples)
        return curves + prices + self.decide_s * work.chunks

    def tokens_per_s(self, tokens: int) -> float:
        """The speed of a step of so many tokens, by its matrices alone."""
        return tokens / interpolate(self.tokens, tokens)

    def knee(self) -> Knee:
        """The first measured point of which no larger one is faster by 5 %."""
        most = max(self.tokens_per_s(point.number) for point in self.tokens)
        reached = [p.number for p in self.tokens if self.tokens_per_s(p.number) * (1 + KNEE_GAIN) >= most]
        return Knee(reached[0], f"profile of {self.measured_at[:10]}")

    def dumps(self) -> str:
        """The profile as JSON."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def loads(text: str) -> Profile:
        """The profile that `dumps` wrote.

        Raises:
            ValueError: something else did.
        """
        try:
            raw = json.loads(text)
            curves = {name: tuple(Point(*point) for point in raw[name]) for name in ("tokens", "samples")}
            measured = tuple(Measured(Work(*work), seconds) for work, seconds in raw["measured"])
            disturbance = Disturbance(*raw["disturbance"]) if raw.get("disturbance") else None
            known = {
                "disturbance": disturbance,
                "prices": Prices(*raw["prices"]),
                "rates": Rates(*raw["rates"]),
                "measured": measured,
                "windows": tuple((window, layers) for window, layers in raw.get("windows", NO_WINDOWS)),
            }
            return Profile(**raw | curves | known)
        except (TypeError, KeyError) as error:
            raise ValueError(f"this is no profile: {error}") from None


# --- work


class _Seen(NamedTuple):
    """What of `Work` depends on how far layers see."""

    reads: int
    shared_reads: int
    tile_reads: int
    pairs: int


def work_of(plan: StepPlan, *, block_tokens: int, tile_queries: int, windows: Windows = NO_WINDOWS) -> Work:
    """What a plan makes the machine do."""
    single = [chunk for chunk in plan.chunks if len(chunk.tokens) == 1]
    several = [chunk for chunk in plan.chunks if len(chunk.tokens) > 1]
    room = block_tokens * len(set(chain.from_iterable(chunk.tables[0] for chunk in single)))
    drawn = [sample for chunk in plan.chunks for sample in chunk.samples if sample.temperature > 0]
    seen = [_seen(single, several, room=room, tile_queries=tile_queries, window=window) for window, _ in windows]
    mean = seen[0] if len(seen) == 1 else _mean(seen, [layers for _, layers in windows])
    return Work(
        tokens=len(single) + sum(len(chunk.tokens) for chunk in several),
        samples=sum(len(chunk.samples) for chunk in plan.chunks),
        chunks=len(plan.chunks),
        draws=len(drawn),
        cuts=sum(1 for sample in drawn if sample.top_k or sample.top_p < 1 or sample.min_p),
        copies=len(plan.copies),
        reads=mean.reads,
        shared_reads=mean.shared_reads,
        tile_reads=mean.tile_reads,
        pairs=mean.pairs,
    )


def _seen(single: list[Chunk], several: list[Chunk], *, room: int, tile_queries: int, window: int | None) -> _Seen:
    """What a layer with this window sees; the blocks of the single chunks have `room` positions."""
    positions = sum(chunk.start + 1 if window is None else min(chunk.start + 1, window) for chunk in single)
    reads = min(positions, room)
    tile_reads = sum(_tile_reads(chunk, tile_queries, window=window) for chunk in several)
    pairs = sum(num_pairs(chunk.start, chunk.end, window=window) for chunk in several)
    return _Seen(reads, positions - reads, tile_reads, pairs)


def _mean(seen: Sequence[_Seen], layers: Sequence[int]) -> _Seen:
    """The mean over layers, so many of each kind."""
    sums = [sum(map(int.__mul__, values, layers)) for values in zip(*seen, strict=True)]
    return _Seen(*(round(value / sum(layers)) for value in sums))


def queries_of_tile(heads: int, kv_heads: int) -> int:
    """The queries of a full tile."""
    return max(1, QUERY_ROWS * kv_heads // heads)


def _tile_reads(chunk: Chunk, width: int, *, window: int | None) -> int:
    """Each tile reads all positions up to its own end, but for those that none of its queries sees."""
    whole, rest = divmod(len(chunk.tokens), width)
    if window is None:
        return whole * chunk.start + width * whole * (whole + 1) // 2 + (chunk.end if rest else 0)
    starts = range(chunk.start, chunk.end, width)
    return sum(min(start + width, chunk.end) - max(0, start - window + 1) for start in starts)


# --- curves


def interpolate(curve: Sequence[Point], number: int) -> float:
    """Seconds on a curve: level up to its first point, then straight, and never falling behind its last one."""
    if not number:
        return 0.0
    found = sum(curve[at].seconds * share for at, share in _shares([p.number for p in curve], number))
    return found if number <= curve[-1].number else max(found, curve[-1].seconds)


def _shares(knots: Sequence[int], count: int) -> list[tuple[int, float]]:
    """The points between which a count lies, and how much of each it has; the shares sum to 1."""
    if not count:
        return []
    if count <= knots[0] or len(knots) == 1:
        return [(0, count / knots[0] if len(knots) == 1 else 1.0)]
    right = next((at for at, knot in enumerate(knots) if knot >= count), len(knots) - 1)
    share = (count - knots[right - 1]) / (knots[right] - knots[right - 1])
    return [(right - 1, 1 - share), (right, share)]


# --- the fit


class Fit(NamedTuple):
    """The curves and prices that explain measured steps best, and the relative error that is left."""

    tokens: tuple[Point, ...]
    samples: tuple[Point, ...]
    prices: Prices
    error: float


def fit(measured: Sequence[Measured], *, token_knots: Sequence[int], sample_knots: Sequence[int]) -> Fit:
    """Fit curves with these points, and the prices, to measured steps."""
    rows = [_equation(step.work, token_knots, sample_knots) for step in measured]
    scaled = [[value / step.seconds for value in row] for row, step in zip(rows, measured, strict=True)]
    found = least_squares(scaled, [1.0] * len(scaled))
    errors = [sum(a * x for a, x in zip(row, found, strict=True)) - 1.0 for row in scaled]
    error = math.sqrt(sum(e * e for e in errors) / len(errors))
    split = len(token_knots), len(token_knots) + len(sample_knots)
    tokens = tuple(Point(*pair) for pair in zip(token_knots, found[: split[0]], strict=True))
    samples = tuple(Point(*pair) for pair in zip(sample_knots, found[split[0] : split[1]], strict=True))
    return Fit(tokens, samples, Prices(*found[split[1] :]), error)


def _equation(work: Work, token_knots: Sequence[int], sample_knots: Sequence[int]) -> list[float]:
    """How much of each unknown a step has: points of the two curves, then prices."""
    row = [0.0] * (len(token_knots) + len(sample_knots))
    for at, share in _shares(token_knots, work.tokens):
        row[at] += share
    for at, share in _shares(sample_knots, work.samples):
        row[len(token_knots) + at] += share
    return [*row, *map(float, work[2:])]


def least_squares(rows: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float]:
    """x >= 0 with least |rows x - targets|: solve, take the most negative unknown out as zero, and again."""
    size = len(rows[0])
    scale = [math.sqrt(sum(row[i] ** 2 for row in rows)) or 1.0 for i in range(size)]
    scaled = [[row[i] / scale[i] for i in range(size)] for row in rows]
    active = list(range(size))
    while active:
        found = _solve(scaled, targets, active)
        lowest = min(range(len(active)), key=found.__getitem__)
        if found[lowest] >= 0:
            known = dict(zip(active, found, strict=True))
            return [known.get(i, 0.0) / scale[i] for i in range(size)]
        del active[lowest]
    return [0.0] * size


def _solve(rows: Sequence[Sequence[float]], targets: Sequence[float], active: Sequence[int]) -> list[float]:
    """The normal equations of some unknowns, by elimination."""
    system = [
        [sum(row[i] * row[j] for row in rows) + (RIDGE if i == j else 0.0) for j in active]
        + [sum(row[i] * target for row, target in zip(rows, targets, strict=True))]
        for i in active
    ]
    size = len(active)
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(system[r][i]))
        system[i], system[pivot] = system[pivot], system[i]
        for r in range(i + 1, size):
            factor = system[r][i] / system[i][i]
            system[r] = [a - factor * b for a, b in zip(system[r], system[i], strict=True)]
    found = [0.0] * size
    for i in reversed(range(size)):
        rest = sum(system[i][j] * found[j] for j in range(i + 1, size))
        found[i] = (system[i][size] - rest) / system[i][i]
    return found
