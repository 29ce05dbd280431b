"""From a row to a request: render, tokenize, and check what needs the tokenizer or the model's limits.

Owns the checks that `protocol.py` cannot make because they need the vocabulary or the context. Knows no engine and no
file. The tokenizer is passed in, so this runs (and is tested) without any.
One idea: a request that leaves here can be answered by the model; only the size of the KV memory can still refuse it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from penstock.errors import RowError, RowErrorCode
from penstock.protocol import BatchRow, Message, Prompt
from penstock.request import Request, SamplingParams, TokenSpan, stream_key


class Encoder(Protocol):
    """What is asked of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """The token ids of a completion's prompt."""

    def encode_chat(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        """The token ids of a rendered chat; `RowError` where there is no template or it refuses the messages."""


class Intake:
    """Makes requests of rows, for one model and one job."""

    def __init__(self, tokenizer: Encoder, *, context_tokens: int, job_seed: int, vocab: int) -> None:
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens
        self._job_seed = job_seed
        self._vocab = vocab

    def request(self, row: BatchRow, tokens: Sequence[int] | None = None) -> Request:
        """The row as tokens, which are not worked out again where they are given.

        Raises:
            RowError: the prompt is empty or too long, or a token id is outside the vocabulary.
        """
        self._check_vocab("stop_token_ids", row.params.stop_token_ids)
        self._check_vocab("logit_bias", [token for token, _ in row.params.logit_bias])
        prompt = self._encode(row.prompt) if tokens is None else tokens
        self._check_vocab("prompt", prompt)  # a tokenizer may know more tokens than the model
        if not prompt:
            message = f"the prompt has 0 tokens; it must have from 1 to {self._context_tokens - 1}"
            raise RowError(RowErrorCode.INVALID_FIELD, message)
        _check_length(len(prompt), row.params, context_tokens=self._context_tokens)
        key = stream_key(row.params.seed, job_seed=self._job_seed, custom_id=row.custom_id)
        return Request((TokenSpan(tuple(prompt)),), row.params, stream_key=key)

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt)
        messages = [part.for_template() for part in prompt if isinstance(part, Message)]
        ids = [part for part in prompt if isinstance(part, int)]
        return self._tokenizer.encode_chat(messages) if messages else ids

    def _check_vocab(self, name: str, tokens: Sequence[int]) -> None:
        for token in (min(tokens), max(tokens)) if tokens else ():
            if not 0 <= token < self._vocab:
                message = f"body.{name} has token id {token}; the model's ids go from 0 to {self._vocab - 1}"
                raise RowError(RowErrorCode.INVALID_FIELD, message)


def _check_length(prompt_tokens: int, params: SamplingParams, *, context_tokens: int) -> None:
    """Check that the prompt, and the output that it must be able to have, fit the context."""
    asked = params.max_tokens or max(1, params.min_tokens)
    if prompt_tokens + asked > context_tokens:
        name = "max_tokens" if params.max_tokens else "the shortest output"
        found = f"the prompt has {prompt_tokens} tokens and {name} is {asked}: {prompt_tokens + asked} together"
        raise RowError(RowErrorCode.PROMPT_TOO_LONG, f"{found}; the model's context is {context_tokens} tokens")
