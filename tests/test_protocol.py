"""Protects what a row may say, what each bad one is told, and that every output line is one valid line of JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import RowError, RowErrorCode
from penstock.protocol import (
    BadRow,
    BatchRow,
    Endpoint,
    Message,
    answer_line,
    duplicate_custom_id,
    error_line,
    parse_body,
    parse_row,
    priority_of,
)
from penstock.request import Answer, Completion, FinishReason, SamplingParams, TokenLogprob
from tests.bad_rows import BAD_WAYS, BadWay, chat_line, completion_line

PARSED_WAYS = [way for way in BAD_WAYS if not way.needs_model]


def refused(line: bytes) -> BadRow:
    with pytest.raises(BadRow) as caught:
        parse_row(line)
    return caught.value


def message_of(**fields: object) -> str:
    return refused(chat_line("a", **fields)).message


# --- good rows


def test_a_chat_row_with_nothing_but_messages_has_the_defaults_of_the_api() -> None:
    assert parse_row(chat_line("a", max_tokens=None)) == BatchRow(
        "a", Endpoint.CHAT, None, (Message("user", "hi"),), SamplingParams()
    )


def test_a_completion_row_asks_for_16_tokens_unless_it_says_otherwise() -> None:
    row = parse_row(completion_line("a", max_tokens=None))
    assert row == BatchRow("a", Endpoint.COMPLETIONS, None, "hello", SamplingParams(max_tokens=16))


def test_sampling_fields_that_python_takes_for_equal_are_told_apart_whatever_was_read_before() -> None:
    assert parse_row(chat_line("a", n=1, ignore_eos=True)).params.n == 1
    assert message_of(n=True) == "body.n is true; it must be an integer from 1 to 128"
    assert message_of(ignore_eos=1) == "body.ignore_eos is 1; it must be true or false"
    assert parse_row(completion_line("a", logprobs=1)).params.logprobs == 1
    assert message_of(logprobs=1) == "body.logprobs is 1; it must be true or false"
    biases = [parse_row(chat_line("a", logit_bias={"7": bias})).params.logit_bias for bias in (1, 2)]
    assert biases == [((7, 1.0),), ((7, 2.0),)]


def test_a_prompt_may_be_token_ids() -> None:
    assert parse_row(completion_line("a", prompt=[0, 5, 7])).prompt == (0, 5, 7)


def test_every_sampling_field_is_read() -> None:
    fields: dict[str, Any] = {
        "max_completion_tokens": 9,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 4,
        "min_p": 0.25,
        "seed": -3,
        "n": 2,
        "stop": ["x", "y"],
        "stop_token_ids": [7],
        "min_tokens": 1,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 3,
        "logit_bias": {"10": -1, "9": 2.5},
    }
    row = parse_row(chat_line("a", max_tokens=9, **fields))
    assert row.params == SamplingParams(
        max_tokens=9,
        temperature=0.0,
        top_p=0.5,
        top_k=4,
        min_p=0.25,
        seed=-3,
        stop=("x", "y"),
        stop_token_ids=(7,),
        min_tokens=1,
        ignore_eos=True,
        logprobs=3,
        logit_bias=((9, 2.5), (10, -1.0)),
        n=2,
    )


def test_one_stop_string_need_not_be_a_list() -> None:
    assert parse_row(chat_line("a", stop="\n")).params.stop == ("\n",)


@pytest.mark.parametrize(
    ("line", "logprobs"),
    [
        (chat_line("a", logprobs=False, top_logprobs=0), None),
        (chat_line("a", logprobs=True), 0),
        (chat_line("a", logprobs=True, top_logprobs=20), 20),
        (completion_line("a"), None),
        (completion_line("a", logprobs=0), 0),
        (completion_line("a", logprobs=20), 20),
    ],
)
def test_logprobs_are_a_boolean_and_a_number_for_chats_and_a_number_for_completions(
    line: bytes, logprobs: int | None
) -> None:
    assert parse_row(line).params.logprobs == logprobs


def test_the_limits_themselves_are_allowed() -> None:
    for fields in ({"temperature": 2}, {"top_p": 1}, {"n": 128}, {"stop": ["x"] * 16}, {"seed": -(2**63)}):
        parse_row(chat_line("x" * 512, **fields))


def test_null_counts_as_absent_for_every_optional_field() -> None:
    names = "model temperature stop stop_token_ids logit_bias stream response_format user n seed top_logprobs"
    nulls = ",".join(f'"{name}":null' for name in names.split())
    line = chat_line("a").replace(b'"max_tokens": 2', nulls.encode())
    assert parse_row(line) == parse_row(chat_line("a", max_tokens=None))


def test_text_parts_are_joined_with_nothing_between_them() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = parse_row(chat_line("a", messages=[{"role": "tool", "content": parts, "name": "bob"}]))
    assert row.prompt == (Message("tool", "ab", "bob"),)


def test_a_message_for_a_template_has_a_name_only_if_there_is_one() -> None:
    assert Message("user", "hi").for_template() == {"role": "user", "content": "hi"}
    assert Message("user", "hi", "bob").for_template() == {"role": "user", "content": "hi", "name": "bob"}


def test_fields_without_effect_are_accepted_and_counted() -> None:
    row = parse_row(
        chat_line(
            "a",
            user="u",
            metadata={"a": [1]},
            store=True,
            service_tier="flex",
            safety_identifier="s",
            prompt_cache_key="k",
            stream=False,
            response_format={"type": "text"},
        )
    )
    assert row.ignored == (
        *("metadata", "prompt_cache_key", "response_format", "safety_identifier", "service_tier", "store"),
        *("stream", "user"),
    )
    assert row.params == parse_row(chat_line("a")).params


def test_the_models_name_is_any_string() -> None:
    assert parse_row(chat_line("a", model="gpt-99")).model == "gpt-99"


# --- bad rows


def test_there_are_at_least_25_ways_to_be_bad_with_names_of_their_own() -> None:
    assert len(BAD_WAYS) >= 25
    assert max(Counter(way.name for way in BAD_WAYS).values()) == 1


@pytest.mark.parametrize("way", PARSED_WAYS, ids=lambda way: way.name)
def test_each_bad_row_gets_its_code_and_keeps_its_custom_id_where_it_can_be_read(way: BadWay) -> None:
    error = refused(way.line("row-7"))
    assert error.code == way.code
    assert error.custom_id == ("row-7" if way.keeps_id else None)
    assert len(error.message) < 400


@pytest.mark.parametrize("way", [way for way in BAD_WAYS if way.needs_model], ids=lambda way: way.name)
def test_what_only_the_model_shows_is_no_matter_of_the_protocol(way: BadWay) -> None:
    parse_row(way.line("row-7"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 3}, "body.temperature is 3; it must be a number from 0 to 2"),
        ({"top_p": 0}, "body.top_p is 0.0; it must be above 0 and at most 1"),
        ({"max_tokens": True}, "body.max_tokens is true; it must be an integer from 1 to 2147483647"),
        ({"stop": ["x"] * 17}, "body.stop is 17; it must be at most 16 strings"),
        ({"logprobs": True, "top_logprobs": 21}, "body.top_logprobs is 21; it must be an integer from 0 to 20"),
        ({"max_token": 1}, "body.max_token is not a field that Penstock knows; did you mean max_tokens?"),
        ({"frobnicate": 1}, "body.frobnicate is not a field that Penstock knows; leave it out"),
        ({"messages": [{"role": "user"}]}, "body.messages[0].content is missing or null; it is required"),
        (
            {"max_completion_tokens": 4},
            "body.max_completion_tokens is 4; it must be equal to max_tokens, 2, where both are given",
        ),
        (
            {"messages": [{"role": "x" * 99, "content": ""}]},
            f'body.messages[0].role is "{"x" * 59}... (101 characters); '
            "it must be one of system, developer, user, assistant, tool",
        ),
    ],
)
def test_a_message_has_the_field_the_value_and_the_limit(fields: dict[str, object], message: str) -> None:
    assert message_of(**fields) == message


def test_a_repeated_custom_id_is_told_where_the_first_one_is() -> None:
    error = duplicate_custom_id("a", line=9, first_line=3)
    assert (error.code, error.custom_id) == (RowErrorCode.DUPLICATE_CUSTOM_ID, "a")
    assert error.message.startswith('custom_id "a" on line 9 was used on line 3;')


def test_a_custom_id_that_stands_twice_is_not_believed() -> None:
    line = chat_line("a").replace(b'"method"', b'"custom_id": "b", "method"')
    assert (refused(line).code, refused(line).custom_id) == (RowErrorCode.INVALID_JSON, None)


# --- answers


def an_answer(text: str = "ab", *, logprobs: tuple[TokenLogprob, ...] | None = None) -> Answer:
    return Answer((Completion(0, (1, 2), text, FinishReason.STOP, logprobs),), prompt_tokens=5, cached_tokens=3)


def token_text(token: int) -> str:
    return {0: "\ufffd", 1: "a", 2: "b", 3: "\ufffd"}[token]


def line_of(row: BatchRow, answer: Answer, *, number: int = 4) -> bytes:
    return answer_line(row, answer, fingerprint="f00d", number=number, model="tiny", token_text=token_text)


def test_the_answer_to_a_chat_is_exactly_this_line() -> None:
    name = "5bfa31f686faaa0b751ca582"
    body = (
        f'{{"id":"chatcmpl-{name}","object":"chat.completion","created":0,"model":"tiny","choices":[{{"index":0,'
        '"message":{"role":"assistant","content":"ab","refusal":null},"logprobs":null,"finish_reason":"stop"}],'
        '"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}'
    )
    expected = (
        f'{{"id":"batch_req_{name}","custom_id":"a","response":{{"status_code":200,"request_id":"req_{name}",'
        f'"body":{body}}},"error":null}}\n'
    )
    assert line_of(parse_row(chat_line("a")), an_answer()).decode() == expected


def test_the_answer_to_a_completion_is_a_text_completion_under_the_rows_own_model_name() -> None:
    body = json.loads(line_of(parse_row(completion_line("a", model="mine")), an_answer()))["response"]["body"]
    assert body.pop("id").startswith("cmpl-")
    assert body == {
        "object": "text_completion",
        "created": 0,
        "model": "mine",
        "choices": [{"index": 0, "text": "ab", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


LOGPROBS = (TokenLogprob(1, -0.5, ((1, -0.5), (2, -1.5))), TokenLogprob(0, -math.inf, ((1, -0.25), (3, -2.0))))


def test_chat_logprobs_have_bytes_where_the_token_is_text_and_a_floor_instead_of_infinity() -> None:
    row = parse_row(chat_line("a", logprobs=True, top_logprobs=2))
    choice = json.loads(line_of(row, an_answer(logprobs=LOGPROBS)))["response"]["body"]["choices"][0]
    first, second = choice["logprobs"]["content"]
    top = [{"token": "a", "bytes": [97], "logprob": -0.5}, {"token": "b", "bytes": [98], "logprob": -1.5}]
    assert first == {"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": top}
    assert (second["token"], second["bytes"], second["logprob"]) == ("\ufffd", None, -9999.0)


def test_completion_logprobs_keep_the_best_of_tokens_with_one_text_and_add_the_chosen_one() -> None:
    row = parse_row(completion_line("a", logprobs=2))
    choice = json.loads(line_of(row, an_answer(logprobs=LOGPROBS)))["response"]["body"]["choices"][0]
    assert choice["logprobs"] == {
        "tokens": ["a", "\ufffd"],
        "token_logprobs": [-0.5, -9999.0],
        "top_logprobs": [{"a": -0.5, "b": -1.5}, {"a": -0.25, "\ufffd": -2.0}],
        "text_offset": [0, 1],
    }


def test_a_logprob_that_is_no_number_is_never_written() -> None:
    row = parse_row(chat_line("a", logprobs=True))
    with pytest.raises(ValueError, match="not JSON compliant"):
        line_of(row, an_answer(logprobs=(TokenLogprob(1, math.nan, ()),)))


def test_ids_differ_between_rows_and_jobs_and_not_between_runs() -> None:
    row = parse_row(chat_line("a"))
    lines = {line_of(row, an_answer(), number=number) for number in (1, 2, 2)}
    other = answer_line(row, an_answer(), fingerprint="beef", number=1, model="tiny", token_text=token_text)
    assert len(lines | {other}) == 3


def test_what_was_cached_is_not_in_the_line() -> None:
    row, answer = parse_row(chat_line("a")), an_answer()
    assert line_of(row, answer) == line_of(row, Answer(answer.completions, prompt_tokens=5, cached_tokens=0))


def test_an_error_row_is_exactly_this_line() -> None:
    error = RowError(RowErrorCode.PROMPT_TOO_LONG, "9 > 8")
    assert error_line(error, custom_id=None, fingerprint="f00d", number=4, line=6).decode() == (
        '{"id":"batch_req_5bfa31f686faaa0b751ca582","custom_id":null,"response":null,'
        '"error":{"code":"prompt_too_long","message":"9 > 8","line":6}}\n'
    )


# --- whatever comes


def is_one_json_line(line: bytes) -> bool:
    json.loads(line.decode(), parse_constant=lambda name: pytest.fail(name))
    return line.endswith(b"\n") and line.count(b"\n") == 1 and b"\r" not in line


def check_error_line(error: BadRow) -> None:
    assert is_one_json_line(error_line(error, custom_id=error.custom_id, fingerprint="f", number=0, line=1))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELD_NAMES = st.sampled_from(
    "messages prompt model max_tokens max_completion_tokens temperature top_p top_k min_p seed stop stop_token_ids "
    "min_tokens ignore_eos logprobs top_logprobs logit_bias n stream response_format user metadata tools".split()
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant"]), "content": st.text()}),
    min_size=1,
    max_size=3,
)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_row_or_a_bad_row(data: bytes) -> None:
    try:
        parse_row(data)
    except BadRow as error:
        check_error_line(error)


@settings(max_examples=300)
@given(st.sampled_from(list(Endpoint)), st.dictionaries(FIELD_NAMES, JSON, max_size=6), MESSAGES, st.booleans())
def test_any_body_is_a_row_or_a_bad_row(
    endpoint: Endpoint, fields: dict[str, object], messages: object, ascii_only: bool
) -> None:
    own = {"messages": messages} if endpoint is Endpoint.CHAT else {"prompt": "x"}
    row = {"custom_id": "a", "method": "POST", "url": str(endpoint), "body": own | fields}
    data = json.dumps(row, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    try:
        assert parse_row(data).custom_id == "a"
    except BadRow as error:
        check_error_line(error)


VALID_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.integers(1, 2**31 - 1),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1, exclude_min=True),
        "top_k": st.integers(0, 2**31 - 1),
        "min_p": st.floats(0, 1),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "stop": st.lists(st.text(min_size=1), max_size=16),
        "stop_token_ids": st.lists(st.integers(0, 1000)),
        "ignore_eos": st.booleans(),
        "n": st.integers(1, 128),
    },
)


@given(MESSAGES, VALID_FIELDS, st.text(min_size=1, max_size=512).filter(lambda text: "\0" not in text))
def test_what_a_valid_row_says_is_what_is_read(
    messages: list[dict[str, str]], fields: dict[str, Any], custom_id: str
) -> None:
    body = {"messages": messages, **fields}
    row = parse_row(json.dumps({"custom_id": custom_id, "method": "POST", "url": Endpoint.CHAT, "body": body}).encode())
    assert row.custom_id == custom_id
    assert row.prompt == tuple(Message(**message) for message in messages)
    expected = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    assert {name: getattr(row.params, name) for name in fields} == expected
    assert parse_body(Endpoint.CHAT, body).params == row.params


@given(st.text(), st.text(), st.sampled_from(list(Endpoint)), st.floats(max_value=0))
def test_any_answer_is_one_line_of_json(text: str, custom_id: str, endpoint: Endpoint, logprob: float) -> None:
    row = BatchRow(custom_id, endpoint, None, "x", SamplingParams())
    answer = an_answer(text, logprobs=(TokenLogprob(1, logprob, ((1, logprob),)),))
    line = answer_line(row, answer, fingerprint="f", number=0, model="m", token_text=lambda _: text)
    assert is_one_json_line(line)
    choice = json.loads(line)["response"]["body"]["choices"][0]
    assert (choice["text"] if endpoint is Endpoint.COMPLETIONS else choice["message"]["content"]) == text


@given(st.text(), st.none() | st.text(), st.integers(0), st.integers(1))
def test_any_error_is_one_line_of_json(message: str, custom_id: str | None, number: int, line: int) -> None:
    error = RowError(RowErrorCode.INTERNAL, message)
    written = error_line(error, custom_id=custom_id, fingerprint="f", number=number, line=line)
    assert is_one_json_line(written)
    assert json.loads(written)["error"] == {"code": "internal", "message": message, "line": line}


def test_half_a_surrogate_pair_is_written_as_the_escape_that_it_is_in_json() -> None:
    row = BatchRow("a", Endpoint.CHAT, None, "x", SamplingParams())
    line = answer_line(row, an_answer("\ud83d"), fingerprint="f", number=0, model="m", token_text=token_text)
    assert b'"content":"\\ud83d"' in line
    assert is_one_json_line(line)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"rank": 3}, 3.0),
        ({"rank": -0.5}, -0.5),
        ({"rank": "12"}, 12.0),  # the API's metadata are strings
        ({"rank": "1e3"}, 1000.0),
        ({"rank": "high"}, None),
        ({"rank": True}, None),
        ({"rank": None}, None),
        ({"rank": [1]}, None),
        ({"rank": "nan"}, None),
        ({"rank": "inf"}, None),
        ({"rank": 10**400}, None),
        ({"other": 1}, None),
        ("rank", None),
        (None, None),
    ],
)
def test_the_priority_of_a_row_is_a_number_in_its_metadata(metadata: object, expected: float | None) -> None:
    body = {"prompt": "x", "metadata": metadata}
    line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body})
    assert priority_of(parse_row(line.encode()), "rank") == expected
