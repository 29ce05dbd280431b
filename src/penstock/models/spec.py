"""`DecoderSpec`: what a decoder is made of. A model family is a row of such data, not a file of copied code.

Pure data, no torch. Every field changes what `models/decoder.py` computes, and a test per field fails when the feature
that it names is switched off. `KVGroup` says what a layer keeps for each token.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple


class RopeScaling(NamedTuple):
    """Llama 3.1's stretch of the rotary frequencies (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_tokens: int


class KVGroup(NamedTuple):
    """Layers that keep the same kind of state for each token, and so share one block table.

    `kind` is `full` for now; windows, latent and recurrent state will be other kinds behind the same table.
    """

    kind: Literal["full"]
    layers: tuple[int, ...]
    kv_heads: int
    k_width: int
    v_width: int


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A decoder-only transformer.

    Attributes:
        norm: RMSNorm or LayerNorm (with bias), before attention, before the MLP and at the end.
        norm_plus_one: the scale of every RMSNorm is 1 + its weight, and what it gives is rounded once (Gemma).
        norms_after: what attention and the MLP give is normed, too, before it is added to what went in.
        positions: rotary embedding of queries and keys (half-split pairs), or a learned table added to the embedding.
        rope_theta, rope_scaling: for rotary positions only.
        windows_rope_theta: the rotary base of the layers with a window, which are not stretched; None: as the rest.
        mlp: `swiglu` is down(silu(gate(x)) * up(x)), `geglu` down(gelu_tanh(gate(x)) * up(x)), `gelu_tanh`
            down(gelu_tanh(up(x))).
        qkv_bias, out_bias, mlp_bias: whether those projections add a bias.
        qk_norm: RMSNorm over each head of queries and keys, before the rotary embedding.
        tied: the output head is the embedding.
        embedding_times_root: what the embedding gives is multiplied by the square root of `hidden`.
        query_scalar: scores are divided by its square root; None: by that of `head_dim`.
        score_cap, logit_cap: scores and logits become cap * tanh(x / cap); None: they stay.
        windows: how many positions the queries of each layer see, their own among them; None: all before them, too.
            Empty: no layer has a window.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    context_tokens: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    positions: Literal["rotary", "learned"]
    mlp: Literal["swiglu", "geglu", "gelu_tanh"]
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    windows: tuple[int | None, ...] = ()
    norm_plus_one: bool = False
    norms_after: bool = False
    windows_rope_theta: float | None = None
    embedding_times_root: bool = False
    query_scalar: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None

    @property
    def has_gate(self) -> bool:
        """Whether the MLP has a gate beside its up projection."""
        return self.mlp != "gelu_tanh"

    @property
    def layer_elements(self) -> int:
        """Elements of the matrices of one layer (norms and biases left out)."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + self.hidden * self.mlp_width * (3 if self.has_gate else 2)

    @property
    def kv_groups(self) -> tuple[KVGroup, ...]:
        """The groups of layers, by kind of state; every layer is in exactly one."""
        return (KVGroup("full", tuple(range(self.layers)), self.kv_heads, self.head_dim, self.head_dim),)

    @property
    def layers_by_window(self) -> dict[int | None, int]:
        """How many layers have each window."""
        return dict(Counter(self.windows)) if self.windows else {None: self.layers}

    @property
    def last_window(self) -> int | None:
        """The window of the last layer."""
        return self.windows[-1] if self.windows else None

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of KV that one token takes, over all layers."""
        return sum(len(g.layers) * g.kv_heads * (g.k_width + g.v_width) * element_bytes for g in self.kv_groups)
