"""The OpenAI Batch protocol: a line of JSON to a `BatchRow`, an `Answer` or an error to a line of JSON.

Owns every field name, type and limit of the API, and the wording of what is wrong with a row. Knows nothing of
tokenizers, models or files; standard library only. `parse_body` and `response_body` are what a server needs as well.
One idea: nothing is ignored. A field is known, or accepted without effect and counted (`BatchRow.ignored`), or refused
by name. JSON null for an optional field counts as absent; a required field that is null is missing.
What is written derives from the row alone: no clock, no random ids, no cache counts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

from penstock.errors import RowError, RowErrorCode
from penstock.fields import Fields, excerpt, integer_in, is_unicode, load, number_in, refuse
from penstock.request import MAX_LOGPROBS, MAX_SAMPLES, Answer, Completion, SamplingParams, TokenLogprob

MAX_CUSTOM_ID = 512
COMPLETIONS_MAX_TOKENS = 16  # what the API gives where a completion asks for no number
LOGPROB_FLOOR = -9999.0  # JSON has no -Infinity; clients of OpenAI and vLLM know this number for it

_MAX_INT32 = 2**31 - 1
_MAX_INT64 = 2**63 - 1
_WITHOUT_EFFECT = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
_DEFAULTS_ONLY: tuple[tuple[str, object], ...] = (("stream", False), ("response_format", {"type": "text"}))
_ROLES = ("system", "developer", "user", "assistant", "tool")
_LINE_FIELDS = frozenset({"custom_id", "method", "url", "body"})
_SAMPLING_FIELDS = frozenset(
    {"max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop"}
    | {"stop_token_ids", "min_tokens", "ignore_eos", "logprobs", "top_logprobs", "logit_bias", "n"}
)
_IGNORED = frozenset({*_WITHOUT_EFFECT, *(name for name, _ in _DEFAULTS_ONLY)})
_CHAT_FIELDS = _SAMPLING_FIELDS | _IGNORED | {"model", "messages"}
_COMPLETION_FIELDS = (_SAMPLING_FIELDS | _IGNORED | {"model", "prompt"}) - {"top_logprobs"}
_MESSAGE_FIELDS, _PART_FIELDS = frozenset({"role", "content", "name"}), frozenset({"type", "text"})
_MAX_KEPT = 1000  # characters of sampling fields that are kept, with what they mean, for the rows that have the same


class Endpoint(StrEnum):
    """The URLs that a row may name."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"


_ENDPOINTS = {str(endpoint): endpoint for endpoint in Endpoint}


class Message(NamedTuple):
    """One message of a chat; its text parts are joined with nothing between them."""

    role: str
    content: str
    name: str | None = None

    def for_template(self) -> dict[str, object]:
        """The message as chat templates expect it: a mapping, without the name if there is none."""
        return {key: value for key, value in self._asdict().items() if value is not None}


Prompt = str | tuple[int, ...] | tuple[Message, ...]


class Body(NamedTuple):
    """What the body of a request says; `ignored` names the fields that were accepted without effect, sorted.

    `metadata` is as it stands there: it has no effect on the answer (see `priority_of`).
    """

    model: str | None
    prompt: Prompt
    params: SamplingParams
    ignored: tuple[str, ...]
    metadata: object


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One row of a batch; the prompt of a completion is text or token ids, that of a chat is messages."""

    custom_id: str
    endpoint: Endpoint
    model: str | None
    prompt: Prompt
    params: SamplingParams
    ignored: tuple[str, ...] = ()
    metadata: object = None


class BadRow(RowError):
    """A line that is no `BatchRow`; `custom_id` is there where the line's JSON parses and has a usable one."""

    def __init__(self, code: RowErrorCode, message: str, *, custom_id: str | None) -> None:
        super().__init__(code, message)
        self.custom_id = custom_id


# --- a line of a batch --------------------------------------------------------------------------------------------


def parse_row(line: bytes) -> BatchRow:
    """Read one line of a batch file.

    Raises:
        BadRow: the line cannot be answered; nothing else is ever raised, whatever the bytes.
    """
    value: object = None
    try:
        value, flaws = load(line)
        if flaws:
            raise RowError(RowErrorCode.INVALID_JSON, flaws[0])
        return _row(value)
    except RowError as error:
        raise BadRow(error.code, error.message, custom_id=_usable_id(value)) from None


def duplicate_custom_id(custom_id: str, *, line: int, first_line: int) -> BadRow:
    """The error of a row whose custom id was taken by an earlier row, which is the one that is answered."""
    found = f"custom_id {excerpt(custom_id)} on line {line} was used on line {first_line}"
    message = f"{found}; it must be unique in the file; only the first row counts"
    return BadRow(RowErrorCode.DUPLICATE_CUSTOM_ID, message, custom_id=custom_id)


def priority_of(row: BatchRow, field: str) -> float | None:
    """How urgent a row is by a field of its `body.metadata`, higher first; None: there is no such number.

    The API's metadata are strings, so the text of a number counts as one. It changes when a row runs, never its answer.
    """
    found = row.metadata.get(field) if isinstance(row.metadata, Mapping) else None
    if isinstance(found, bool) or not isinstance(found, (int, float, str)):
        return None
    try:
        number = float(found)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _row(value: object) -> BatchRow:
    fields = Fields.of(value, "")
    custom_id = fields.required("custom_id")
    if not _is_usable_id(custom_id):
        refuse("custom_id", custom_id, f"a string of 1 to {MAX_CUSTOM_ID} characters, none of them NUL")
    if fields.required("method") != "POST":
        refuse("method", fields.values["method"], '"POST"')
    endpoint = _endpoint(fields.required("url"))
    body = Fields.of(fields.required("body"), "body").values
    fields.only(_LINE_FIELDS)
    return BatchRow(str(custom_id), endpoint, *parse_body(endpoint, body))


def _endpoint(url: object) -> Endpoint:
    if not isinstance(url, str):
        refuse("url", url, "a string")
    endpoint = _ENDPOINTS.get(url)
    if endpoint is None:
        message = f"url is {excerpt(url)}; it must be one of {', '.join(Endpoint)}"
        raise RowError(RowErrorCode.UNSUPPORTED_URL, message)
    return endpoint


def _usable_id(value: object) -> str | None:
    custom_id = value.get("custom_id") if isinstance(value, dict) else None
    return custom_id if isinstance(custom_id, str) and _is_usable_id(custom_id) else None


def _is_usable_id(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= MAX_CUSTOM_ID and "\0" not in value and is_unicode(value)


# --- the body of a request ----------------------------------------------------------------------------------------


def parse_body(endpoint: Endpoint, body: Mapping[str, object]) -> Body:
    """Read the body of a request.

    Raises:
        RowError: a field is missing, wrong or unknown.
    """
    fields = Fields("body.", body)
    is_chat = endpoint is Endpoint.CHAT
    prompt = parse_messages(fields.required("messages")) if is_chat else parse_prompt(fields.required("prompt"))
    fields.only(_CHAT_FIELDS if is_chat else _COMPLETION_FIELDS)
    params, metadata = _params(fields, endpoint), fields.values.get("metadata")
    return Body(fields.text("model"), prompt, params, _ignored(fields), metadata)


def parse_prompt(value: object) -> str | tuple[int, ...]:
    """Read the prompt of a completion: text, or token ids (whether they are in the vocabulary is not known here)."""
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, list) or not value or isinstance(value[0], (str, list)):
        refuse("body.prompt", value, "one text or one list of token ids, and not empty")
    return _token_ids("body.prompt", list(value))


def parse_messages(value: object) -> tuple[Message, ...]:
    """Read the messages of a chat."""
    if not isinstance(value, list) or not value:
        refuse("body.messages", value, "a list of at least one message")
    return tuple(_message(item, f"body.messages[{i}]") for i, item in enumerate(value))


def _message(value: object, path: str) -> Message:
    fields = Fields.of(value, path)
    role = fields.required("role")
    if role not in _ROLES:
        refuse(f"{path}.role", role, f"one of {', '.join(_ROLES)}")
    content = _content(fields.required("content"), f"{path}.content")
    fields.only(_MESSAGE_FIELDS)
    return Message(str(role), content, fields.text("name"))


def _content(value: object, path: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        refuse(path, value, "a string or a list of at least one text part")
    return "".join(_part(item, f"{path}[{i}]") for i, item in enumerate(value))


def _part(value: object, path: str) -> str:
    fields = Fields.of(value, path)
    if fields.required("type") != "text":
        refuse(f"{path}.type", fields.values["type"], '"text"')
    fields.required("text")
    fields.only(_PART_FIELDS)
    return fields.text("text") or ""


def _ignored(fields: Fields) -> tuple[str, ...]:
    """The fields without effect that are there; those that are so with one value only must have it."""
    if fields.values.keys().isdisjoint(_IGNORED):
        return ()
    for name, value in _DEFAULTS_ONLY:
        found = fields.values.get(name)
        if found is not None and (type(found) is not type(value) or found != value):
            refuse(f"{fields.path}{name}", found, f"{json.dumps(value)} or absent")
    return tuple(sorted(name for name in fields.values if name in _IGNORED and fields.values[name] is not None))


class _Given:
    """The sampling fields of a body, equal to others where their texts are: 1, 1.0 and true are not the same."""

    def __init__(self, fields: Fields) -> None:
        self.values = {name: value for name, value in fields.values.items() if name in _SAMPLING_FIELDS}
        self.text = repr(self.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Given) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def _params(fields: Fields, endpoint: Endpoint) -> SamplingParams:
    """The sampling parameters: of nearly all rows of a file the same few, so they are not worked out for each row."""
    given = _Given(fields)
    return _kept_params(given, endpoint) if len(given.text) <= _MAX_KEPT else _read_params(given, endpoint)


def _read_params(sampling: _Given, endpoint: Endpoint) -> SamplingParams:
    fields, is_chat = Fields("body.", sampling.values), endpoint is Endpoint.CHAT
    given: dict[str, Any] = {
        "max_tokens": _max_tokens(fields, default=None if is_chat else COMPLETIONS_MAX_TOKENS),
        "temperature": fields.number("temperature", low=0, high=2),
        "top_p": fields.number("top_p", low=0, high=1),
        "top_k": fields.integer("top_k", low=0, high=_MAX_INT32),
        "min_p": fields.number("min_p", low=0, high=1),
        "seed": fields.integer("seed", low=-_MAX_INT64 - 1, high=_MAX_INT64),
        "stop": _stop(fields),
        "stop_token_ids": _token_ids("body.stop_token_ids", fields.items("stop_token_ids")),
        "min_tokens": fields.integer("min_tokens", low=0, high=_MAX_INT32),
        "ignore_eos": fields.flag("ignore_eos"),
        "logprobs": _chat_logprobs(fields) if is_chat else fields.integer("logprobs", low=0, high=MAX_LOGPROBS),
        "logit_bias": _logit_bias(fields),
        "n": fields.integer("n", low=1, high=MAX_SAMPLES),
    }
    try:
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise RowError(RowErrorCode.INVALID_FIELD, f"body.{error}") from None


_kept_params = lru_cache(256)(_read_params)


def _max_tokens(fields: Fields, *, default: int | None) -> int | None:
    old = fields.integer("max_tokens", low=1, high=_MAX_INT32)
    new = fields.integer("max_completion_tokens", low=1, high=_MAX_INT32)
    if old is not None and new is not None and old != new:
        refuse("body.max_completion_tokens", new, f"equal to max_tokens, {old}, where both are given")
    found = old if new is None else new
    return default if found is None else found


def _stop(fields: Fields) -> tuple[str, ...]:
    found = fields.values.get("stop")
    strings = [found] if isinstance(found, str) else fields.items("stop")
    for i, item in enumerate(strings):
        if not isinstance(item, str) or not item:
            refuse(f"body.stop[{i}]", item, "a string that is not empty")
    return tuple(str(item) for item in strings)


def _token_ids(name: str, values: list[object]) -> tuple[int, ...]:
    if set(map(type, values)) == {int}:  # a prompt may have thousands: one by one only to name the one that is wrong
        ids: tuple[int, ...] = tuple(values)  # type: ignore[arg-type]
        if min(ids) >= 0 and max(ids) <= _MAX_INT32:
            return ids
    return tuple(integer_in(f"{name}[{i}]", value, low=0, high=_MAX_INT32) for i, value in enumerate(values))


def _chat_logprobs(fields: Fields) -> int | None:
    wanted = fields.flag("logprobs")
    top = fields.integer("top_logprobs", low=0, high=MAX_LOGPROBS)
    if top and not wanted:
        refuse("body.top_logprobs", top, "absent or 0 unless logprobs is true")
    return (top or 0) if wanted else None


def _logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    found = fields.values.get("logit_bias")
    if found is None:
        return ()
    values = Fields.of(found, "body.logit_bias").values
    return tuple(sorted(_bias(key, value) for key, value in values.items()))


def _bias(key: str, value: object) -> tuple[int, float]:
    """One bias; the key is the only spelling of a token id, so that no two keys name one token."""
    if not (key.isascii() and key.isdigit() and len(key) <= 10 and str(int(key)) == key and int(key) <= _MAX_INT32):
        refuse("a key of body.logit_bias", key, f'a token id from "0" to "{_MAX_INT32}"')
    return int(key), number_in(f"body.logit_bias.{key}", value, low=-100, high=100)


# --- answers and errors as lines ----------------------------------------------------------------------------------


def answer_line(
    row: BatchRow, answer: Answer, *, fingerprint: str, number: int, model: str, token_text: Callable[[int], str]
) -> bytes:
    """The output line of an answered row.

    `fingerprint` is the job's, `number` the row's place among the non-blank lines from 0, `model` the name to give
    where the row has none, `token_text` the text of one token (asked only where the row wants logprobs).
    """
    name = _row_name(fingerprint, number)
    body = response_body(
        row.endpoint, answer, name=name, model=model if row.model is None else row.model, token_text=token_text
    )
    response = {"status_code": 200, "request_id": f"req_{name}", "body": body}
    return _line({"id": f"batch_req_{name}", "custom_id": row.custom_id, "response": response, "error": None})


def error_line(error: RowError, *, custom_id: str | None, fingerprint: str, number: int, line: int) -> bytes:
    """The output line of a row that has no answer; `line` counts all lines of the input, blank ones too, from 1."""
    row_id = f"batch_req_{_row_name(fingerprint, number)}"
    found = {"code": str(error.code), "message": error.message, "line": line}
    return _line({"id": row_id, "custom_id": custom_id, "response": None, "error": found})


def response_body(
    endpoint: Endpoint, answer: Answer, *, name: str, model: str, token_text: Callable[[int], str]
) -> dict[str, object]:
    """The API's object for an answer; `created` is 0, since a clock would make equal answers differ."""
    is_chat = endpoint is Endpoint.CHAT
    choice = _chat_choice if is_chat else _completion_choice
    prompt, output = answer.prompt_tokens, answer.output_tokens
    return {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{name}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": 0,
        "model": model,
        "choices": [choice(completion, token_text) for completion in answer.completions],
        "usage": {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output},
    }


def _row_name(fingerprint: str, number: int) -> str:
    return hashlib.blake2b(f"{fingerprint}:{number}".encode(), digest_size=12).hexdigest()


def _line(value: dict[str, object]) -> bytes:
    """One line of JSON in UTF-8. (`backslashreplace` writes half a surrogate pair as JSON's own escape.)"""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode(errors="backslashreplace") + b"\n"


def _chat_choice(completion: Completion, token_text: Callable[[int], str]) -> dict[str, object]:
    logprobs = completion.logprobs
    content = None if logprobs is None else [_chat_logprob(entry, token_text) for entry in logprobs]
    return {
        "index": completion.index,
        "message": {"role": "assistant", "content": completion.text, "refusal": None},
        "logprobs": None if content is None else {"content": content, "refusal": None},
        "finish_reason": str(completion.finish_reason),
    }


def _chat_logprob(entry: TokenLogprob, token_text: Callable[[int], str]) -> dict[str, object]:
    top = [_token_entry(token_text(token), logprob) for token, logprob in entry.top]
    return {**_token_entry(token_text(entry.token), entry.logprob), "top_logprobs": top}


def _token_entry(text: str, logprob: float) -> dict[str, object]:
    """A token of a chat's logprobs; a token that is a part of a character has no bytes of its own to give."""
    found = None if "\ufffd" in text else list(text.encode(errors="replace"))
    return {"token": text, "bytes": found, "logprob": _floored(logprob)}


def _completion_choice(completion: Completion, token_text: Callable[[int], str]) -> dict[str, object]:
    logprobs = completion.logprobs
    return {
        "index": completion.index,
        "text": completion.text,
        "logprobs": None if logprobs is None else _completion_logprobs(logprobs, token_text),
        "finish_reason": str(completion.finish_reason),
    }


def _completion_logprobs(entries: tuple[TokenLogprob, ...], token_text: Callable[[int], str]) -> dict[str, object]:
    """Offsets count characters of the tokens' own texts; they part from `text` where a character is in two tokens."""
    tokens = [token_text(entry.token) for entry in entries]
    offsets = [0]
    for token in tokens:
        offsets.append(offsets[-1] + len(token))
    return {
        "tokens": tokens,
        "token_logprobs": [_floored(entry.logprob) for entry in entries],
        "top_logprobs": [_top_by_text(entry, token_text) for entry in entries],
        "text_offset": offsets[:-1],
    }


def _top_by_text(entry: TokenLogprob, token_text: Callable[[int], str]) -> dict[str, float]:
    """The alternatives, best first, and the chosen token; of tokens with the same text the best one is kept."""
    found: dict[str, float] = {}
    for token, logprob in (*entry.top, (entry.token, entry.logprob)):
        found.setdefault(token_text(token), _floored(logprob))
    return found


def _floored(logprob: float) -> float:
    return max(logprob, LOGPROB_FLOOR) if logprob == logprob else logprob  # a NaN stays one, and `_line` refuses it
