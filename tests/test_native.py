"""Protects the native kernels: on every instruction set here they compute what the reference does, rows apart."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from penstock.kernels import reference
from penstock.kernels.native import Native, open_native
from penstock.kernels.table import TABLE, find_inexact_product, select
from penstock.weights import Weight, dense
from tests.models import native_isas, opened

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


def test_what_cannot_run_has_a_reason_and_the_reference_computes() -> None:
    missing = open_native(dtype="float32", threads=1, library=Path("nowhere/libpenstock.so"))
    assert missing.native is None
    assert "was not built: install penstock where a C++ compiler (g++) is" in (missing.why_not or "")
    for without in (missing, opened("reference"), open_native(dtype="float16", threads=1)):
        selection = select("cpu", without)
        assert set(selection.names.values()) == {"reference"}
        assert selection.why_not_native == without.why_not
    assert "this is cuda" in (select("cuda", opened("reference")).why_not_native or "")


@pytest.mark.parametrize("isa", ISAS)
def test_the_table_chooses_native_kernels_and_names_their_instruction_set(isa: str) -> None:
    selection = select("cpu", opened(isa))
    assert selection.why_not_native is None
    assert selection.not_row_exact == ()
    for op, rows in TABLE.items():
        assert selection.names[op] == (f"native-{isa}" if rows[0].native else "reference")


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
    ours = kernels.linear(x, packed, wide=True)
    torch.testing.assert_close(ours.double(), wide, rtol=1e-5, atol=2e-5)
    assert torch.equal(kernels.linear(x, packed), ours.to(dtype))
    slow = reference.linear(x, weight).float()
    torch.testing.assert_close(ours.to(dtype).float(), slow, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "inner"), [(50, 48), (331, 257), (96, 2048)])
def test_a_row_of_linear_has_the_same_bits_alone_anywhere_and_on_any_threads(
    isa: str, dtype: torch.dtype, out: int, inner: int
) -> None:
    weight = odd_weight(out, inner, dtype, bias=True)
    x = noise(ROWS, inner, dtype=dtype, seed=2)
    several, one = native(isa), native(isa, 1)
    packed = several.pack(weight)
    assert torch.equal(packed.parts["weight"], one.pack(weight).parts["weight"])
    together = several.linear(x, packed, wide=True)
    assert torch.equal(one.linear(x, packed, wide=True), together)
    for rows in range(1, ROWS):
        assert torch.equal(several.linear(x[-rows:], packed, wide=True), together[-rows:])
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))
    assert torch.equal(several.linear(x[order], packed, wide=True), together[order])
    assert find_inexact_product(several.linear, [packed]) is None


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
    with pytest.raises(ValueError, match=r"x is torch\.bfloat16"):
        kernels.linear(noise(2, 48, dtype=torch.bfloat16), packed)
    with pytest.raises(ValueError, match=r"x is torch\.float32 \[2, 47\]"):
        kernels.linear(noise(2, 47), packed)


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
