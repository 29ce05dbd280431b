"""Protects the workloads: the same ids for ever, the shapes that are promised, files that say the same."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from pathlib import Path

import pytest

from penstock.bench.shapes import Row
from penstock.bench.workloads import WORKLOADS, Amount, amount, build, read_jsonl, write_jsonl

# Of the JSONL files (without the last newline) that other engines were measured with.
HASHES = {
    "decode": "15ca7a7cff050a0758966a30f6a24e58195a9255c5ffc6dcdd1c968fa9a0204f",
    "chat": "0f2464d657b3f545d01a8932d4cc2d27f49a537d6e76ea1314cd3a69ff449916",
    "prefill": "f3926f5d02850c90f959f34b158aaccebbcc4f9529a212840ec323d8e00993c5",
    "wide": "3a0067a5e1f44a3542c791615fb087b13e6cf4afe0abe6d1b9ef934e0a1c0085",
    "prefix": "bbd83d894ca24933b518f3662148fdf8cadcbc13c45df089d90cfa9a2409d68a",
    "small": "78b5e48927e771486856cc77d62f3521159b83d2af0ca70df033ece7971a24f7",
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
    for name, workload in WORKLOADS.items():
        assert len(build(name)) == workload.requests


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


def test_levels_are_three() -> None:
    rows = build("levels")
    assert {(len(row.prompt_tokens), row.max_tokens) for row in rows} == {(256 + 256 + 32, 16)}
    systems = Counter(tuple(row.prompt_tokens[:256]) for row in rows)
    documents = Counter(tuple(row.prompt_tokens[:512]) for row in rows)
    assert (list(systems.values()), list(documents.values())) == ([128] * 8, [8] * 128)
    assert amount(rows).distinct_tokens == pytest.approx(8 * 256 + 128 * 256 + 1024 * 32, abs=1024)
    some = build("levels", scale=0.1)
    assert len({tuple(row.prompt_tokens[:256]) for row in some}) == 4
    assert len({tuple(row.prompt_tokens[:512]) for row in some}) == 4 * 7


def test_zipf_groups_have_zipf_sizes() -> None:
    sizes = sorted(Counter(tuple(row.prompt_tokens[:512]) for row in build("zipf")).values(), reverse=True)
    assert sum(sizes) == 512
    assert sizes[0] > 120  # of the ranks' weights, the first has 0.30
    assert 15 < sizes[0] / statistics.median(sizes) < 60


def test_the_giant_does_not_fit_a_gibibyte() -> None:
    work = amount(build("giant"))
    kv_bytes_a_token = 2 * 28 * 8 * 128 * 2  # Qwen3-0.6B's in bfloat16
    assert work.distinct_tokens == pytest.approx(2048 + 64 * 256, abs=64)
    assert (work.distinct_tokens + work.fed_back_tokens) * kv_bytes_a_token > 1.9 * 2**30
    assert (2048 + 256 + 16) * kv_bytes_a_token < 2**30 / 2


@pytest.mark.parametrize("scale", [1, 0.25])
def test_nothing_shared_means_not_one_token(scale: float) -> None:
    work = amount(build("nothing-shared", scale=scale))
    assert work.distinct_tokens == work.prompt_tokens


@pytest.mark.parametrize(("scale", "sequences"), [(1, 16), (0.1, 1)])
def test_skewed_is_four_times_as_long_as_its_longest_row(scale: float, sequences: int) -> None:
    lengths = [row.max_tokens for row in build("skewed", scale=scale)]
    assert (min(lengths), max(lengths)) == (8, 1024)
    assert sum(lengths) / sequences > 4 * max(lengths)
    assert 70 < statistics.median(lengths) < 160  # of a log-uniform distribution: the geometric mean of the ends, 91


def test_three_rows_of_ten_are_duplicates() -> None:
    rows = build("duplicates")
    assert len({tuple(row.prompt_tokens) for row in rows}) == 140
    work = amount(rows)
    assert work.distinct_tokens == pytest.approx(140 * 128, abs=140)
    assert work.fed_back_tokens == 140 * 31


def test_an_amount_counts_shared_beginnings_and_equal_rows_once() -> None:
    rows = [Row([1, 2, 3], 4), Row([1, 2, 5], 2), Row([7], 3), Row([1, 2, 3], 4), Row([1, 2], 9)]
    # The tree: 1, 2, then 3 and 5; and 7.
    assert amount(rows) == Amount(5, prompt_tokens=12, output_tokens=22, distinct_tokens=5, fed_back_tokens=14)


def test_an_amount_is_the_number_of_nodes_of_the_prefix_tree() -> None:
    for name in ("levels", "zipf", "prefix", "duplicates", "chat"):
        rows = build(name, scale=0.05)
        nodes = {tuple(row.prompt_tokens[: i + 1]) for row in rows for i in range(len(row.prompt_tokens))}
        assert amount(rows).distinct_tokens == len(nodes)


def test_files_hold_the_rows(tmp_path: Path) -> None:
    rows = [Row([1, 2, 3], 4), Row([5], 6)]
    write_jsonl(iter(rows), tmp_path / "rows")
    assert read_jsonl(tmp_path / "rows") == rows
