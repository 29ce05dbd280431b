"""The table device x op -> implementation, and `why_not` for each pair that is missing.

Owns the choice, made once at start-up; the ops themselves are in the other files of this folder. Every implementation
says whether it is row-exact: whether a row's bits are the same whatever else is in the step.
One idea: a fast kernel is one more row here, before the reference row that it is tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from penstock.kernels import exact, reference
from penstock.kernels.native import NOT_ASKED, Native, Opened
from penstock.kernels.reference import NARROW, PLAIN, TILE_ROWS, AttentionTiles, LayerRows, Scoring, TileRows
from penstock.models.spec import DecoderSpec
from penstock.sampling import Draw, draw_all
from penstock.step import SampleAt
from penstock.weights import LayerWeights, Norm, Weight

NUMERICS_VERSION = 4  # counts changes of any op's bits


class Pack(Protocol):
    """A dense weight to the format that the device's `linear` and `embed` read."""

    def __call__(self, weight: Weight) -> Weight: ...


class Embed(Protocol):
    """int64 tokens [rows] to their rows of weight [vocab, width]."""

    def __call__(self, tokens: Tensor, weight: Weight) -> Tensor: ...


class Linear(Protocol):
    """x [rows, in] to [rows, out], in x's dtype."""

    def __call__(self, x: Tensor, weight: Weight) -> Tensor: ...


class Logits(Protocol):
    """x [rows, hidden] to float32 [rows, vocab], limit * tanh(y / limit) of them with a limit.

    What is given may be memory of the op's own, which its next call writes to.
    """

    def __call__(self, x: Tensor, head: Weight, *, limit: float | None = None) -> Tensor: ...


class Normalize(Protocol):
    """x [..., width] to the same shape."""

    def __call__(self, x: Tensor, norm: Norm, *, eps: float) -> Tensor: ...


class Rotate(Protocol):
    """x [rows, heads, width] to the same shape; cosine, sine [rows, width/2]."""

    def __call__(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor: ...


class Attention(Protocol):
    """query [rows, heads, width] over paged keys and values to [rows, heads, width]."""

    def __call__(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        tiles: tuple[AttentionTiles, ...],
        scoring: Scoring = PLAIN,
    ) -> Tensor: ...


# x [rows, hidden] and a step's rows to the rows that are wanted of them, [wanted, hidden].
RunLayers = Callable[[Tensor, LayerRows], Tensor]


class Layers(Protocol):
    """All decoder layers over their keys and values, made ready once.

    Gives a function that takes x [rows, hidden] and a step's rows through all of them, to [wanted, hidden], a part of x
    itself perhaps, and writes keys and values of all rows.
    """

    def __call__(
        self,
        weights: Sequence[LayerWeights],
        *,
        spec: DecoderSpec,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        scorings: Sequence[Scoring],
    ) -> RunLayers: ...


class Binary(Protocol):
    """Two tensors of one shape, or one and a scalar, to one."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor: ...


class Unary(Protocol):
    """float32 to float32 of the same shape."""

    def __call__(self, x: Tensor) -> Tensor: ...


class DrawAll(Protocol):
    """Float32 logits [rows, vocab] to a draw a row."""

    def __call__(self, logits: Tensor, samples: Sequence[SampleAt]) -> list[Draw]: ...


class Kernels(NamedTuple):
    """An implementation of every op; `layers` is None where a layer is composed of the others."""

    pack: Pack
    embed: Embed
    linear: Linear
    logits: Logits
    attention: Attention
    rms_norm: Normalize
    layer_norm: Normalize
    rotate: Rotate
    add: Binary
    multiply: Binary
    silu: Unary
    gelu_tanh: Unary
    layers: Layers | None
    draw: DrawAll


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to compute an op.

    Attributes:
        function: the op; where `native`, it takes the opened library first.
        row_exact_on: the devices on which a row's bits depend on that row alone.
    """

    name: str
    function: Callable[..., object] | None
    devices: frozenset[str]
    row_exact_on: frozenset[str]
    native: bool = False


BOTH = frozenset({"cpu", "cuda"})
CPU = frozenset({"cpu"})


def _native(function: Callable[..., object]) -> Implementation:
    return Implementation("native", function, CPU, CPU, native=True)


# The ops that multiply matrices use CUDA's libraries there, which choose kernels by shape and promise no fixed order.
TABLE: dict[str, tuple[Implementation, ...]] = {
    "pack": (_native(Native.pack), Implementation("reference", reference.pack, BOTH, BOTH)),
    "embed": (_native(Native.embed), Implementation("reference", reference.embed, BOTH, BOTH)),
    "linear": (_native(Native.linear), Implementation("reference", reference.linear, BOTH, CPU)),
    "logits": (_native(Native.logits), Implementation("reference", reference.logits, BOTH, CPU)),
    "attention": (
        _native(Native.attention),
        Implementation("reference", reference.attention, BOTH, CPU),
    ),
    "rms_norm": (
        _native(Native.rms_norm),
        Implementation("reference", reference.rms_norm, BOTH, BOTH),
    ),
    "layer_norm": (
        _native(Native.layer_norm),
        Implementation("reference", reference.layer_norm, BOTH, BOTH),
    ),
    "rotate": (Implementation("reference", reference.rotate, BOTH, BOTH),),
    "add": (Implementation("reference", reference.add, BOTH, BOTH),),
    "multiply": (Implementation("reference", reference.multiply, BOTH, BOTH),),
    "silu": (Implementation("reference", exact.silu, BOTH, BOTH),),
    "gelu_tanh": (Implementation("reference", exact.gelu_tanh, BOTH, BOTH),),
    "layers": (_native(Native.layers), Implementation("composed", None, BOTH, BOTH)),
    "draw": (_native(Native.draw), Implementation("reference", draw_all, BOTH, BOTH)),
}


class Selection(NamedTuple):
    """The ops for a device, which implementation each is, and the names of those that are not row-exact.

    `why_not_native` is None where the native kernels compute; `tile_rows` is what its attention is made for.
    """

    kernels: Kernels
    names: dict[str, str]
    not_row_exact: tuple[str, ...]
    why_not_native: str | None = None
    tile_rows: TileRows = NARROW

    @property
    def needs_zeros(self) -> bool:
        """Whether this attention reads keys and values that were never written; the native one masks them."""
        return self.why_not_native is not None


def select(device: str, opened: Opened = NOT_ASKED) -> Selection:
    """The first implementation of each op that runs on the device, with the native kernels if they were opened.

    Raises:
        KeyError: an op has none; the text is `why_not`'s.
    """
    library = opened.native if device == "cpu" else None
    chosen = {op: _first(op, device, library) for op in Kernels._fields}
    ops = {op: _function(row, library) for op, row in chosen.items()}
    names = {op: f"native-{library.isa}" if library and row.native else row.name for op, row in chosen.items()}
    inexact = tuple(op for op, row in chosen.items() if device not in row.row_exact_on)
    reason = opened.why_not if device == "cpu" else f"the native kernels are for the CPU, and this is {device}"
    tile_rows = library.tile_rows if library else NARROW
    return Selection(Kernels(**ops), names, inexact, reason, tile_rows)  # type: ignore[arg-type]


def _function(row: Implementation, library: Native | None) -> Callable[..., object] | None:
    return partial(row.function, library) if row.native and row.function is not None else row.function


def _first(op: str, device: str, library: Native | None) -> Implementation:
    for row in TABLE[op]:
        if device in row.devices and (library is not None or not row.native):
            return row
    raise KeyError(why_not(op, device))


def why_not(op: str, device: str) -> str | None:
    """Why an op cannot run on a device; None where it can."""
    if op not in TABLE:
        return f"there is no op named {op}; the ops are {', '.join(TABLE)}"
    devices = sorted(frozenset().union(*(row.devices for row in TABLE[op])))
    return None if device in devices else f"{op} has no implementation for {device}, only for {', '.join(devices)}"


def find_inexact_product(linear: Linear, weights: list[Weight]) -> str | None:
    """Try each weight's product on rows in two places and beside two sets of others; the first that differs, or None.

    What `row_exact_on` claims holds for shapes that were tried; this tries the shapes of the model at hand.
    """
    seen = set()
    for weight in weights:
        if weight.shape in seen:
            continue
        seen.add(weight.shape)
        if not _is_row_exact(linear, weight):
            return f"linear {weight.shape[0]} x {weight.shape[1]}: a row's bits changed with its place in the tile"
    return None


def _is_row_exact(linear: Linear, weight: Weight) -> bool:
    matrix = weight.parts["weight"]
    noise = torch.Generator().manual_seed(weight.shape[0])
    rows = torch.randn(TILE_ROWS, weight.shape[1], generator=noise).to(matrix.dtype).to(matrix.device)
    order = torch.randperm(TILE_ROWS, generator=noise).to(matrix.device)
    together = linear(rows, weight)
    shuffled = linear(rows[order], weight)
    alone = linear(rows[:1], weight)
    return torch.equal(together[order], shuffled) and torch.equal(together[:1], alone)
