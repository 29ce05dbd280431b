"""The Python door: `LLM(model).generate(prompts)` and `.chat(conversations)`.

Owns the loop that feeds an engine from a list of prompts. Thin: prompts become rows of the batch protocol and the model
is opened as a job opens it, so they are checked, tokenized and answered as `penstock run` does it. Prompt i has custom
id str(i): equal rows, equal answers.
One idea: a bad prompt is a result with an `error`, in its place among the others. The prompts of a call are planned as
a job is: shared prefixes and equal prompts are computed once, and the lengths of answers are learned from those known.
An `LLM` belongs to one thread; several streams of one `LLM` may be read in turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, overload

from penstock.config import read_settings, wait_passively
from penstock.engine import Engine, EngineStats, Failed, Finished
from penstock.errors import RowError
from penstock.fields import is_unicode, refuse
from penstock.jobs.loading import find_model
from penstock.planner import ListPlan, guess_tokens
from penstock.protocol import COMPLETIONS_MAX_TOKENS, BatchRow, Endpoint, Message, Prompt, parse_messages, parse_prompt
from penstock.request import Completion, FinishReason, Request, SamplingParams, TokenLogprob

_COMPLETION_DEFAULTS = SamplingParams(max_tokens=COMPLETIONS_MAX_TOKENS)
_CHAT_DEFAULTS = SamplingParams()

Conversation = Sequence[Mapping[str, object]]
AllParams = SamplingParams | Sequence[SamplingParams] | None


@dataclass(frozen=True, slots=True)
class Result:
    """What became of prompt `index`: completions, or an error and no completion.

    `text`, `token_ids`, `finish_reason` and `logprobs` are those of the first completion; they raise the error of a
    prompt that has none.
    """

    index: int
    completions: tuple[Completion, ...] = ()
    prompt_tokens: int | None = None
    error: RowError | None = None

    @property
    def _first(self) -> Completion:
        if self.error is not None:
            raise self.error
        return self.completions[0]

    @property
    def text(self) -> str:
        """The output, without special tokens."""
        return self._first.text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The output tokens."""
        return self._first.token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """Why the output ended."""
        return self._first.finish_reason

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...] | None:
        """Log-probabilities of the output tokens, where they were asked for."""
        return self._first.logprobs


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prompt on its way to a row."""

    index: int
    endpoint: Endpoint
    prompt: object
    params: SamplingParams


class LLM:
    """A model, loaded.

    Args:
        model: a Hugging Face folder, a hub id, or `demo`.
        device, dtype, memory, kv_memory, token_budget, seed: as the flags of `penstock run`; None: the environment's
            value, or else the automatic one. `memory` and `kv_memory` are bytes or a size such as "1GiB".

    Attributes:
        choices: the value of every setting, and where it came from.

    Raises:
        ModelError: the checkpoint cannot be found or loaded. ConfigError: a value cannot be used.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str | None = None,
        dtype: str | None = None,
        memory: str | int | None = None,
        kv_memory: str | int | None = None,
        token_budget: int | None = None,
        seed: int | None = None,
    ) -> None:
        sizes = {"memory": memory, "kv-memory": kv_memory, "token-budget": token_budget}
        flags = {"device": device, "dtype": dtype, "seed": seed, **sizes}
        settings = read_settings({name: None if value is None else str(value) for name, value in flags.items()})
        wait_passively()
        found = find_model(model, settings)
        self.choices = found.resolve()
        self._context_tokens = found.setup(settings.seed or 0).context_tokens
        loaded = found.load(settings.seed or 0)
        assert isinstance(loaded.engine, Engine)
        self._engine = loaded.engine
        self._request = loaded.request
        self._max_in_flight = loaded.at_once
        self._ended: dict[int, Finished | Failed] = {}  # by request number, until its stream is read on

    @overload
    def generate(
        self, prompts: Iterable[str | Sequence[int]], params: AllParams = None, *, stream: Literal[False] = False
    ) -> list[Result]: ...

    @overload
    def generate(
        self, prompts: Iterable[str | Sequence[int]], params: AllParams = None, *, stream: Literal[True]
    ) -> Iterator[Result]: ...

    def generate(
        self, prompts: Iterable[str | Sequence[int]], params: AllParams = None, *, stream: bool = False
    ) -> list[Result] | Iterator[Result]:
        """Continue each prompt (a text, or token ids).

        Args:
            prompts: one text or list of token ids each.
            params: one for all prompts, or one a prompt; None: the API's defaults for completions (16 tokens).
            stream: give an iterator of results as they finish, not a list in the prompts' order.
        """
        _refuse_one(prompts, str, "generate takes a list of prompts; for one prompt write [prompt]")
        asked = _asked(Endpoint.COMPLETIONS, prompts, _COMPLETION_DEFAULTS if params is None else params)
        return self._results(asked, stream=stream)

    @overload
    def chat(
        self, conversations: Iterable[Conversation], params: AllParams = None, *, stream: Literal[False] = False
    ) -> list[Result]: ...

    @overload
    def chat(
        self, conversations: Iterable[Conversation], params: AllParams = None, *, stream: Literal[True]
    ) -> Iterator[Result]: ...

    def chat(
        self, conversations: Iterable[Conversation], params: AllParams = None, *, stream: bool = False
    ) -> list[Result] | Iterator[Result]:
        """Answer each conversation (a list of messages, as in the API), through the model's chat template.

        Args:
            conversations: a list of messages each.
            params: one for all, or one a conversation; None: the API's defaults (as long as the context allows).
            stream: give an iterator of results as they finish, not a list in the conversations' order.
        """
        _refuse_one(conversations, str, "chat takes a list of conversations")
        conversations = list(conversations)
        first = conversations[0] if conversations else None
        _refuse_one(first, Mapping, "chat takes a list of conversations; for one conversation write [messages]")
        return self._results(
            _asked(Endpoint.CHAT, conversations, _CHAT_DEFAULTS if params is None else params), stream=stream
        )

    def stats(self) -> EngineStats:
        """Counts since the model was loaded, and whether an answer depends on its prompt alone (`row_exact`)."""
        return self._engine.stats()

    def _results(self, asked: list[_Asked], *, stream: bool) -> list[Result] | Iterator[Result]:
        results = self._stream(iter(asked))
        return results if stream else sorted(results, key=lambda result: result.index)

    def _stream(self, asked: Iterator[_Asked]) -> Iterator[Result]:
        """Plan, feed the engine and step it; give each result once. What was not read to its end is aborted."""
        requests: dict[int, Request] = {}
        for one in asked:
            try:
                requests[one.index] = self._request(_row(one), None)
            except RowError as error:
                yield Result(one.index, error=error)
        equal = _equal(requests)
        for result in self._run([requests[indices[0]] for indices in equal]):
            yield from (replace(result, index=index) for index in equal[result.index])

    def _run(self, requests: Sequence[Request]) -> Iterator[Result]:
        """Run requests in the order of their plan, as many at once as keep the engine busy; it learns as they end."""
        plan = self._plan(requests)
        running: dict[int, int] = {}  # request number to index
        waiting = iter(plan.order)
        try:
            while True:
                while len(running) < self._max_in_flight and (index := next(waiting, None)) is not None:
                    try:
                        running[self._engine.add(requests[index], plan.expect(index))] = index
                    except RowError as error:
                        yield Result(index, error=error)
                if not running:
                    return
                self._step()
                knows_more = False
                for number in [number for number in running if number in self._ended]:
                    index, event = running.pop(number), self._ended.pop(number)
                    if isinstance(event, Finished):
                        knows_more |= plan.learn(index, event.answer.output_tokens // requests[index].params.n)
                    yield _result(index, event)
                for number, index in running.items() if knows_more else ():
                    self._engine.set_expected(number, plan.expect(index))
        finally:
            for number in running:
                self._engine.abort(number)
                self._ended.pop(number, None)

    def _plan(self, requests: Sequence[Request]) -> ListPlan:
        prompts = [request.prompt_tokens for request in requests]
        limits = [request.params.max_tokens for request in requests]
        rooms = [self._context_tokens - len(prompt) for prompt in prompts]
        return ListPlan(prompts, [guess_tokens(*pair) for pair in zip(limits, rooms, strict=True)])

    def _step(self) -> None:
        for event in self._engine.step():
            if isinstance(event, (Finished, Failed)):
                self._ended[event.number] = event


def _equal(requests: Mapping[int, Request]) -> list[list[int]]:
    """The indices of the requests that have one answer, together; the first of them is the one that runs."""
    first: dict[str, int] = {}
    found: dict[int, list[int]] = {}
    for index, request in requests.items():
        leader = first.setdefault(request.fingerprint(), index) if request.is_repeatable else index
        found.setdefault(leader, []).append(index)
    return list(found.values())


def _result(index: int, event: Finished | Failed) -> Result:
    if isinstance(event, Failed):
        return Result(index, error=event.error)
    return Result(index, event.answer.completions, event.answer.prompt_tokens)


def _asked(
    endpoint: Endpoint, prompts: Iterable[object], params: SamplingParams | Sequence[SamplingParams]
) -> list[_Asked]:
    """Pair prompts and parameters; a mistake here is the program's, so it is raised before anything runs."""
    prompts = list(prompts)
    _refuse_one(params, Mapping, "params must be SamplingParams, or one for each prompt")
    one_each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
    if len(one_each) != len(prompts):
        raise ValueError(f"there are {len(one_each)} params for {len(prompts)} prompts; give one, or one for each")
    for given in one_each:
        if not isinstance(given, SamplingParams):
            raise TypeError(f"params is a {type(given).__name__}; it must be SamplingParams, or one for each prompt")
    return [_Asked(i, endpoint, *pair) for i, pair in enumerate(zip(prompts, one_each, strict=True))]


def _refuse_one(value: object, kind: type, what_to_do: str) -> None:
    if isinstance(value, kind):
        raise TypeError(f"found a {type(value).__name__}; {what_to_do}")


def _row(asked: _Asked) -> BatchRow:
    value = asked.prompt
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        value = list(value)
    prompt: Prompt = parse_messages(value) if asked.endpoint is Endpoint.CHAT else parse_prompt(value)
    texts = (
        [prompt] if isinstance(prompt, str) else [text for part in prompt if isinstance(part, Message) for text in part]
    )
    if not all(is_unicode(text) for text in texts if text is not None):
        refuse("the prompt", prompt, "text without halves of surrogate pairs, which UTF-8 cannot hold")
    return BatchRow(str(asked.index), asked.endpoint, None, prompt, asked.params)
