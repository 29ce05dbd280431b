"""Lines that cannot be answered, each wrong in one way of its own, and the error code that each must get.

Used to test the protocol alone, and a whole job in which a tenth of the rows are bad. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from penstock.errors import RowErrorCode as Code

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HUGE = 2_000_000_000  # more than any context or vocabulary, and still a number that the protocol takes


class BadWay(NamedTuple):
    """One way to be bad: `line` makes the row for a custom id, which the error row carries where `keeps_id`."""

    name: str
    code: Code
    line: Callable[[str], bytes]
    keeps_id: bool = True
    needs_model: bool = False  # only the tokenizer, the model's limits or the other rows show it


def chat_line(custom_id: str, **fields: object) -> bytes:
    """A chat row with the given fields of the body; None leaves one out."""
    return _dump(_row(custom_id, CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}, fields))


def completion_line(custom_id: str, **fields: object) -> bytes:
    """A completion row with the given fields of the body; None leaves one out."""
    return _dump(_row(custom_id, COMPLETIONS, {"prompt": "hello", "max_tokens": 2}, fields))


def _row(custom_id: str, url: str, body: dict[str, object], changed: dict[str, object]) -> dict[str, object]:
    merged = {name: value for name, value in (body | changed).items() if value is not None}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": merged}


def _dump(row: dict[str, object]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def _changed(**fields: Any) -> Callable[[str], bytes]:
    """A chat row with fields of the line (not the body) changed; None leaves one out."""

    def line(custom_id: str) -> bytes:
        row = json.loads(chat_line(custom_id)) | fields
        return _dump({name: value for name, value in row.items() if value is not None})

    return line


def _chat(**fields: object) -> Callable[[str], bytes]:
    return lambda custom_id: chat_line(custom_id, **fields)


def _completion(**fields: object) -> Callable[[str], bytes]:
    return lambda custom_id: completion_line(custom_id, **fields)


def _message(**fields: object) -> Callable[[str], bytes]:
    message = {"role": "user", "content": "hi"} | fields
    return _chat(messages=[{name: value for name, value in message.items() if value is not None}])


def _part(part: object) -> Callable[[str], bytes]:
    return _message(content=[{"type": "text", "text": "a"}, part])


def _replaced(old: bytes, new: bytes) -> Callable[[str], bytes]:
    """A completion row in which some bytes are others."""

    def line(custom_id: str) -> bytes:
        good = completion_line(custom_id, temperature=1)
        assert good.count(old) == 1
        return good.replace(old, new)

    return line


J, F = Code.INVALID_JSON, Code.INVALID_FIELD
BAD_WAYS: tuple[BadWay, ...] = (
    # not JSON, or JSON that the protocol does not take
    BadWay("cut short", J, lambda i: chat_line(i)[:-9], keeps_id=False),
    BadWay("not UTF-8", J, _replaced(b"hello", b"hell\xff"), keeps_id=False),
    BadWay("UTF-8 of half a surrogate pair", J, _replaced(b"hello", b"\xed\xa0\x80"), keeps_id=False),
    BadWay("escape of half a surrogate pair", J, _replaced(b"hello", b"\\ud83d")),
    BadWay("NUL byte", J, _replaced(b"hello", b"he\x00lo"), keeps_id=False),
    BadWay("NaN", J, _replaced(b'"temperature": 1', b'"temperature": NaN')),
    BadWay("Infinity", J, _replaced(b'"temperature": 1', b'"temperature": -Infinity')),
    BadWay("float beyond a double", J, _replaced(b'"temperature": 1', b'"temperature": 1e999')),
    BadWay("integer beyond the parser", J, _replaced(b": 1", b": 1" + b"0" * 5000), keeps_id=False),
    BadWay("nested beyond the parser", J, lambda i: b'{"a":' * 100_000 + b"1" + b"}" * 100_000, keeps_id=False),
    BadWay("nested beyond the limit", J, _changed(body=json.loads("[" * 200 + "]" * 200)), keeps_id=False),
    BadWay("a list", J, lambda i: b"[" + chat_line(i) + b"]", keeps_id=False),
    BadWay("a string", J, lambda i: b'"' + i.encode() + b'"', keeps_id=False),
    BadWay("two objects", J, lambda i: chat_line(i) * 2, keeps_id=False),
    BadWay("single quotes", J, lambda i: chat_line(i).replace(b'"', b"'"), keeps_id=False),
    BadWay("a key twice", J, _replaced(b'"prompt": "hello"', b'"prompt": "a", "prompt": "b"')),
    # missing
    BadWay("no custom_id", Code.MISSING_FIELD, _changed(custom_id=None), keeps_id=False),
    BadWay("no method", Code.MISSING_FIELD, _changed(method=None)),
    BadWay("no url", Code.MISSING_FIELD, _changed(url=None)),
    BadWay("no body", Code.MISSING_FIELD, _changed(body=None)),
    BadWay("no messages", Code.MISSING_FIELD, _chat(messages=None)),
    BadWay("no prompt", Code.MISSING_FIELD, _completion(prompt=None)),
    BadWay("null prompt", Code.MISSING_FIELD, _replaced(b'"hello"', b"null")),
    BadWay("message without role", Code.MISSING_FIELD, _message(role=None)),
    BadWay("message without content", Code.MISSING_FIELD, _message(content=None)),
    BadWay("part without text", Code.MISSING_FIELD, _part({"type": "text"})),
    # another url
    BadWay("embeddings", Code.UNSUPPORTED_URL, _changed(url="/v1/embeddings", body={"input": "hello"})),
    BadWay("whole url", Code.UNSUPPORTED_URL, _changed(url="https://api.openai.com/v1/chat/completions")),
    # unknown
    BadWay("unknown field of the line", Code.UNKNOWN_FIELD, _changed(priority=3)),
    BadWay("unknown field of the body", Code.UNKNOWN_FIELD, _chat(max_token=3)),
    BadWay("tools", Code.UNKNOWN_FIELD, _chat(tools=[])),
    BadWay("tool calls", Code.UNKNOWN_FIELD, _message(tool_calls=[])),
    BadWay("unknown field of a part", Code.UNKNOWN_FIELD, _part({"type": "text", "text": "a", "cache": True})),
    BadWay("messages of a completion", Code.UNKNOWN_FIELD, _completion(messages=[])),
    # values
    BadWay("custom_id a number", F, _changed(custom_id=7), keeps_id=False),
    BadWay("custom_id empty", F, _changed(custom_id=""), keeps_id=False),
    BadWay("custom_id too long", F, _changed(custom_id="x" * 513), keeps_id=False),
    BadWay("method GET", F, _changed(method="GET")),
    BadWay("url a list", F, _changed(url=[CHAT])),
    BadWay("body a string", F, _changed(body="hello")),
    BadWay("model a number", F, _chat(model=3)),
    BadWay("messages a string", F, _chat(messages="hello")),
    BadWay("no message", F, _chat(messages=[])),
    BadWay("message a string", F, _chat(messages=["hello"])),
    BadWay("unknown role", F, _message(role="robot")),
    BadWay("content a number", F, _message(content=5)),
    BadWay("no part", F, _message(content=[])),
    BadWay("image part", F, _part({"type": "image_url", "image_url": {"url": "x"}})),
    BadWay("name a number", F, _message(name=5)),
    BadWay("empty prompt", F, _completion(prompt="")),
    BadWay("prompt without tokens", F, _completion(prompt=[])),
    BadWay("two prompts", F, _completion(prompt=["a", "b"])),
    BadWay("prompt of fractions", F, _completion(prompt=[1, 1.5])),
    BadWay("prompt of booleans", F, _completion(prompt=[True])),
    BadWay("negative token id", F, _completion(prompt=[1, -1])),
    BadWay("max_tokens 0", F, _chat(max_tokens=0)),
    BadWay("max_tokens true", F, _chat(max_tokens=True)),
    BadWay("max_tokens 1.0", F, _chat(max_tokens=1.0)),
    BadWay("max_tokens a string", F, _chat(max_tokens="16")),
    BadWay("max_tokens with 400 digits", F, _chat(max_tokens=10**400)),
    BadWay("two limits", F, _chat(max_tokens=3, max_completion_tokens=4)),
    BadWay("temperature below 0", F, _chat(temperature=-0.1)),
    BadWay("temperature above 2", F, _chat(temperature=2.1)),
    BadWay("temperature with 400 digits", F, _chat(temperature=10**400)),
    BadWay("temperature a string", F, _chat(temperature="hot")),
    BadWay("top_p 0", F, _chat(top_p=0)),
    BadWay("top_p above 1", F, _chat(top_p=1.01)),
    BadWay("top_k -1", F, _chat(top_k=-1)),
    BadWay("min_p above 1", F, _chat(min_p=1.5)),
    BadWay("seed a fraction", F, _chat(seed=1.5)),
    BadWay("seed beyond 64 bits", F, _chat(seed=2**63)),
    BadWay("17 stop strings", F, _chat(stop=["x"] * 17)),
    BadWay("empty stop string", F, _chat(stop=["a", ""])),
    BadWay("stop a number", F, _chat(stop=5)),
    BadWay("stop_token_ids of strings", F, _chat(stop_token_ids=["2"])),
    BadWay("min_tokens above max_tokens", F, _chat(min_tokens=3)),
    BadWay("ignore_eos a number", F, _chat(ignore_eos=1)),
    BadWay("logprobs of a chat a number", F, _chat(logprobs=2)),
    BadWay("top_logprobs 21", F, _chat(logprobs=True, top_logprobs=21)),
    BadWay("top_logprobs without logprobs", F, _chat(top_logprobs=5)),
    BadWay("logprobs of a completion a boolean", F, _completion(logprobs=True)),
    BadWay("logprobs of a completion 21", F, _completion(logprobs=21)),
    BadWay("logit_bias a list", F, _chat(logit_bias=[1])),
    BadWay("logit_bias of a word", F, _chat(logit_bias={"hello": 1})),
    BadWay("logit_bias of 01", F, _chat(logit_bias={"01": 1})),
    BadWay("logit_bias above 100", F, _chat(logit_bias={"1": 101})),
    BadWay("n 0", F, _chat(n=0)),
    BadWay("n 129", F, _chat(n=129)),
    BadWay("stream", F, _chat(stream=True)),
    BadWay("stream 0", F, _chat(stream=0)),
    BadWay("JSON mode", F, _chat(response_format={"type": "json_object"})),
    # what only the model or the other rows show
    BadWay("more tokens than the context", Code.PROMPT_TOO_LONG, _chat(max_tokens=HUGE), needs_model=True),
    BadWay("longest min_tokens", Code.PROMPT_TOO_LONG, _chat(max_tokens=None, min_tokens=HUGE), needs_model=True),
    BadWay("prompt outside the vocabulary", F, _completion(prompt=[1, HUGE]), needs_model=True),
    BadWay("stop_token_ids outside the vocabulary", F, _chat(stop_token_ids=[HUGE]), needs_model=True),
    BadWay("logit_bias outside the vocabulary", F, _chat(logit_bias={str(HUGE): 1}), needs_model=True),
)
