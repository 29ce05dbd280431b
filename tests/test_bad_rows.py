"""Protects the promise that no row kills a job: 5,000 rows of which 500 are bad, through the command line."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from penstock.checkpoint import find_checkpoint
from penstock.errors import RowErrorCode
from tests.bad_rows import BAD_WAYS, chat_line, completion_line
from tests.checkpoints import write_llama

pytestmark = pytest.mark.torch

ROWS, BAD, DUPLICATES, TOO_LARGE = 5000, 500, 20, 5
CONTEXT, KV_TOKENS = 4096, 2048


class Planned(NamedTuple):
    """A line of the input and what its output line must be: a custom id and a code (None: an answer)."""

    data: bytes
    custom_id: str | None
    code: RowErrorCode | None


def good(number: int) -> Planned:
    name = f"row-{number}"
    line = (chat_line if number % 2 else completion_line)(name, max_tokens=1 + number % 4, user="u")
    return Planned(line, name, None)


def too_large(number: int) -> Planned:
    """A row that fits the model's context and not the KV memory."""
    name = f"large-{number}"
    return Planned(completion_line(name, prompt=[1] * (KV_TOKENS + 1)), name, RowErrorCode.KV_TOO_SMALL)


def bad(number: int) -> Planned:
    way = BAD_WAYS[number % len(BAD_WAYS)]
    name = f"bad-{number}"
    return Planned(way.line(name), name if way.keeps_id else None, way.code)


def planned() -> list[Planned]:
    """4,500 good rows and 480 bad ones, shuffled, and 20 whose custom id an earlier row has."""
    rows = [good(i) for i in range(ROWS - BAD)] + [too_large(i) for i in range(TOO_LARGE)]
    rows += [bad(i) for i in range(BAD - DUPLICATES - TOO_LARGE)]
    random.Random(7).shuffle(rows)
    taken = [row for row in rows if row.code is None][:DUPLICATES]
    return rows + [row._replace(code=RowErrorCode.DUPLICATE_CUSTOM_ID) for row in taken]


def test_the_bad_rows_are_bad_in_at_least_25_ways_and_with_every_code_of_a_row() -> None:
    codes = Counter(row.code for row in planned())
    assert codes.pop(None) == ROWS - BAD
    assert codes.total() == BAD
    assert set(codes) == set(RowErrorCode) - {RowErrorCode.INTERNAL}
    assert len(BAD_WAYS) >= 25
    assert len(BAD_WAYS) <= BAD - DUPLICATES - TOO_LARGE


def check(line: bytes, expected: Planned, *, number: int) -> None:
    found: dict[str, Any] = json.loads(line)
    assert list(found) == ["id", "custom_id", "response", "error"]
    assert found["custom_id"] == expected.custom_id
    if expected.code is None:
        assert found["error"] is None
        assert found["response"]["status_code"] == 200
        assert found["response"]["body"]["usage"]["completion_tokens"] >= 1
    else:
        assert found["response"] is None
        assert (found["error"]["code"], found["error"]["line"]) == (expected.code, number), expected.data[:200]


def test_5000_rows_of_which_500_are_bad_have_4500_answers_and_500_error_rows(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model", config={"max_position_embeddings": CONTEXT})
    kv_bytes = KV_TOKENS * find_checkpoint(str(model)).spec.kv_bytes_per_token(4)
    rows, source, output = planned(), tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl"
    source.write_bytes(gzip.compress(b"\n\r\n".join(row.data for row in rows)))  # every second line is blank
    penstock = Path(sys.executable).with_name("penstock")
    flags = ["--quiet", "--json", "--dtype", "float32", "--kv-memory", kv_bytes]
    command = [penstock, "run", source, "-o", output, "--model", model, *flags]
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["rows"], summary["failed"]) == (ROWS, BAD)
    lines = output.read_bytes().splitlines(keepends=True)
    assert len(lines) == ROWS
    for number, (line, row) in enumerate(zip(lines, rows, strict=True), 1):
        check(line, row, number=2 * number - 1)
    failed = [line for line, row in zip(lines, rows, strict=True) if row.code is not None]
    assert (tmp_path / "out.jsonl.errors.jsonl").read_bytes() == b"".join(failed)
