"""What a process takes while it runs a model on the CPU: `Footprint`, and the KV memory that a limit leaves.

Owns the arithmetic of `--memory`: weights as they lie in memory, the most that loading takes, the working memory of the
largest step, the bookkeeping of a token. Measures and opens nothing; what the process itself takes is passed in.
One idea: each part is an upper bound, so their sum is kept under load, and what is left over is KV.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from penstock.models.spec import DecoderSpec

MIB = 2**20
PANEL = 32  # packed weights are padded to so many columns, bfloat16 to so many rows as well
SEGMENT, QUERY_ROWS = 128, 16  # of attention in the reference kernels
# Bookkeeping in Python for a token of KV: its id in the request, in the sequence and in the prefix tree, its share of a
# block; twice, for the rows that wait. Reckoned generously, not measured.
TOKEN_BYTES = 200
# Beside all that is counted: code that is touched first when it runs, SQLite's cache, the rows in flight, the holes
# of the allocator, the stacks of threads. Generous: about 20 MiB of it were seen in use.
OTHER_BYTES = 64 * MIB
PLAN_BYTES = 64 * MIB  # pages of the plan's file that SQLite keeps (see jobs/plan_file.py)
SORT_BYTES = 64 * MIB  # what SQLite sorts in, while the plan is made and no KV is in use
ROW_BYTES = 64  # of a planned row: its lengths, its share of the prefix tree; twice what ten million short rows took
RESERVED_BYTES = 2 * MIB  # the native kernels round each piece of working memory up to a huge page
KEPT_BYTES = 32 * MIB  # what they keep at most of long tiles of attention that several threads share
FEWEST_KV_TOKENS = 512  # KV memory that answers rows at all


class Shape(NamedTuple):
    """What decides a footprint beside the model: bytes of an element here and in the checkpoint, steps, kernels."""

    element_bytes: int
    stored_bytes: int
    token_budget: int
    sequences: int
    threads: int
    is_native: bool
    block_tokens: int = 16

    @property
    def kernels(self) -> str:
        """The name of the kernels."""
        return "native" if self.is_native else "reference"


@dataclass(frozen=True, slots=True)
class Footprint:
    """Upper bounds, in bytes; of three times, loading, planning and running, the one that takes most counts.

    Attributes:
        process: Python, PyTorch, the tokenizer: measured before loading; peak: the most the process has taken so far.
        weights: as the kernels read them; loading: the most that weights and their sources take while they are read.
        workspace: of the largest step, at the token budget.
        plan: of the job, while it runs.
        block: a block of KV, with its bookkeeping; block_kv: its keys and values alone.
        fewest_blocks: the KV that any use needs.
    """

    process: int
    peak: int
    weights: int
    loading: int
    workspace: int
    plan: int
    block: int
    block_kv: int
    fewest_blocks: int

    @property
    def smallest(self) -> int:
        """The smallest limit that can be kept."""
        planning = self.weights + self.plan + SORT_BYTES
        running = self.weights + self.plan + self.workspace + (self.fewest_blocks + 1) * self.block
        return max(self.peak, self.process + OTHER_BYTES + max(self.loading, planning, running))

    def kv_bytes(self, limit: int) -> int:
        """KV memory that keeps the process within a limit, in whole blocks (one more, always zero, is allowed for)."""
        left = limit - self.process - OTHER_BYTES - self.plan - self.weights - self.workspace
        return max(0, left // self.block - 1) * self.block_kv


def footprint(spec: DecoderSpec, shape: Shape, *, process_bytes: int, peak_bytes: int, rows: int) -> Footprint:
    """What a model, its largest step and a plan of `rows` rows take, beside a process of `process_bytes` now."""
    block_kv = spec.kv_bytes_per_token(shape.element_bytes) * shape.block_tokens
    fewest_tokens = min(spec.context_tokens, FEWEST_KV_TOKENS)
    weights, loading = _loaded(spec, shape)
    return Footprint(
        process=process_bytes,
        peak=peak_bytes,
        weights=weights,
        loading=loading,
        workspace=_workspace(spec, shape),
        plan=PLAN_BYTES + ROW_BYTES * rows,
        block=block_kv + TOKEN_BYTES * shape.block_tokens,
        block_kv=block_kv,
        fewest_blocks=-(-fewest_tokens // shape.block_tokens),
    )


# --- weights ----------------------------------------------------------------------------------------------------


class Linear(NamedTuple):
    """A weight matrix [out, inner] and whether it has a bias."""

    out: int
    inner: int
    bias: bool = False

    def packed_bytes(self, element_bytes: int) -> int:
        """As native/packing.h lays it out: panels of 32 columns; bfloat16 in tiles of 32 along K; the bias float32."""
        out = _round_up(self.out, PANEL)
        inner = _round_up(self.inner, PANEL) if element_bytes == 2 else self.inner
        return out * inner * element_bytes + (out * 4 if self.bias else 0)

    def dense_bytes(self, element_bytes: int) -> int:
        """As a plain matrix."""
        return self.out * (self.inner + self.bias) * element_bytes


def layer_linears(spec: DecoderSpec) -> tuple[Linear, ...]:
    """The matrices of a layer: Q, K and V as one, out, gate and up as one, down."""
    return (
        Linear((spec.heads + 2 * spec.kv_heads) * spec.head_dim, spec.hidden, spec.qkv_bias),
        Linear(spec.hidden, spec.heads * spec.head_dim, spec.out_bias),
        Linear(spec.mlp_width * (2 if spec.has_gate else 1), spec.hidden, spec.mlp_bias),
        Linear(spec.hidden, spec.mlp_width, spec.mlp_bias),
    )


def _loaded(spec: DecoderSpec, shape: Shape) -> tuple[int, int]:
    """The bytes of all weights, and the most that they and what they are made of take while they are read in order."""
    table = Linear(spec.vocab, spec.hidden)
    held = 0 if spec.tied else table.dense_bytes(shape.element_bytes)
    # Its own source; where it is tied, perhaps the same matrix stored once more, which is compared.
    peak = table.dense_bytes(shape.element_bytes) * (2 if spec.tied else 1) + table.dense_bytes(shape.stored_bytes)
    for linear in (table, *layer_linears(spec) * spec.layers):
        peak = max(peak, held + _transient_bytes(linear, shape))
        held += _held_bytes(linear, shape)
    small = _small_bytes(spec, shape.element_bytes)
    return held + small, peak + small


def _held_bytes(linear: Linear, shape: Shape) -> int:
    element = shape.element_bytes
    return linear.packed_bytes(element) if shape.is_native else linear.dense_bytes(element)


def _transient_bytes(linear: Linear, shape: Shape) -> int:
    """A dense matrix beside its source in the file, and then beside its packed form."""
    dense, source = linear.dense_bytes(shape.element_bytes), linear.dense_bytes(shape.stored_bytes)
    checked = dense * 2 if shape.element_bytes == 2 and not shape.is_native else 0  # float16: are all finite?
    return dense + max(source + checked, linear.packed_bytes(shape.element_bytes) if shape.is_native else 0)


def _small_bytes(spec: DecoderSpec, element_bytes: int) -> int:
    """Norms, the table of positions, and the rotary tables (copied once more as they grow)."""
    norm = spec.hidden * (2 if spec.norm == "layer" else 1)
    a_layer = (4 if spec.norms_after else 2) * norm + (2 * spec.head_dim if spec.qk_norm else 0)
    learned = spec.context_tokens * spec.hidden if spec.positions == "learned" else 0
    rotary = 2 * spec.context_tokens * spec.head_dim * 4 if spec.positions == "rotary" else 0
    num_rotary = 1 if spec.windows_rope_theta is None else 2
    return (spec.layers * a_layer + norm + learned) * element_bytes + num_rotary * rotary


# --- working memory ---------------------------------------------------------------------------------------------


def _workspace(spec: DecoderSpec, shape: Shape) -> int:
    """The largest step; kernels that are not ours are tried first."""
    step = _step_bytes(spec, shape) + _logits_bytes(spec, shape)
    return step if shape.is_native else max(step, _probe_bytes(spec, shape))


def _step_bytes(spec: DecoderSpec, shape: Shape) -> int:
    """The layers of a step of `token_budget` tokens, and its tables of blocks."""
    rows = _round_up(shape.token_budget, 64)
    tables = (shape.sequences + rows) * 16 * 8 + shape.sequences * -(-spec.context_tokens // shape.block_tokens) * 24
    per_row = _native_row_bytes if shape.is_native else _reference_row_bytes
    fixed = _native_fixed_bytes(spec, shape, rows) if shape.is_native else _reference_fixed_bytes(spec, shape)
    return rows * per_row(spec, shape.element_bytes) + tables + fixed


def _native_fixed_bytes(spec: DecoderSpec, shape: Shape, rows: int) -> int:
    """Pieces of working memory, each rounded up; what is kept of segments of keys (native/attention_all.h)."""
    states = -(-spec.context_tokens // SEGMENT) * rows * spec.heads * (_round_up(spec.head_dim, PANEL) + 16) * 4
    kept = min(KEPT_BYTES, states) if shape.threads > 1 else 0
    return kept + (6 + 2 * shape.threads) * RESERVED_BYTES


def _native_row_bytes(spec: DecoderSpec, element_bytes: int) -> int:
    """Rows of x twice, laid out (as float32), and what is between the products of a layer (native/layer.cpp)."""
    qkv, out, _, down = layer_linears(spec)
    laid_out = max(qkv.inner, out.inner, down.inner) * 4
    rows = 2 * spec.hidden + qkv.out + out.inner + spec.mlp_width + (spec.hidden if spec.norms_after else 0)
    scaled = 2 * 4 * spec.hidden if spec.embedding_times_root else 0  # embeddings and their product as float32
    rotary = spec.head_dim * 4 * (1 if spec.windows_rope_theta is None else 2)
    return rows * element_bytes + laid_out + scaled + rotary + 128


def _reference_row_bytes(spec: DecoderSpec, element_bytes: int) -> int:
    """PyTorch's ops, each with its float32 copies; `exp` and the sums of `exact.py` need several at once."""
    qkv, _, gate_up, _ = layer_linears(spec)
    return 12 * 4 * max(qkv.out, gate_up.out, spec.hidden) + 4 * spec.hidden * element_bytes


def _reference_fixed_bytes(spec: DecoderSpec, shape: Shape) -> int:
    """A product's own copy of its weight, in float32; keys, values and scores of a segment, gathered for every tile."""
    largest = max(linear.out * linear.inner for linear in (*layer_linears(spec), Linear(spec.vocab, spec.hidden)))
    group = spec.heads // spec.kv_heads
    tiles = shape.sequences + -(-shape.token_budget * group // QUERY_ROWS)
    a_head = 12 * SEGMENT * spec.head_dim + 24 * max(QUERY_ROWS, group) * (SEGMENT + spec.head_dim)
    return largest * (4 if shape.element_bytes == 2 else 0) + tiles * spec.kv_heads * a_head


def _logits_bytes(spec: DecoderSpec, shape: Shape) -> int:
    """Logits of every sequence: float32, whether finite, and where the highest is (int64); one row's draw."""
    rows = min(shape.sequences, shape.token_budget)
    return rows * spec.vocab * (4 + 1 + 8 + 4) + spec.vocab * 64


def _probe_bytes(spec: DecoderSpec, shape: Shape) -> int:
    """Trying whether products are row-exact: the widest one three times, on 64 rows, and compared."""
    widest = max(spec.vocab, *(linear.out for linear in layer_linears(spec)))
    return 5 * 64 * widest * shape.element_bytes + _reference_fixed_bytes(spec, shape)


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
