"""Protects what `penstock plan` says of a job: numbers by hand on small inputs, and advice that was simulated."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.differences import Text
from penstock.jobs.advice import Advice, advise, texts_of
from penstock.jobs.outlook import Outlook, PlannedJob, Price, is_fixed, look_ahead
from penstock.jobs.plan_file import remove_plan
from penstock.jobs.planning import Planning, make_plan
from penstock.outlines import Outline, Outlines, Sums
from penstock.plan_report import describe_outlook, outlook_as_json
from penstock.profile import Disturbance
from penstock.protocol import BatchRow, Message, parse_row
from penstock.request import Request, SamplingParams, TokenSpan
from penstock.simulation import SimRow, Terms
from tests.job_runs import row, write_rows
from tests.profiles import KV_BYTES, profile, terms

READING_S = 0.5
BEFORE_S = READING_S + 1  # with the simulation, by the clock that it is given
GREEDY = {"temperature": 0, "ignore_eos": True}


class Letters:
    """A token a character, as `Setup` says how rows become requests."""

    model = "letters"
    context_tokens = 512

    def open(self) -> Callable[[BatchRow], Request]:
        return self._request

    def _request(self, asks: BatchRow) -> Request:
        if isinstance(asks.prompt, str):
            tokens = tuple(asks.prompt.encode())
        else:
            texts = texts_of(asks.prompt)
            tokens = tuple("|".join(text.content for text in texts or ()).encode()) or asks.prompt  # type: ignore[assignment]
        return Request((TokenSpan(tokens),), asks.params)

    def key(self) -> str:
        return "letters"


def look(
    folder: Path,
    rows: Sequence[str],
    known: Terms | None = None,
    price: Price | None = None,
    memory_bytes: int | None = None,
) -> Outlook:
    given = write_rows(folder / "in.jsonl", rows)
    remove_plan(folder / "plan")
    plan, lost = make_plan(folder / "plan", Planning(given, Letters(), "key", 0, lambda rows: None))
    assert lost == 0
    with closing(plan):
        return look_ahead(
            plan,
            given,
            terms=known or terms(),
            setup=Letters(),
            price=price or Price(),
            reading_s=READING_S,
            memory_bytes=memory_bytes,
            clock=itertools.count().__next__,
        )


def test_a_small_job_by_hand(tmp_path: Path) -> None:
    shared = [7] * 16
    rows = [row("a", [*shared, 1], **GREEDY), "{", row("b", [*shared, 2], **GREEDY), row("c", [*shared, 1], **GREEDY)]
    found = look(tmp_path, rows, price=Price(per_hour=3600.0, watts=1000.0))
    totals, simulated = found.totals, found.forecast.simulated
    assert (totals.rows, totals.bad_rows, totals.equal_rows) == (4, 1, 1)
    assert (totals.prompt_tokens, totals.distinct_tokens) == (34, 18)
    # 17 tokens and then 1 of prompt; then two rows draw twice more (three tokens each)
    assert (simulated.computed_tokens, simulated.cached_tokens, simulated.output_tokens) == (22, 16, 6)
    assert found.hit_share == pytest.approx(16 / 34, abs=0.06)
    assert found.is_certain
    assert found.forecast.seconds == pytest.approx(simulated.seconds)
    assert found.seconds == pytest.approx(BEFORE_S + simulated.seconds)  # what comes before, and then the engine
    assert found.low_s - BEFORE_S == pytest.approx(found.forecast.low_s)
    assert found.high_s - BEFORE_S == pytest.approx(found.forecast.high_s)
    assert found.optimal_share is not None
    assert 0 < found.optimal_share < 1
    assert found.money == pytest.approx(found.seconds)
    assert found.energy_kwh == pytest.approx(found.seconds / 3600)
    assert found.kv_bytes == simulated.peak_kv_tokens * KV_BYTES


def test_rows_are_found_again_in_the_order_of_the_plan(tmp_path: Path) -> None:
    rows = [row(f"r{n}", [n % 3] * 20 + [n], max_tokens=4 + n % 2, **GREEDY) for n in range(12)]
    given = write_rows(tmp_path / "in.jsonl", [*rows, "bad"])
    plan, _ = make_plan(tmp_path / "plan", Planning(given, Letters(), "key", 0, lambda rows: None))
    with closing(plan):
        job = PlannedJob(plan, given)
        assert [job.outlines.sums(n, n + 1).new_tokens for n in range(12)] == [21, 1, 1, 1] * 3
        loaded = job.load(0, 12)
        assert job.load(5, 9) == loaded[5:9]
        assert [len(r.prompt) for r in loaded] == [job.outlines.sums(n, n + 1).prompt_tokens for n in range(12)]
        assert {r.params.max_tokens for r in loaded} == {4, 5}
        assert len(job.sample) == 12
        job.close()


def test_of_the_rows_that_are_left_new_is_what_none_before_them_has(tmp_path: Path) -> None:
    draw = random.Random(5)
    prompts = [[draw.randint(0, 2) for _ in range(draw.randint(1, 8))] for _ in range(60)]
    given = write_rows(tmp_path / "in.jsonl", [row(f"r{n}", prompt, temperature=1) for n, prompt in enumerate(prompts)])
    plan, _ = make_plan(tmp_path / "plan", Planning(given, Letters(), "key", 0, lambda rows: None, min_tokens=2))
    with closing(plan):
        for share in (0.0, 0.3, 0.9):
            done = [draw.random() < share for _ in prompts]
            job = PlannedJob(plan, given, is_done=done.__getitem__)
            left = [prompt for prompt, is_done in zip(prompts, done, strict=True) if not is_done]
            assert job.outlines.total.prompt_tokens == sum(map(len, left))
            assert job.outlines.total.new_tokens == len({tuple(p[:end]) for p in left for end in range(1, len(p) + 1)})
            assert job.repeated.rows == len(left) - len({tuple(prompt) for prompt in left})
            job.close()


@pytest.mark.parametrize(
    ("params", "fixed"),
    [
        (SamplingParams(max_tokens=5, ignore_eos=True), True),
        (SamplingParams(max_tokens=5, ignore_eos=True, stop=("x",)), False),
        (SamplingParams(max_tokens=5, min_tokens=5), True),
        (SamplingParams(max_tokens=5), False),
        (SamplingParams(max_tokens=1), True),
        (SamplingParams(), False),
    ],
)
def test_whether_an_answer_has_the_length_that_is_asked_for(params: SamplingParams, *, fixed: bool) -> None:
    assert is_fixed(params) is fixed


def chat(number: int, system: str) -> str:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": f"Question {number}?"}]
    body = {"messages": messages, "max_tokens": 2, **GREEDY}
    return json.dumps({"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})


def test_a_date_before_a_long_system_prompt_is_what_would_help_most(tmp_path: Path) -> None:
    rules = "\nBe brief, be right, and name the source of what you say." * 2
    rows = [chat(n, f"It is 21:{n:02}.{rules}") for n in range(24)]
    found = look(tmp_path, rows)
    first = found.advice[0]
    assert first.text.startswith("line 1 of the system message ('21:")
    assert "differs in every row; after it 90% of the prompt is shared" in first.text
    assert first.saved_share > 0.5
    assert first.saved_s == pytest.approx(first.saved_share * found.forecast.seconds)
    better = look(tmp_path, [chat(n, f"{rules}") for n in range(24)])
    assert not any("message" in advice.text for advice in better.advice)
    assert better.forecast.seconds < found.forecast.seconds


LONG = "You sort the questions of customers. Name the topic in one word, then the tone in one word, and nothing else."


@pytest.mark.parametrize(
    ("text_of", "told"),
    [
        (lambda n: f"Today is 2026-{n % 12 + 1:02}-{n + 1:02}. {LONG}", "line 1 of the prompt ('2026-"),
        (
            lambda n: "\n".join(f"{n * 31 % 97} seats of {n * 17 % 89}" for _ in range(1 + n % 3)) + f"\n\n{LONG}",
            "the prompt from line 1 on ('",
        ),
    ],
)
def test_what_differs_before_a_long_instruction_is_told_and_what_moving_it_saves(
    tmp_path: Path, text_of: Callable[[int], str], told: str
) -> None:
    """A date within a line, and a document of several lines; bad rows among them change nothing."""
    rows = [row(f"r{n}", text_of(n), max_tokens=2, **GREEDY) for n in range(30)]
    found, among_bad = (look(tmp_path, given) for given in (rows, [*rows[:10], "{", "[]", *rows[10:], rows[0]]))
    advice = outlook_as_json(found, profile())["advice"]
    assert isinstance(advice, list)
    assert told in advice[0]["text"]
    assert "of the prompt is shared: move what differs to the end" in advice[0]["text"]
    assert advice[0]["saved_share"] > 0.3
    assert among_bad.totals.bad_rows == 3
    assert among_bad.advice[0] == found.advice[0]
    better = look(tmp_path, [row(f"r{n}", f"{LONG} {text_of(n).replace(LONG, '')}", **GREEDY) for n in range(30)])
    assert not any("move what differs" in advice.text for advice in better.advice)


@pytest.mark.parametrize(("new_tokens", "is_told"), [(125, True), (6, False)])
def test_a_date_that_thousands_of_rows_have_in_common_is_not_told(new_tokens: int, *, is_told: bool) -> None:
    """In a sample it differs in every row; where the whole job has few new tokens a row, what follows it is shared."""
    asked = [parse_row(row(f"r{n}", f"Day {n}. {LONG} Row {n}", max_tokens=1, **GREEDY).encode()) for n in range(30)]

    class Job:
        repeated = Sums()
        outlines = Outlines([Outline(130, new_tokens, 1)] * 30)
        sample = asked

        def load(self, first: int, last: int) -> list[SimRow]:
            return [SimRow((n, *range(99)), 1, SamplingParams(max_tokens=1)) for n in range(first, last)]

    found = advise(Job(), terms=terms(), setup=Letters(), seconds=100.0)
    assert any("move what differs" in one.text for one in found) is is_told


def test_more_memory_is_advised_where_rows_wait_for_it(tmp_path: Path) -> None:
    rows = [row(f"r{n}", [n, *range(30)], max_tokens=8, **GREEDY) for n in range(16)]
    flat = replace(profile(), tokens=tuple(p._replace(seconds=1.0) for p in profile().tokens))
    tight = terms(blocks=12)._replace(profile=flat)
    texts = [advice.text for advice in look(tmp_path, rows, tight).advice]
    assert any(text.startswith("more KV memory: --kv-memory") for text in texts)
    bounded = [advice.text for advice in look(tmp_path, rows, tight, memory_bytes=2**30).advice]
    assert any(text.startswith("more memory: --memory 1GiB (1 GiB now)") for text in bounded)  # 1 GiB and some blocks
    roomy = terms(blocks=500)._replace(profile=flat)
    assert not any("KV memory" in advice.text for advice in look(tmp_path, rows, roomy).advice)


def test_equal_rows_that_are_drawn_anew_are_told(tmp_path: Path) -> None:
    rows = [row(f"r{n}", [n // 2, *range(30)], max_tokens=8, temperature=1) for n in range(16)]
    texts = [advice.text for advice in look(tmp_path, rows).advice]
    assert any(text.startswith("8 rows have the prompt of another row and draw at random") for text in texts)
    seeded = [row(f"r{n}", [n // 2, *range(30)], max_tokens=8, temperature=1, seed=1) for n in range(16)]
    found = look(tmp_path, seeded)
    assert found.totals.equal_rows == 8
    assert not any("draw at random" in advice.text for advice in found.advice)


def test_an_empty_job_needs_nothing(tmp_path: Path) -> None:
    found = look(tmp_path, ["{"])
    assert (found.forecast.seconds, found.advice, found.hit_share) == (0, (), 0)
    assert describe_outlook(found, profile())[-1] == "Nothing that was tried would save more than 1 %."


def test_advice_is_the_best_three_of_what_is_worth_telling() -> None:
    class Job:
        repeated = Sums()

        def __init__(self) -> None:
            self.outlines = Outlines([Outline(40, 40, 2)] * 16)
            self.sample: list[BatchRow] = []

        def load(self, first: int, last: int) -> list[SimRow]:
            params = SamplingParams(max_tokens=2, temperature=0.0)
            return [SimRow((n, *range(39)), 2, params) for n in range(first, last)]

    found = advise(Job(), terms=terms(), setup=Letters(), seconds=100.0)
    assert len(found) <= 3
    assert [one.saved_s for one in found] == sorted((one.saved_s for one in found), reverse=True)
    assert all(isinstance(one, Advice) and one.saved_s == pytest.approx(100 * one.saved_share) for one in found)


def test_what_is_told_and_what_programs_get(tmp_path: Path) -> None:
    rows = [row("a", [1, 2, 3]), row("b", [1, 2, 4])]
    found = look(tmp_path, rows, price=Price(2.0, 100.0))
    text = "\n".join(describe_outlook(found, profile()))
    assert "answers may end early or late, and that is most of the range; all rows were simulated" in text
    assert "of what this machine can do is expected" in text
    assert "2; 0 cannot be answered" in text
    assert "money" in text
    assert "kWh" in text
    assert "while the profile was measured" not in text
    disturbed = replace(profile(), disturbance=Disturbance(0.0, 0.5))
    assert any("while the profile was measured, 50% of" in line for line in describe_outlook(found, disturbed))
    raw = json.loads(json.dumps(outlook_as_json(found, profile())))
    assert (raw["rows"], raw["bad_rows"], raw["is_certain"]) == (2, 0, False)
    assert raw["low_s"] < raw["seconds"] < raw["high_s"]
    unknown = replace(found.forecast.simulated, parts={"matrices": 1.0, "logits": -0.001})
    found = replace(found, forecast=replace(found.forecast, simulated=unknown, optimal_s=None))
    told = describe_outlook(found, profile())
    assert "not known: the limits of this machine were not measured" in "\n".join(told)
    assert "matrices 100%, logits 0%" in "\n".join(told)


def test_prompts_as_texts() -> None:
    assert texts_of((1, 2)) is None
    asks = parse_row(row("a", "one\ntwo").encode())
    found = texts_of(asks.prompt)
    assert found == (Text("prompt", "one\ntwo"),)
    assert texts_of((Message("user", "a\nb"),)) == (Text("user", "a\nb"),)
