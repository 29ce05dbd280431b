"""The named workloads: seeded lists of token ids with exact output lengths, the same for every engine.

Owns the names, and what a workload amounts to: the same name, seed, vocabulary and scale give the same ids everywhere
and always. Scale changes the number of requests, never their lengths. The shapes, and where they come from, are in
`shapes.py`.
One idea: every request runs to exactly `max_tokens` (greedy, end-of-sequence ignored), so all engines do the same work.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from penstock.bench import shapes
from penstock.bench.shapes import Draw, Row, Shape
from penstock.prefix import common_length

USUAL_VOCABULARY = 39000


class Workload(NamedTuple):
    """A shape of work. `requests` at scale 1; `is_whole_process`: timed from the start of the process."""

    requests: int
    purpose: str
    rows: Shape
    is_whole_process: bool = False


class Amount(NamedTuple):
    """What a workload amounts to.

    Attributes:
        distinct_tokens: of the prompts, each shared beginning counted once: the nodes of their prefix tree.
        fed_back_tokens: of the answers, all tokens but the last of each, equal rows counted once: with the distinct
            ones these are all that any engine must compute.
    """

    requests: int
    prompt_tokens: int
    output_tokens: int
    distinct_tokens: int
    fed_back_tokens: int


WORKLOADS: dict[str, Workload] = {
    "prefill": Workload(32, "32 x (1024 -> 1): reading prompts, alone", shapes.fixed(1024, 1)),
    "decode": Workload(64, "64 x (32 -> 128): generating, alone", shapes.fixed(32, 128)),
    "wide": Workload(256, "256 x (32 -> 64): generating with many sequences", shapes.fixed(32, 64)),
    "chat": Workload(64, "64 x (U[64,512] -> U[16,128]): a mix", shapes.chat),
    "prefix": Workload(
        128,
        "4 groups x 32 x (512 shared + 64 own -> 32), shuffled: shared beginnings, room to spare",
        shapes.some_members(4, shared=512, own=64, output=32),
    ),
    "groups": Workload(
        144,
        "24 groups x 6 x (768 shared + 32 own -> 8), shuffled: with --kv-memory 1GiB the beginnings do not all fit",
        shapes.some_groups(6, shared=768, own=32, output=8),
    ),
    "small": Workload(
        100,
        "100 x (64 -> 16): a small job, from process start to last byte",
        shapes.fixed(64, 16),
        is_whole_process=True,
    ),
    "prefix_repetition": Workload(
        1000,
        "10 groups x 100 x (256 shared + 256 own -> 128), shuffled (vLLM's)",
        shapes.some_members(10, shared=256, own=256, output=128),
    ),
    "gsp": Workload(
        1024,
        "64 groups x 16 x (2048 shared + 128 own -> 256), shuffled (SGLang's)",
        shapes.some_groups(16, shared=2048, own=128, output=256),
    ),
    "u100-1024": Workload(256, "256 x (U[100,1024] -> U[100,1024]) (nano-vllm's)", shapes.u100_1024),
    "sharegpt-like": Workload(
        1000, "1000 x log-normal lengths as in ShareGPT: prompts around 36, answers around 280", shapes.sharegpt_like
    ),
    "levels": Workload(
        1024,
        "8 systems x 16 documents x 8 questions x (256 + 256 + 32 -> 16), shuffled: beginnings within beginnings",
        shapes.levels(8, 16, 8, tokens=(256, 256, 32), output=16),
    ),
    "zipf": Workload(
        512,
        "32 groups of zipf sizes x (512 shared + 64 own -> 32), shuffled: a few large groups, many small ones",
        shapes.zipf_groups(16, shared=512, own=64, output=32),
    ),
    "giant": Workload(
        64,
        "1 group x 64 x (2048 shared + 256 own -> 16): with --kv-memory 1GiB it fits no more than half",
        shapes.some_members(1, shared=2048, own=256, output=16),
    ),
    "nothing-shared": Workload(
        128, "128 x (U[64,512] -> 32), no two of which begin with the same token", shapes.nothing_shared
    ),
    "skewed": Workload(
        384,
        "384 x (32 -> 8 to 1024, log-uniform): with --max-sequences 16 four times as many steps as its longest row",
        shapes.skewed,
    ),
    "duplicates": Workload(200, "200 x (128 -> 32), 60 of them copies of others, shuffled", shapes.duplicates(128, 32)),
}


def build(name: str, *, seed: int = 0, vocab: int = USUAL_VOCABULARY, scale: float = 1.0) -> list[Row]:
    """The rows of a workload. A `scale` of 0.1 makes about a tenth of the requests, one at least."""
    workload = WORKLOADS[name]
    return workload.rows(Draw(seed, vocab), max(1, round(workload.requests * scale)))


def amount(rows: Sequence[Row]) -> Amount:
    """What rows amount to. Sorted, they are the prefix tree in depth-first order: neighbours share what is shared."""
    prompts = sorted(row.prompt_tokens for row in rows)
    prompt_tokens = sum(map(len, prompts))
    shared_tokens = sum(common_length(a, b) for a, b in pairwise(prompts))
    once = {(tuple(row.prompt_tokens), row.max_tokens) for row in rows}
    return Amount(
        requests=len(rows),
        prompt_tokens=prompt_tokens,
        output_tokens=sum(row.max_tokens for row in rows),
        distinct_tokens=prompt_tokens - shared_tokens,
        fed_back_tokens=sum(output - 1 for _, output in once),
    )


def write_jsonl(rows: Iterable[Row], path: Path) -> None:
    """Write rows as they come, one {"prompt_token_ids", "max_tokens"} a line."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({"prompt_token_ids": row.prompt_tokens, "max_tokens": row.max_tokens}) + "\n")


def read_jsonl(path: Path) -> list[Row]:
    """The rows that `write_jsonl` wrote."""
    with path.open(encoding="utf-8") as file:
        return [Row(line["prompt_token_ids"], line["max_tokens"]) for line in map(json.loads, file)]
