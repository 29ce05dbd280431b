"""Every op in plain PyTorch: the definition of correct, which faster implementations are held to.

Owns the numbers of a forward pass, not its order (see `models/decoder.py`). Runs on a CPU and on CUDA.
One idea: a matrix product's bits may depend on its shape, so products are always made in tiles of one fixed shape, the
last one padded with zeros; everything else uses `exact.py`. So a row's result depends on that row alone.
Attention goes over keys in segments of SEGMENT positions counted from 0, each reduced from empty and merged left to
right, whatever the chunking (the merge is Infinite-LLM's identity, arXiv 2401.02669; the order is ours).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from penstock.kernels.exact import exp, tree_sum
from penstock.weights import Norm, Weight

TILE_ROWS = 64  # rows of a linear layer's tile
SEGMENT = 128  # key positions reduced together; a multiple of every block size in use
QUERY_ROWS = 16  # rows of an attention tile: query positions x query heads that share a key head
MATRICES = 16  # matrices in one batched product of attention

NEGATIVE_INFINITY = float("-inf")


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [rows, in] times weight [out, in] transposed, plus its bias: [rows, out], in the dtype of x."""
    matrix, bias = weight.parts["weight"], weight.parts.get("bias")
    rows = x.shape[0]
    if not rows:
        return x.new_empty(0, weight.shape[0])
    out = torch.cat([functional.linear(tile, matrix, bias) for tile in _groups(x, TILE_ROWS)])
    return out[:rows]


def pad_rows(x: Tensor, multiple: int) -> Tensor:
    """x [rows, ...] with rows of zeros behind it up to a multiple; contiguous, at an address of its own."""
    missing = -x.shape[0] % multiple
    return torch.cat((x, x.new_zeros(missing, *x.shape[1:]))) if missing else x.contiguous()


def _groups(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """x [rows, ...] in groups of `size` rows, the last one padded with zeros."""
    return pad_rows(x, size).view(-1, size, *x.shape[1:]).unbind(0)


def rms_norm(x: Tensor, norm: Norm, *, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps), rounded to x's dtype, times the scale (Zhang and Sennrich, arXiv 1910.07467)."""
    wide = x.float()
    mean = tree_sum(wide * wide) / x.shape[-1]
    return multiply((wide / torch.sqrt(mean + eps)).to(x.dtype), norm.weight)


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


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of x [rows, heads, width]; pairs are (i, i + width/2).

    cosine and sine are float32 [rows, width/2]. Computed in float32, rounded once.
    """
    first, second = x.float().chunk(2, dim=-1)
    c, s = cosine[:, None, :], sine[:, None, :]
    return torch.cat((first * c - second * s, second * c + first * s), dim=-1).to(x.dtype)


@dataclass(frozen=True, slots=True)
class AttentionTiles:
    """The queries of a step, cut into tiles of a few consecutive positions of one sequence each, longest context first.

    Attributes:
        rows: int64 [tiles, queries]: row of each query in the step; padding points at row 0.
        positions: int64 [tiles, queries]: the position of each query; -1 for padding, which sees no key.
        tables: int64 [tiles, blocks]: the block table of the tile's sequence, padded with 0.
        num_segments: how many segments of keys each tile reads; descending.
        target: int64 [rows]: for each row of the step, its place among tiles * queries.
    """

    rows: Tensor
    positions: Tensor
    tables: Tensor
    num_segments: tuple[int, ...]
    target: Tensor


@dataclass(frozen=True, slots=True)
class _Partial:
    """Attention over the keys so far: highest score, sum of weights, weighted sum of values.

    highest and total are [tiles, kv_heads, tile_rows, 1], values [tiles, kv_heads, tile_rows, width]; float32.
    """

    highest: Tensor
    total: Tensor
    values: Tensor


def attention(query: Tensor, keys: Tensor, values: Tensor, *, tiles: AttentionTiles) -> Tensor:
    """Causal attention of query [rows, heads, width] over paged keys and values.

    keys and values are [blocks, block_tokens, kv_heads, width]. Scores are scaled by width ** -0.5. Gives
    [rows, heads, width] in the query's dtype; computed in float32. What a query may not see is replaced, not
    multiplied by zero, so that nothing left in a recycled block can leak.
    """
    kv_heads = keys.shape[2]
    grouped = _group_queries(query, tiles, kv_heads)
    state = _empty(grouped)
    for segment in range(tiles.num_segments[0]):
        count = sum(1 for n in tiles.num_segments if n > segment)
        partial = _reduce_segment(grouped[:count], keys, values, segment=segment, tiles=tiles)
        state = _merge(state, partial)
    result = state.values / torch.where(state.total > 0, state.total, 1.0)
    return _ungroup(result, tiles, query)


def _group_queries(query: Tensor, tiles: AttentionTiles, kv_heads: int) -> Tensor:
    """Queries as [tiles, kv_heads, queries * heads a key head, width], float32 and scaled."""
    _, heads, width = query.shape
    count, queries = tiles.rows.shape
    gathered = query[tiles.rows.flatten()].float() * width**-0.5
    grouped = gathered.view(count, queries, kv_heads, heads // kv_heads, width).permute(0, 2, 1, 3, 4)
    result: Tensor = grouped.reshape(count, kv_heads, -1, width)
    return result


def _ungroup(result: Tensor, tiles: AttentionTiles, query: Tensor) -> Tensor:
    """The inverse of `_group_queries`: [rows, heads, width] in the query's dtype."""
    count, queries = tiles.rows.shape
    kv_heads, width = result.shape[1], result.shape[3]
    rows = result.view(count, kv_heads, queries, -1, width).permute(0, 2, 1, 3, 4)
    flat = rows.reshape(count * queries, -1, width)
    mixed: Tensor = flat[tiles.target]
    return mixed.to(query.dtype)


def _empty(grouped: Tensor) -> _Partial:
    shape = (*grouped.shape[:3], 1)
    highest = torch.full(shape, NEGATIVE_INFINITY, device=grouped.device)
    return _Partial(highest, torch.zeros_like(highest), torch.zeros_like(grouped))


def _reduce_segment(grouped: Tensor, keys: Tensor, values: Tensor, *, segment: int, tiles: AttentionTiles) -> _Partial:
    """Attention of the first tiles over one segment of keys, from empty."""
    count, _, tile_rows, _ = grouped.shape
    per_segment = SEGMENT // keys.shape[1]
    tables = tiles.tables[:count, segment * per_segment : (segment + 1) * per_segment]
    positions = tiles.positions[:count]
    key_at = torch.arange(segment * SEGMENT, (segment + 1) * SEGMENT, device=grouped.device)
    visible = key_at <= positions[:, :, None]  # [tiles, queries, SEGMENT]
    visible = visible.repeat_interleave(tile_rows // positions.shape[1], dim=1)[:, None]
    wanted = (key_at <= positions.amax(dim=1, keepdim=True))[:, None, :, None]
    scores = _products(grouped, _gather(keys, tables), transposed=True)
    scores = torch.where(visible, scores, NEGATIVE_INFINITY)
    highest = scores.amax(dim=-1, keepdim=True)
    anchor = torch.where(highest != NEGATIVE_INFINITY, highest, 0.0)  # NaN stays NaN: it must reach the logits
    weights = torch.where(visible, exp(scores - anchor), 0.0)
    summed = _products(weights, torch.where(wanted, _gather(values, tables), 0.0))
    return _Partial(highest, tree_sum(weights), summed)


def _gather(cache: Tensor, tables: Tensor) -> Tensor:
    """The blocks of one segment as float32 [tiles, kv_heads, SEGMENT, width], contiguous."""
    count = tables.shape[0]
    blocks = cache[tables.flatten()]  # [tiles * blocks, block_tokens, kv_heads, width]
    return blocks.view(count, SEGMENT, *cache.shape[2:]).transpose(1, 2).float().contiguous()


def _products(a: Tensor, b: Tensor, *, transposed: bool = False) -> Tensor:
    """a @ b (or b with its last two axes exchanged) for each of [tiles, kv_heads], always MATRICES at a time."""
    groups = zip(_groups(a.flatten(0, 1), MATRICES), _groups(b.flatten(0, 1), MATRICES), strict=True)
    out = torch.cat([torch.bmm(x, y.transpose(1, 2) if transposed else y) for x, y in groups])
    return out[: a.shape[0] * a.shape[1]].view(a.shape[0], a.shape[1], *out.shape[1:])


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
