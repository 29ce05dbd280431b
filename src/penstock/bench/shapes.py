"""The shapes of work: rows of token ids drawn from one seed, in an order that never changes.

Owns what a row is and how lengths and shared beginnings are drawn. Knows no names: `workloads.py` has the table.

Shapes of others, with their sources (2026-11; only ids that nano-vllm draws are the very same, as only it draws them
with Python's `random`):
- `prefix_repetition`: vLLM 0.33.0, `vllm bench throughput --dataset-name prefix_repetition`: 10 prefixes of 256 tokens,
  suffixes of 256, outputs of 128, 1000 prompts, shuffled, seed 0.
- `gsp`: SGLang 0.5.23, `sglang.benchmark.offline_throughput`, generated-shared-prefix: 64 groups of 16, system 2048,
  question 128, output 256, shuffled, seed 42. Zipf-sized groups are an option of it (p ~ rank ** -alpha).
- `u100-1024`: nano-vllm's and mini-sglang's `bench.py`: 256 sequences, ids 0 to 10000, lengths U[100, 1024], seed 0.
- `sharegpt-like`: log-normal lengths with the median and 90th percentile of the trace that NanoFlow d6b381e ships.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple

LOWEST_ID = 300  # below it: bytes and special tokens, in most vocabularies
MOST_TOKENS = 1024  # of a prompt or an output of sharegpt-like: ShareGPT as benchmarks cut it
ZIPF_EXPONENT = 1.2
DUPLICATE_SHARE = 0.3


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

    def log_uniform(self, low: int, high: int) -> int:
        """A length from `low` to `high` whose logarithm is uniform."""
        return min(high, int(math.exp(self.random.uniform(math.log(low), math.log(high + 1)))))


Shape = Callable[[Draw, int], list[Row]]


# One length


def fixed(prompt: int, output: int) -> Shape:
    """Requests of one length, with nothing in common."""
    return lambda draw, count: [Row(draw.tokens(prompt), output) for _ in range(count)]


# Groups


def _grouped(draw: Draw, sizes: list[int], *, shared: int, own: int, output: int) -> list[Row]:
    """Groups of prompts that begin alike, shuffled: whoever finds the groups again computes each beginning once."""
    rows = []
    for members in sizes:
        prefix = draw.tokens(shared)
        rows += [Row(prefix + draw.tokens(own), output) for _ in range(members)]
    draw.random.shuffle(rows)
    return rows


def some_groups(members: int, *, shared: int, own: int, output: int) -> Shape:
    """Groups of a fixed size; scale changes their number."""
    return lambda draw, count: _grouped(
        draw, [members] * max(1, count // members), shared=shared, own=own, output=output
    )


def some_members(groups: int, *, shared: int, own: int, output: int) -> Shape:
    """A fixed number of groups; scale changes their size."""
    return lambda draw, count: _grouped(draw, [max(1, count // groups)] * groups, shared=shared, own=own, output=output)


def zipf_groups(mean_members: int, *, shared: int, own: int, output: int) -> Shape:
    """Each request draws its group, the one of rank r with a weight of r ** -1.2: a few large groups and many small."""

    def rows(draw: Draw, count: int) -> list[Row]:
        ranks = range(max(1, count // mean_members))
        drawn = draw.random.choices(ranks, weights=[(rank + 1) ** -ZIPF_EXPONENT for rank in ranks], k=count)
        return _grouped(draw, [drawn.count(rank) for rank in ranks], shared=shared, own=own, output=output)

    return rows


def levels(systems: int, documents: int, questions: int, *, tokens: tuple[int, int, int], output: int) -> Shape:
    """System prompt, then document, then question, shuffled: beginnings within beginnings. Scale thins all three."""

    def rows(draw: Draw, count: int) -> list[Row]:
        side = (count / (systems * documents * questions)) ** (1 / 3)
        tops, middles = max(1, round(systems * side)), max(1, round(documents * side))
        found = []
        for _ in range(tops):
            system = draw.tokens(tokens[0])
            for _ in range(middles):
                document = system + draw.tokens(tokens[1])
                found += [Row(document + draw.tokens(tokens[2]), output) for _ in range(count // (tops * middles))]
        draw.random.shuffle(found)
        return found

    return rows


# Lengths that differ


def chat(draw: Draw, count: int) -> list[Row]:
    """A mix of lengths, in uniform distributions."""
    return [Row(draw.tokens(draw.random.randint(64, 512)), draw.random.randint(16, 128)) for _ in range(count)]


def u100_1024(draw: Draw, count: int) -> list[Row]:
    """All prompts are drawn first, from ids 0 to 10000, then all output lengths: nano-vllm's bench.py."""
    top = min(10000, draw.vocab - 1)
    prompts = [[draw.random.randint(0, top) for _ in range(draw.random.randint(100, 1024))] for _ in range(count)]
    return [Row(prompt, draw.random.randint(100, 1024)) for prompt in prompts]


def sharegpt_like(draw: Draw, count: int) -> list[Row]:
    """Log-normal lengths with ShareGPT's medians and 90th percentiles: prompts 36 and 829, outputs 280 and 683."""
    return [
        Row(draw.tokens(_log_normal(draw, median=36, p90=829)), _log_normal(draw, median=280, p90=683))
        for _ in range(count)
    ]


def _log_normal(draw: Draw, *, median: int, p90: int) -> int:
    deviation = math.log(p90 / median) / 1.2815515655446004  # the 90th percentile of a normal distribution
    length = round(draw.random.lognormvariate(math.log(median), deviation))
    return min(max(length, 4), MOST_TOKENS)


def nothing_shared(draw: Draw, count: int) -> list[Row]:
    """Prompts whose very first tokens differ: there is nothing to find."""
    firsts = draw.random.sample(range(draw.low, draw.vocab), count)
    return [Row([first, *draw.tokens(draw.random.randint(63, 511))], 32) for first in firsts]


def skewed(draw: Draw, count: int) -> list[Row]:
    """Answers from 8 to 1024 tokens, log-uniform, both ends among them from the second request on."""
    lengths = [1024, 8, *(draw.log_uniform(8, 1024) for _ in range(count - 2))][:count]
    draw.random.shuffle(lengths)
    return [Row(draw.tokens(32), length) for length in lengths]


def duplicates(prompt: int, output: int) -> Shape:
    """Three rows of ten are copies of others, shuffled: equal rows need computing once."""

    def rows(draw: Draw, count: int) -> list[Row]:
        copies = round(DUPLICATE_SHARE * count)
        found = fixed(prompt, output)(draw, count - copies)
        found += [draw.random.choice(found[: count - copies]) for _ in range(copies)]
        draw.random.shuffle(found)
        return found

    return rows
