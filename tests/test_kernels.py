"""Protects the ops: each implementation computes what PyTorch computes, and each row by itself where it says so."""

from __future__ import annotations

import math
from functools import reduce

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from penstock.kernels import reference
from penstock.kernels.reference import AttentionTiles
from penstock.kernels.table import TABLE, Kernels, find_inexact_product, select, why_not
from penstock.weights import Norm, Weight, dense

pytestmark = pytest.mark.torch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_every_op_has_an_implementation_on_both_devices_and_why_not_names_what_is_missing() -> None:
    assert set(TABLE) == set(Kernels._fields)
    assert all(why_not(op, device) is None for op in TABLE for device in ("cpu", "cuda"))
    assert why_not("linear", "tpu") == "linear has no implementation for tpu, only for cpu, cuda"
    assert "no op named fft" in (why_not("fft", "cpu") or "")
    with pytest.raises(KeyError, match="only for cpu, cuda"):
        select("tpu")


def test_cpu_is_row_exact_and_cuda_does_not_say_so() -> None:
    assert select("cpu").not_row_exact == ()
    assert select("cuda").not_row_exact == ("linear", "logits", "attention")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "inner"), [(1, 1), (50, 48), (331, 257), (768, 256), (2048, 96)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_agrees_with_torch_and_each_row_stands_alone(
    dtype: torch.dtype, out: int, inner: int, *, bias: bool
) -> None:
    matrix = noise(out, inner, dtype=dtype) * inner**-0.5
    weight = dense(matrix, noise(out, dtype=dtype, seed=1) if bias else None)
    x = noise(131, inner, dtype=dtype, seed=2)
    together = reference.linear(x, weight)
    wide = functional.linear(x.float(), matrix.float(), weight.parts["bias"].float() if bias else None)
    torch.testing.assert_close(together.float(), wide, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    order = torch.randperm(131, generator=torch.Generator().manual_seed(3))
    assert torch.equal(reference.linear(x[order], weight), together[order])
    for rows in (slice(0, 1), slice(5, 12), slice(60, 130)):
        assert torch.equal(reference.linear(x[rows], weight), together[rows])


def test_a_product_that_is_not_row_exact_is_found() -> None:
    def careless(x: Tensor, weight: Weight) -> Tensor:
        terms = (x[:, None, :] * weight.parts["weight"][None]).unbind(-1)
        return reduce(torch.add, terms if x.shape[0] == 1 else terms[::-1])

    weights = [dense(noise(40, 33)), dense(noise(8, 1))]
    assert "linear 40 x 33" in (find_inexact_product(careless, weights) or "")
    assert find_inexact_product(reference.linear, weights) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 48, 129])
def test_norms_agree_with_torch(dtype: torch.dtype, width: int) -> None:
    x = noise(33, width, dtype=dtype) * 3
    norm = Norm(noise(width, dtype=dtype, seed=1), noise(width, dtype=dtype, seed=2))
    assert norm.bias is not None
    wide = functional.rms_norm(x.float(), (width,), norm.weight.float(), 1e-6)
    ours = reference.rms_norm(x, norm, eps=1e-6)
    torch.testing.assert_close(ours.float(), wide, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(reference.rms_norm(x[7:9], norm, eps=1e-6), ours[7:9])
    wide = functional.layer_norm(x.float(), (width,), norm.weight.float(), norm.bias.float(), 1e-5)
    ours = reference.layer_norm(x, norm, eps=1e-5)
    torch.testing.assert_close(ours.float(), wide, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(reference.layer_norm(x[7:9], norm, eps=1e-5), ours[7:9])


def test_rotation_turns_pairs_by_their_angle() -> None:
    x = noise(3, 2, 4)
    angle = torch.tensor([[0.0, 0.0], [math.pi / 2, math.pi], [0.3, 0.7]])
    turned = reference.rotate(x, angle.cos(), angle.sin())
    assert torch.equal(turned[0], x[0])
    torch.testing.assert_close(turned[1, :, 0], -x[1, :, 2])
    torch.testing.assert_close(turned[1, :, 1], -x[1, :, 1])
    as_complex = torch.complex(x[2, :, :2], x[2, :, 2:]) * torch.polar(torch.ones(2), angle[2])
    torch.testing.assert_close(turned[2], torch.cat((as_complex.real, as_complex.imag), dim=-1))


def one_tile(positions: list[int], table: list[int], *, num_segments: int, zero_block: int) -> AttentionTiles:
    padded = table + [zero_block] * (num_segments * (reference.SEGMENT // 16) - len(table))
    return AttentionTiles(
        rows=torch.arange(len(positions))[None],
        positions=torch.tensor([positions]),
        begins=torch.zeros(1, dtype=torch.int64),
        ends=torch.tensor([max(positions) + 1]),
        tables=torch.tensor([padded]),
        num_segments=(num_segments,),
        places=torch.arange(len(positions)),
        targets=torch.arange(len(positions)),
    )


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (8, 1), (6, 2)])
@pytest.mark.parametrize("width", [12, 64, 80, 128])
@pytest.mark.parametrize("length", [1, 15, 16, 127, 128, 129, 300])
def test_attention_agrees_with_a_plain_softmax_over_blocks_in_any_order(
    heads: int, kv_heads: int, width: int, length: int
) -> None:
    queries = min(reference.tile_queries(heads, kv_heads), length)
    key, value = noise(length, kv_heads, width), noise(length, kv_heads, width, seed=1)
    query = noise(queries, heads, width, seed=2)
    blocks = -(-length // 16)
    table = torch.randperm(blocks + 5, generator=torch.Generator().manual_seed(4))[:blocks].tolist()
    keys, values = (torch.full((blocks + 6, kv_heads, 16, width), math.nan) for _ in range(2))
    for cache, rows in ((keys, key), (values, value)):
        cache[[*table, -1]] = 0
        for position in range(length):
            cache[table[position // 16], :, position % 16] = rows[position]
    positions = list(range(length - queries, length))
    tiles = one_tile(positions, table, num_segments=-(-length // reference.SEGMENT), zero_block=blocks + 5)
    ours = reference.attention(query, keys, values, tiles=(tiles,))
    for row, position in enumerate(positions):
        k = key[: position + 1].repeat_interleave(heads // kv_heads, dim=1).double()
        v = value[: position + 1].repeat_interleave(heads // kv_heads, dim=1).double()
        scores = torch.einsum("hd,phd->hp", query[row].double(), k) * width**-0.5
        expected = torch.einsum("hp,phd->hd", scores.softmax(-1), v)
        torch.testing.assert_close(ours[row].double(), expected, rtol=2e-5, atol=2e-5)
