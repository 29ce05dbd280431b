"""Loads a checkpoint's tensors into `DecoderWeights`: `load_weights`.

Owns the way from stored tensors to parameters: names from the family's row, Q, K and V (and gate and up) fused into one
matrix, transposed storage turned, dtype converted. Knows nothing of what the parameters compute.
One idea: every tensor of the checkpoint is accounted for before the first one is read, and every parameter is filled
into memory of its own (64-byte aligned on a CPU), so that no file stays mapped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from penstock.checkpoint import DTYPES, Checkpoint, StoredTensor, stored_tensors
from penstock.errors import ModelError
from penstock.models.families import Names, family_named, parameter_shapes
from penstock.models.spec import DecoderSpec
from penstock.pages import drop_mapped
from penstock.weights import DecoderWeights, LayerWeights, Norm, Weight, dense

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHOWN_NAMES = 5


def _keep(weight: Weight) -> Weight:
    return weight


def load_weights(
    checkpoint: Checkpoint, *, device: str, dtype: str, pack: Callable[[Weight], Weight] = _keep
) -> DecoderWeights:
    """The checkpoint's parameters on `device`, as `dtype`, each linear layer's weight packed as soon as it is read.

    Raises:
        ModelError: a tensor is missing, unknown, of another shape than the config says, in a format that Penstock does
            not load, or has values that `dtype` cannot hold.
    """
    names = family_named(checkpoint.family).names
    stored = stored_tensors(checkpoint.folder)
    prefix = account(stored, checkpoint.spec, names=names)
    source = _Source(stored, prefix, torch.device(device), TORCH_DTYPES[dtype], pack)
    return _decoder(source, checkpoint.spec, names)


def account(stored: dict[str, StoredTensor], spec: DecoderSpec, *, names: Names) -> str:
    """The prefix that the checkpoint's names have, once each name, shape and dtype is found to be what `spec` needs.

    Raises:
        ModelError: one is not; the message names the tensors.
    """
    embedding = f"{names.embedding}.weight"
    prefix = next((prefix for prefix in names.prefixes if prefix + embedding in stored), names.prefixes[0])
    head = f"{names.head}.weight"
    expected = {prefix + name: shape for name, shape in parameter_shapes(spec, names).items()}
    expected |= {} if spec.tied and head not in stored else {head: (spec.vocab, spec.hidden)}
    unused = [re.compile(re.escape(prefix) + pattern) for pattern in names.ignorable]
    extra = [name for name in stored.keys() - expected.keys() if not any(p.fullmatch(name) for p in unused)]
    _refuse_names("the checkpoint lacks", expected.keys() - stored.keys(), "it is incomplete, or config.json is wrong")
    _refuse_names(
        "the checkpoint has unknown tensors", extra, "Penstock would ignore what config.json does not ask for"
    )
    for name, shape in expected.items():
        tensor = stored[name]
        if tensor.shape != shape:
            raise ModelError(f"{name} is {list(tensor.shape)}, and config.json asks for {list(shape)}")
        if tensor.dtype not in DTYPES:
            raise ModelError(f"{name} is stored as {tensor.dtype}; Penstock loads {', '.join(DTYPES)}")
    return prefix


def _refuse_names(what: str, found: Any, why: str) -> None:
    names = sorted(found)
    if names:
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        raise ModelError(f"{what}: {', '.join(names[:SHOWN_NAMES])}{more}; {why}")


@dataclass(frozen=True, slots=True)
class _Source:
    """Stored tensors, and where and as what their copies go; `pack` gives a weight its final format."""

    stored: dict[str, StoredTensor]
    prefix: str
    device: torch.device
    dtype: torch.dtype
    pack: Callable[[Weight], Weight]

    def joined(self, names: list[str], *, transposed: bool = False) -> Tensor:
        """A new tensor: the named ones, one below the other."""
        stored = [self._mapped(name) for name in names]
        parts = [part.t() if transposed else part for part in stored]
        whole = torch.empty(
            sum(part.shape[0] for part in parts), *parts[0].shape[1:], dtype=self.dtype, device=self.device
        )
        end = 0
        for part in parts:
            start, end = end, end + part.shape[0]
            whole[start:end].copy_(part)
        for part in stored:
            drop_mapped(part)
        if self.dtype == torch.float16 and not bool(torch.isfinite(whole).all()):
            raise ModelError(f"{', '.join(names)} has values that float16 cannot hold; use bfloat16 or float32")
        return whole

    def linear(
        self,
        names: list[str],
        biases: list[str] | None = None,
        *,
        transposed: bool = False,
        shard_axis: int,
        gated: bool = False,
    ) -> Weight:
        """The named matrices as one weight, packed; what is packed into memory of its own is read where it lies."""
        bias = None if biases is None else self.joined(biases)
        if len(names) == 1 and not transposed:
            lying = self._mapped(names[0])
            made = self._pack_as_it_lies(lying, bias, shard_axis=shard_axis, gated=gated)
            if made is not None:
                drop_mapped(lying)
                return made
        return self.pack(dense(self.joined(names, transposed=transposed), bias, shard_axis=shard_axis, gated=gated))

    def _pack_as_it_lies(self, lying: Tensor, bias: Tensor | None, *, shard_axis: int, gated: bool) -> Weight | None:
        """None: it is not what is wanted yet, or a pack that copies nothing would keep the file mapped."""
        if lying.dtype != self.dtype or lying.device != self.device:
            return None
        made = self.pack(dense(lying, bias, shard_axis=shard_axis, gated=gated))
        return None if made.format == "dense" else made

    def _mapped(self, name: str) -> Tensor:
        """A tensor in its file. The file is opened for each: what was read of it leaves memory with the tensor."""
        try:
            with safe_open(self.stored[name].file, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except SafetensorError as error:
            raise ModelError(f"a safetensors file cannot be read: {error}; download the checkpoint again") from error
        return tensor


def _decoder(source: _Source, spec: DecoderSpec, names: Names) -> DecoderWeights:
    embedding, head = _embedding_and_head(source, spec, names=names)
    return DecoderWeights(
        embedding=embedding,
        layers=tuple(_layer(source, spec, names=names, layer=layer) for layer in range(spec.layers)),
        final_norm=_norm(
            source, source.prefix + names.final_norm, bias=spec.norm == "layer", plus_one=spec.norm_plus_one
        ),
        head=head,
        positions=source.joined([f"{source.prefix}{names.positions}.weight"]) if spec.positions == "learned" else None,
    )


def _embedding_and_head(source: _Source, spec: DecoderSpec, *, names: Names) -> tuple[Weight, Weight]:
    """Both [vocab, hidden]; one and the same where they are tied, in the format of the head."""
    table, name = f"{source.prefix}{names.embedding}.weight", f"{names.head}.weight"
    if not spec.tied:
        return dense(source.joined([table])), source.linear([name], shard_axis=0)
    if name in source.stored and not torch.equal(source.joined([name]), source.joined([table])):
        raise ModelError(
            f"config.json ties {name} to the embedding, but the checkpoint has another one; set tie_word_embeddings "
            f"to false to use it, or remove it"
        )
    head = source.linear([table], shard_axis=0)
    return head, head


def _layer(source: _Source, spec: DecoderSpec, *, names: Names, layer: int) -> LayerWeights:
    start = source.prefix + names.layer.format(layer)

    def norm(name: str, *, of_heads: bool = False) -> Norm:
        return _norm(source, start + name, bias=spec.norm == "layer" and not of_heads, plus_one=spec.norm_plus_one)

    def linear(parts: tuple[str, ...], *, bias: bool, shard_axis: int, gated: bool = False) -> Weight:
        matrices, biases = ([f"{start}{part}.{kind}" for part in parts] for kind in ("weight", "bias"))
        return source.linear(
            matrices, biases if bias else None, transposed=names.transposed, shard_axis=shard_axis, gated=gated
        )

    return LayerWeights(
        attention_norm=norm(names.attention_norm),
        qkv=linear(names.qkv, bias=spec.qkv_bias, shard_axis=0),
        out=linear((names.out,), bias=spec.out_bias, shard_axis=1),
        mlp_norm=norm(names.mlp_norm),
        gate_up=linear(names.gate_up, bias=spec.mlp_bias, shard_axis=0, gated=spec.has_gate),
        down=linear((names.down,), bias=spec.mlp_bias, shard_axis=1),
        q_norm=norm(names.q_norm, of_heads=True) if spec.qk_norm else None,
        k_norm=norm(names.k_norm, of_heads=True) if spec.qk_norm else None,
        attention_norm_after=norm(names.attention_norm_after) if spec.norms_after else None,
        mlp_norm_after=norm(names.mlp_norm_after) if spec.norms_after else None,
    )


def _norm(source: _Source, name: str, *, bias: bool, plus_one: bool) -> Norm:
    return Norm(source.joined([f"{name}.weight"]), source.joined([f"{name}.bias"]) if bias else None, plus_one)
