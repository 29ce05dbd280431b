"""Pictures of numbers, as HTML with SVG inside: lines and areas over time, histograms, bars.

Owns how they are drawn; what is drawn is in the arguments. Knows no jobs. Every text is escaped here.
One idea: only shapes are in the SVG, which is stretched to the width that there is (strokes keep their width), and
every label is HTML laid over it at a percentage, so text has the same size on a phone as on a desk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import NamedTuple

from penstock.jobs.wording import short, spell_s

WIDTH, HEIGHT = 1000.0, 400.0  # of every SVG, before it is stretched
TICKS = 4  # on an axis, at most about
TIME_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


class Point(NamedTuple):
    """A point of a curve, in the units of the data."""

    x: float
    y: float


class Line(NamedTuple):
    """A curve and its place in the legend; `style` is a class of the style sheet. No name: not in the legend."""

    name: str
    style: str
    points: tuple[Point, ...]


class Area(NamedTuple):
    """The room between two curves."""

    name: str
    style: str
    lower: tuple[Point, ...]
    upper: tuple[Point, ...]


class Mark(NamedTuple):
    """A moment with a name: an upright line."""

    x: float
    text: str


class Hint(NamedTuple):
    """What is told of the room from x to x + width when one points at it."""

    x: float
    width: float
    text: str


class Frame(NamedTuple):
    """The room of a chart: its axes from 0 to `most_x` and `most_y`, and how their numbers are written."""

    most_x: float
    most_y: float
    write_x: Callable[[float], str] = spell_s
    write_y: Callable[[float], str] = short
    is_time: bool = True


class Bar(NamedTuple):
    """A bar of a histogram, from `start` up to `end`, and what is told of it."""

    start: float
    end: float
    height: float
    text: str


class Portion(NamedTuple):
    """A part of a whole; `style` is a class of the style sheet."""

    name: str
    style: str
    size: float
    text: str


def chart(
    frame: Frame,
    shapes: Sequence[Line | Area],
    *,
    title: str,
    marks: Sequence[Mark] = (),
    hints: Iterable[Hint] = (),
) -> str:
    """Curves and areas over an axis, the later ones on top."""
    at = _Scale(frame)
    drawn = "".join(_draw(shape, at) for shape in shapes)
    upright = "".join(_segment(at.x(mark.x), 0, at.x(mark.x), HEIGHT, "mark") for mark in marks)
    names = "".join(_name(mark, at) for mark in marks if mark.text)
    told = "".join(
        f'<rect class="hint" x="{at.x(h.x):.2f}" y="0" width="{at.x(h.width):.2f}" height="{HEIGHT:.0f}">'
        f"<title>{escape(h.text)}</title></rect>"
        for h in hints
    )
    return _figure(frame, drawn + upright + told, title=title, over=names, legend=_legend(shapes))


def histogram(frame: Frame, bars: Sequence[Bar], *, title: str, marks: Sequence[Mark] = ()) -> str:
    """Bars side by side on an axis of numbers."""
    at = _Scale(frame)
    drawn = "".join(
        f'<rect class="bar" x="{at.x(b.start):.2f}" y="{at.y(b.height):.2f}" '
        f'width="{max(1.0, at.x(b.end - b.start) - 1):.2f}" height="{HEIGHT - at.y(b.height):.2f}">'
        f"<title>{escape(b.text)}</title></rect>"
        for b in bars
    )
    upright = "".join(_segment(at.x(mark.x), 0, at.x(mark.x), HEIGHT, "mark") for mark in marks)
    names = "".join(_name(mark, at) for mark in marks if mark.text)
    return _figure(frame, drawn + upright, title=title, over=names, legend="")


def portions(parts: Sequence[Portion], *, title: str) -> str:
    """One bar made of parts."""
    whole = sum(part.size for part in parts) or 1.0
    x, drawn = 0.0, ""
    for part in parts:
        width = WIDTH * part.size / whole
        drawn += (
            f'<rect class="fill {part.style}" x="{x:.2f}" y="0" width="{width:.2f}" height="{HEIGHT:.0f}">'
            f"<title>{escape(f'{part.name}: {part.text}')}</title></rect>"
        )
        x += width
    return f'<figure class="portions">{_svg(drawn, title)}</figure>'


def bar_rows(parts: Sequence[Portion], *, note: Callable[[Portion], str] = lambda _: "") -> str:
    """A line for each part: its name, its bar against the largest, its number; `note` is HTML below it."""
    most = max((part.size for part in parts), default=0) or 1
    rows = "".join(
        f'<li><span class="name">{escape(part.name)}</span><span class="number">{escape(part.text)}</span>'
        f'<span class="track"><span class="fill {part.style}" style="width:{100 * part.size / most:.2f}%"></span>'
        f"</span>{note(part)}</li>"
        for part in parts
    )
    return f'<ul class="bars">{rows}</ul>'


def stack(names: Sequence[tuple[str, str]], xs: Sequence[float], rows: Sequence[Sequence[float]]) -> list[Area]:
    """Areas on top of each other: for each (name, style) the heights that stand at its place in every row."""
    areas = []
    lower = [Point(x, 0.0) for x in xs]
    for place, (name, style) in enumerate(names):
        upper = [Point(x, low.y + row[place]) for x, low, row in zip(xs, lower, rows, strict=True)]
        areas.append(Area(name, style, tuple(lower), tuple(upper)))
        lower = upper
    return areas


def ticks(most: float, *, is_time: bool = False) -> list[float]:
    """Round numbers from 0 to `most`, a handful of them."""
    if most <= 0:
        return [0.0]
    step = _time_step(most) if is_time else _round_step(most)
    return [n * step for n in range(int(most / step + 1e-9) + 1)]


def _round_step(most: float) -> float:
    size = 1.0
    while size * 10 <= most:
        size *= 10
    while size > most:
        size /= 10
    return next((size * by for by in (0.1, 0.2, 0.25, 0.5, 1, 2, 2.5, 5) if most / (size * by) <= TICKS), size * 10)


def _time_step(most: float) -> float:
    if most < TIME_STEPS_S[1]:
        return _round_step(most)
    return next((step for step in TIME_STEPS_S if most / step <= TICKS), _round_step(most / 86400) * 86400)


class _Scale:
    """From the data's units to those of the SVG, whose y runs down."""

    def __init__(self, frame: Frame) -> None:
        self._x = WIDTH / (frame.most_x or 1)
        self._y = HEIGHT / (frame.most_y or 1)

    def x(self, x: float) -> float:
        return x * self._x

    def y(self, y: float) -> float:
        return HEIGHT - y * self._y

    def left(self, x: float) -> str:
        return f"{100 * self.x(x) / WIDTH:.2f}%"

    def top(self, y: float) -> str:
        return f"{100 * self.y(y) / HEIGHT:.2f}%"

    def path(self, points: Iterable[Point]) -> str:
        return " L".join(f"{self.x(p.x):.2f} {self.y(p.y):.2f}" for p in points)


def _name(mark: Mark, at: _Scale) -> str:
    edge = _edge(at.x(mark.x) / WIDTH)
    return f'<span class="marked{edge}" style="left:{at.left(mark.x)}">{escape(mark.text)}</span>'


def _draw(shape: Line | Area, at: _Scale) -> str:
    if isinstance(shape, Line):
        return f'<path class="line {shape.style}" d="M{at.path(shape.points)}"/>' if shape.points else ""
    outline = at.path((*shape.upper, *reversed(shape.lower)))
    return f'<path class="fill {shape.style}" d="M{outline} Z"/>' if shape.upper else ""


def _segment(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<path class="{style}" d="M{x1:.2f} {y1:.2f} L{x2:.2f} {y2:.2f}"/>'


def _svg(drawn: str, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}">{drawn}</svg>'
    )


def _figure(frame: Frame, drawn: str, *, title: str, over: str, legend: str) -> str:
    """A drawing within its axes."""
    at = _Scale(frame)
    ys = ticks(frame.most_y)
    grid = "".join(_segment(0, at.y(y), WIDTH, at.y(y), "grid") for y in ys)
    beside = "".join(f'<span class="y" style="top:{at.top(y)}">{escape(frame.write_y(y))}</span>' for y in ys)
    below = "".join(
        f'<span class="x{_edge(x / (frame.most_x or 1))}" style="left:{at.left(x)}">{escape(frame.write_x(x))}</span>'
        for x in ticks(frame.most_x, is_time=frame.is_time)
    )
    plot = f'<div class="plot">{_svg(grid + drawn, title)}{beside}{below}{over}</div>'
    return f'<figure class="chart">{legend}{plot}</figure>'


def _edge(share: float) -> str:
    """Labels at the ends of the axis stay within it."""
    return " first" if share < 0.03 else " last" if share > 0.94 else ""


def _legend(shapes: Sequence[Line | Area]) -> str:
    names = dict.fromkeys((shape.name, shape.style, type(shape).__name__.lower()) for shape in shapes if shape.name)
    items = "".join(f'<span class="key {kind} {style}">{escape(name)}</span>' for name, style, kind in names)
    return f'<div class="legend">{items}</div>'
