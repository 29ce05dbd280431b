"""The named workloads: seeded lists of token ids with exact output lengths, the same for every engine.

Owns the shapes and the order in which random numbers are drawn: the same name, seed, vocabulary and scale give the same
ids everywhere and always. Scale changes the number of requests, never their lengths.
One idea: every request runs to exactly `max_tokens` (greedy, end-of-sequence ignored), so all engines do the same work.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

LOWEST_ID = 300  # below it: bytes and special tokens, in most vocabularies
USUAL_VOCABULARY = 39000
MOST_TOKENS = 1024  # of a prompt or an output of sharegpt-like: ShareGPT as benchmarks cut it


class Row(NamedTuple):
    """One request."""

    prompt_tokens: list[int]
    max_tokens: int


class Draw:
    """The random numbers of one workload, in token ids from `low` up to, not including, `vocab`."""

    def __init__(self, seed: int, vocab: int) -> None:
        self.random = random.Random(seed)
        self.vocab = vocab
        self.low = min(LOWEST_ID, vocab // 2)

    def tokens(self, count: int) -> list[int]:
        """Ids, each as likely as another."""
        return [self.random.randrange(self.low, self.vocab) for _ in range(count)]


class Workload(NamedTuple):
    """A shape of work. `requests` at scale 1; `is_whole_process`: timed from the start of the process."""

    requests: int
    purpose: str
    rows: Callable[[Draw, int], list[Row]]
    is_whole_process: bool = False


def _fixed(prompt: int, output: int) -> Callable[[Draw, int], list[Row]]:
    return lambda draw, count: [Row(draw.tokens(prompt), output) for _ in range(count)]


def _grouped(draw: Draw, groups: int, members: int, *, shared: int, own: int, output: int) -> list[Row]:
    """Groups of prompts that begin alike, shuffled: whoever finds the groups again computes each beginning once."""
    rows = []
    for _ in range(groups):
        prefix = draw.tokens(shared)
        rows += [Row(prefix + draw.tokens(own), output) for _ in range(members)]
    draw.random.shuffle(rows)
    return rows


def _some_groups(members: int, *, shared: int, own: int, output: int) -> Callable[[Draw, int], list[Row]]:
    """Groups of a fixed size; scale changes their number."""
    return lambda draw, count: _grouped(draw, max(1, count // members), members, shared=shared, own=own, output=output)


def _some_members(groups: int, *, shared: int, own: int, output: int) -> Callable[[Draw, int], list[Row]]:
    """A fixed number of groups; scale changes their size."""
    return lambda draw, count: _grouped(draw, groups, max(1, count // groups), shared=shared, own=own, output=output)


def _chat(draw: Draw, count: int) -> list[Row]:
    return [Row(draw.tokens(draw.random.randint(64, 512)), draw.random.randint(16, 128)) for _ in range(count)]


def _u100_1024(draw: Draw, count: int) -> list[Row]:
    """All prompts are drawn first, from ids 0 to 10000, then all output lengths: nano-vllm's bench.py."""
    top = min(10000, draw.vocab - 1)
    prompts = [[draw.random.randint(0, top) for _ in range(draw.random.randint(100, 1024))] for _ in range(count)]
    return [Row(prompt, draw.random.randint(100, 1024)) for prompt in prompts]


def _sharegpt_like(draw: Draw, count: int) -> list[Row]:
    """Log-normal lengths with ShareGPT's medians and 90th percentiles: prompts 36 and 829, outputs 280 and 683."""
    return [
        Row(draw.tokens(_log_normal(draw, median=36, p90=829)), _log_normal(draw, median=280, p90=683))
        for _ in range(count)
    ]


def _log_normal(draw: Draw, *, median: int, p90: int) -> int:
    deviation = math.log(p90 / median) / 1.2815515655446004  # the 90th percentile of a normal distribution
    length = round(draw.random.lognormvariate(math.log(median), deviation))
    return min(max(length, 4), MOST_TOKENS)


WORKLOADS: dict[str, Workload] = {
    "prefill": Workload(32, "32 x (1024 -> 1): reading prompts, alone", _fixed(1024, 1)),
    "decode": Workload(64, "64 x (32 -> 128): generating, alone", _fixed(32, 128)),
    "wide": Workload(256, "256 x (32 -> 64): generating with many sequences", _fixed(32, 64)),
    "chat": Workload(64, "64 x (U[64,512] -> U[16,128]): a mix", _chat),
    "prefix": Workload(
        128,
        "4 groups x 32 x (512 shared + 64 own -> 32), shuffled: shared beginnings, room to spare",
        _some_members(4, shared=512, own=64, output=32),
    ),
    "groups": Workload(
        144,
        "24 groups x 6 x (768 shared + 32 own -> 8), shuffled: with --kv-memory 1GiB the beginnings do not all fit",
        _some_groups(6, shared=768, own=32, output=8),
    ),
    "small": Workload(
        100, "100 x (64 -> 16): a small job, from process start to last byte", _fixed(64, 16), is_whole_process=True
    ),
    "prefix_repetition": Workload(
        1000,
        "10 groups x 100 x (256 shared + 256 own -> 128), shuffled (vLLM's)",
        _some_members(10, shared=256, own=256, output=128),
    ),
    "gsp": Workload(
        1024,
        "64 groups x 16 x (2048 shared + 128 own -> 256), shuffled (SGLang's)",
        _some_groups(16, shared=2048, own=128, output=256),
    ),
    "u100-1024": Workload(256, "256 x (U[100,1024] -> U[100,1024]) (nano-vllm's)", _u100_1024),
    "sharegpt-like": Workload(
        1000, "1000 x log-normal lengths as in ShareGPT: prompts around 36, answers around 280", _sharegpt_like
    ),
}


def build(name: str, *, seed: int = 0, vocab: int = USUAL_VOCABULARY, scale: float = 1.0) -> list[Row]:
    """The rows of a workload. A `scale` of 0.1 makes about a tenth of the requests, one at least."""
    workload = WORKLOADS[name]
    return workload.rows(Draw(seed, vocab), max(1, round(workload.requests * scale)))


def write_jsonl(rows: Iterable[Row], path: Path) -> None:
    """Write rows as they come, one {"prompt_token_ids", "max_tokens"} a line."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({"prompt_token_ids": row.prompt_tokens, "max_tokens": row.max_tokens}) + "\n")


def read_jsonl(path: Path) -> list[Row]:
    """The rows that `write_jsonl` wrote."""
    with path.open(encoding="utf-8") as file:
        return [Row(line["prompt_token_ids"], line["max_tokens"]) for line in map(json.loads, file)]
