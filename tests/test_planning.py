"""Protects planning: what is read is the same whoever reads it, goes on after a kill, and counts right."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from penstock.jobs import planning
from penstock.jobs.formats import InputLine, LineReader
from penstock.jobs.loading import CheckpointSetup
from penstock.jobs.plan_file import PlanFile, PlannedRow, PlanTotals, remove_plan
from penstock.jobs.planning import Planning, make_plan
from penstock.jobs.tokenizing import Batch, Preparer, Workers
from penstock.planner import Lengths, unpack_tokens

DEMO = Path(planning.__file__).parent.parent / "demo_model"
SETUP = CheckpointSetup(DEMO, context_tokens=400, job_seed=0, vocab=4096, model="demo")


def line(number: int, prompt: object, **body: object) -> bytes:
    asks = {"prompt": prompt, "max_tokens": 8, "temperature": 0, **body}
    row = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/completions", "body": asks}
    return json.dumps(row).encode()


def planned(path: Path, lines: Iterable[bytes], *, workers: int = 0) -> PlanFile:
    data = b"\n".join(lines)
    path.write_bytes(data)
    remove_plan(path.with_suffix(".plan"))
    return make(path, workers=workers)


def make(path: Path, *, workers: int = 0, key: str = "key") -> PlanFile:
    asked = Planning(path, SETUP, key, workers, lambda rows: None, min_tokens=2)
    plan, lost = make_plan(path.with_suffix(".plan"), asked)
    assert lost == 0
    return plan


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


def numbers(rows: Iterable[PlannedRow]) -> list[int]:
    return [row.row for row in rows]


def test_rows_with_one_prefix_run_together_and_bad_ones_first(path: Path) -> None:
    lines = [line(0, [9, 9, 1]), line(1, [5, 5, 1]), b"{", line(3, [9, 9, 2]), line(4, [5, 5, 2]), line(5, [7] * 400)]
    plan = planned(path, lines)
    assert numbers(plan.rows()) == [2, 5, 1, 4, 0, 3]
    assert plan.totals() == PlanTotals(
        rows=6,
        size_bytes=sum(map(len, lines)),
        bad_rows=2,
        equal_rows=0,
        prompt_tokens=12,
        distinct_tokens=8,
        expected_tokens=32,
        longest_tokens=11,
    )
    assert [(n.depth, n.rows) for n in plan.nodes()] == [(0, 0), (2, 2), (2, 2)]
    assert {row.row: row.shared_tokens for row in plan.rows()} == {0: 2, 1: 2, 2: None, 3: 2, 4: 2, 5: None}
    reader = LineReader(path)
    for row in plan.rows():
        assert row.at is not None
        assert reader.read(row.at, row.size_bytes) == lines[row.row]
    reader.close()


def test_rows_of_a_compressed_input_are_kept(path: Path) -> None:
    path.write_bytes(gzip.compress(line(0, [1]) + b"\n" + line(1, [2])))
    assert [row.data for row in make(path).rows()] == [line(0, [1]), line(1, [2])]


def test_equal_rows_follow_the_first_of_them(path: Path) -> None:
    lines = [
        line(0, [1, 2, 3]),
        line(1, [1, 2, 3]),
        line(2, [1, 2, 3], max_tokens=9),
        line(3, [1, 2, 3], temperature=1),
        line(4, [1, 2, 3], temperature=1),
        line(5, [1, 2, 3], temperature=1, seed=5),
        line(6, [1, 2, 3], temperature=1, seed=5),
        line(7, [1, 2, 3], seed=1),
    ]
    plan = planned(path, lines)
    leaders = {row.row: row.leader for row in plan.rows()}
    assert leaders == {0: 0, 1: 0, 2: 2, 3: 3, 4: 4, 5: 5, 6: 5, 7: 0}
    assert numbers(plan.followers(0)) == [1, 7]
    assert plan.totals().equal_rows == 3
    assert plan.totals().distinct_tokens == 3


def test_a_row_shares_nothing_with_those_that_get_its_answer(path: Path) -> None:
    prompts = [[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 5, 5], [1, 5, 5], [7]]
    plan = planned(path, [line(n, prompt) for n, prompt in enumerate(prompts)])
    computed = {row.row: row.shared_tokens for row in plan.rows() if row.leader == row.row}
    assert computed == {0: 1, 3: 1, 5: 0}


def test_a_taken_custom_id_is_known_with_the_line_that_has_it(path: Path) -> None:
    lines = [line(1, [3, 3]), line(0, [2]), line(1, [1]), line(1, [1, 1])]
    plan = planned(path, lines)
    assert [(row.row, row.first_line) for row in plan.rows()] == [(2, 1), (3, 1), (1, None), (0, None)]


def test_long_answers_come_first_and_learned_lengths_change_the_order(path: Path) -> None:
    plan = planned(
        path, [line(0, [1, 1], max_tokens=4), line(1, [2, 2], max_tokens=64), line(2, [3, 3], max_tokens=16)]
    )
    assert numbers(plan.rows()) == [1, 2, 0]
    plan.reorder(lambda node, prompt_tokens, guess: 3 if guess == 64 else guess)
    assert [(row.row, row.expected_tokens) for row in plan.rows()] == [(2, 16), (0, 4), (1, 3)]


def test_nothing_is_put_in_order_again_where_the_order_rests_on_what_is_known_already(path: Path) -> None:
    plan = planned(path, [line(i, [i % 3, 5, 5, i + 10], max_tokens=64) for i in range(60)])
    plan.reorder(lambda node, prompt_tokens, guess: 20)
    assert {row.expected_tokens for row in plan.rows()} == {20}, "not as guessed at first"
    plan.reorder(lambda node, prompt_tokens, guess: 24)
    assert {row.expected_tokens for row in plan.rows()} == {20}, "as long as they were taken to be, nearly"
    plan.reorder(lambda node, prompt_tokens, guess: 40 if node == 1 else 20)
    assert {row.expected_tokens for row in plan.rows()} == {20, 40}, "a third of the rows are longer"
    plan.close()


def test_lengths_are_learned_by_prefix_and_by_prompt(path: Path) -> None:
    rows = [line(i, [5, 5, 5, i + 10]) for i in range(20)] + [line(100 + i, [7, 7, 7, i + 10]) for i in range(20)]
    plan = planned(path, [*rows, line(200, [1]), line(201, list(range(1, 200)))])
    lengths = Lengths(plan.forest())
    nodes = {row.row: row.node for row in plan.rows()}
    for row in range(8):
        lengths.add(nodes[row], prompt_tokens=4, guess_tokens=8, output_tokens=2)
        lengths.add(nodes[20 + row], prompt_tokens=4, guess_tokens=8, output_tokens=8)
    assert lengths.expect(nodes[9], 4, 8) == 2
    assert lengths.expect(nodes[30], 4, 8) == 8
    assert lengths.expect(nodes[40], 4, 8) == 5, "a row of the tree itself, its prompt as long as these"
    plan.close()
    plan = planned(path, [line(i, [i % 4, 5, 5, i + 10]) for i in range(80)])
    lengths = Lengths(plan.forest())
    nodes = {row.row: row.node for row in plan.rows()}
    for row in range(0, 80, 4):
        lengths.add(nodes[row], prompt_tokens=4, guess_tokens=8, output_tokens=2)
    assert lengths.expect(nodes[1], 4, 8) == 8, "one other branch says nothing of this one"
    for row in (*range(1, 80, 4), *range(2, 80, 4)):
        lengths.add(nodes[row], prompt_tokens=4, guess_tokens=8, output_tokens=2)
    assert lengths.expect(nodes[3], 4, 8) == 2, "three do"


def test_workers_prepare_what_one_process_prepares(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BATCH_ROWS", 7)
    lines = [line(i % 90, "word " * (i % 5) + str(i)) if i % 11 else b"[]" for i in range(100)]
    alone = planned(path, lines)
    there = [(row, list(alone.followers(row.row))) for row in alone.rows()]
    alone.close()
    monkeypatch.setattr(planning, "SMALL_BYTES", 0)
    together = planned(path, lines, workers=3)
    assert [(row, list(together.followers(row.row))) for row in together.rows()] == there


def test_what_was_read_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BATCH_ROWS", 10)
    lines = [line(i, [i]) for i in range(35)]
    path.write_bytes(b"\n".join(lines))
    seen: list[int] = []

    def prepare(self: Preparer, batch: Iterable[InputLine]) -> Batch:
        found = list(batch)
        if len(seen) == 20:
            seen.append(-1)
            raise KeyboardInterrupt
        seen.extend(line.row for line in found)
        return original(self, found)

    original = Preparer.prepare
    monkeypatch.setattr(Preparer, "prepare", prepare)
    with pytest.raises(KeyboardInterrupt):
        make(path)
    plan = make(path)
    assert seen == [*range(20), -1, *range(20, 35)]
    assert sorted(numbers(plan.rows())) == list(range(35))
    plan.close()
    make(path)
    assert len(seen) == 36, "a complete plan is taken as it is"
    make(path, key="another").close()
    assert len(seen) == 71, "a plan of something else is made again"


def test_a_damaged_plan_is_made_again(path: Path) -> None:
    planned(path, [line(0, [1])]).close()
    path.with_suffix(".plan").write_bytes(b"not a plan at all, but long enough to look like one" * 100)
    assert numbers(make(path).rows()) == [0]


def test_a_worker_that_dies_loses_its_batch_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(SETUP, 2)
    try:
        batches = [[InputLine(i, i + 1, line(i, [i + 1]), i * 100)] for i in range(6)]
        found = []
        for number, batch in enumerate(workers.prepare(iter(batches))):
            found.append(batch)
            if number == 1:
                os.kill(workers._workers[0].pid, signal.SIGKILL)
        assert sum(batch.lost for batch in found) in (1, 2)
        assert [row.row for batch in found for row in batch.rows] == list(range(6))
        tokens = [row.tokens for batch in found for row in batch.rows]
        assert [unpack_tokens(t) for t in tokens if t is not None] == [
            (i + 1,) for i in range(6) if tokens[i] is not None
        ]
    finally:
        workers.close()


def test_there_are_no_more_workers_than_memory_has_room_for() -> None:
    """By what the first one takes: with room for two and a half of it there are two, with room for none still one."""
    for spare_bytes, number in ((0, 1), (None, 2)):
        workers = Workers(SETUP, 2, spare_bytes=spare_bytes)
        try:
            assert len(workers) == number
            taken = workers._first_bytes()
        finally:
            workers.close()
    workers = Workers(SETUP, 8, spare_bytes=taken * 5 // 2)
    try:
        assert len(workers) == 2
        batches = [[InputLine(i, i + 1, line(i, [i + 1]), i * 100)] for i in range(5)]
        assert [row.row for batch in workers.prepare(iter(batches)) for row in batch.rows] == list(range(5))
    finally:
        workers.close()


def test_workers_end_with_the_process_that_started_them() -> None:
    workers = Workers(SETUP, 1)
    [worker] = workers._workers
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(timeout=30) == 0
    assert worker.stdout is not None
    worker.stdout.close()


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close every plan that a test opened."""
    opened: list[PlanFile] = []
    original = PlanFile.__init__

    def init(self: PlanFile, *args: object) -> None:
        original(self, *args)  # type: ignore[arg-type]
        opened.append(self)

    monkeypatch.setattr(PlanFile, "__init__", init)
    yield
    for plan in opened:
        plan.close()


def test_a_higher_priority_runs_first_and_rows_without_one_run_last_and_are_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "SMALL_BYTES", 0)
    ranks: list[object] = [{"rank": 1}, {"rank": "10"}, {}, {"rank": 10.0}, {"rank": "soon"}, None, {"rank": -3}]
    lines = [line(n, [9, 9, 9, n + 1], max_tokens=1 + 60 * (n % 2), metadata=rank) for n, rank in enumerate(ranks)]
    path.write_bytes(b"\n".join(lines))
    for workers in (0, 2):
        remove_plan(path.with_suffix(".plan"))
        asked = Planning(path, SETUP, "key", workers, lambda rows: None, min_tokens=2, priority="rank")
        plan, _ = make_plan(path.with_suffix(".plan"), asked)
        found = numbers(plan.rows())
        assert set(found[:2]) == {1, 3}
        assert found[2:4] == [0, 6]  # whatever their lengths
        assert set(found[4:]) == {2, 4, 5}
        assert plan.counts()["without_priority"] == 3
        assert {row.shared_tokens for row in plan.rows()} == {None}, "each priority has a tree of its own"
        plan.reorder(lambda node, prompt_tokens, guess: 62 - guess)
        assert numbers(plan.rows())[2:4] == [0, 6]
        plan.close()


def test_many_priorities_are_no_trouble(path: Path) -> None:
    lines = [line(n, [9, n + 1], metadata={"rank": (n * 7919) % 3000}) for n in range(3000)]
    path.write_bytes(b"\n".join(lines))
    asked = Planning(path, SETUP, "key", 0, lambda rows: None, min_tokens=2, priority="rank")
    plan, _ = make_plan(path.with_suffix(".plan"), asked)
    assert numbers(plan.rows()) == sorted(range(3000), key=lambda n: -((n * 7919) % 3000))
    plan.close()


def test_equal_rows_of_several_priorities_are_computed_once_with_the_first_of_them(path: Path) -> None:
    ranks = [1, 5, 3, 5, None]
    lines = [line(n, [9, 8, 7], metadata=None if rank is None else {"rank": rank}) for n, rank in enumerate(ranks)]
    path.write_bytes(b"\n".join([*lines, line(5, [9, 8, 6], metadata={"rank": 9})]))
    asked = Planning(path, SETUP, "key", 0, lambda rows: None, min_tokens=2, priority="rank")
    plan, _ = make_plan(path.with_suffix(".plan"), asked)
    assert {row.row: row.leader for row in plan.rows()} == {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 5}
    assert numbers(plan.followers(1)) == [3, 2, 0, 4], "the highest priority first"
    assert (plan.totals().equal_rows, plan.totals().rows) == (4, 6)
    plan.close()
