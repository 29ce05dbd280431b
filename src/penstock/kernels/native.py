"""The native kernels for CPUs: finds the library, opens it for an instruction set and threads, calls it with addresses.

Owns the ctypes side of the C interface (`native/library.cpp`) and what must hold before an address is passed: type,
shape, contiguity. Computes nothing itself. Bits depend on the instruction set, never on the number of threads.
One idea: what cannot run has a reason (`Opened.why_not`), and the reference kernels take its place.
"""

from __future__ import annotations

import ctypes
import weakref
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from penstock.weights import Weight

LIBRARY = Path(__file__).with_name("libpenstock.so")
ISAS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")  # numbered as in native/isa.h
TYPES = {torch.float32: 0, torch.bfloat16: 1}  # as in native/ops.h
PANEL = 32  # columns that a packed weight is padded to

_address, _count, _int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class _Product(ctypes.Structure):
    """`Product` in native/ops.h."""

    _fields_ = [
        *((name, _address) for name in ("x", "weight", "bias", "out")),
        *((name, _count) for name in ("rows", "n", "k", "x_stride", "out_stride")),
        *((name, _int) for name in ("type", "out_type")),
    ]


# Each function's result and arguments.
_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "penstock_best_isa": (_int, (_int,)),
    "penstock_open": (_address, (_int, _int)),
    "penstock_close": (None, (_address,)),
    "penstock_packed_size": (_count, (_count, _count, _int)),
    "penstock_pack": (_int, (_address, _address, _address, _count, _count, _int)),
    "penstock_gather": (_int, (_address, _address, _address, _address, _count, _count, _int)),
    "penstock_linear": (_int, (_address, _address)),
}


class Native:
    """The library, opened: its ops for tensors on the CPU. One call runs at a time, on all of its threads."""

    def __init__(self, library: ctypes.CDLL, *, isa: str, threads: int) -> None:
        self.isa = isa
        self.threads = threads
        self._library = library
        self._context = library.penstock_open(ISAS.index(isa), threads)
        if not self._context:
            raise MemoryError(f"the native kernels could not start {threads} threads; use fewer with --threads")
        weakref.finalize(self, library.penstock_close, self._context)

    def pack(self, weight: Weight) -> Weight:
        """The weight in the layout that `linear` reads: format `packed`, the same for every instruction set."""
        matrix = weight.parts["weight"]
        out, inner = weight.shape
        kind = TYPES[matrix.dtype]
        packed = torch.empty(self._library.penstock_packed_size(out, inner, kind), dtype=matrix.dtype)
        _check_contiguous(matrix)
        self._call("penstock_pack", matrix.data_ptr(), packed.data_ptr(), out, inner, kind)
        parts = {"weight": packed}
        if "bias" in weight.parts:
            parts["bias"] = torch.zeros(-(-out // PANEL) * PANEL)  # float32, as sums are
            parts["bias"][:out] = weight.parts["bias"]
        return Weight("packed", parts, weight.shape, weight.shard_axis)

    def embed(self, tokens: Tensor, weight: Weight) -> Tensor:
        """The rows of weight [vocab, width] for int64 tokens [rows]."""
        matrix = weight.parts["weight"]
        if weight.format == "dense":
            return matrix[tokens]
        out = torch.empty(tokens.shape[0], weight.shape[1], dtype=matrix.dtype)
        _check_contiguous(tokens)
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < weight.shape[0]:
            raise IndexError(f"a token is not in the vocabulary of {weight.shape[0]}")
        kind = TYPES[matrix.dtype]
        addresses = matrix.data_ptr(), tokens.data_ptr(), out.data_ptr()
        self._call("penstock_gather", *addresses, tokens.shape[0], weight.shape[1], kind)
        return out

    def linear(self, x: Tensor, weight: Weight, *, wide: bool = False) -> Tensor:
        """x [rows, in] times a packed weight, plus its bias: [rows, out], in the dtype of x or, if `wide`, float32."""
        matrix, bias = weight.parts["weight"], weight.parts.get("bias")
        _check_contiguous(x)
        if weight.format != "packed" or matrix.dtype != x.dtype or x.shape[1] != weight.shape[1]:
            raise ValueError(
                f"x is {x.dtype} {list(x.shape)} and the weight {weight.format} {matrix.dtype} {list(weight.shape)}"
            )
        (rows, inner), out_width = x.shape, weight.shape[0]
        out = torch.empty(rows, out_width, dtype=torch.float32 if wide else x.dtype)
        addresses = x.data_ptr(), matrix.data_ptr(), bias.data_ptr() if bias is not None else None, out.data_ptr()
        sizes = rows, out_width, inner, inner, out_width
        if rows:
            product = _Product(*addresses, *sizes, TYPES[x.dtype], TYPES[out.dtype])
            self._call("penstock_linear", ctypes.byref(product))
        return out

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(self._context, *arguments)
        if status == 1:
            raise RuntimeError("the native kernels were opened before this process was forked; open them in the child")
        if status == 2:
            raise MemoryError(f"{name}: the native kernels could not allocate working memory")
        assert status == 0, f"{name} gave status {status}"


class Opened(NamedTuple):
    """The native kernels, or why there are none."""

    native: Native | None
    why_not: str | None


NOT_ASKED = Opened(None, "the native kernels were not asked for")


def open_native(*, dtype: str, threads: int, max_isa: str | None = None, library: Path = LIBRARY) -> Opened:
    """Open the library with the best instruction set of this machine that is not above `max_isa`.

    `max_isa` is one of ISAS, or `reference` to do without; None: the best there is.
    """
    if max_isa == "reference":
        return Opened(None, "the instruction set is capped at 'reference'")
    if dtype == "float16":
        return Opened(None, "the native kernels compute float32 and bfloat16, not float16")
    if not library.exists():
        return Opened(None, f"{library.name} was not built: install penstock where a C++ compiler (g++) is")
    try:
        loaded = _load(library)
    except OSError as error:
        return Opened(None, f"{library.name} cannot be loaded: {error}")
    isa = ISAS[loaded.penstock_best_isa(ISAS.index(max_isa) if max_isa else len(ISAS))]
    return Opened(Native(loaded, isa=isa, threads=threads), None)


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _check_contiguous(x: Tensor) -> None:
    assert x.is_contiguous(), f"a native kernel was given {list(x.shape)} with strides {x.stride()}"
    assert x.device.type == "cpu", f"a native kernel was given a tensor on {x.device}"
