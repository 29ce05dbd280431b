"""Every op in plain PyTorch: the definition of correct, which faster implementations are held to.

Owns the numbers of a forward pass, not its order (see `models/decoder.py`). Runs on a CPU and on CUDA.
One idea: a matrix product's bits may depend on its shape, so products are always made in tiles of one fixed shape, the
last one padded with zeros; everything else uses `exact.py`. So a row's result depends on that row alone.
Attention goes over keys in segments of SEGMENT positions counted from 0, each reduced from empty and merged left to
right, whatever the chunking (the merge is Infinite-LLM's identity, arXiv 2401.02669; the order is ours). So sequences
that begin with the same blocks may be stacked: their queries attend to those together, and each goes on from its state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from penstock.kernels.exact import exp, tanh, tree_sum
from penstock.weights import Norm, Weight

TILE_ROWS = 64  # rows of a linear layer's tile
SEGMENT = 128  # key positions reduced together; a multiple of every block size in use
QUERY_ROWS = 16  # rows of an attention tile: query positions x query heads that share a key head
MATRICES = 16  # matrices in one batched product of attention

NEGATIVE_INFINITY = float("-inf")


def pack(weight: Weight) -> Weight:
    """The weight itself: these kernels read dense weights."""
    return weight


def embed(tokens: Tensor, weight: Weight) -> Tensor:
    """The rows of weight [vocab, width] for int64 tokens [rows]."""
    return weight.parts["weight"][tokens]


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [rows, in] times weight [out, in] transposed, plus its bias: [rows, out]."""
    matrix, bias = weight.parts["weight"], weight.parts.get("bias")
    rows = x.shape[0]
    if not rows:
        return x.new_empty(0, weight.shape[0])
    return torch.cat([functional.linear(tile, matrix, bias) for tile in _groups(x, TILE_ROWS)])[:rows]


def logits(x: Tensor, head: Weight, *, limit: float | None = None) -> Tensor:
    """`linear` in float32, rounded to the dtype of x on the way; with a limit, capped by it."""
    wide = linear(x, head).float()
    return wide if limit is None else cap(wide, limit)


def pad_rows(x: Tensor, multiple: int) -> Tensor:
    """x [rows, ...] with rows of zeros behind it up to a multiple; contiguous, at an address of its own."""
    missing = -x.shape[0] % multiple
    return torch.cat((x, x.new_zeros(missing, *x.shape[1:]))) if missing else x.contiguous()


def _groups(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """x [rows, ...] in groups of `size` rows, the last one padded with zeros."""
    return pad_rows(x, size).view(-1, size, *x.shape[1:]).unbind(0)


def rms_norm(x: Tensor, norm: Norm, *, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) times the scale (Zhang and Sennrich, arXiv 1910.07467).

    Rounded to x's dtype before and behind that product, as Llama's; only behind it where the scale is 1 + weight, as
    Gemma's.
    """
    wide = x.float()
    mean = tree_sum(wide * wide) / x.shape[-1]
    normed = wide / torch.sqrt(mean + eps)
    if norm.plus_one:
        return normed.mul_(norm.weight.float() + 1.0).to(x.dtype)
    return multiply(normed.to(x.dtype), norm.weight)


def layer_norm(x: Tensor, norm: Norm, *, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) times scale plus bias, in float32, rounded once (arXiv 1607.06450)."""
    assert norm.bias is not None
    wide = x.float()
    centred = wide - tree_sum(wide) / x.shape[-1]
    variance = tree_sum(centred * centred) / x.shape[-1]
    normed = centred / torch.sqrt(variance + eps)
    return (normed * norm.weight.float()).add_(norm.bias.float()).to(x.dtype)


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, rounded once to their dtype."""
    return (x.float() + y.float()).to(x.dtype)


def multiply(x: Tensor, y: Tensor) -> Tensor:
    """x * y, rounded once to x's dtype."""
    return (x.float() * y.float()).to(x.dtype)


def cap(x: Tensor, limit: float) -> Tensor:
    """limit * tanh(x / limit), float32 to float32."""
    return tanh(x / limit).mul_(limit)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of x [rows, heads, width]; pairs are (i, i + width/2).

    cosine and sine are float32 [rows, width/2]. Computed in float32, rounded once.
    """
    first, second = x.float().chunk(2, dim=-1)
    c, s = cosine[:, None, :], sine[:, None, :]
    return torch.cat((first * c - second * s, second * c + first * s), dim=-1).to(x.dtype)


@dataclass(frozen=True, slots=True)
class AttentionTiles:
    """Queries of a step in tiles that attend to the same keys, those with the most keys first.

    Sets of tiles are computed in order. Where `kept`, a set's tiles hold queries of several sequences, which see all
    their tile's keys; what is found is kept as these queries' states, and a later set goes on from there. Otherwise a
    tile holds queries of one sequence in ascending order, and its keys reach up to its last query.

    Attributes:
        rows: int64 [tiles, queries]: row of each query in the step; padding points at row 0.
        positions: int64 [tiles, queries]: the position of each query; -1 for padding, which sees no key.
        begins, ends: int64 [tiles]: the positions whose keys a tile reads; a begin is a multiple of SEGMENT, and what
            lies before it is in the states of the queries.
        tables: int64 [tiles, blocks]: the blocks from `begins` on, padded with the cache's zero block.
        num_segments: how many segments of keys each tile reads; descending.
        places: int64 [real]: which of the tiles * queries places hold a real query; targets: the rows of these.
    """

    rows: Tensor
    positions: Tensor
    begins: Tensor
    ends: Tensor
    tables: Tensor
    num_segments: tuple[int, ...]
    places: Tensor
    targets: Tensor
    kept: bool = False


class Scoring(NamedTuple):
    """What a layer does to scores.

    Attributes:
        window: a query at position q sees a key at position p only if q - p < window; segments wholly outside are
            not read.
        cap: scores become cap * tanh(score / cap), before anything is left out.
        sinks: float32 [heads]: one more score, of no key, that takes part in a head's sum of weights.
        scale: what they are multiplied by first; None: width ** -0.5.
    """

    window: int | None = None
    cap: float | None = None
    sinks: Tensor | None = None
    scale: float | None = None

    def scale_of(self, width: int) -> float:
        """What scores of heads of that width are multiplied by."""
        return width**-0.5 if self.scale is None else self.scale


PLAIN = Scoring()


class Rotary(NamedTuple):
    """Cosines and sines of a step's positions: float32 [rows, width/2] each."""

    cosine: Tensor
    sine: Tensor


@dataclass(frozen=True, slots=True)
class LayerRows:
    """Where the rows of a step stand, as a decoder layer needs to know it.

    rotary: of their positions, None without rotary embedding; blocks, offsets: int64 [rows], where their keys and
    values go; wanted: int64 [wanted], ascending, the rows that the last layer gives, None: all of them; wanted_tiles:
    tiles of their own, in which they are numbered as `wanted` lists them; windows_rotary: `rotary` of the layers with a
    window, where it is another.
    """

    rotary: Rotary | None
    blocks: Tensor
    offsets: Tensor
    tiles: tuple[AttentionTiles, ...]
    wanted: Tensor | None = None
    wanted_tiles: tuple[AttentionTiles, ...] = ()
    windows_rotary: Rotary | None = None


class TileRows(NamedTuple):
    """Rows of queries in an attention tile: at most, and at least where tiles in key heads are not `tasks` yet."""

    most: int = QUERY_ROWS
    least: int = QUERY_ROWS
    tasks: int = 1


NARROW = TileRows()  # of the reference kernels


def tile_queries(heads: int, kv_heads: int, *, rows: int = QUERY_ROWS) -> int:
    """Query positions in a full tile of `rows` rows, one for each head that shares a key head; at least one."""
    return max(1, rows * kv_heads // heads)


class _Partial(NamedTuple):
    """Attention over the keys so far: highest score, sum of weights, weighted sum of values.

    highest and total are [..., 1], values [..., width]; float32.
    """

    highest: Tensor
    total: Tensor
    values: Tensor


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    tiles: tuple[AttentionTiles, ...],
    scoring: Scoring = PLAIN,
) -> Tensor:
    """Causal attention of query [rows, heads, width] over paged keys and values.

    keys and values are [blocks, kv_heads, block_tokens, width]. Gives [rows, heads, width] in the query's dtype;
    computed in float32. What a query may not see has weight 0; the cache holds zeros there (see `kv.py`), so that
    nothing left in a recycled block can leak.
    """
    out = torch.empty_like(query)
    states = _empty(query)
    for some in tiles:
        found = _attend(query, keys, values, tiles=some, states=states, scoring=scoring)
        if some.kept:
            for state, new in zip(states, found, strict=True):
                state[some.targets] = new
        else:
            out[some.targets] = _finish(found, scoring.sinks).to(query.dtype)
    return out


def _finish(state: _Partial, sinks: Tensor | None) -> Tensor:
    """The weighted mean of the values that states [real, heads, ...] have seen."""
    if sinks is None:
        return state.values / torch.where(state.total > 0, state.total, 1.0)
    highest = torch.maximum(state.highest, sinks[:, None])
    keep = exp(state.highest - highest)
    return state.values * keep / (state.total * keep + exp(sinks[:, None] - highest))


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, *, tiles: AttentionTiles, states: _Partial, scoring: Scoring
) -> _Partial:
    """The states of the queries of one set of tiles, [real, heads, ...], from what `states` has for them."""
    kv_heads = keys.shape[1]
    grouped = _group(query, tiles, kv_heads).float() * scoring.scale_of(query.shape[2])
    full_rows = tile_queries(query.shape[1], kv_heads) * query.shape[1] // kv_heads
    state = _Partial(*(_group(x, tiles, kv_heads) for x in states))
    for segment in range(tiles.num_segments[0]):
        count = sum(1 for n in tiles.num_segments if n > segment)
        products = _Products(full_rows, segment, tiles.tables[:count])
        partial = _reduce_segment(grouped[:count], keys, values, tiles=tiles, products=products, scoring=scoring)
        state = _merge(state, partial)
    return _Partial(*(_ungroup(x, tiles) for x in state))


def _group(x: Tensor, tiles: AttentionTiles, kv_heads: int) -> Tensor:
    """x [rows, heads, any] as [tiles, kv_heads, queries * heads a key head, any]."""
    _, heads, width = x.shape
    count, queries = tiles.rows.shape
    gathered = x[tiles.rows.flatten()].view(count, queries, kv_heads, heads // kv_heads, width)
    result: Tensor = gathered.permute(0, 2, 1, 3, 4).reshape(count, kv_heads, -1, width)
    return result


def _ungroup(grouped: Tensor, tiles: AttentionTiles) -> Tensor:
    """The inverse of `_group` for the real queries: [real, heads, any]."""
    count, queries = tiles.rows.shape
    kv_heads, width = grouped.shape[1], grouped.shape[3]
    rows = grouped.view(count, kv_heads, queries, -1, width).permute(0, 2, 1, 3, 4)
    mixed: Tensor = rows.reshape(count * queries, -1, width)[tiles.places]
    return mixed


def _empty(query: Tensor) -> _Partial:
    """The state of queries [rows, heads, width] that have seen nothing."""
    highest = torch.full((*query.shape[:2], 1), NEGATIVE_INFINITY, device=query.device)
    return _Partial(highest, torch.zeros_like(highest), torch.zeros_like(query, dtype=torch.float32))


class _Products:
    """The two products of a segment of each table, always with `full_rows` query rows and MATRICES matrices at once."""

    def __init__(self, full_rows: int, segment: int, tables: Tensor) -> None:
        self.start = segment * SEGMENT
        self._full_rows = full_rows
        self._tables = tables

    def with_keys(self, queries: Tensor, keys: Tensor) -> Tensor:
        """queries [tiles, kv_heads, rows, width] times the segment's keys: [tiles, kv_heads, rows, SEGMENT]."""
        return self._multiply(queries, self._gather(keys), transposed=True)

    def with_values(self, weights: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        """weights [tiles, kv_heads, rows, SEGMENT] times the segment's values: [tiles, kv_heads, rows, width].

        Nothing times what is not finite is not nothing: such a value makes no number of those rows that see its key.
        """
        gathered = self._gather(values)
        finite = gathered.isfinite()
        if finite.all():
            return self._multiply(weights, gathered)
        reached = self._multiply(visible.float().expand_as(weights), (~finite).float()) > 0.0
        return torch.where(reached, math.nan, self._multiply(weights, torch.where(finite, gathered, 0.0)))

    def _multiply(self, a: Tensor, b: Tensor, *, transposed: bool = False) -> Tensor:
        """a [tiles, kv_heads, rows, x] times b [tiles, kv_heads, x, y], or that transposed."""
        padded = functional.pad(a, (0, 0, 0, self._full_rows - a.shape[2])).flatten(0, 1)
        groups = zip(_groups(padded, MATRICES), _groups(b.flatten(0, 1), MATRICES), strict=True)
        out = torch.cat([torch.bmm(x, y.transpose(1, 2) if transposed else y) for x, y in groups])
        return out[: a.shape[0] * a.shape[1], : a.shape[2]].view(*a.shape[:3], -1)

    def _gather(self, cache: Tensor) -> Tensor:
        """The segment's blocks as float32 [tiles, kv_heads, SEGMENT, width], contiguous."""
        _, kv_heads, block_tokens, width = cache.shape
        first, count = self.start // block_tokens, SEGMENT // block_tokens
        blocks = self._tables[:, None, first : first + count] * kv_heads
        index = blocks + torch.arange(kv_heads, device=cache.device)[:, None]  # [tiles, kv_heads, count]
        gathered = cache.flatten(0, 1).index_select(0, index.flatten())
        return gathered.view(-1, kv_heads, SEGMENT, width).float()


def _reduce_segment(
    grouped: Tensor, keys: Tensor, values: Tensor, *, tiles: AttentionTiles, products: _Products, scoring: Scoring
) -> _Partial:
    """Attention of the first tiles over one segment of keys, from empty."""
    count = grouped.shape[0]
    positions, begins = tiles.positions[:count], tiles.begins[:count]
    key_at = begins[:, None, None] + torch.arange(products.start, products.start + SEGMENT, device=grouped.device)
    visible = key_at <= positions[:, :, None]  # [tiles, queries, SEGMENT]
    if scoring.window is not None:
        visible &= key_at > positions[:, :, None] - scoring.window
    visible = visible.repeat_interleave(grouped.shape[2] // positions.shape[1], dim=1)[:, None]
    scores = products.with_keys(grouped, keys)
    if scoring.cap is not None:
        scores = cap(scores, scoring.cap)
    scores = torch.where(visible, scores, NEGATIVE_INFINITY)
    highest = scores.amax(dim=-1, keepdim=True)
    anchor = torch.where(highest != NEGATIVE_INFINITY, highest, 0.0)  # NaN stays NaN: it must reach the logits
    weights = torch.where(visible, exp(scores - anchor), 0.0)
    return _Partial(highest, tree_sum(weights), products.with_values(weights, values, visible))


def _merge(state: _Partial, partial: _Partial) -> _Partial:
    """Add a segment to the first tiles; a query that sees none of its keys keeps its bits."""
    count = partial.highest.shape[0]
    old = _Partial(state.highest[:count], state.total[:count], state.values[:count])
    seen = partial.highest != NEGATIVE_INFINITY
    highest = torch.where(seen, torch.maximum(old.highest, partial.highest), 0.0)
    keep = torch.where(old.highest != NEGATIVE_INFINITY, exp(old.highest - highest), 0.0)
    gain = exp(partial.highest - highest)
    merged = _Partial(
        torch.where(seen, highest, old.highest),
        torch.where(seen, old.total * keep + partial.total * gain, old.total),
        torch.where(seen, old.values * keep + partial.values * gain, old.values),
    )
    if count == state.highest.shape[0]:
        return merged
    return _Partial(
        torch.cat((merged.highest, state.highest[count:])),
        torch.cat((merged.total, state.total[count:])),
        torch.cat((merged.values, state.values[count:])),
    )
