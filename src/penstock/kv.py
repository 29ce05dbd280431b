"""`KVCache`: the tensors that hold keys and values, a pair a layer, in blocks.

Owns memory and the copies inside it; which block belongs to whom is the scheduler's business. A KV group's layers
share one block table, so block b of every layer of the group belongs to the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from penstock.models.spec import DecoderSpec
from penstock.step import BlockCopy


class KVCache:
    """Keys and values of every layer: [num_blocks, block_tokens, kv_heads, width] in the model's dtype."""

    def __init__(
        self, spec: DecoderSpec, *, num_blocks: int, block_tokens: int, dtype: torch.dtype, device: str
    ) -> None:
        self.block_tokens = block_tokens
        self.num_blocks = num_blocks
        self._groups = spec.kv_groups
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        for group in spec.kv_groups:
            for layer in group.layers:
                shape = (num_blocks, block_tokens, group.kv_heads)
                self.keys[layer] = torch.empty(*shape, group.k_width, dtype=dtype, device=device)
                self.values[layer] = torch.empty(*shape, group.v_width, dtype=dtype, device=device)

    def write(self, layer: int, slots: Tensor, *, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [rows, kv_heads, width] in slots [rows] (block * block_tokens + offset)."""
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, keys)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, values)

    def copy(self, copies: Iterable[BlockCopy]) -> None:
        """Copy the beginnings of blocks, one after the other."""
        for group, source, target, num_tokens in copies:
            for layer in self._groups[group].layers:
                for cache in (self.keys[layer], self.values[layer]):
                    cache[target, :num_tokens] = cache[source, :num_tokens]
