"""Protects the loop: events in order, samples that share their prompt, ends, failures that cost one request only."""

from __future__ import annotations

import pytest

from penstock.engine import Engine, Event, Failed, Finished, Numerics, TokenEvent
from penstock.errors import OutOfMemory, RowError, RowErrorCode
from penstock.request import FinishReason, Request, SamplingParams, TokenLogprob, TokenSpan
from penstock.scheduler import Scheduler
from penstock.step import ChunkResult, StepPlan, StepResult, Ticket

EOS = 99


class CountingExecutor:
    """Stands in for tensors: draws the last token plus one; 13 has no answer; more than `fits` tokens do not fit."""

    def __init__(self, fits: int = 10_000) -> None:
        self.fits = fits
        self.plans: list[StepPlan] = []
        self.most_tokens = 0

    def submit(self, plan: StepPlan) -> Ticket:
        if plan.num_tokens > self.fits:
            raise OutOfMemory(f"{plan.num_tokens} tokens")
        self.most_tokens = max(self.most_tokens, plan.num_tokens)
        self.plans.append(plan)
        return Ticket(plan.step)

    def collect(self, ticket: Ticket) -> StepResult:
        plan = self.plans[-1]
        results = []
        for chunk in plan.chunks:
            token = chunk.tokens[-1]
            assert isinstance(token, int)
            drawn = tuple(TokenLogprob(token + 1, -1.0, ()) for _ in chunk.samples)
            bad = bool(chunk.samples) and token == 13
            results.append(ChunkResult(chunk.sequence, () if bad else drawn, "13 is bad" if bad else None))
        return StepResult(ticket, tuple(results))


def letters(ids: object) -> str:
    assert isinstance(ids, list)
    return "".join(chr(97 + i % 26) for i in ids)


def engine(*, num_blocks: int = 32, token_budget: int = 64, executor: CountingExecutor | None = None) -> Engine:
    scheduler = Scheduler(num_blocks=num_blocks, block_tokens=4, token_budget=token_budget, max_sequences=8)
    return Engine(
        scheduler,
        executor or CountingExecutor(),
        decode=letters,
        eos_ids=frozenset({EOS}),
        context_tokens=1000,
        numerics=Numerics({"device": "none"}),
    )


def request(*tokens: int, **params: object) -> Request:
    return Request((TokenSpan(tokens),), SamplingParams(temperature=0.0, **params))  # type: ignore[arg-type]


def run(e: Engine, *, steps: int = 200) -> list[Event]:
    events: list[Event] = []
    for _ in range(steps):
        if not e.num_unfinished:
            return events
        events += e.step()
    raise AssertionError(f"still {e.num_unfinished} unfinished")


def answer(events: list[Event], number: int) -> tuple[tuple[int, ...], str, FinishReason]:
    (done,) = [e for e in events if isinstance(e, Finished) and e.number == number]
    (completion,) = done.answer.completions
    return completion.token_ids, completion.text, completion.finish_reason


def test_tokens_come_one_by_one_and_then_the_answer() -> None:
    e = engine()
    number = e.add(request(1, 2, max_tokens=2))
    events = run(e)
    assert events[:2] == [TokenEvent(number, 0, 3), TokenEvent(number, 0, 4)]
    assert answer(events, number) == ((3, 4), "de", FinishReason.LENGTH)
    assert e.stats().output_tokens == 2


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, ((97, 98, 99), "tuv", FinishReason.STOP)),
        ({"ignore_eos": True, "max_tokens": 5}, ((97, 98, 99, 100, 101), "tuvwx", FinishReason.LENGTH)),
        ({"stop_token_ids": (98,)}, ((97, 98), "tu", FinishReason.STOP)),
        ({"stop": ("u",)}, ((97, 98), "t", FinishReason.STOP)),
        ({"stop": ("zz", "uv")}, ((97, 98, 99), "tuv", FinishReason.STOP)),
        ({"stop": ("t",), "min_tokens": 2, "max_tokens": 2}, ((97, 98), "tu", FinishReason.LENGTH)),
        ({"stop": ("u",), "min_tokens": 2}, ((97, 98), "t", FinishReason.STOP)),
        ({"max_tokens": 3}, ((97, 98, 99), "tuv", FinishReason.STOP)),
    ],
)
def test_a_sequence_ends_as_its_parameters_say(
    params: dict[str, object], expected: tuple[tuple[int, ...], str, FinishReason]
) -> None:
    e = engine()
    number = e.add(request(96, **params))
    assert answer(run(e), number) == expected


def test_several_samples_share_their_prompt_and_come_back_together() -> None:
    executor = CountingExecutor()
    e = engine(executor=executor)
    e.add(request(*range(10), n=3, max_tokens=2))
    (done,) = [event for event in run(e) if isinstance(event, Finished)]
    assert [c.index for c in done.answer.completions] == [0, 1, 2]
    assert done.answer.output_tokens == 6
    assert e.stats().computed_tokens == 10 + 2 * 1 + 3 * 1
    assert not e._owner


@pytest.mark.parametrize("length", [2, 3, 4, 5, 7, 10])
def test_samples_share_a_prompt_of_any_length_but_for_its_last_token(length: int) -> None:
    executor = CountingExecutor()
    e = engine(executor=executor)
    e.add(request(*range(length), n=5, max_tokens=1))
    run(e)
    assert e.stats().computed_tokens == length + 4


def test_what_is_expected_of_an_answer_may_change_while_it_waits() -> None:
    e = engine(num_blocks=8)  # 32 tokens
    numbers = [e.add(request(first, first, max_tokens=25)) for first in (20, 30)]
    e.step()
    assert e.stats().num_running == 1, "27 tokens of each do not fit"
    for number in (*numbers, 7):
        e.set_expected(number, 3)
    e.step()
    assert e.stats().num_running == 2
    assert [len(answer(run(e), number)[0]) for number in numbers[1:]] == [25], "an expectation ends no answer"


def test_a_row_without_an_answer_fails_alone() -> None:
    e = engine()
    bad, good = e.add(request(13, n=2)), e.add(request(5, max_tokens=2))
    events = run(e)
    (failure,) = [event for event in events if isinstance(event, Failed)]
    assert (failure.number, failure.error.code, failure.error.message) == (bad, RowErrorCode.INTERNAL, "13 is bad")
    assert answer(events, good)[0] == (6, 7)
    assert e.stats().kv_used_tokens == 0


def test_a_prompt_that_can_never_fit_is_refused_with_both_numbers() -> None:
    e = engine(num_blocks=2)
    with pytest.raises(RowError, match="the prompt has 8 tokens and the KV memory holds 8"):
        e.add(request(*range(8)))


def test_a_sequence_that_outgrows_the_memory_fails_with_both_numbers() -> None:
    e = engine(num_blocks=2)
    number = e.add(request(20, 21, 22, 23, 24, 25, 26, max_tokens=5))
    (failure,) = [event for event in run(e) if isinstance(event, Failed)]
    assert failure.number == number
    assert failure.error.code is RowErrorCode.KV_TOO_SMALL
    assert "grew to 9 tokens and the KV memory holds 8" in failure.error.message


def test_running_out_of_memory_makes_steps_smaller_and_is_said_once() -> None:
    executor = CountingExecutor(fits=9)
    e = engine(executor=executor)
    numbers = [e.add(request(*range(20 * i, 20 * i + 11), max_tokens=2)) for i in range(3)]
    events = run(e)
    assert [answer(events, n)[0] for n in numbers] == [(11, 12), (31, 32), (51, 52)]
    assert executor.most_tokens <= 9
    assert e.stats().notes == ("memory ran out: token budget lowered from 64 to 8",)


def test_a_row_that_does_not_fit_alone_becomes_an_error() -> None:
    e = engine(executor=CountingExecutor(fits=0))
    number = e.add(request(1, 2, 3))
    (failure,) = [event for event in run(e) if isinstance(event, Failed)]
    assert (failure.number, failure.error.code) == (number, RowErrorCode.INTERNAL)
    assert "out of memory for this row alone" in failure.error.message


def test_what_a_finished_request_leaves_in_the_kv_memory_counts_as_kept_until_another_uses_it() -> None:
    e = engine()
    e.add(request(1, 2, 3, 4, 5, 6, 7, 8, 9, max_tokens=1))
    assert (e.stats().kv_used_tokens, e.stats().kv_kept_tokens) == (0, 0)
    run(e)
    assert (e.stats().kv_used_tokens, e.stats().kv_kept_tokens) == (0, 12)
    e.add(request(1, 2, 3, 4, 5, 6, 7, 8, 9, max_tokens=3))
    e.step()
    assert (e.stats().kv_used_tokens, e.stats().kv_kept_tokens) == (12, 4)


def test_an_aborted_request_leaves_nothing_behind() -> None:
    e = engine()
    number = e.add(request(1, 2, 3, 4, 5))
    e.step()
    e.abort(number)
    e.abort(number)
    assert e.num_unfinished == 0
    assert e.step() == []
    assert e.stats().kv_used_tokens == 0
