"""What is asked and what is answered: `Request`, `SamplingParams`, `Completion`, `Answer`.

Owns the meaning of a request: its limits, its identity (`fingerprint`) and its stream of random numbers (`uniform`).
Knows nothing of tensors, files or HTTP; standard library only.
One idea: everything that decides an answer is in the `Request`, so equal requests are equal values.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

MAX_STOP_STRINGS = 16
MAX_SAMPLES = 128
MAX_LOGPROBS = 20
MAX_BIAS = 100


class FinishReason(StrEnum):
    """Why a sequence ended, as the OpenAI API words it."""

    STOP = "stop"
    LENGTH = "length"


def _require(name: str, value: object, *, ok: bool, limit: str) -> None:
    if not ok:
        raise ValueError(f"{name} is {value!r}; it must be {limit}")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn and when a sequence ends. The defaults are the OpenAI API's.

    Attributes:
        max_tokens: output tokens at most; None: whatever the context leaves.
        temperature: 0 is greedy (the highest logit, ties to the lowest token id).
        top_p, top_k, min_p: 1.0, 0 and 0.0 switch each off. Applied in the order top_k, top_p, min_p.
        seed: names the stream of random numbers; None: the stream is named by job seed and custom id.
        stop: strings that end the text (and are not part of it), or one string; stop_token_ids: ids that do.
        min_tokens: no end before that many output tokens; ignore_eos: end-of-sequence ids do not end it.
        logprobs: number of alternatives reported for each output token (0: the chosen token only); None: none.
        logit_bias: (token id, added to its logit) pairs, or a dict; kept in ascending order of id.
        n: how many sequences to draw from one prompt.

    Raises:
        ValueError: a value out of range; the message names the field, the value and the limit.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    n: int = 1

    def __post_init__(self) -> None:
        self._normalize()
        self._check_length()
        _require("temperature", self.temperature, ok=0.0 <= self.temperature <= 2.0, limit="from 0 to 2")
        _require("top_p", self.top_p, ok=0.0 < self.top_p <= 1.0, limit="above 0 and at most 1")
        _require("top_k", self.top_k, ok=self.top_k >= 0, limit="0 (off) or more")
        _require("min_p", self.min_p, ok=0.0 <= self.min_p <= 1.0, limit="from 0 to 1")
        logprobs_ok = self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS
        _require("logprobs", self.logprobs, ok=logprobs_ok, limit=f"from 0 to {MAX_LOGPROBS}")
        biases = [bias for _, bias in self.logit_bias]
        biases_ok = all(math.isfinite(b) and abs(b) <= MAX_BIAS for b in biases)
        _require("logit_bias", biases, ok=biases_ok, limit=f"from -{MAX_BIAS} to {MAX_BIAS}")
        _require("n", self.n, ok=1 <= self.n <= MAX_SAMPLES, limit=f"from 1 to {MAX_SAMPLES}")

    def _normalize(self) -> None:
        """Take one stop string for a list of one, any sequence for a tuple, and a dict of biases for its items."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        bias = self.logit_bias.items() if isinstance(self.logit_bias, Mapping) else self.logit_bias
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", tuple(sorted((int(token), float(value)) for token, value in bias)))

    def _check_length(self) -> None:
        too_many = len(self.stop) > MAX_STOP_STRINGS
        _require("stop", len(self.stop), ok=not too_many, limit=f"at most {MAX_STOP_STRINGS} strings")
        _require("stop", self.stop, ok=all(self.stop), limit="strings that are not empty")
        unbounded = self.max_tokens is None
        _require("max_tokens", self.max_tokens, ok=unbounded or (self.max_tokens or 0) >= 1, limit="at least 1")
        _require("min_tokens", self.min_tokens, ok=self.min_tokens >= 0, limit="0 or more")
        min_ok = unbounded or self.min_tokens <= (self.max_tokens or 0)
        _require("min_tokens", self.min_tokens, ok=min_ok, limit=f"at most max_tokens, {self.max_tokens}")


class TokenSpan(NamedTuple):
    """A part of a prompt that is token ids. (Embeddings with a content hash will be the other kind of span.)"""

    tokens: tuple[int, ...]


class Namespace(NamedTuple):
    """What must be equal, beside the tokens, before two sequences may share KV."""

    adapter: str = ""
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt in tokens and how to continue it.

    Attributes:
        prompt: the spans of the prompt, in order; at least one token in all.
        params: how tokens are drawn.
        stream_key: names this request's stream of random numbers (see `stream_key`).
        namespace: keeps the KV of adapters and tenants apart.
    """

    prompt: tuple[TokenSpan, ...]
    params: SamplingParams
    stream_key: bytes = b""
    namespace: Namespace = field(default_factory=Namespace)

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """The token ids of the whole prompt."""
        if len(self.prompt) == 1:
            return self.prompt[0].tokens  # as nearly always, and asked for often
        return tuple(token for span in self.prompt for token in span.tokens)

    @property
    def is_repeatable(self) -> bool:
        """Whether its answer depends on what it asks alone, and not on the name of its row (see `stream_key`)."""
        return self.params.temperature == 0.0 or self.params.seed is not None

    def fingerprint(self) -> str:
        """Hex digest that two requests share exactly when their answers must be equal under one model."""
        drawn = b"" if self.params.temperature == 0.0 else self.stream_key
        hashed = hashlib.sha256(_params_key(self.params))
        for part in (drawn, _namespace_key(self.namespace), array("I", self.prompt_tokens).tobytes()):
            hashed.update(len(part).to_bytes(8, "big") + part)
        return hashed.hexdigest()


@lru_cache(maxsize=64)
def _namespace_key(namespace: Namespace) -> bytes:
    return json.dumps(namespace).encode()


@lru_cache(maxsize=64)
def _params_key(params: SamplingParams) -> bytes:
    """All that the parameters say of an answer; the seed is in the stream's key where it says something."""
    return json.dumps({**asdict(params), "seed": None}, sort_keys=True).encode()


def stream_key(seed: int | None, *, job_seed: int, custom_id: str) -> bytes:
    """The name of a request's random stream: its seed, or else a hash of the job's seed and the row's custom id."""
    name = f"seed:{seed}" if seed is not None else f"job:{job_seed}:{custom_id}"
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def uniform(key: bytes, *, sample: int, position: int) -> float:
    """Draw number `position` of sample `sample` of the stream `key`, in [0, 1), with 53 random bits.

    Counter-based: a draw depends on its three names alone, never on the draws before it (Salmon et al., SC'11,
    "Parallel random numbers: as easy as 1, 2, 3"; here the counter is hashed by BLAKE2b instead of Philox).
    """
    counter = sample.to_bytes(8, "big") + position.to_bytes(8, "big")
    word = hashlib.blake2b(counter, key=key, digest_size=8).digest()
    return (int.from_bytes(word, "big") >> 11) * 2.0**-53


class TokenLogprob(NamedTuple):
    """One output token, its natural-log probability under the model, and the most probable alternatives, best first.

    Probabilities are those of the model itself: before temperature, bias, top_p and the rest.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """One sequence drawn from a prompt."""

    index: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """All sequences drawn from one prompt, by sample index; `cached_tokens` of the prompt were not computed anew."""

    completions: tuple[Completion, ...]
    prompt_tokens: int
    cached_tokens: int

    @property
    def output_tokens(self) -> int:
        """Output tokens of all completions."""
        return sum(len(c.token_ids) for c in self.completions)
