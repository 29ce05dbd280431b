"""Protects the checks that need a tokenizer or a model's limits, and the name of each request's random stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from penstock.errors import RowError, RowErrorCode
from penstock.intake import Intake
from penstock.protocol import parse_row
from penstock.request import Request, TokenSpan, stream_key
from tests.bad_rows import BAD_WAYS, BadWay, chat_line, completion_line


class Letters:
    """A tokenizer of letters: a is 0. A chat is its contents, one after the other."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    def encode_chat(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        if any("name" in message for message in messages):
            raise RowError(RowErrorCode.INVALID_FIELD, "the template takes no names")
        return self.encode("".join(str(message["content"]) for message in messages))


def request(line: bytes, *, context_tokens: int = 10, job_seed: int = 0) -> Request:
    intake = Intake(Letters(), context_tokens=context_tokens, job_seed=job_seed, vocab=26)
    return intake.request(parse_row(line))


def error_of(line: bytes) -> tuple[str, str]:
    with pytest.raises(RowError) as caught:
        request(line)
    return str(caught.value.code), caught.value.message


def test_text_is_encoded_and_the_parameters_are_kept() -> None:
    found = request(completion_line("r1", prompt="cab", temperature=0))
    key = stream_key(None, job_seed=0, custom_id="r1")
    params = parse_row(completion_line("r1", temperature=0)).params
    assert found == Request((TokenSpan((2, 0, 1)),), params, stream_key=key)


def test_token_ids_are_taken_as_they_are() -> None:
    assert request(completion_line("r1", prompt=[25, 0])).prompt_tokens == (25, 0)


def test_a_chat_goes_through_the_template() -> None:
    messages = [{"role": "system", "content": "b"}, {"role": "user", "content": "c"}]
    assert request(chat_line("r1", messages=messages)).prompt_tokens == (1, 2)


def test_what_the_template_refuses_is_the_rows_error() -> None:
    messages = [{"role": "user", "content": "a", "name": "bob"}]
    assert error_of(chat_line("r1", messages=messages)) == ("invalid_field", "the template takes no names")


def test_the_stream_is_named_by_the_seed_or_else_by_job_and_row() -> None:
    seeded = {request(completion_line(name, seed=7), job_seed=seed).stream_key for name in "ab" for seed in (1, 2)}
    unseeded = {request(completion_line(name), job_seed=seed).stream_key for name in "ab" for seed in (1, 2)}
    assert (len(seeded), len(unseeded)) == (1, 4)


def test_prompt_and_output_must_fit_the_context_together() -> None:
    assert request(completion_line("r1", prompt="abcd", max_tokens=6)).params.max_tokens == 6
    code, message = error_of(completion_line("r1", prompt="abcd", max_tokens=7))
    assert code == "prompt_too_long"
    assert message == "the prompt has 4 tokens and max_tokens is 7: 11 together; the model's context is 10 tokens"


def test_a_chat_without_a_limit_needs_room_for_one_token() -> None:
    nine = [{"role": "user", "content": "a" * 9}]
    assert request(chat_line("r1", messages=nine, max_tokens=None)).params.max_tokens is None
    ten = [{"role": "user", "content": "a" * 10}]
    code, message = error_of(chat_line("r1", messages=ten, max_tokens=None))
    assert code == "prompt_too_long"
    assert message == (
        "the prompt has 10 tokens and the shortest output is 1: 11 together; the model's context is 10 tokens"
    )


def test_min_tokens_need_room_too() -> None:
    code, message = error_of(chat_line("r1", max_tokens=None, min_tokens=9))
    assert code == "prompt_too_long"
    assert "the shortest output is 9: 11 together" in message


def test_a_prompt_without_tokens_is_refused() -> None:
    empty = [{"role": "user", "content": ""}]
    expected = ("invalid_field", "the prompt has 0 tokens; it must have from 1 to 9")
    assert error_of(chat_line("r1", messages=empty)) == expected


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (completion_line("r1", prompt=[0, 26]), "prompt"),
        (completion_line("r1", stop_token_ids=[26]), "stop_token_ids"),
        (completion_line("r1", logit_bias={"26": 1}), "logit_bias"),
    ],
)
def test_token_ids_are_those_of_the_vocabulary(line: bytes, name: str) -> None:
    assert error_of(line) == ("invalid_field", f"body.{name} has token id 26; the model's ids go from 0 to 25")


@pytest.mark.parametrize("way", [way for way in BAD_WAYS if way.needs_model], ids=lambda way: way.name)
def test_each_row_that_only_the_model_shows_to_be_bad_gets_its_code(way: BadWay) -> None:
    assert error_of(way.line("r1"))[0] == way.code


def test_a_token_that_the_tokenizer_knows_and_the_model_does_not_is_refused() -> None:
    code, message = error_of(completion_line("r1", prompt="a{"))
    assert (code, message) == ("invalid_field", "body.prompt has token id 26; the model's ids go from 0 to 25")
