"""The native kernels for CPUs: finds the library, opens it for an instruction set and threads, calls it with addresses.

Owns the ctypes side of the C interface (`native/library.cpp`). Computes nothing itself. Bits depend on the instruction
set, never on the number of threads.
One idea: what cannot run has a reason (`Opened.why_not`), and the reference kernels take its place.
"""

from __future__ import annotations

import ctypes
import mmap
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from penstock.kernels import native_draw
from penstock.kernels import native_structs as structs
from penstock.kernels.native_structs import ADDRESS, COUNT, INT, PANEL, TYPES, Preparation, address
from penstock.kernels.reference import PLAIN, AttentionTiles, LayerRows, Scoring, TileRows
from penstock.models.spec import DecoderSpec
from penstock.sampling import Draw
from penstock.step import SampleAt
from penstock.weights import LayerWeights, Norm, Weight

LIBRARY = Path(__file__).with_name("libpenstock.so")
ISAS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")  # numbered as in native/isa.h
QUERY_ROWS = 256  # of an attention tile, at most: they share what it costs to lay out keys and values
LEAST_ROWS = 64  # of one where there would be fewer than TASKS for each thread
TASKS = 4
HUGE_PAGE = 1 << 21  # bytes
INTERFACE = 2  # counts changes of what the library's structs and numbers mean (see native/library.cpp)
PASSED_OVER = "not avx512_bf16, whose instruction takes twice the time of the fmas that do as much on this processor"

# Each function's result and arguments.
_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "penstock_layer_bytes": (COUNT, ()),
    "penstock_best_isa": (INT, (INT,)),
    "penstock_interface": (INT, ()),
    "penstock_open": (ADDRESS, (INT, INT)),
    "penstock_close": (None, (ADDRESS,)),
    "penstock_packed_size": (COUNT, (COUNT, COUNT, INT, INT)),
    "penstock_pack": (INT, (ADDRESS, ADDRESS, ADDRESS, COUNT, COUNT, INT, INT)),
    "penstock_gather": (INT, (ADDRESS, ADDRESS, ADDRESS, ADDRESS, COUNT, COUNT, INT)),
    "penstock_linear": (INT, (ADDRESS, ADDRESS)),
    "penstock_prepare": (INT, (ADDRESS, ADDRESS)),
    "penstock_attention": (INT, (ADDRESS, ADDRESS, COUNT)),
    "penstock_layers": (INT, (ADDRESS, ADDRESS, COUNT, ADDRESS)),
    "penstock_cap": (INT, (ADDRESS, ADDRESS, COUNT, ctypes.c_float)),
    "penstock_draw_bytes": (COUNT, ()),
    "penstock_draw": (INT, (ADDRESS, ADDRESS)),
    "penstock_layer_seconds": (INT, (ADDRESS, ADDRESS)),
    "penstock_register_loop": (INT, (ADDRESS, COUNT, INT, ADDRESS)),
    "penstock_read_loop": (INT, (ADDRESS, ADDRESS, COUNT, ADDRESS)),
    "penstock_prefer_huge_pages": (None, (ADDRESS, COUNT)),
    "penstock_populate": (INT, (ADDRESS, ADDRESS, COUNT)),
}


def on_whole_pages(count: int, *, dtype: torch.dtype) -> Tensor:
    """A new tensor [count] that begins where a large page does, if it fills one: all that it fills can be large.

    In memory of its own that nobody wrote to before: pages that were written to stay small.
    """
    num_bytes = count * dtype.itemsize
    if num_bytes < HUGE_PAGE:
        return torch.empty(count, dtype=dtype)
    try:
        mapped = mmap.mmap(-1, num_bytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{num_bytes} bytes could not be mapped: {error}") from error
    first = -torch.frombuffer(mapped, dtype=torch.uint8).data_ptr() % HUGE_PAGE
    # What is never written takes no memory: what the last page is not filled with must not make it a large one.
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux
        mapped.madvise(mmap.MADV_NOHUGEPAGE, first + num_bytes // HUGE_PAGE * HUGE_PAGE)
    return torch.frombuffer(mapped, dtype=dtype, count=count, offset=first)


def _in_panels(bias: Tensor, *, gated: bool) -> Tensor:
    """A bias [out] as the columns of a packed weight lie, zeros where there are none."""
    halves = bias.view(2 if gated else 1, -1)
    each = PANEL // len(halves)
    padded = torch.zeros(len(halves), -(-halves.shape[1] // each) * each)
    padded[:, : halves.shape[1]] = halves
    return padded.view(len(halves), -1, each).transpose(0, 1).reshape(-1)


class LayerSeconds(NamedTuple):
    """Where the time of layers went: products with what is fused into them, attention, and what is neither."""

    linear: float
    attention: float
    other: float


class Native:
    """The library, opened: its ops for tensors on the CPU. One call runs at a time, on all of its threads.

    It has one owner, which is done with the logits of a step before it asks for those of the next.
    `passed_over`: why a higher instruction set that this processor has, and that was allowed, is not used.
    """

    def __init__(self, library: ctypes.CDLL, *, isa: str, threads: int, passed_over: str | None = None) -> None:
        self.isa = isa
        self.passed_over = passed_over
        self.threads = threads
        self._library = library
        self._kept_logits = torch.empty(0)
        self._pages_s = 0.0
        self._context = library.penstock_open(ISAS.index(isa), threads)
        if not self._context:
            raise MemoryError(f"the native kernels could not start {threads} threads; use fewer with --threads")
        weakref.finalize(self, library.penstock_close, self._context)

    @property
    def tile_rows(self) -> TileRows:
        """Rows of a tile of queries, for which `attention` is made."""
        return TileRows(QUERY_ROWS, LEAST_ROWS, TASKS * self.threads)

    def pack(self, weight: Weight) -> Weight:
        """The weight in the layout that `linear` reads: format `packed`, the same for every instruction set."""
        matrix = weight.parts["weight"]
        how = *weight.shape, TYPES[matrix.dtype], weight.gated
        packed = on_whole_pages(self._library.penstock_packed_size(*how), dtype=matrix.dtype)
        self._call("penstock_pack", address(matrix), address(packed), *how)
        parts = {"weight": packed}
        if "bias" in weight.parts:
            parts["bias"] = _in_panels(weight.parts["bias"].float(), gated=weight.gated)  # as sums are
        return replace(weight, format="packed", parts=parts)

    def embed(self, tokens: Tensor, weight: Weight) -> Tensor:
        """The rows of weight [vocab, width] for int64 tokens [rows]."""
        matrix = weight.parts["weight"]
        if weight.format == "dense":
            return matrix[tokens]
        out = torch.empty(tokens.shape[0], weight.shape[1], dtype=matrix.dtype)
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < weight.shape[0]:
            raise IndexError(f"a token is not in the vocabulary of {weight.shape[0]}")
        kind = TYPES[matrix.dtype]
        addresses = address(matrix), address(tokens), address(out)
        self._call("penstock_gather", *addresses, tokens.shape[0], weight.shape[1], kind)
        return out

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """x [rows, in] times a packed weight, plus its bias: [rows, out], in the dtype of x."""
        rows, out = x.shape[0], weight.shape[0]
        made = self._multiply(x, weight, torch.empty(rows, structs.plain_columns(weight), dtype=x.dtype))
        if not weight.gated:
            return made
        panels = made.shape[1] // PANEL
        halves = made.view(rows, panels, 2, PANEL // 2).transpose(1, 2).reshape(rows, 2, panels * PANEL // 2)
        return halves[:, :, : out // 2].reshape(rows, out)

    def logits(self, x: Tensor, head: Weight, *, limit: float | None = None) -> Tensor:
        """`linear` in float32, never rounded on the way; with a limit, capped by it. The next call writes over it.

        In memory that is kept: new memory cost 13 ms a step for 64 rows of 151,936, 54 ms for 256 (docs/log.md).
        """
        rows, vocab = x.shape[0], head.shape[0]
        if self._kept_logits.numel() < rows * vocab:
            self._kept_logits = on_whole_pages(rows * vocab, dtype=torch.float32)
            self.prefer_huge_pages(self._kept_logits)
            self.populate([self._kept_logits])
        out = self._multiply(x, head, self._kept_logits[: rows * vocab].view(rows, vocab))
        if limit is not None:
            self._call("penstock_cap", address(out), out.numel(), limit)
        return out

    def _multiply(self, x: Tensor, weight: Weight, out: Tensor) -> Tensor:
        if x.shape[1] != weight.shape[1]:
            raise ValueError(f"x is {list(x.shape)} and the weight {list(weight.shape)}")
        made = structs.product(x.shape[0], weight, dtype=x.dtype)
        made.x, made.out, made.out_type = address(x), address(out), TYPES[out.dtype]
        if x.shape[0]:
            self._call("penstock_linear", ctypes.byref(made))
        return out

    def rms_norm(self, x: Tensor, norm: Norm, *, eps: float) -> Tensor:
        """As reference.rms_norm."""
        return self._prepare(x, Preparation(structs.RMS_NORM, norm, eps))

    def layer_norm(self, x: Tensor, norm: Norm, *, eps: float) -> Tensor:
        """As reference.layer_norm."""
        return self._prepare(x, Preparation(structs.LAYER_NORM, norm, eps))

    def _prepare(self, x: Tensor, first: Preparation) -> Tensor:
        x, width = x.contiguous(), x.shape[-1]
        out = torch.empty_like(x)
        made = structs.Product(x=address(x), out=address(out), rows=x.numel() // width, k=width, type=TYPES[x.dtype])
        made.x_stride = made.out_stride = width
        structs.prepare(made, first)
        if x.numel():
            self._call("penstock_prepare", ctypes.byref(made))
        return out

    def attention(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        tiles: tuple[AttentionTiles, ...],
        scoring: Scoring = PLAIN,
    ) -> Tensor:
        """As reference.attention."""
        query = query.contiguous()
        rows, heads, width = query.shape
        out = torch.empty_like(query)
        sets = structs.attention_sets(
            tiles, keys, values, scoring, step_rows=rows, heads=heads, query_stride=heads * width
        )
        for made in sets:
            made.query, made.out = address(query), address(out)
        self._call("penstock_attention", ctypes.addressof(sets), len(sets))
        return out

    def layers(
        self,
        weights: Sequence[LayerWeights],
        *,
        spec: DecoderSpec,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        scorings: Sequence[Scoring],
    ) -> Callable[[Tensor, LayerRows], Tensor]:
        """All decoder layers over their keys and values, as one call a step that changes x [rows, hidden].

        Of the last layer only the rows that are wanted go on behind their keys and values.

        `scorings`: what each layer does to scores.
        The structs hold addresses only; the function that is given back keeps the tensors behind them.
        """
        each = zip(weights, keys, values, scorings, strict=True)
        made = (structs.Layer * len(weights))(*(structs.layer(*some, spec=spec) for some in each))
        cache, present = (*keys, *values), torch.zeros(keys[0].shape[0], dtype=torch.bool)

        def run(x: Tensor, rows: LayerRows) -> Tensor:
            stride = weights[0].qkv.shape[0]  # of the weights as they are here: their tensors live as long as this
            if x.dtype != keys[0].dtype:
                raise ValueError(f"x is {x.dtype} and keys are {keys[0].dtype}")
            num_wanted = x.shape[0] if rows.wanted is None else rows.wanted.shape[0]
            self._bring(cache, rows.blocks, present)
            sets, wanted_sets = (
                structs.attention_sets(
                    tiles, keys[0], values[0], scorings[0], step_rows=count, heads=spec.heads, query_stride=stride
                )  # in which each layer puts its own keys, values and scoring
                for tiles, count in ((rows.tiles, x.shape[0]), (rows.wanted_tiles, num_wanted))
            )
            brought = structs.step(x, rows, sets, wanted_sets)
            self._call("penstock_layers", ctypes.addressof(made), len(made), ctypes.addressof(brought))
            return x[:num_wanted]

        return run

    def _bring(self, cache: Sequence[Tensor], blocks: Tensor, present: Tensor) -> None:
        """Has the pages behind blocks of a cache; those that are `present` it has already."""
        if present[blocks].all():
            return
        began = time.perf_counter()
        missing = torch.unique(blocks[~present[blocks]])
        for run in torch.tensor_split(missing, torch.nonzero(torch.diff(missing) > 1)[:, 0] + 1):
            self.populate([memory[run[0] : run[-1] + 1] for memory in cache])
        present[missing] = True
        self._pages_s += time.perf_counter() - began

    def draw(self, logits: Tensor, samples: Sequence[SampleAt]) -> list[Draw]:
        """As sampling.draw_all."""
        rows, vocab = logits.shape
        if rows != len(samples) or logits.dtype != torch.float32:
            raise ValueError(f"logits are {list(logits.shape)} {logits.dtype}; there are {len(samples)} samples")
        asked = native_draw.ask(samples, vocab)
        draws = native_draw.NativeDraws(address(logits), ctypes.addressof(asked.structs), rows, vocab)
        self._call("penstock_draw", ctypes.byref(draws))
        return list(native_draw.read(asked, vocab))

    def register_loop(self, rounds: int, *, dtype: torch.dtype) -> float:
        """The floating-point operations of a loop that reads nothing but the nearest cache, for whoever times it."""
        found = ctypes.c_double()
        self._call("penstock_register_loop", rounds, TYPES[dtype], ctypes.addressof(found))
        return found.value

    def read_loop(self, x: Tensor) -> float:
        """The sum of float32 x, of which every number is read once, for whoever times it."""
        found = ctypes.c_double()
        self._call("penstock_read_loop", address(x), x.numel(), ctypes.addressof(found))
        return found.value

    def prefer_huge_pages(self, x: Tensor) -> None:
        """Asks the system for large pages behind a tensor that was not written yet; a wish, no number changes."""
        self._library.penstock_prefer_huge_pages(address(x), x.nbytes)

    def populate(self, memory: Sequence[Tensor]) -> None:
        """Has the pages behind contiguous tensors, on all threads; no number changes."""
        pieces = (structs.Piece * len(memory))(*(structs.Piece(address(x), x.nbytes) for x in memory))
        self._call("penstock_populate", ctypes.addressof(pieces), len(pieces))

    def layer_seconds(self) -> LayerSeconds:
        """The seconds of all layers so far."""
        found = (ctypes.c_double * len(LayerSeconds._fields))()
        self._call("penstock_layer_seconds", ctypes.addressof(found))
        linear, attention, other = found
        return LayerSeconds(linear, attention, other + self._pages_s)

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
    """Open the library with the fastest instruction set of this machine that is not above `max_isa`.

    `max_isa` is one of ISAS, or `reference` to do without; None: the fastest there is. `avx512_bf16` is taken where it
    is slow only if exactly that is asked for.
    """
    if max_isa == "reference":
        return Opened(None, "the instruction set is capped at 'reference'")
    if dtype == "float16":
        return Opened(None, "the native kernels compute float32 and bfloat16, not float16")
    if not library.exists():
        return Opened(None, f"{library.name} was not built: install penstock where a C++ compiler (g++) is")
    try:
        loaded = _load(library)
    except (OSError, AttributeError) as error:
        return Opened(None, f"{library.name} cannot be loaded: {error}; install penstock again")
    made_for = loaded.penstock_interface(), loaded.penstock_layer_bytes(), loaded.penstock_draw_bytes()
    if made_for != (INTERFACE, structs.LAYER_BYTES, ctypes.sizeof(native_draw.NativeDraw)):
        return Opened(None, f"{library.name} was built from other sources; install penstock again")
    best = loaded.penstock_best_isa(ISAS.index(max_isa) if max_isa else len(ISAS))
    pairs = ISAS.index("avx512_bf16")
    is_passed_over = best < pairs and max_isa in {None, "amx"} and loaded.penstock_best_isa(pairs) == pairs
    passed_over = PASSED_OVER if is_passed_over else None
    return Opened(Native(loaded, isa=ISAS[best], threads=threads, passed_over=passed_over), None)


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
