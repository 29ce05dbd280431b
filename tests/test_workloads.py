"""Protects the workloads: the same ids for ever, the shapes that are promised, files that say the same."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from pathlib import Path

import pytest

from penstock.bench.workloads import WORKLOADS, Row, build, read_jsonl, write_jsonl

# Of the JSONL files (without the last newline) that other engines were measured with.
HASHES = {
    "decode": "15ca7a7cff050a0758966a30f6a24e58195a9255c5ffc6dcdd1c968fa9a0204f",
    "chat": "0f2464d657b3f545d01a8932d4cc2d27f49a537d6e76ea1314cd3a69ff449916",
    "groups": "3aebcdff51d8969358157bbb4453bfc838f4faa972307d1c4ba0b793503f330b",
}


@pytest.mark.parametrize("name", HASHES)
def test_ids_never_change(name: str, tmp_path: Path) -> None:
    write_jsonl(build(name), tmp_path / "rows")
    text = (tmp_path / "rows").read_bytes().rstrip(b"\n")
    assert hashlib.sha256(text).hexdigest() == HASHES[name]


@pytest.mark.parametrize("name", WORKLOADS)
def test_scale_changes_the_number_of_requests_and_seed_the_ids(name: str) -> None:
    some = build(name, scale=0.05, vocab=300)
    assert some == build(name, scale=0.05, vocab=300)
    assert some != build(name, scale=0.05, vocab=300, seed=1)
    assert 1 <= len(some) <= WORKLOADS[name].requests * 0.05 + 1
    assert all(0 <= token < 300 for row in some for token in row.prompt_tokens)


def test_a_workload_has_the_requests_that_it_says() -> None:
    for name in ("prefill", "decode", "wide", "chat", "prefix", "groups", "small", "u100-1024"):
        assert len(build(name)) == WORKLOADS[name].requests


@pytest.mark.parametrize(
    ("name", "groups", "members", "shared", "own", "output"),
    [("prefix_repetition", 10, 10, 256, 256, 128), ("gsp", 6, 16, 2048, 128, 256)],
)
def test_grouped_workloads_share_exact_beginnings(
    name: str, groups: int, members: int, shared: int, own: int, output: int
) -> None:
    rows = build(name, scale=0.1)
    beginnings = Counter(tuple(row.prompt_tokens[:shared]) for row in rows)
    assert list(beginnings.values()) == [members] * groups
    assert {(len(row.prompt_tokens), row.max_tokens) for row in rows} == {(shared + own, output)}
    assert [row.prompt_tokens[:shared] for row in rows] != sorted(row.prompt_tokens[:shared] for row in rows)


def test_u100_1024_is_nano_vllm_s() -> None:
    rows = build("u100-1024")
    lengths = [len(row.prompt_tokens) for row in rows] + [row.max_tokens for row in rows]
    assert 100 <= min(lengths) < 130
    assert 1000 < max(lengths) <= 1024
    assert rows[0].prompt_tokens[:3] == [6311, 6890, 663]


def test_sharegpt_like_has_the_lengths_of_sharegpt() -> None:
    rows = build("sharegpt-like")
    prompts, outputs = [len(row.prompt_tokens) for row in rows], [row.max_tokens for row in rows]
    assert 28 < statistics.median(prompts) < 44
    assert 250 < statistics.median(outputs) < 310
    assert min(prompts + outputs) >= 4
    assert max(prompts) == max(outputs) == 1024


def test_files_hold_the_rows(tmp_path: Path) -> None:
    rows = [Row([1, 2, 3], 4), Row([5], 6)]
    write_jsonl(iter(rows), tmp_path / "rows")
    assert read_jsonl(tmp_path / "rows") == rows
