"""`Decoder`: one decoder-only transformer, built from a `DecoderSpec`, for all families.

Owns the order of a forward pass; the ops are the kernel table's, the KV is the executor's. Never asks for a family.
One idea: a step is a flat list of token rows of any sequences; only attention knows which rows belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from penstock.kernels.reference import PLAIN, AttentionTiles, LayerRows, Scoring
from penstock.kernels.table import Kernels, RunLayers
from penstock.kv import KVCache
from penstock.models.rotary import RotaryTable
from penstock.models.spec import DecoderSpec
from penstock.sampling import Draw
from penstock.step import SampleAt
from penstock.weights import DecoderWeights, LayerWeights, Norm, Weight


@dataclass(frozen=True, slots=True)
class StepTensors:
    """A step's rows on the device.

    tokens, positions, blocks, offsets: int64 [rows], the last two where a row's KV goes; wanted, wanted_tiles: see
    `LayerRows`; sampled: int64 [samples], which of the wanted rows each sample is drawn from; num_positions is above
    every position.
    """

    tokens: Tensor
    positions: Tensor
    blocks: Tensor
    offsets: Tensor
    sampled: Tensor
    tiles: tuple[AttentionTiles, ...]
    num_positions: int
    wanted: Tensor | None = None
    wanted_tiles: tuple[AttentionTiles, ...] = ()


class Decoder:
    """Computes logits from token rows, reading and writing the KV cache."""

    def __init__(self, spec: DecoderSpec, weights: DecoderWeights, kernels: Kernels) -> None:
        self.spec = spec
        self._ready: tuple[KVCache, RunLayers] | None = None
        self._weights = weights
        self._kernels = kernels
        self._scorings = [Scoring(window) for window in spec.windows] or [PLAIN] * spec.layers
        self._rotary = (
            RotaryTable(spec, device=weights.embedding.parts["weight"].device) if spec.positions == "rotary" else None
        )

    @property
    def ends_early(self) -> bool:
        """Whether the last layer goes on with the wanted rows only, and so needs tiles of their own."""
        return self._kernels.layers is not None

    def forward(self, step: StepTensors, cache: KVCache) -> Tensor:
        """Logits for the samples, float32 [samples, vocab]."""
        if self._rotary is not None:
            self._rotary.reserve(step.num_positions)
        x = self._kernels.embed(step.tokens, self._weights.embedding)  # [rows, hidden]
        if self._weights.positions is not None:
            x = self._kernels.add(x, self._weights.positions[step.positions])
        rows = self._rows(step)
        x = self._layers_over(cache)(x, rows)
        final = self._norm(x[step.sampled], self._weights.final_norm)
        return self._kernels.linear(final, self._weights.head, wide=True)

    def draw(self, logits: Tensor, samples: Sequence[SampleAt]) -> list[Draw]:
        """A draw for each row of logits, float32 [rows, vocab]."""
        return self._kernels.draw(logits, samples)

    def _rows(self, step: StepTensors) -> LayerRows:
        cosine, sine = self._rotary.at(step.positions) if self._rotary is not None else (None, None)
        return LayerRows(cosine, sine, step.blocks, step.offsets, step.tiles, step.wanted, step.wanted_tiles)

    def _layers_over(self, cache: KVCache) -> RunLayers:
        """The layers, made ready for a cache when it is first seen."""
        if self._ready is None or self._ready[0] is not cache:
            self._ready = cache, self._native_layers(cache) or partial(self._composed_layers, cache)
        return self._ready[1]

    def _native_layers(self, cache: KVCache) -> RunLayers | None:
        if self._kernels.layers is None:
            return None
        keys, values = ([part[n] for n in range(self.spec.layers)] for part in (cache.keys, cache.values))
        layers = self._weights.layers
        return self._kernels.layers(layers, spec=self.spec, keys=keys, values=values, scorings=self._scorings)

    def _composed_layers(self, cache: KVCache, x: Tensor, rows: LayerRows) -> Tensor:
        for number, layer in enumerate(self._weights.layers):
            x = self._kernels.add(x, self._attend(x, layer, place=rows, number=number, cache=cache))
            x = self._kernels.add(x, self._mlp(x, layer))
        return x if rows.wanted is None else x[rows.wanted]

    def _attend(self, x: Tensor, layer: LayerWeights, *, place: LayerRows, number: int, cache: KVCache) -> Tensor:
        spec, kernels = self.spec, self._kernels
        rows = x.shape[0]
        fused = kernels.linear(self._norm(x, layer.attention_norm), layer.qkv)
        fused = fused.view(rows, spec.heads + 2 * spec.kv_heads, spec.head_dim)
        query, key, value = torch.tensor_split(fused, (spec.heads, spec.heads + spec.kv_heads), dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            query = kernels.rms_norm(query, layer.q_norm, eps=spec.norm_eps)
            key = kernels.rms_norm(key, layer.k_norm, eps=spec.norm_eps)
        if place.cosine is not None and place.sine is not None:
            query = kernels.rotate(query, place.cosine, place.sine)
            key = kernels.rotate(key, place.cosine, place.sine)
        cache.write(number, place.blocks, place.offsets, keys=key, values=value)
        keys, values, scoring = cache.keys[number], cache.values[number], self._scorings[number]
        mixed = kernels.attention(query, keys, values, tiles=place.tiles, scoring=scoring)
        return kernels.linear(mixed.reshape(rows, -1), layer.out)

    def _mlp(self, x: Tensor, layer: LayerWeights) -> Tensor:
        kernels = self._kernels
        wide = kernels.linear(self._norm(x, layer.mlp_norm), layer.gate_up)
        if self.spec.mlp == "swiglu":
            gate, up = wide.chunk(2, dim=-1)
            hidden = kernels.multiply(kernels.silu(gate.float()).to(x.dtype), up)
        else:
            hidden = kernels.gelu_tanh(wide.float()).to(x.dtype)
        return kernels.linear(hidden, layer.down)

    def _norm(self, x: Tensor, norm: Norm) -> Tensor:
        op = self._kernels.rms_norm if self.spec.norm == "rms" else self._kernels.layer_norm
        return op(x, norm, eps=self.spec.norm_eps)


def linear_weights(weights: DecoderWeights) -> list[Weight]:
    """Every linear layer of a decoder, the head last."""
    layers = [w for layer in weights.layers for w in (layer.qkv, layer.out, layer.gate_up, layer.down)]
    return [*layers, weights.head]
