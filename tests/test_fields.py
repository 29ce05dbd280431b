"""Protects what JSON is taken, and the wording for fields that are missing, wrong or unknown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import fields
from penstock.errors import RowError, RowErrorCode
from penstock.fields import MAX_NESTING, Fields, excerpt, integer_in, load, number_in


def error_of(line: bytes) -> RowError:
    with pytest.raises(RowError) as caught:
        load(line)
    return caught.value


def test_json_without_flaws_is_its_value() -> None:
    assert load(b'{"a":[1,2.5,"x",null,true],"b":{}}') == ({"a": [1, 2.5, "x", None, True], "b": {}}, [])


@pytest.mark.parametrize(
    ("line", "value", "flaw"),
    [
        (b'{"a":NaN}', {"a": None}, "NaN is not a JSON value"),
        (b'{"a":-Infinity}', {"a": None}, "-Infinity is not a JSON value"),
        (b'{"a":-1e999}', {"a": float("-inf")}, "the number -1e999 is too large for a double"),
        (b'{"b":1,"a":2,"a":3}', {"b": 1, "a": None}, 'the key "a" stands more than once in one object'),
        (b"[1]", [1], "the line is [1]; it must be a JSON object"),
    ],
)
def test_what_the_parser_lets_pass_is_a_flaw_of_a_value_that_can_be_looked_into(
    line: bytes, value: object, flaw: str
) -> None:
    assert load(line) == (value, [flaw])


PARTS = [*"{}[],: x", '"a"', '"b"', "1", "-2.5e9", "1e999", "NaN", "-Infinity", "null", "true"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=1), inner, max_size=3),
)


@given(VALUES.map(json.dumps) | st.lists(st.sampled_from(PARTS), max_size=12).map("".join))
def test_the_quick_parser_says_what_the_one_that_tells_flaws_says(text: str) -> None:
    def outcome(parse: Callable[[str, list[str]], object]) -> tuple[str, list[str]]:
        flaws: list[str] = []
        try:
            return repr(parse(text, flaws)), flaws
        except RowError as error:
            return error.message, flaws

    assert outcome(fields._parsed) == outcome(fields._looked_into)


def test_half_a_surrogate_pair_is_a_flaw_and_a_whole_one_is_a_character() -> None:
    assert load(b'{"a":"\\ud83d\\ude00"}') == ({"a": "\U0001f600"}, [])
    assert len(load(b'{"a":"\\ud83d"}').flaws) == 1
    assert len(load(b'{"\\ude00":1}').flaws) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "not JSON: Expecting value at character 1 of 0"),
        (b'{"a":1', "not JSON: Expecting ',' delimiter at character 7 of 6"),
        (b'{"a":"\xff"}', "byte 6 of the line is 0xff, which is not UTF-8 (invalid start byte)"),
        (b'{"a":' + b"9" * 5000 + b"}", "an integer has more digits than the parser takes"),
    ],
)
def test_what_is_no_json_says_where(line: bytes, message: str) -> None:
    error = error_of(line)
    assert (error.code, error.message) == (RowErrorCode.INVALID_JSON, message)


def test_nesting_ends_at_the_limit_however_deep_the_caller_is() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' * depth + b"1" + b"}" * depth

    def called_from(frames: int) -> RowError:
        return called_from(frames - 1) if frames else error_of(nested(MAX_NESTING + 1))

    load(nested(MAX_NESTING))
    messages = {error_of(nested(depth)).message for depth in (MAX_NESTING + 1, sys.getrecursionlimit() * 50)}
    assert messages == {called_from(500).message}
    assert messages == {"values are nested more than 100 deep; the limit is 100"}


def test_a_line_over_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "MAX_LINE_BYTES", 7)
    load(b'{"a":1}')
    assert error_of(b'{"a":1} ').message == "the line has more than 7 bytes; the limit is 7"


def test_an_excerpt_is_json_and_short() -> None:
    assert excerpt({"a": [1, None]}) == '{"a": [1, null]}'
    assert excerpt("x" * 1000) == '"' + "x" * 59 + "... (1002 characters)"
    assert excerpt({1, 2}) == '"{1, 2}"'


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [1], 0, 11, 10**500])
def test_an_integer_is_neither_a_boolean_nor_a_float_nor_out_of_range(value: object) -> None:
    with pytest.raises(RowError, match=r"it must be an integer from 1 to 10$"):
        integer_in("x", value, low=1, high=10)


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), -0.1, 2.5, 10**500])
def test_a_number_is_neither_a_boolean_nor_out_of_range(value: object) -> None:
    with pytest.raises(RowError, match=r"it must be a number from 0 to 2$"):
        number_in("x", value, low=0, high=2)


def test_a_field_is_named_by_where_it_stands() -> None:
    with pytest.raises(RowError, match=r"^missing_field: body\.stop is missing or null; it is required$"):
        Fields.of({}, "body").required("stop")
    with pytest.raises(RowError, match=r"^invalid_field: body is 3; it must be an object$"):
        Fields.of(3, "body")


def test_of_several_unknown_fields_the_first_by_name_is_told() -> None:
    with pytest.raises(RowError, match=r"^unknown_field: qqq is not a field that Penstock knows; leave it out$"):
        Fields.of({"zzz": 1, "qqq": 2, "a": 3}, "").only(frozenset("ab"))


def test_an_absent_list_is_an_empty_one() -> None:
    assert Fields("", {"a": None, "b": [1]}).items("a") == []
    assert Fields("", {"a": None, "b": [1]}).items("b") == [1]
