"""Numbers as a tired person reads them: thousands apart, seconds as minutes, shares as per cent.

Owns how numbers, and texts of strangers, are written on the page of a report. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

SPACE = "\u00a0"  # between a number and its unit: no line ends there


def count(number: float) -> str:
    """A whole number with its thousands apart: 12,345."""
    return f"{number:,.0f}"


def plural(number: int, noun: str) -> str:
    """A number of things: 1 row, 2 rows."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def runs(numbers: Sequence[int]) -> str:
    """Runs by their numbers, which ascend: Run 2; Runs 2, 4; Runs 1 to 3, 7."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    told = ", ".join(" to ".join(map(str, span)) for span in spans)
    return f"Run{'' if len(numbers) == 1 else 's'} {told}"


def short(number: float) -> str:
    """A number for an axis: 950, 1.5k, 20k, 3M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def whole_number(number: float) -> str:
    """A number for an axis that counts things; no text where there can be no such number."""
    if not float(number).is_integer():
        return ""
    return count(number) if abs(number) < 10_000 else short(number)


def spell_s(seconds: float) -> str:
    """A time in its two largest units: 850 ms, 7.2 s, 4 min 10 s, 3 h 5 min, 2 d 4 h."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}{SPACE}ms" if seconds else f"0{SPACE}s"
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + f"{SPACE}s"
    whole = round(seconds)
    for unit_s, unit, part_s, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit_s:
            rest = whole % unit_s // part_s
            return f"{whole // unit_s}{SPACE}{unit}" + (f" {rest}{SPACE}{part}" if rest else "")
    return f"{whole}{SPACE}s"


def percent(part: float, whole: float) -> str:
    """A share: 61 %, 0.4 %, and "< 0.1 %" rather than a zero that is none."""
    if not part or not whole:
        return f"0{SPACE}%"
    share = 100 * part / whole
    if share < 0.1:
        return f"< 0.1{SPACE}%"
    return (f"{share:.1f}".removesuffix(".0") if share < 9.95 else f"{share:.0f}") + f"{SPACE}%"


def safe(text: str, *, most: int = 400) -> str:
    """Any text as HTML that shows it: escaped, cut to `most` characters, without what no page may hold."""
    cut = text if len(text) <= most else f"{text[: most - 1]}…"
    plain = "".join(mark if mark.isprintable() or mark == SPACE else "�" for mark in cut)
    return escape(plain)
