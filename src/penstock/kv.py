"""`KVCache`: the tensors that hold keys and values, a pair a layer, in blocks.

Owns memory and the copies inside it; which block belongs to whom is the scheduler's business. A KV group's layers
share one block table, so block b of every layer of the group belongs to the same tokens.
One idea: positions of a block that its sequence has not written are zero (`clear`), and block `zero_block` always is:
an attention weight of 0 must not meet what another row left there, for 0 times NaN is NaN. Attention that never reads
what was not written (the native kernels') does without `clear`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from penstock.models.spec import DecoderSpec
from penstock.step import BlockCopy


class KVCache:
    """Keys and values of every layer: [num_blocks + 1, kv_heads, block_tokens, width] in the model's dtype."""

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
                shape = (num_blocks + 1, group.kv_heads, block_tokens)
                self.keys[layer] = torch.empty(*shape, group.k_width, dtype=dtype, device=device)
                self.values[layer] = torch.empty(*shape, group.v_width, dtype=dtype, device=device)
        self.clear(torch.tensor([self.zero_block], device=device))

    @property
    def zero_block(self) -> int:
        """The block that is always zero; no sequence owns it."""
        return self.num_blocks

    def clear(self, blocks: Tensor) -> None:
        """Zero blocks, int64 [any], in every layer: before a sequence first writes to them."""
        if blocks.numel():
            for cache in (*self.keys.values(), *self.values.values()):
                cache.index_fill_(0, blocks, 0)

    def write(self, layer: int, blocks: Tensor, offsets: Tensor, *, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [rows, kv_heads, width] at offsets [rows] of blocks [rows]."""
        self.keys[layer][blocks, :, offsets] = keys
        self.values[layer][blocks, :, offsets] = values

    def copy(self, copies: Iterable[BlockCopy]) -> None:
        """Copy the beginnings of blocks, one after the other; the rest of each target is zero."""
        for group, source, target, num_tokens in copies:
            for layer in self._groups[group].layers:
                for cache in (self.keys[layer], self.values[layer]):
                    cache[target] = 0
                    cache[target, :, :num_tokens] = cache[source, :, :num_tokens]
