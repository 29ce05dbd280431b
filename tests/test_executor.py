"""Protects the step from plan to result: the same bits however a sequence is cut and whoever is beside it."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from functools import cache

import pytest
import torch

from penstock.errors import OutOfMemory
from penstock.models.decoder import Decoder
from penstock.models.spec import DecoderSpec
from penstock.request import TokenLogprob
from penstock.step import BlockCopy, Chunk, SampledRef, StepPlan, TierMove
from tests.models import GPT2, LLAMA, QWEN3, executor, last, native_isas, opened, plan, random_weights

pytestmark = pytest.mark.torch

SPECS = [LLAMA, QWEN3, GPT2]


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(LLAMA.vocab), k=length))


def table(length: int, start: int = 0) -> tuple[tuple[int, ...]]:
    return (tuple(range(start, start + -(-length // 16))),)


@cache
def run_whole(
    spec: DecoderSpec, tokens: tuple[int, ...], dtype: torch.dtype = torch.float32, *, kernels: str = "reference"
) -> TokenLogprob:
    engine = executor(spec, dtype=dtype, native=opened(kernels, threads=1))
    chunk = Chunk(1, 0, tokens, table(len(tokens)), last(len(tokens) - 1))
    return engine.collect(engine.submit(plan(chunk))).chunks[0].sampled[0]


@pytest.mark.parametrize("spec", SPECS, ids=["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernels", ["reference", *native_isas()])
@pytest.mark.parametrize("cuts", [[1], [16, 32], [128], [5, 6, 7, 130, 257], list(range(1, 300, 13))])
def test_chunks_of_any_size_beside_any_others_give_the_same_bits(
    spec: DecoderSpec, dtype: torch.dtype, cuts: list[int], kernels: str
) -> None:
    if kernels != "reference" and dtype == torch.float16:
        pytest.skip("the native kernels do not compute float16")
    tokens = prompt(300)
    engine = executor(spec, dtype=dtype, native=opened(kernels))
    bounds = [0, *cuts, 300]
    for step, (start, end) in enumerate(itertools.pairwise(bounds), start=1):
        mine = Chunk(1, start, tokens[start:end], table(300, 30), last(end - start - 1))
        other = Chunk(2, 0, prompt(40 + step, seed=step), table(80, 10))
        chunks = (mine, other) if step % 2 else (other, mine)
        result = engine.collect(engine.submit(plan(*chunks, step=step)))
    drawn = next(c for c in result.chunks if c.sequence == 1).sampled[0]
    assert drawn == run_whole(spec, tokens, dtype, kernels=kernels)


def test_several_positions_of_one_chunk_can_be_drawn() -> None:
    tokens = prompt(20)
    engine = executor(LLAMA)
    chunk = Chunk(1, 0, tokens, table(20), (*last(9), *last(19)))
    drawn = engine.collect(engine.submit(plan(chunk))).chunks[0].sampled
    assert drawn == (run_whole(LLAMA, tokens[:10]), run_whole(LLAMA, tokens))


@pytest.mark.parametrize("spec", [*SPECS, replace(QWEN3, windows=(None, 50))], ids=["llama", "qwen3", "gpt2", "window"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernels", ["reference", *native_isas()])
def test_a_token_has_the_same_bits_whatever_else_is_drawn_from(
    spec: DecoderSpec, dtype: torch.dtype, kernels: str
) -> None:
    """Where all tokens are drawn from, the last layer goes on with all; else with some, sequences stacked or not."""
    begun = Chunk(1, 0, prompt(256), table(256))
    tables = [((*range(16), *range(first, first + 8)),) for first in (20, 30, 40)]
    lengths = (100, 1, 37)

    def draw(offsets: list[list[int]]) -> list[list[TokenLogprob]]:
        engine = executor(spec, dtype=dtype, native=opened(kernels))
        engine.collect(engine.submit(plan(begun)))
        samples = [tuple(sample for at in some for sample in last(at)) for some in offsets]
        chunks = [
            Chunk(n, 256, prompt(length, seed=n), where, some)
            for n, (length, where, some) in enumerate(zip(lengths, tables, samples, strict=True), start=2)
        ]
        return [list(chunk.sampled) for chunk in engine.collect(engine.submit(plan(*chunks, step=2))).chunks]

    everything = draw([list(range(length)) for length in lengths])
    wanted: list[list[list[int]]] = [
        [[99], [0], [36]],
        [[3, 40, 97], [], []],
        [[*range(10, 95)], [0], [0, 36]],
        [[], [], []],
    ]
    for some in wanted:
        assert draw(some) == [[all_of[at] for at in offsets] for all_of, offsets in zip(everything, some, strict=True)]


def test_an_input_token_can_be_the_one_drawn_in_the_step_before() -> None:
    tokens = prompt(20)
    engine = executor(LLAMA)
    first = engine.collect(engine.submit(plan(Chunk(1, 0, tokens, table(21), last(19)))))
    reference = Chunk(1, 20, (SampledRef(1, 1, 0),), table(21), last(0))
    second = engine.collect(engine.submit(plan(reference, step=2)))
    token = first.chunks[0].sampled[0].token
    assert second.chunks[0].sampled[0] == run_whole(LLAMA, (*tokens, token))


def test_a_copied_part_of_a_block_serves_as_prefix() -> None:
    tokens = prompt(40)
    engine = executor(LLAMA)
    engine.collect(engine.submit(plan(Chunk(1, 0, tokens, table(40)))))
    changed = (*tokens[:37], *prompt(8, seed=9))
    chunk = Chunk(2, 37, changed[37:], ((0, 1, 20),), last(7))
    result = engine.collect(engine.submit(StepPlan(2, (chunk,), (BlockCopy(0, 2, 20, 5),))))
    assert result.chunks[0].sampled[0] == run_whole(LLAMA, changed)


@pytest.mark.parametrize("kernels", ["reference", *native_isas()])
def test_logits_that_are_no_numbers_are_a_problem_of_their_own_row(kernels: str) -> None:
    weights = random_weights(LLAMA)
    weights.embedding.parts["weight"][5] = float("nan")
    engine = executor(LLAMA, weights=weights, native=opened(kernels))
    good, bad = tuple(t for t in prompt(20) if t != 5), (5, 6, 7)
    chunks = Chunk(1, 0, bad, table(3, 50), last(2)), Chunk(2, 0, good, table(20), last(len(good) - 1))
    result = engine.collect(engine.submit(plan(*chunks)))
    assert "131 logits of 131 that are not finite" in (result.chunks[0].problem or "")
    assert result.chunks[0].sampled == ()
    recycled = Chunk(3, 0, good, ((50, 51),), last(len(good) - 1))
    again = engine.collect(engine.submit(plan(recycled, step=2)))
    assert again.chunks[0].sampled == result.chunks[1].sampled


@pytest.mark.parametrize("kernels", ["reference", *native_isas()])
def test_what_is_no_number_does_not_reach_the_tokens_before_it(kernels: str) -> None:
    """A prefix that was computed together with a token that spoils what follows it is as good as any."""
    weights = random_weights(LLAMA)
    weights.embedding.parts["weight"][5] = float("inf")
    engine = executor(LLAMA, weights=weights, native=opened(kernels))
    shared = [t for t in prompt(40) if t != 5][:16]
    bad, good = (*shared, 5, 6), (*shared, 7, 8)
    spoilt = engine.collect(engine.submit(plan(Chunk(1, 0, bad, table(18), last(17)))))
    assert "not finite" in (spoilt.chunks[0].problem or "")
    behind = engine.collect(engine.submit(plan(Chunk(2, 16, (7, 8), ((0, 20),), last(1)), step=2)))
    alone = engine.collect(engine.submit(plan(Chunk(3, 0, good, table(18, 40), last(17)), step=3)))
    assert behind.chunks[0].sampled == alone.chunks[0].sampled


def test_running_out_of_memory_has_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Decoder, *args: object) -> None:
        torch.empty(1 << 60)

    engine = executor(LLAMA)
    monkeypatch.setattr(Decoder, "forward", fail)
    with pytest.raises(OutOfMemory, match="a step of 3 tokens did not fit"):
        engine.submit(plan(Chunk(1, 0, (1, 2, 3), table(3))))


def test_what_does_not_exist_yet_is_refused_by_name() -> None:
    engine = executor(LLAMA)
    with pytest.raises(NotImplementedError, match="tiers"):
        engine.submit(StepPlan(1, (), moves=(TierMove(0, 1, "host"),)))
    with pytest.raises(NotImplementedError, match="adapter 'french'"):
        engine.submit(plan(Chunk(1, 0, (1,), table(1), adapter="french")))
