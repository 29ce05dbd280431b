"""`Sequence`: the live state of one sequence, from its prompt to its last token.

Owns the tokens, how many of them are computed, and the blocks that hold their KV; and the rules by which a sequence
ends. The scheduler moves it, nothing else does.
One idea: there is no prefill phase and no decode phase. `num_computed` catches up with `len(tokens)`; when it does,
a token is drawn and appended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from penstock.prefix import Node
from penstock.request import Completion, FinishReason, Request, TokenLogprob, uniform
from penstock.step import BlockCopy, Chunk, SampleAt
from penstock.stops import UNKNOWN, StopSearch

Decode = Callable[[list[int]], str]


class End(NamedTuple):
    """How a sequence ended: the reason, and its text where a stop string cut it."""

    reason: FinishReason
    text: str | None = None


class Sequence:
    """One sequence of a request, in one of three states.

    - waiting: in the scheduler's queue; has no blocks, nothing is computed.
    - running: has blocks for at least `num_computed` tokens.
    - ended: has no blocks; `end` says how, unless it was aborted.

    Invariant: num_computed <= len(tokens), and len(blocks) * block_tokens >= num_computed.
    """

    def __init__(
        self,
        number: int,
        request: Request,
        *,
        sample: int,
        eos_ids: frozenset[int],
        context_tokens: int,
        expected_tokens: int | None = None,
        shared_tokens: int | None = None,
    ) -> None:
        self.number = number
        self.request = request
        self.sample = sample
        self.prompt_tokens = request.prompt_tokens
        self.tokens = list(self.prompt_tokens)
        self.logprobs: list[TokenLogprob] = []
        self.num_computed = 0
        self.shared_tokens = shared_tokens  # with which others may begin; None: they may begin with all of them
        self.num_cached = 0  # prompt tokens found in the prefix tree when it was first admitted
        self.was_admitted = False
        self.blocks: list[int] = []
        self.nodes: list[Node] = []  # the prefix tree's nodes of the first len(nodes) blocks
        self.copy: BlockCopy | None = None  # to be done before its next chunk
        self.end: End | None = None
        params = request.params
        self._stop_search = StopSearch(params.stop)
        self._last_sample: SampleAt | None = None  # a greedy one without bans, which is the same at every token
        self.max_output_tokens = min(params.max_tokens or context_tokens, context_tokens - len(self.prompt_tokens))
        self.set_expected(expected_tokens)
        self.stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos_ids)

    def set_expected(self, tokens: int | None) -> None:
        """Reckon with an answer of so many tokens, as far as they are allowed; None: of all that are."""
        self.expected_tokens = min(tokens or self.max_output_tokens, self.max_output_tokens)

    @property
    def output_tokens(self) -> list[int]:
        """The tokens drawn so far."""
        return self.tokens[len(self.prompt_tokens) :]

    @property
    def num_output(self) -> int:
        """How many tokens were drawn so far."""
        return len(self.tokens) - len(self.prompt_tokens)

    @property
    def num_to_compute(self) -> int:
        """Tokens that are known but not computed."""
        return len(self.tokens) - self.num_computed

    @property
    def num_to_come(self) -> int:
        """Output tokens that it is expected to draw yet; at least one, since it has not ended."""
        return max(1, self.expected_tokens - self.num_output)

    @property
    def is_decoding(self) -> bool:
        """Whether only its newest token is left to compute."""
        return self.num_to_compute == 1 and self.num_output > 0

    def chunk(self, num_tokens: int) -> Chunk:
        """The next `num_tokens` tokens to compute, and the draw behind the last one if it is the newest."""
        end = self.num_computed + num_tokens
        samples = (self._sample_at(num_tokens - 1),) if end == len(self.tokens) else ()
        tokens = tuple(self.tokens[self.num_computed : end])
        adapter = self.request.namespace.adapter
        return Chunk(self.number, self.num_computed, tokens, (tuple(self.blocks),), samples, adapter)

    def _sample_at(self, offset: int) -> SampleAt:
        params = self.request.params
        greedy = params.temperature == 0.0
        free = self.num_output >= params.min_tokens
        if greedy and free and self._last_sample is not None and self._last_sample.offset == offset:
            return self._last_sample  # once a token, for every sequence: it is worth not making it again
        draw = 0.0 if greedy else uniform(self.request.stream_key, sample=self.sample, position=self.num_output)
        sample = SampleAt(
            offset,
            uniform=draw,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            bias=params.logit_bias,
            banned=() if free else tuple(sorted(self.stop_ids)),
            logprobs=params.logprobs,
        )
        self._last_sample = sample if greedy and free else None
        return sample

    def append(self, drawn: TokenLogprob) -> None:
        """Add a token that was drawn."""
        self.tokens.append(drawn.token)
        if self.request.params.logprobs is not None:
            self.logprobs.append(drawn)

    def find_end(self, decode: Decode) -> End | None:
        """How the newest token ends the sequence, or None. A stop beats the length where both hold."""
        if self.num_output < self.request.params.min_tokens:
            return None
        if self.tokens[-1] in self.stop_ids:
            return End(FinishReason.STOP)
        cut = self._text_before_stop(decode)
        if cut is not None:
            return End(FinishReason.STOP, cut)
        return End(FinishReason.LENGTH) if self.num_output >= self.max_output_tokens else None

    def _text_before_stop(self, decode: Decode) -> str | None:
        """The text before the first stop string that was completed at token number min_tokens or later."""
        stops = self.request.params.stop
        if not self._stop_search.may_be_complete(decode, self.tokens, len(self.prompt_tokens)):
            return None
        text = decode(self.output_tokens).rstrip(UNKNOWN)  # its last character may not be complete
        protected = len(decode(self.output_tokens[: self.request.params.min_tokens - 1])) if self._has_minimum else 0
        found = [at for stop in stops if (at := text.find(stop, max(0, protected - len(stop) + 1))) >= 0]
        return text[: min(found)] if found else None

    @property
    def _has_minimum(self) -> bool:
        return self.request.params.min_tokens > 1

    def completion(self, decode: Decode) -> Completion:
        """The value of a sequence that has ended."""
        assert self.end is not None
        text = self.end.text if self.end.text is not None else decode(self.output_tokens)
        logprobs = tuple(self.logprobs) if self.request.params.logprobs is not None else None
        return Completion(self.sample, tuple(self.output_tokens), text, self.end.reason, logprobs)
