"""Protects stop strings: a window of newest tokens finds what decoding everything at every token would find."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.request import FinishReason, Request, SamplingParams, TokenSpan
from penstock.request import TokenLogprob as Drawn
from penstock.sequence import End
from penstock.sequence import Sequence as Live

SPECIAL = 300  # and above: left out of the text
TEXT = "Ünïcode 🙂🙃 日本語 a, bb, ab, STOP. \ufffd"


def byte_level(ids: Sequence[int]) -> str:
    """Bytes of any characters, one a token (and "ab" as one); what is none is replaced where it stands."""
    return b"".join(b"ab" if i == 256 else bytes([i]) for i in ids if i < 257).decode("utf-8", "replace")


def byte_fallback(ids: Sequence[int]) -> str:
    """As SentencePiece's: spaces before pieces, the first one left out; a run of bytes counts as a whole."""
    text, run = "", b""
    for i in [*ids, None]:
        if i is not None and 128 <= i < 256:
            run += bytes([i])
            continue
        try:
            text += run.decode()
        except UnicodeDecodeError:
            text += "\ufffd" * len(run)
        run = b""
        text += "" if i is None or i >= 257 else " ab" if i == 256 else chr(i)
    return text.removeprefix(" ")


def whole_words(ids: Sequence[int]) -> str:
    return " ".join("#" * (i % 7) for i in ids if i < 257)


DECODERS = [byte_level, byte_fallback, whole_words]


def slow_end(decode: Callable[[list[int]], str], output: list[int], params: SamplingParams) -> End | None:
    """The definition: everything decoded at every token."""
    assert params.max_tokens is not None
    for count in range(max(1, params.min_tokens), len(output) + 1):
        text = decode(output[:count]).rstrip("\ufffd")
        protected = len(decode(output[: params.min_tokens - 1])) if params.min_tokens > 1 else 0
        found = [at for s in params.stop if (at := text.find(s, max(0, protected - len(s) + 1))) >= 0]
        if found:
            return End(FinishReason.STOP, text[: min(found)])
        if count >= params.max_tokens:
            return End(FinishReason.LENGTH)
    return None


def fast_end(decode: Callable[[list[int]], str], output: list[int], params: SamplingParams) -> End | None:
    request = Request((TokenSpan((5, 6)),), params)
    sequence = Live(1, request, sample=0, eos_ids=frozenset(), context_tokens=10_000)
    for token in output:
        sequence.append(Drawn(token, 0.0, ()))
        end = sequence.find_end(decode)
        if end is not None:
            return end
    return None


def some_output(rng: random.Random, length: int) -> list[int]:
    """Text in bytes, with whole tokens, special tokens and bytes that are no characters between."""
    output: list[int] = []
    while len(output) < length:
        kind = rng.random()
        if kind < 0.7:
            at = rng.randrange(len(TEXT))
            output += TEXT[at : at + rng.randint(1, 30)].encode()
        elif kind < 0.8:
            output += [256] * rng.randint(1, 3)
        elif kind < 0.9:
            output += [SPECIAL] * rng.choice([1, 2, 50])
        else:
            output += rng.choices(range(128, 256), k=rng.choice([1, 2, 40]))
    return output[:length]


@pytest.mark.parametrize("decode", DECODERS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40)
def test_a_sequence_ends_as_if_everything_were_decoded_at_every_token(
    decode: Callable[[list[int]], str], seed: int
) -> None:
    rng = random.Random(seed)
    output = some_output(rng, rng.choice([10, 100, 400]))
    text = decode(output)
    pieces = [text[at : at + rng.choice([1, 3, 9, 40])] for at in rng.choices(range(max(1, len(text))), k=2)]
    stops = tuple(s for s in [*pieces, rng.choice(["🙂🙃", "STOP. Ü", "nowhere", "\ufffd,"])] if s)
    params = SamplingParams(
        max_tokens=len(output), stop=stops[-rng.randint(1, 3) :], min_tokens=rng.choice([0, 1, 7, 90]) % len(output)
    )
    assert fast_end(decode, output, params) == slow_end(decode, output, params)


@pytest.mark.parametrize("decode", [byte_level, byte_fallback])
def test_the_tokens_decoded_grow_with_the_length_and_not_with_its_square(decode: Callable[[list[int]], str]) -> None:
    decoded = 0

    def counted(ids: list[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return decode(ids)

    output = list(("a日本語 and more text. " * 300).encode())[:4000]
    params = SamplingParams(max_tokens=len(output), stop=("nowhere to be found",))
    assert fast_end(counted, output, params) == End(FinishReason.LENGTH)
    assert decoded < 100 * len(output)


def test_half_a_character_is_not_taken_for_the_replacement_character() -> None:
    params = SamplingParams(max_tokens=9, stop=("\ufffd",))
    assert fast_end(byte_level, list("é".encode() * 4), params) is None
    assert fast_end(byte_level, list("a\ufffdb".encode()), params) == End(FinishReason.STOP, "a")
