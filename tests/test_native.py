"""Protects the native kernels: on every instruction set here they compute what the reference does, rows apart."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from penstock.kernels import exact, reference
from penstock.kernels import native_structs as structs
from penstock.kernels.native import HUGE_PAGE, Native, on_whole_pages, open_native
from penstock.kernels.reference import AttentionTiles
from penstock.kernels.table import TABLE, find_inexact_product, select
from penstock.models.spec import DecoderSpec
from penstock.request import TokenLogprob
from penstock.step import Chunk
from penstock.weights import Norm, Weight, dense
from tests.models import GEMMA, GPT2, LLAMA, QWEN3, executor, last, native_isas, opened, plan

pytestmark = pytest.mark.torch

ISAS = native_isas()
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
ROWS = 131


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def native(isa: str, threads: int = 2) -> Native:
    kernels = opened(isa, threads).native
    assert kernels is not None
    assert kernels.isa == isa
    return kernels


def odd_weight(out: int, inner: int, dtype: torch.dtype, *, bias: bool) -> Weight:
    return dense(noise(out, inner, dtype=dtype) * inner**-0.5, noise(out, dtype=dtype, seed=1) if bias else None)


def test_the_library_is_built_where_there_is_a_compiler() -> None:
    assert ISAS, open_native(dtype="float32", threads=1).why_not


@pytest.mark.skipif("avx512_bf16" not in ISAS, reason="without VDPBF16PS there is nothing to pass over")
def test_pairs_are_passed_over_where_two_fmas_are_faster_unless_they_are_asked_for() -> None:
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    is_slow = processor_vendor() == "GenuineIntel" and "avx512_fp16" in flags and "amx" not in ISAS
    best = open_native(dtype="float32", threads=1).native
    assert best is not None
    assert (best.isa == "avx512") == is_slow
    assert (best.passed_over is not None) == is_slow
    for named in ("avx512_bf16", "avx512"):
        assert native(named).passed_over is None


def processor_vendor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split()[-1] for line in lines if line.startswith("vendor_id"))


def test_what_cannot_run_has_a_reason_and_the_reference_computes() -> None:
    missing = open_native(dtype="float32", threads=1, library=Path("nowhere/libpenstock.so"))
    assert missing.native is None
    assert "was not built: install penstock where a C++ compiler (g++) is" in (missing.why_not or "")
    for without in (missing, opened("reference"), open_native(dtype="float16", threads=1)):
        selection = select("cpu", without)
        assert set(selection.names.values()) == {"reference", "composed"}
        assert selection.why_not_native == without.why_not
    assert "this is cuda" in (select("cuda", opened("reference")).why_not_native or "")


def test_a_library_that_is_broken_or_of_other_sources_is_not_used(tmp_path: Path) -> None:
    broken = tmp_path / "libpenstock.so"
    broken.write_bytes(b"no library")
    assert "cannot be loaded" in (open_native(dtype="float32", threads=1, library=broken).why_not or "")
    source, other = tmp_path / "other.cpp", tmp_path / "other.so"
    source.write_text("int unrelated;")
    subprocess.run(["g++", "-shared", "-o", other, source], check=True)
    why_not = open_native(dtype="float32", threads=1, library=other).why_not
    assert "undefined symbol: penstock_layer_bytes" in (why_not or "")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
def test_how_the_calling_thread_treats_denormal_numbers_changes_nothing(isa: str, threads: int) -> None:
    kernels, weight = native(isa, threads), odd_weight(70, 33, torch.float32, bias=False)
    packed, x = kernels.pack(weight), noise(ROWS, 33) * 1e-38
    expected = kernels.linear(x, packed)
    assert ((expected != 0) & (expected.abs() < 1e-38)).any(), "there is nothing to flush"
    assert torch.set_flush_denormal(True)
    try:
        assert torch.equal(kernels.linear(x, packed), expected)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("isa", ISAS)
def test_the_table_chooses_native_kernels_and_names_their_instruction_set(isa: str) -> None:
    selection = select("cpu", opened(isa))
    assert selection.why_not_native is None
    assert selection.not_row_exact == ()
    for op, rows in TABLE.items():
        assert selection.names[op] == (f"native-{isa}" if rows[0].native else rows[0].name)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "inner"), [(1, 1), (50, 48), (331, 257), (33, 1055), (96, 2048)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_agrees_with_the_reference(isa: str, dtype: torch.dtype, out: int, inner: int, *, bias: bool) -> None:
    weight = odd_weight(out, inner, dtype, bias=bias)
    x = noise(ROWS, inner, dtype=dtype, seed=2)
    kernels = native(isa)
    packed = kernels.pack(weight)
    wide = torch.nn.functional.linear(x.double(), weight.parts["weight"].double())
    wide = wide + weight.parts["bias"].double() if bias else wide
    ours = kernels.logits(x, packed)
    torch.testing.assert_close(ours.double(), wide, rtol=1e-5, atol=2e-5)
    assert torch.equal(kernels.linear(x, packed), ours.to(dtype))
    slow = reference.linear(x, weight).float()
    torch.testing.assert_close(ours.to(dtype).float(), slow, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "inner"), [(50, 48), (139, 257), (96, 2048)])
def test_a_row_of_linear_has_the_same_bits_alone_anywhere_and_on_any_threads(
    isa: str, dtype: torch.dtype, out: int, inner: int
) -> None:
    weight = odd_weight(out, inner, dtype, bias=True)
    x = noise(ROWS, inner, dtype=dtype, seed=2)
    several, one = native(isa), native(isa, 1)
    packed = several.pack(weight)
    assert torch.equal(packed.parts["weight"], one.pack(weight).parts["weight"])
    together = several.logits(x, packed).clone()
    assert torch.equal(one.logits(x, packed), together)
    for rows in range(1, ROWS):
        assert torch.equal(several.logits(x[-rows:], packed), together[-rows:])
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))
    assert torch.equal(several.logits(x[order], packed), together[order])
    assert find_inexact_product(several.linear, [packed]) is None


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "inner"), [(2, 3), (66, 33), (128, 48), (202, 64)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_gated_weight_is_the_same_matrix_in_other_places(
    isa: str, dtype: torch.dtype, out: int, inner: int, *, bias: bool
) -> None:
    kernels, weight, x = native(isa), odd_weight(out, inner, dtype, bias=bias), noise(ROWS, inner, dtype=dtype)
    packed = kernels.pack(replace(weight, gated=True))
    assert torch.equal(kernels.linear(x, packed), kernels.linear(x, kernels.pack(weight)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "inner", "rows"), [(2, 3, 1), (66, 33, ROWS), (202, 64, 7)])
def test_a_gated_product_is_its_columns_activated_and_multiplied_to_the_bit(
    isa: str, dtype: torch.dtype, out: int, inner: int, rows: int
) -> None:
    kernels, x = native(isa), noise(rows, inner, dtype=dtype)
    packed = kernels.pack(replace(odd_weight(out, inner, dtype, bias=True), gated=True))
    for gate, activate in ((structs.SWIGLU, exact.silu), (structs.GEGLU, exact.gelu_tanh)):
        made, result = structs.product(rows, packed, dtype=dtype, gate=gate), torch.empty(rows, out // 2, dtype=dtype)
        made.x, made.out = structs.address(x), structs.address(result)
        kernels._call("penstock_linear", ctypes.byref(made))
        first, second = (half.float() for half in kernels.linear(x, packed).chunk(2, dim=1))
        assert torch.equal(result, (activate(first) * second).to(dtype))


@pytest.mark.parametrize("isa", ISAS)
def test_many_rows_go_in_chunks_and_keep_their_bits(isa: str) -> None:
    weight = odd_weight(40, 1024, torch.bfloat16, bias=False)
    x = noise(1100, 1024, dtype=torch.bfloat16)
    kernels = native(isa)
    packed = kernels.pack(weight)
    together = kernels.linear(x, packed)
    assert torch.equal(kernels.linear(x[517:518], packed), together[517:518])
    assert torch.equal(kernels.linear(x[1080:], packed), together[1080:])


def test_no_rows_give_no_rows_and_what_does_not_fit_is_refused() -> None:
    kernels = native(ISAS[-1])
    packed = kernels.pack(odd_weight(50, 48, torch.float32, bias=True))
    assert kernels.linear(torch.empty(0, 48), packed).shape == (0, 50)
    with pytest.raises(ValueError, match=r"a packed one of torch\.bfloat16 is needed"):
        kernels.linear(noise(2, 48, dtype=torch.bfloat16), packed)
    with pytest.raises(ValueError, match=r"x is \[2, 47\] and the weight \[50, 48\]"):
        kernels.linear(noise(2, 47), packed)


def test_memory_that_cannot_be_mapped_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match=r"[0-9]+ bytes could not be mapped"):
        on_whole_pages(1 << 60, dtype=torch.float32)


def test_large_packed_weights_begin_where_a_large_page_does() -> None:
    """Large pages hold what is read once a step; a weight smaller than one is anywhere."""
    for rows in (1024, 1056):  # 2 MiB, and a little more
        made = native(ISAS[-1]).pack(odd_weight(rows, 1024, torch.bfloat16, bias=False)).parts["weight"]
        assert made.data_ptr() % HUGE_PAGE == 0
        assert made.numel() == rows * 1024


def linux_version() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


@pytest.mark.skipif(linux_version() < (5, 14), reason="the system gives pages when they are written to, not before")
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_is_there_before_it_is_written_to_and_keeps_what_was_written(threads: int) -> None:
    """Threads that come upon new pages while they compute are all in the same one, and wait for each other."""
    new = [on_whole_pages(8 * HUGE_PAGE + 100, dtype=torch.uint8) for _ in range(3)]
    new[1][5 * HUGE_PAGE - 1] = 7
    before = resident_bytes()
    native(ISAS[-1], threads).populate([memory[100:] for memory in new])
    assert resident_bytes() - before > 22 * HUGE_PAGE
    assert [int(memory.sum()) for memory in new] == [0, 7, 0]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_embedding_gives_its_rows_back(isa: str, dtype: torch.dtype) -> None:
    weight = odd_weight(331, 77, dtype, bias=False)
    kernels = native(isa)
    tokens = torch.tensor([0, 330, 5, 5, 32, 31])
    assert torch.equal(kernels.embed(tokens, kernels.pack(weight)), weight.parts["weight"][tokens])
    assert torch.equal(kernels.embed(tokens, weight), weight.parts["weight"][tokens])
    assert kernels.embed(tokens[:0], kernels.pack(weight)).shape == (0, 77)
    with pytest.raises(IndexError, match="not in the vocabulary of 331"):
        kernels.embed(torch.tensor([331]), kernels.pack(weight))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 12, 64, 129, 1024])
def test_norms_agree_with_the_reference(isa: str, dtype: torch.dtype, width: int) -> None:
    x = noise(33, 2, width, dtype=dtype) * 3
    scale, bias = noise(width, dtype=dtype, seed=1), noise(width, dtype=dtype, seed=2)
    kernels = native(isa)
    for name, norm in (
        ("rms_norm", Norm(scale)),
        ("rms_norm", Norm(scale, None, True)),
        ("layer_norm", Norm(scale, bias)),
    ):
        ours, slow = getattr(kernels, name), getattr(reference, name)
        fast, expected = ours(x, norm, eps=1e-6), slow(x, norm, eps=1e-6)
        torch.testing.assert_close(fast.float(), expected.float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        assert torch.equal(ours(x[7:9], norm, eps=1e-6), ours(x, norm, eps=1e-6)[7:9])


@pytest.mark.parametrize("isa", ISAS)
def test_capped_logits_are_the_reference_s_to_the_bit(isa: str) -> None:
    kernels, x = native(isa), noise(5, 48) * 40
    x[1, 7], x[2, 40] = math.nan, math.inf
    packed = kernels.pack(odd_weight(5001, 48, torch.float32, bias=False))
    expected = reference.cap(kernels.logits(x, packed).clone(), 30.0)
    assert float(expected[0].abs().max()) <= 30.0
    assert torch.equal(kernels.logits(x, packed, limit=30.0).nan_to_num(), expected.nan_to_num())


def test_logits_stay_where_they_are_from_call_to_call() -> None:
    kernels = native(ISAS[-1])
    packed = kernels.pack(odd_weight(331, 48, torch.float32, bias=False))
    x = noise(9, 48)
    first = kernels.logits(x, packed)
    kept = first.clone()
    assert kernels.logits(x[3:4], packed).data_ptr() == first.data_ptr()
    assert torch.equal(kernels.logits(x, packed), kept)


class Context(NamedTuple):
    """A sequence of `length` positions in blocks in random order; every block that is not its own is NaN."""

    keys: Tensor
    values: Tensor
    table: list[int]
    plain: tuple[Tensor, Tensor]  # [length, kv_heads, width]

    block: int  # positions in it

    @classmethod
    def of(cls, length: int, kv_heads: int, width: int, *, dtype: torch.dtype, block: int = 16) -> Context:
        plain = noise(length, kv_heads, width, dtype=dtype), noise(length, kv_heads, width, dtype=dtype, seed=1)
        blocks = -(-length // block)
        table = torch.randperm(blocks + 5, generator=torch.Generator().manual_seed(4))[:blocks].tolist()
        caches = []
        for rows in plain:
            cache = torch.full((blocks + 6, kv_heads, block, width), math.nan, dtype=dtype)
            at = torch.arange(length)
            cache[torch.tensor(table)[at // block], :, at % block] = rows
            caches.append(cache)
        return cls(caches[0], caches[1], table, plain, block)

    def tiles(
        self, positions: list[int], *, queries: int, begin: int = 0, end: int | None = None, first_row: int = 0
    ) -> AttentionTiles:
        """One query a position, in tiles of `queries`; row `first_row` + i is the query of positions[i].

        With an end the tiles keep the states of keys `begin` .. `end`; without, they go on behind `begin`.
        """
        count = -(-len(positions) // queries)
        padded = [*positions, *[-1] * (count * queries - len(positions))]
        rows = (first_row + torch.arange(count * queries)).clamp(max=first_row + len(positions) - 1)
        ends = [max(padded[i * queries : (i + 1) * queries]) + 1 if end is None else end for i in range(count)]
        return AttentionTiles(
            rows=rows.view(count, queries),
            positions=torch.tensor(padded).view(count, queries),
            begins=torch.full((count,), begin),
            ends=torch.tensor(ends),
            tables=torch.tensor([self.table[begin // self.block :]] * count).view(count, -1),
            num_segments=tuple(-(-(last - begin) // reference.SEGMENT) for last in ends),
            places=torch.arange(len(positions)),
            targets=first_row + torch.arange(len(positions)),
            kept=end is not None,
        )

    def expected(self, query: Tensor, positions: list[int]) -> Tensor:
        heads = query.shape[1]
        k, v = (x.double().repeat_interleave(heads // x.shape[1], dim=1) for x in self.plain)
        scores = torch.einsum("rhd,phd->rhp", query.double(), k) * query.shape[2] ** -0.5
        sees = torch.tensor(positions)[:, None] >= torch.arange(len(k))
        return torch.einsum("rhp,phd->rhd", scores.masked_fill(~sees[:, None], -math.inf).softmax(-1), v)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (9, 3), (32, 1)])
@pytest.mark.parametrize("width", [12, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("length", [1, 15, 128, 129, 300])
def test_attention_agrees_with_a_plain_softmax_and_a_query_has_the_same_bits_in_any_tile(
    isa: str, dtype: torch.dtype, heads: int, kv_heads: int, width: int, length: int
) -> None:
    context = Context.of(length, kv_heads, width, dtype=dtype)
    positions = list(range(length)) if length < 100 else [*range(3, 60), *range(length - 9, length)]
    query = noise(len(positions), heads, width, dtype=dtype, seed=2)
    kernels, one = native(isa), native(isa, 1)

    def attend(kernels: Native, rows: slice, queries: int) -> Tensor:
        tiles = context.tiles(positions[rows], queries=queries)
        return kernels.attention(query[rows], context.keys, context.values, tiles=(tiles,))

    alone = attend(kernels, slice(None), 1)
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(alone.double(), context.expected(query, positions), rtol=tolerance, atol=tolerance)
    runs = [slice(0, length)] if length < 100 else [slice(0, 57), slice(57, 66)]
    for queries in (1, 7, 64):
        for rows in runs:
            assert torch.equal(attend(one if queries == 7 else kernels, rows, queries), alone[rows])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "block"), [(64, 1), (64, 2), (96, 4), (64, 8), (128, 32), (288, 16), (512, 16)])
def test_attention_takes_blocks_of_any_size_and_heads_of_any_width(
    isa: str, dtype: torch.dtype, width: int, block: int
) -> None:
    context = Context.of(200, 3, width, dtype=dtype, block=block)
    positions = list(range(140, 200))
    query = noise(60, 3, width, dtype=dtype, seed=2)
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    for queries in (1, 60):
        tiles = context.tiles(positions, queries=queries)
        out = native(isa).attention(query, context.keys, context.values, tiles=(tiles,))
        torch.testing.assert_close(out.double(), context.expected(query, positions), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_whose_ends_are_as_far_apart_as_if_they_were_one_are_still_read_in_their_order(
    isa: str, dtype: torch.dtype
) -> None:
    one = Context.of(16, 1, 64, dtype=dtype, block=4)
    table = [2, 4, 3, 5]
    keys, values = (torch.full((7, 1, 4, 64), math.nan, dtype=dtype) for _ in range(2))
    for at, place in enumerate(table):
        keys[place], values[place] = (cache[one.table[at]] for cache in (one.keys, one.values))
    other = one._replace(keys=keys, values=values, table=table)
    query = noise(1, 1, 64, dtype=dtype, seed=3)
    out = [
        native(isa).attention(query, each.keys, each.values, tiles=(each.tiles([15], queries=1),))
        for each in (one, other)
    ]
    assert torch.equal(*out)


@cache
def likeliest(spec: DecoderSpec, dtype: torch.dtype, kernels: str, *, composed: bool = False) -> TokenLogprob:
    """What is drawn behind 150 tokens, with the likeliest tokens."""
    tokens = torch.randint(spec.vocab, (150,), generator=torch.Generator().manual_seed(5)).tolist()
    chunk = Chunk(1, 0, tuple(tokens), (tuple(range(10)),), last(149))
    run = executor(spec, dtype=dtype, native=opened(kernels), composed=composed)
    return run.collect(run.submit(plan(chunk))).chunks[0].sampled[0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", [LLAMA, QWEN3, GPT2, GEMMA], ids=["llama", "qwen3", "gpt2", "gemma"])
def test_a_step_of_native_layers_gives_the_logits_of_the_reference(
    isa: str, dtype: torch.dtype, spec: DecoderSpec
) -> None:
    ours, slow = likeliest(spec, dtype, isa), likeliest(spec, dtype, "reference")
    reach = {torch.float32: 1e-4, torch.bfloat16: 0.15}[dtype]
    ours_of = dict(ours.top)
    assert all(abs(ours_of.get(token, value) - value) < reach for token, value in slow.top)
    assert abs(ours.top[0][1] - slow.top[0][1]) < reach


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "spec",
    [LLAMA, QWEN3, GPT2, GEMMA, replace(LLAMA, mlp_bias=True, mlp_width=77), replace(GEMMA, mlp_width=13)],
    ids=["llama", "qwen3", "gpt2", "gemma", "gate with bias", "narrow gate"],
)
def test_native_layers_are_their_ops_one_by_one_to_the_bit(isa: str, spec: DecoderSpec) -> None:
    """In float32; in bfloat16 they round less often between two ops."""
    whole, apart = (likeliest(spec, torch.float32, isa, composed=composed) for composed in (False, True))
    assert whole == apart


@pytest.mark.parametrize("isa", ISAS)
def test_where_nothing_is_drawn_the_last_layer_ends_with_its_keys_and_values(isa: str) -> None:
    team = opened(isa)
    kernels, engine = team.native, executor(replace(LLAMA, layers=1), native=team)
    assert kernels is not None
    before, tokens, table = kernels.layer_seconds(), (7,) * 40, (tuple(range(3)),)
    engine.collect(engine.submit(plan(Chunk(1, 0, tokens, table))))
    without = kernels.layer_seconds()
    assert without.linear > before.linear
    assert without.attention == before.attention
    engine.collect(engine.submit(plan(Chunk(1, 0, tokens, table, last(39)), step=2)))
    assert kernels.layer_seconds().attention > without.attention


def _use(kernels: Native, weight: Weight, said: multiprocessing.Queue[str]) -> None:
    try:
        kernels.linear(torch.zeros(1, 48), weight)
    except RuntimeError as error:
        said.put(str(error))
    else:
        said.put("it computed")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_is_refused() -> None:
    kernels = native(ISAS[-1])
    packed = kernels.pack(odd_weight(50, 48, torch.float32, bias=True))
    fork = multiprocessing.get_context("fork")
    said: multiprocessing.Queue[str] = fork.Queue()
    child = fork.Process(target=_use, args=(kernels, packed, said))
    child.start()
    assert "opened before this process was forked" in said.get(timeout=60)
    child.join()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_register_loop_counts_what_every_round_does(isa: str, dtype: torch.dtype) -> None:
    kernels = native(isa)
    one = kernels.register_loop(1, dtype=dtype)
    assert one > 1e6
    assert kernels.register_loop(7, dtype=dtype) == 7 * one


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", [1, 15, 64, 1000, 2**20 + 77])
def test_the_read_loop_reads_every_number(isa: str, count: int) -> None:
    x = torch.randint(0, 8, (count,), generator=torch.Generator().manual_seed(count)).float()
    assert native(isa).read_loop(x) == float(x.double().sum())
