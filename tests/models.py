"""Small random decoders for tests of the tensor side, without a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from penstock.executor import TorchExecutor
from penstock.kernels.native import ISAS, NOT_ASKED, Opened, open_native
from penstock.kernels.table import Kernels, select
from penstock.kv import KVCache
from penstock.models.decoder import Decoder
from penstock.models.spec import DecoderSpec
from penstock.step import Chunk, SampleAt, StepPlan
from penstock.weights import DecoderWeights, LayerWeights, Norm, dense

LLAMA = DecoderSpec(
    vocab=131,
    hidden=48,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_width=72,
    context_tokens=4096,
    norm="rms",
    norm_eps=1e-5,
    positions="rotary",
    mlp="swiglu",
)
GPT2 = replace(
    LLAMA,
    kv_heads=4,
    head_dim=12,
    norm="layer",
    positions="learned",
    mlp="gelu_tanh",
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    tied=True,
)
QWEN3 = replace(LLAMA, qk_norm=True, kv_heads=1, tied=True)
WINDOWS = replace(LLAMA, windows=(150, 40))
GEMMA = replace(
    QWEN3,
    mlp="geglu",
    norm_plus_one=True,
    norms_after=True,
    embedding_times_root=True,
    query_scalar=20.0,
    score_cap=2.0,
    logit_cap=3.0,
    windows=(40, None),
    windows_rope_theta=500.0,
)


def random_weights(spec: DecoderSpec, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> DecoderWeights:
    noise = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        wide: Tensor = torch.randn(rows, columns, generator=noise) * columns**-0.5
        return wide.to(dtype)

    def vector(width: int, *, centre: float = 0.0) -> Tensor:
        wide = centre + 0.1 * torch.randn(width, generator=noise)
        return wide.to(dtype)

    def norm(width: int) -> Norm:
        bias = vector(width) if spec.norm == "layer" and width == spec.hidden else None
        return Norm(vector(width, centre=0.0 if spec.norm_plus_one else 1.0), bias, spec.norm_plus_one)

    wide = (spec.heads + 2 * spec.kv_heads) * spec.head_dim
    gate_up = spec.mlp_width * (2 if spec.has_gate else 1)
    layers = tuple(
        LayerWeights(
            attention_norm=norm(spec.hidden),
            qkv=dense(matrix(wide, spec.hidden), vector(wide) if spec.qkv_bias else None),
            out=dense(matrix(spec.hidden, spec.heads * spec.head_dim), vector(spec.hidden) if spec.out_bias else None),
            mlp_norm=norm(spec.hidden),
            gate_up=dense(
                matrix(gate_up, spec.hidden), vector(gate_up) if spec.mlp_bias else None, gated=spec.has_gate
            ),
            down=dense(matrix(spec.hidden, spec.mlp_width), vector(spec.hidden) if spec.mlp_bias else None),
            q_norm=norm(spec.head_dim) if spec.qk_norm else None,
            k_norm=norm(spec.head_dim) if spec.qk_norm else None,
            attention_norm_after=norm(spec.hidden) if spec.norms_after else None,
            mlp_norm_after=norm(spec.hidden) if spec.norms_after else None,
        )
        for _ in range(spec.layers)
    )
    embedding = matrix(spec.vocab, spec.hidden)
    head = dense(embedding if spec.tied else matrix(spec.vocab, spec.hidden))
    return DecoderWeights(
        embedding=head if spec.tied else dense(embedding),
        layers=layers,
        final_norm=norm(spec.hidden),
        head=head,
        positions=matrix(spec.context_tokens, spec.hidden) if spec.positions == "learned" else None,
    )


def pack_all(weights: DecoderWeights, kernels: Kernels) -> DecoderWeights:
    """The same parameters in the format that these kernels read."""
    pack = kernels.pack
    layers = tuple(
        replace(w, qkv=pack(w.qkv), out=pack(w.out), gate_up=pack(w.gate_up), down=pack(w.down)) for w in weights.layers
    )
    head = pack(weights.head)
    embedding = head if weights.embedding is weights.head else weights.embedding
    return replace(weights, layers=layers, head=head, embedding=embedding)


@cache
def native_isas() -> tuple[str, ...]:
    """The instruction sets of the native kernels that this machine can run; none where they were not built."""
    found = {isa: open_native(dtype="float32", threads=1, max_isa=isa).native for isa in ISAS}
    return tuple(isa for isa, native in found.items() if native is not None and native.isa == isa)


@cache
def usual_isa() -> tuple[str, ...]:
    """The one that this machine takes by itself; none where they were not built."""
    native = open_native(dtype="float32", threads=1).native
    return (native.isa,) if native is not None else ()


@cache
def opened(name: str, threads: int = 2) -> Opened:
    """The native kernels capped at an instruction set, one team for all tests; `reference`: none."""
    return open_native(dtype="float32", threads=threads, max_isa=name)


def executor(
    spec: DecoderSpec,
    *,
    dtype: torch.dtype = torch.float32,
    num_blocks: int = 64,
    block_tokens: int = 16,
    weights: DecoderWeights | None = None,
    native: Opened = NOT_ASKED,
    composed: bool = False,
) -> TorchExecutor:
    """An executor of random weights; `composed`: its layers are made of the ops, one by one."""
    memory = KVCache(spec, num_blocks=num_blocks, block_tokens=block_tokens, dtype=dtype, device="cpu")
    selection = select("cpu", native)
    kernels = selection.kernels._replace(layers=None) if composed else selection.kernels
    packed = pack_all(weights or random_weights(spec, dtype=dtype), kernels)
    return TorchExecutor(
        Decoder(spec, packed, kernels),
        memory,
        device="cpu",
        tile_rows=selection.tile_rows,
        needs_zeros=selection.needs_zeros,
    )


GREEDY = SampleAt(0, uniform=0.0, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, logprobs=5)


def last(offset: int) -> tuple[SampleAt, ...]:
    """A greedy draw with five log-probabilities behind the token at `offset`."""
    return (replace(GREEDY, offset=offset),)


def plan(*chunks: Chunk, step: int = 1) -> StepPlan:
    return StepPlan(step, chunks)
