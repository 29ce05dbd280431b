"""`Weight`: the matrix of a linear layer in some storage format, and the named set that makes up a decoder.

Owns the format seam: quantization, sharding and packing are other formats behind the same `Weight`. Knows nothing of
checkpoints (see `models/load.py`) or of how products are computed (see `kernels/`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Weight:
    """A linear layer's matrix, [out, in], and its bias, as `format` stores them.

    Attributes:
        format: `dense`: parts["weight"] is [out, in], contiguous; parts["bias"], if there, is [out].
            `packed`: both as the native kernels read them (see kernels/native/packing.h).
        parts: the tensors of that format, by name.
        shape: (out, in), whatever the format.
        shard_axis: which axis tensor parallelism splits; None: kept whole.
        gated: the first half of its rows gives a gate, the second what that multiplies.
    """

    format: Literal["dense", "packed"]
    parts: dict[str, Tensor]
    shape: tuple[int, int]
    shard_axis: int | None = None
    gated: bool = False


def dense(weight: Tensor, bias: Tensor | None = None, *, shard_axis: int | None = None, gated: bool = False) -> Weight:
    """A `dense` weight from weight [out, in] and bias [out]."""
    parts = {"weight": weight.contiguous()}
    if bias is not None:
        parts["bias"] = bias.contiguous()
    return Weight("dense", parts, (weight.shape[0], weight.shape[1]), shard_axis, gated)


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm's scale [width] and, for LayerNorm, its bias [width]; `plus_one`: the scale is 1 + `weight` (RMSNorm)."""

    weight: Tensor
    bias: Tensor | None = None
    plus_one: bool = False


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Q, K and V are one matrix (their rows in that order), as are gate and up.

    `gate_up` is [2 * mlp_width, hidden] with a gate and only up, [mlp_width, hidden], without. The norms `after` are of
    what attention and the MLP give.
    """

    attention_norm: Norm
    qkv: Weight
    out: Weight
    mlp_norm: Norm
    gate_up: Weight
    down: Weight
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    attention_norm_after: Norm | None = None
    mlp_norm_after: Norm | None = None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All parameters of a decoder; `head` is the embedding itself where the spec is tied."""

    embedding: Weight  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    final_norm: Norm
    head: Weight
    positions: Tensor | None = None  # [context_tokens, hidden], learned positions only

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the model computes its linear layers."""
        return self.embedding.parts["weight"].dtype
