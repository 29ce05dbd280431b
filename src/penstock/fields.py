"""JSON objects of the outside world, read strictly: the text of a line, then one field at a time.

Owns what JSON the protocol takes (`load`) and the wording of a field that is missing, wrong or unknown (`Fields`).
Knows no field by name; standard library only.
One idea: Python's parser takes more than JSON (NaN, repeated keys, half of a surrogate pair) and says less than a user
needs, so its leniencies are recorded as flaws of a value that can still be looked into (for the row's custom id).
"""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from penstock.errors import RowError, RowErrorCode

MAX_LINE_BYTES = 64 * 2**20
MAX_NESTING = 100
_MAX_EXCERPT = 60
_TOO_DEEP = f"values are nested more than {MAX_NESTING} deep; the limit is {MAX_NESTING}"


# --- JSON, strictly -----------------------------------------------------------------------------------------------


class Loaded(NamedTuple):
    """A JSON value, and what the parser let pass that the protocol does not."""

    value: object
    flaws: list[str]


def load(line: bytes) -> Loaded:
    """Parse JSON; raise where there is no value to look into, else return the value and its flaws."""
    flaws: list[str] = []
    text = _decoded(line)
    value = _parsed(text, flaws)
    if text.count("[") + text.count("{") > MAX_NESTING and _is_nested_deeper(value, MAX_NESTING):
        raise RowError(RowErrorCode.INVALID_JSON, _TOO_DEEP)
    if not isinstance(value, dict):
        flaws.append(f"the line is {excerpt(value)}; it must be a JSON object")
    if "\\u" in text and not is_unicode(json.dumps(value, ensure_ascii=False)):
        flaws.append("a string holds half of a surrogate pair, such as \\ud800, which no UTF-8 text can hold")
    return Loaded(value, flaws)


def _decoded(line: bytes) -> str:
    if len(line) > MAX_LINE_BYTES:
        message = f"the line has more than {MAX_LINE_BYTES} bytes; the limit is {MAX_LINE_BYTES}"
        raise RowError(RowErrorCode.INVALID_JSON, message)
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        message = f"byte {error.start} of the line is 0x{line[error.start]:02x}, which is not UTF-8 ({error.reason})"
        raise RowError(RowErrorCode.INVALID_JSON, message) from None


class _Flawed(Exception):
    """The text is no JSON, or has what JSON has not."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise _Flawed
    return fields


def _finite(number: str) -> float:
    found = float(number)
    if not math.isfinite(found):
        raise _Flawed
    return found


def _no_constant(name: str) -> NoReturn:
    raise _Flawed


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant)


def _parsed(text: str, flaws: list[str]) -> object:
    """The value: nearly always from a parser that was made once and takes JSON only; else from one that tells flaws."""
    try:
        return _STRICT.decode(text)
    except (_Flawed, ValueError, RecursionError):
        return _looked_into(text, flaws)


def _looked_into(text: str, flaws: list[str]) -> object:
    """The value of a text that is nearly JSON, with what it has that JSON has not; the slow twin of `_STRICT`."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
            flaws.append(f"the key {excerpt(repeated[0])} stands more than once in one object")
            fields.update(dict.fromkeys(repeated))  # neither value can be believed
        return fields

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            flaws.append(f"the number {shortened(number)} is too large for a double")
        return float(number)

    def constant(name: str) -> None:
        flaws.append(f"{name} is not a JSON value")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_constant=constant)
    except json.JSONDecodeError as error:
        message = f"not JSON: {error.msg} at character {error.pos + 1} of {len(text)}"
        raise RowError(RowErrorCode.INVALID_JSON, message) from None
    except RecursionError:
        raise RowError(RowErrorCode.INVALID_JSON, _TOO_DEEP) from None
    except ValueError:  # of int(): more digits than Python converts
        raise RowError(RowErrorCode.INVALID_JSON, "an integer has more digits than the parser takes") from None


def _is_nested_deeper(value: object, limit: int) -> bool:
    """Whether containers stand more than `limit` deep; level by level: recursion has its own limit."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit):
        inner = (child for node in level for child in (node.values() if isinstance(node, dict) else node))
        level = [child for child in inner if isinstance(child, (dict, list))]
    return bool(level)


# --- fields, one at a time ----------------------------------------------------------------------------------------


def shortened(text: str) -> str:
    """The text for a message: its start and its length where it is long."""
    return text if len(text) <= _MAX_EXCERPT else f"{text[:_MAX_EXCERPT]}... ({len(text)} characters)"


def excerpt(value: object) -> str:
    """The value for a message, as JSON."""
    return shortened(json.dumps(value, ensure_ascii=False, default=repr, skipkeys=True))


def refuse(name: str, value: object, limit: str) -> NoReturn:
    """Raise the error of a field whose value cannot be used, with the value and the limit."""
    message = f"{name} is {excerpt(value)}; it must be {limit}"
    raise RowError(RowErrorCode.INVALID_FIELD, message)


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one JSON object, and where it stands in the row (for messages)."""

    path: str
    values: Mapping[str, object]

    @staticmethod
    def of(value: object, path: str) -> Fields:
        """The fields of a value that must be an object."""
        if not isinstance(value, Mapping):
            refuse(path, value, "an object")
        return Fields(f"{path}." if path else "", value)

    def required(self, name: str) -> object:
        """The value of a field that must be there."""
        value = self.values.get(name)
        if value is None:
            raise RowError(RowErrorCode.MISSING_FIELD, f"{self.path}{name} is missing or null; it is required")
        return value

    def only(self, known: frozenset[str]) -> None:
        """Refuse any field that is not among the known ones."""
        if not self.values.keys() <= known:
            unknown = sorted(str(name) for name in self.values if name not in known)
            close = difflib.get_close_matches(unknown[0][:_MAX_EXCERPT], sorted(known), 1)
            hint = f"; did you mean {close[0]}?" if close else "; leave it out"
            message = f"{self.path}{shortened(unknown[0])} is not a field that Penstock knows{hint}"
            raise RowError(RowErrorCode.UNKNOWN_FIELD, message)

    def text(self, name: str) -> str | None:
        """A string, if it is there."""
        value = self.values.get(name)
        return value if value is None or isinstance(value, str) else refuse(self.path + name, value, "a string")

    def flag(self, name: str) -> bool | None:
        """A boolean, if it is there."""
        value = self.values.get(name)
        return value if value is None or isinstance(value, bool) else refuse(self.path + name, value, "true or false")

    def integer(self, name: str, *, low: int, high: int) -> int | None:
        """An integer within limits, if it is there."""
        value = self.values.get(name)
        return None if value is None else integer_in(self.path + name, value, low=low, high=high)

    def number(self, name: str, *, low: float, high: float) -> float | None:
        """A number within limits, if it is there."""
        value = self.values.get(name)
        return None if value is None else number_in(self.path + name, value, low=low, high=high)

    def items(self, name: str) -> list[object]:
        """A list; an empty one if it is not there."""
        value = self.values.get(name)
        if value is None:
            return []
        return value if isinstance(value, list) else refuse(self.path + name, value, "a list")


def integer_in(name: str, value: object, *, low: int, high: int) -> int:
    """An integer, and not a boolean nor 1.0."""
    if type(value) is not int or not low <= value <= high:
        refuse(name, value, f"an integer from {low} to {high}")
    return int(value)


def number_in(name: str, value: object, *, low: float, high: float) -> float:
    """A number, and not a boolean."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        refuse(name, value, f"a number from {low:g} to {high:g}")
    return float(value)


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
