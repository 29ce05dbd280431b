"""What is told while a job runs: the time left comes from tokens; lines where stderr is no terminal."""

from __future__ import annotations

from io import StringIO

import pytest

from penstock.config import Choice
from penstock.jobs.progress import Position, Watch, describe, duration, estimate

HALF = Position(
    rows=100,
    done=50,
    failed=2,
    reused=10,
    input_bytes=20_000,
    done_bytes=5_000,
    prompt_tokens=1_000,
    output_tokens=500,
    run_prompt_tokens=800,
    run_output_tokens=400,
    run_processed_tokens=1_500,
    run_s=10.0,
    kv_used_tokens=30,
    kv_total_tokens=120,
)


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_time_left_comes_from_tokens() -> None:
    # 15,000 bytes at 0.2 tokens each and 50 rows at 10 tokens each, less 300 under way, at 150 tokens a second.
    assert estimate(HALF) == pytest.approx((3_000 + 500 - 300) / 150)


def test_rows_that_get_the_answer_of_an_equal_one_count_for_the_time_left() -> None:
    alike = HALF._replace(run_processed_tokens=30)  # of one row; 1,200 tokens are those of all that got its answer
    assert estimate(alike) == pytest.approx((3_000 + 500) / 120)


@pytest.mark.parametrize("early", [{"prompt_tokens": 0}, {"run_processed_tokens": 0}, {"run_s": 0.0}])
def test_it_may_be_too_early_to_say(early: dict[str, int]) -> None:
    assert estimate(HALF._replace(**early)) is None


def test_a_position_in_one_line() -> None:
    expected = "50/100 rows  2 failed  10 reused  left 21s  prompt 80 tok/s  output 40 tok/s  KV 25%"
    assert describe(HALF) == expected
    assert "left ?" in describe(HALF._replace(prompt_tokens=0))


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 42, 185, 7_620)] == ["0s", "42s", "3m05s", "2h07m"]


def test_lines_come_every_ten_seconds_where_there_is_no_terminal() -> None:
    now = [0.0]
    stream = StringIO()
    watch = Watch(stream, clock=lambda: now[0])
    for second in range(25):
        now[0] = float(second)
        watch.update(lambda: HALF)
    watch.close()
    assert stream.getvalue().splitlines() == [describe(HALF)] * 2


def test_a_terminal_gets_a_bar_and_notes_above_it() -> None:
    now = [0.0]
    stream = Terminal()
    watch = Watch(stream, clock=lambda: now[0])
    now[0] = 1.0
    watch.update(lambda: HALF)
    watch.note("something to know")
    watch.close()
    assert "50/100 rows" in stream.getvalue()
    assert "something to know" in stream.getvalue()


def test_quiet_hides_all_but_warnings() -> None:
    stream = StringIO()
    watch = Watch(stream, is_quiet=True, clock=lambda: 0.0)
    watch.choices([Choice("device", "cpu", "default")])
    watch.note("good to know")
    watch.update(lambda: HALF)
    assert stream.getvalue() == ""
    watch.warn("must be known")
    assert stream.getvalue() == "note: must be known\n"
    assert (watch.settings, watch.warnings) == ({"device": "cpu (default)"}, ["must be known"])


def test_a_stream_that_takes_no_more_does_not_end_the_job() -> None:
    class Closed(StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    watch = Watch(Closed())
    watch.note("one")
    watch.warn("two")
    assert watch.warnings == ["nothing more was shown, since writing to stderr failed: [Errno 32] Broken pipe", "two"]


def test_choices_are_printed_with_their_source() -> None:
    stream = StringIO()
    Watch(stream).choices([Choice("device", "cpu", "machine: no CUDA device")])
    assert stream.getvalue().split() == ["device", "cpu", "(machine:", "no", "CUDA", "device)"]
