"""The structs of the C interface (`native/ops.h`), and how tensors become their addresses and sizes.

Owns what must hold before an address is passed: type, shape, contiguity, a CPU. A struct holds addresses only, so
whoever makes one keeps its tensors alive until the call returns.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from penstock.kernels.reference import AttentionTiles, LayerRows, Scoring
from penstock.models.spec import DecoderSpec
from penstock.weights import LayerWeights, Norm, Weight

TYPES = {torch.float32: 0, torch.bfloat16: 1}  # as Type in native/ops.h
ADDRESS, COUNT, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


AS_IS, RMS_NORM, LAYER_NORM, GELU_TANH = range(4)  # as Prepare in native/ops.h
UNGATED, SWIGLU, GEGLU = range(3)  # as Gate
GATES = {"swiglu": SWIGLU, "geglu": GEGLU, "gelu_tanh": UNGATED}
PANEL = 32  # columns that a packed weight is padded to


class Product(ctypes.Structure):
    """`Product` in native/ops.h."""

    _fields_ = [
        *((name, ADDRESS) for name in ("x", "weight", "bias", "residual", "scale", "shift", "out")),
        *((name, COUNT) for name in ("rows", "n", "k", "x_stride", "out_stride")),
        ("eps", ctypes.c_float),
        *((name, INT) for name in ("prepare", "plus_one", "type", "out_type", "gate")),
    ]


class Heads(ctypes.Structure):
    """`Heads` in native/ops.h."""

    _fields_ = [
        *((name, ADDRESS) for name in ("fused", "q_scale", "k_scale", "cosine", "sine", "blocks", "offsets")),
        *((name, ADDRESS) for name in ("keys", "values")),
        *((name, COUNT) for name in ("rows", "heads", "kv_heads", "width", "block_tokens")),
        ("eps", ctypes.c_float),
        *((name, INT) for name in ("plus_one", "type")),
    ]


class Attention(ctypes.Structure):
    """`Attention` in native/ops.h."""

    _fields_ = [
        *((name, ADDRESS) for name in ("query", "keys", "values", "out", "states")),
        *((name, ADDRESS) for name in ("rows", "positions", "begins", "ends", "tables", "sinks")),
        *((name, COUNT) for name in ("tiles", "queries", "table_blocks", "query_stride", "out_stride")),
        *((name, COUNT) for name in ("heads", "kv_heads", "width", "block_tokens", "step_rows", "window")),
        *((name, ctypes.c_float) for name in ("scale", "cap")),
        *((name, INT) for name in ("kept", "type")),
    ]


class Piece(ctypes.Structure):
    """`Piece` in native/memory.h."""

    _fields_ = (("start", ADDRESS), ("bytes", COUNT))


class Layer(ctypes.Structure):
    """`Layer` in native/ops.h."""

    _fields_ = [
        ("qkv", Product),
        ("heads", Heads),
        *((name, Product) for name in ("out", "after_attention", "gate_up", "down", "after_mlp")),
        ("sinks", ADDRESS),
        ("window", COUNT),
        *((name, ctypes.c_float) for name in ("scale", "cap")),
    ]


class Step(ctypes.Structure):
    """`Step` in native/ops.h."""

    _fields_ = [
        *((name, ADDRESS) for name in ("x", "cosine", "sine", "windows_cosine", "windows_sine", "blocks", "offsets")),
        *((name, ADDRESS) for name in ("sets", "wanted_sets", "wanted")),
        *((name, COUNT) for name in ("num_sets", "num_wanted_sets", "rows", "num_wanted")),
    ]


LAYER_BYTES = sum(map(ctypes.sizeof, (Layer, Step, Attention)))  # as penstock_layer_bytes says


class Preparation(NamedTuple):
    """What is done to a row before a product: one of the numbers above, and a norm's parameters."""

    how: int = AS_IS
    norm: Norm | None = None
    eps: float = 0.0


NOTHING = Preparation()


def address(x: Tensor | None) -> int | None:
    """Where a tensor's numbers begin; None for none."""
    if x is None:
        return None
    assert x.is_contiguous(), f"a native kernel was given {list(x.shape)} with strides {x.stride()}"
    assert x.device.type == "cpu", f"a native kernel was given a tensor on {x.device}"
    return x.data_ptr()


def plain_columns(weight: Weight) -> int:
    """The columns that a packed weight's product has without a gate: of a gated one all that lie in its panels."""
    return -(-weight.shape[0] // PANEL) * PANEL if weight.gated else weight.shape[0]


def product(
    rows: int, weight: Weight, first: Preparation = NOTHING, *, dtype: torch.dtype, gate: int = UNGATED
) -> Product:
    """The product of `rows` rows of `dtype` with a packed weight, without the addresses of what goes in and out.

    Raises:
        ValueError: the weight is not packed, or of another type; or a gate is wanted of one that has none.
    """
    matrix = weight.parts["weight"]
    if weight.format != "packed" or matrix.dtype != dtype:
        raise ValueError(f"the weight is {weight.format} {matrix.dtype}; a packed one of {dtype} is needed")
    if gate and not weight.gated:
        raise ValueError(f"the weight {list(weight.shape)} was not packed as a gate and what it multiplies")
    n, k = weight.shape[0] // 2 if gate else plain_columns(weight), weight.shape[1]
    made = Product(weight=address(matrix), bias=address(weight.parts.get("bias")), rows=rows, n=n, k=k, out_stride=n)
    made.x_stride, made.gate = k, gate
    made.type = made.out_type = TYPES[dtype]
    prepare(made, first)
    return made


def prepare(made: Product, first: Preparation) -> None:
    """Put a preparation into a product."""
    made.prepare, made.eps = first.how, first.eps
    if first.norm is not None:
        made.scale, made.shift = address(first.norm.weight), address(first.norm.bias)
        made.plus_one = first.norm.plus_one


def attention_sets(
    tiles: tuple[AttentionTiles, ...],
    keys: Tensor,
    values: Tensor,
    scoring: Scoring,
    *,
    step_rows: int,
    heads: int,
    query_stride: int,
) -> ctypes.Array[Attention]:
    """A struct for each set of tiles of a step, without the addresses of queries and results."""
    _, kv_heads, block_tokens, width = keys.shape
    sets = (Attention * len(tiles))()
    for made, some in zip(sets, tiles, strict=True):
        made.keys, made.values = address(keys), address(values)
        made.rows, made.positions, made.tables = address(some.rows), address(some.positions), address(some.tables)
        made.begins, made.ends, made.kept = address(some.begins), address(some.ends), some.kept
        (made.tiles, made.queries), made.table_blocks = some.rows.shape, some.tables.shape[1]
        made.query_stride, made.out_stride, made.step_rows = query_stride, heads * width, step_rows
        made.heads, made.kv_heads, made.width, made.block_tokens = heads, kv_heads, width, block_tokens
        made.scale, made.type = scoring.scale_of(width), TYPES[keys.dtype]
        made.window, made.cap, made.sinks = scoring.window or 0, scoring.cap or 0.0, address(scoring.sinks)
    return sets


def layer(weights: LayerWeights, keys: Tensor, values: Tensor, scoring: Scoring, *, spec: DecoderSpec) -> Layer:
    """A layer, but for what a step brings; the library has memory for what is between its products."""
    dtype, eps = keys.dtype, spec.norm_eps
    norm = RMS_NORM if spec.norm == "rms" else LAYER_NORM
    gate = GATES[spec.mlp]
    made = Layer(heads=_heads(weights, keys, values, spec=spec))
    made.qkv = product(0, weights.qkv, Preparation(norm, weights.attention_norm, eps), dtype=dtype)
    made.out = product(0, weights.out, dtype=dtype)
    made.gate_up = product(0, weights.gate_up, Preparation(norm, weights.mlp_norm, eps), dtype=dtype, gate=gate)
    made.down = product(0, weights.down, Preparation(AS_IS if gate else GELU_TANH), dtype=dtype)
    if weights.attention_norm_after is not None and weights.mlp_norm_after is not None:
        made.after_attention = _after(Preparation(norm, weights.attention_norm_after, eps), dtype=dtype)
        made.after_mlp = _after(Preparation(norm, weights.mlp_norm_after, eps), dtype=dtype)
    made.window, made.cap, made.sinks = scoring.window or 0, scoring.cap or 0.0, address(scoring.sinks)
    made.scale = scoring.scale_of(spec.head_dim)
    return made


def _after(norm: Preparation, *, dtype: torch.dtype) -> Product:
    """What a product gives is normed and added to what the layer's rows were."""
    assert norm.norm is not None
    width = norm.norm.weight.shape[0]
    made = Product(k=width, x_stride=width, out_stride=width, type=TYPES[dtype], out_type=TYPES[dtype])
    prepare(made, norm)
    return made


def _heads(weights: LayerWeights, keys: Tensor, values: Tensor, *, spec: DecoderSpec) -> Heads:
    made = Heads(keys=address(keys), values=address(values))
    if weights.q_norm is not None and weights.k_norm is not None:
        made.q_scale, made.k_scale = address(weights.q_norm.weight), address(weights.k_norm.weight)
        made.plus_one = weights.q_norm.plus_one
    made.heads, made.kv_heads, made.width = spec.heads, spec.kv_heads, spec.head_dim
    made.block_tokens, made.eps, made.type = keys.shape[2], spec.norm_eps, TYPES[keys.dtype]
    return made


def step(x: Tensor, rows: LayerRows, sets: ctypes.Array[Attention], wanted_sets: ctypes.Array[Attention]) -> Step:
    """What a step brings to layers that change x [rows, hidden]."""
    made = Step(x=address(x), blocks=address(rows.blocks), offsets=address(rows.offsets), rows=x.shape[0])
    if rows.rotary is not None:
        made.cosine, made.sine = map(address, rows.rotary)
    if rows.windows_rotary is not None:
        made.windows_cosine, made.windows_sine = map(address, rows.windows_rotary)
    made.sets, made.num_sets = ctypes.addressof(sets), len(sets)
    made.num_wanted = x.shape[0]
    if rows.wanted is not None:
        made.wanted, made.num_wanted = address(rows.wanted), rows.wanted.shape[0]
        made.wanted_sets, made.num_wanted_sets = ctypes.addressof(wanted_sets), len(wanted_sets)
    return made
