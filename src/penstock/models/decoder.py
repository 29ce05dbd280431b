"""`Decoder`: one decoder-only transformer, built from a `DecoderSpec`, for all families.

Owns the order of a forward pass; the ops are the kernel table's, the KV is the executor's. Never asks for a family.
One idea: a step is a flat list of token rows of any sequences; only attention knows which rows belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from penstock.kernels.reference import AttentionTiles, LayerRows, Scoring
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
        self._scorings = scorings(spec)
        device = weights.embedding.parts["weight"].device
        tables = rotary_tables(spec, device=device)
        self._rotary, self._windows_rotary = tables.of_most, tables.of_windows
        # Rounded as what it is multiplied with.
        root = torch.tensor(spec.hidden**0.5, dtype=weights.dtype, device=device)
        self._embedding_scale = root if spec.embedding_times_root else None

    @property
    def ends_early(self) -> bool:
        """Whether the last layer goes on with the wanted rows only, and so needs tiles of their own."""
        return self._kernels.layers is not None

    def forward(self, step: StepTensors, cache: KVCache) -> Tensor:
        """Logits for the samples, float32 [samples, vocab]; the next step may write over them."""
        x = self._kernels.embed(step.tokens, self._weights.embedding)  # [rows, hidden]
        if self._embedding_scale is not None:
            x = self._kernels.multiply(x, self._embedding_scale)
        if self._weights.positions is not None:
            x = self._kernels.add(x, self._weights.positions[step.positions])
        rows = self._rows(step)
        x = self._layers_over(cache)(x, rows)
        final = self._norm(x[step.sampled], self._weights.final_norm)
        return self._kernels.logits(final, self._weights.head, limit=self.spec.logit_cap)

    def draw(self, logits: Tensor, samples: Sequence[SampleAt]) -> list[Draw]:
        """A draw for each row of logits, float32 [rows, vocab]."""
        return self._kernels.draw(logits, samples)

    def _rows(self, step: StepTensors) -> LayerRows:
        of_most, of_windows = (
            table.at(step.positions, num_positions=step.num_positions) if table is not None else None
            for table in (self._rotary, self._windows_rotary)
        )
        return LayerRows(
            of_most, step.blocks, step.offsets, step.tiles, step.wanted, step.wanted_tiles, windows_rotary=of_windows
        )

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
            mixed = self._attend(x, layer, place=rows, number=number, cache=cache)
            x = self._add(x, mixed, layer.attention_norm_after)
            x = self._add(x, self._mlp(x, layer), layer.mlp_norm_after)
        return x if rows.wanted is None else x[rows.wanted]

    def _add(self, x: Tensor, y: Tensor, norm: Norm | None) -> Tensor:
        return self._kernels.add(x, y if norm is None else self._norm(y, norm))

    def _attend(self, x: Tensor, layer: LayerWeights, *, place: LayerRows, number: int, cache: KVCache) -> Tensor:
        spec, kernels = self.spec, self._kernels
        rows = x.shape[0]
        fused = kernels.linear(self._norm(x, layer.attention_norm), layer.qkv)
        fused = fused.view(rows, spec.heads + 2 * spec.kv_heads, spec.head_dim)
        query, key, value = torch.tensor_split(fused, (spec.heads, spec.heads + spec.kv_heads), dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            query = kernels.rms_norm(query, layer.q_norm, eps=spec.norm_eps)
            key = kernels.rms_norm(key, layer.k_norm, eps=spec.norm_eps)
        scoring = self._scorings[number]
        rotary = place.windows_rotary if place.windows_rotary is not None and scoring.window else place.rotary
        if rotary is not None:
            query = kernels.rotate(query, *rotary)
            key = kernels.rotate(key, *rotary)
        cache.write(number, place.blocks, place.offsets, keys=key, values=value)
        keys, values = cache.keys[number], cache.values[number]
        mixed = kernels.attention(query, keys, values, tiles=place.tiles, scoring=scoring)
        return kernels.linear(mixed.reshape(rows, -1), layer.out)

    def _mlp(self, x: Tensor, layer: LayerWeights) -> Tensor:
        kernels = self._kernels
        wide = kernels.linear(self._norm(x, layer.mlp_norm), layer.gate_up)
        gate, up = wide.chunk(2, dim=-1) if self.spec.has_gate else (wide, None)
        activate = kernels.silu if self.spec.mlp == "swiglu" else kernels.gelu_tanh
        hidden = activate(gate.float()).to(x.dtype)
        return kernels.linear(hidden if up is None else kernels.multiply(hidden, up), layer.down)

    def _norm(self, x: Tensor, norm: Norm) -> Tensor:
        op = self._kernels.rms_norm if self.spec.norm == "rms" else self._kernels.layer_norm
        return op(x, norm, eps=self.spec.norm_eps)


def scorings(spec: DecoderSpec) -> list[Scoring]:
    """What each layer does to scores."""
    scale = None if spec.query_scalar is None else spec.query_scalar**-0.5
    return [Scoring(window, spec.score_cap, scale=scale) for window in spec.windows or (None,) * spec.layers]


class RotaryTables(NamedTuple):
    """Of most layers, and of those with a window where these have their own; None: there is none."""

    of_most: RotaryTable | None
    of_windows: RotaryTable | None


def rotary_tables(spec: DecoderSpec, *, device: torch.device) -> RotaryTables:
    """The tables of rotary positions that a decoder needs."""
    if spec.positions != "rotary":
        return RotaryTables(None, None)
    of_most = RotaryTable(spec.head_dim, spec.rope_theta, scaling=spec.rope_scaling, device=device)
    if spec.windows_rope_theta is None:
        return RotaryTables(of_most, None)
    return RotaryTables(of_most, RotaryTable(spec.head_dim, spec.windows_rope_theta, scaling=None, device=device))


def linear_weights(weights: DecoderWeights) -> list[Weight]:
    """Every linear layer of a decoder, the head last."""
    layers = [w for layer in weights.layers for w in (layer.qkv, layer.out, layer.gate_up, layer.down)]
    return [*layers, weights.head]
