"""A row a family: which fields of its config.json say what, and where its checkpoints have each parameter.

Pure data, no torch and no files; `config_json.py` reads a config.json by these rows.
One idea: a family is told by data, so what is written once for all families (kernels, planning, exactness) is there for
the next one, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from penstock.models.spec import DecoderSpec

Derived = Callable[[Mapping[str, int]], int]


class Size(NamedTuple):
    """A whole number of at least 1: which config field has it, and what it is where that is absent or null."""

    key: str
    default: Derived | None = None


class Flag(NamedTuple):
    """A true or false: which config field has it, and what it is where that is absent."""

    key: str
    default: bool = False


class Amount(NamedTuple):
    """A number above 0, or null for what there is none of: which config field has it, and what it is where absent."""

    key: str
    default: float | None


class Windows(NamedTuple):
    """How a family says which layers have a window: `sliding_window`, so many positions, which is this where absent.

    switch: the field that must be true for it to count, if there is one; first: the field that says from which layer
    on, with its default; every: of so many layers the last has none; every_key: the field that says so, if any; theta:
    the field that has the rotary base of the layers with a window, with its default, if they have their own.
    """

    default: int
    switch: str | None = None
    first: tuple[str, int] | None = None
    every: int | None = None
    every_key: str | None = None
    theta: tuple[str, float] | None = None

    @property
    def keys(self) -> set[str]:
        """The config fields that it reads."""
        found = (self.switch, self.every_key, *(field[0] for field in (self.first, self.theta) if field is not None))
        return {"sliding_window", *(key for key in found if key is not None)}


@dataclass(frozen=True, slots=True)
class Names:
    """Where a family's checkpoint has each parameter, `.weight` and `.bias` left off; see `weights.LayerWeights`.

    Attributes:
        prefixes: what every name but the head's starts with; files use one of these.
        layer: starts the names of a layer, with its number for {}.
        qkv, gate_up: the parts, in the order of rows; one name: the checkpoint has them fused.
        transposed: matrices of the layers are [in, out].
        ignorable: regular expressions, behind the prefix, of tensors that are derived and not used.
    """

    prefixes: tuple[str, ...]
    embedding: str
    layer: str
    attention_norm: str
    qkv: tuple[str, ...]
    out: str
    mlp_norm: str
    gate_up: tuple[str, ...]
    down: str
    final_norm: str
    head: str = "lm_head"
    positions: str = ""
    q_norm: str = ""
    k_norm: str = ""
    attention_norm_after: str = ""
    mlp_norm_after: str = ""
    transposed: bool = False
    ignorable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """A row: how one `architectures` entry is read.

    Attributes:
        sizes, flags: fields of `DecoderSpec` that config.json decides.
        amounts: fields of `DecoderSpec` that are numbers or nothing, which config.json decides.
        epsilon: the config field of `norm_eps`, with its default.
        theta: the rotary base where config.json has none.
        fixed: fields of `DecoderSpec` that are the same in every member.
        demands: config fields and the values under which the spec says everything, on top of `DEMANDS`.
        harmless: config fields that change no logit, on top of `HARMLESS`.
        windows: how windows are told; None: no member has any.
    """

    architecture: str
    model_type: str
    sizes: Mapping[str, Size]
    flags: Mapping[str, Flag]
    epsilon: tuple[str, float]
    fixed: Mapping[str, str | bool]
    names: Names
    demands: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    windows: Windows | None = None
    amounts: Mapping[str, Amount] = field(default_factory=dict)
    theta: float = 10000.0


LLAMA_NAMES = Names(
    prefixes=("model.",),
    embedding="embed_tokens",
    layer="layers.{}.",
    attention_norm="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    gate_up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    final_norm="norm",
    ignorable=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"rotary_emb\.inv_freq"),
)
LLAMA_SIZES = {
    "vocab": Size("vocab_size"),
    "hidden": Size("hidden_size"),
    "layers": Size("num_hidden_layers"),
    "heads": Size("num_attention_heads"),
    "kv_heads": Size("num_key_value_heads", lambda sizes: sizes["heads"]),
    "head_dim": Size("head_dim", lambda sizes: sizes["hidden"] // sizes["heads"]),
    "mlp_width": Size("intermediate_size"),
    "context_tokens": Size("max_position_embeddings"),
}

LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    sizes=LLAMA_SIZES,
    flags={
        "qkv_bias": Flag("attention_bias"),
        "out_bias": Flag("attention_bias"),
        "mlp_bias": Flag("mlp_bias"),
        "tied": Flag("tie_word_embeddings"),
    },
    epsilon=("rms_norm_eps", 1e-6),
    fixed={"norm": "rms", "positions": "rotary", "mlp": "swiglu"},
    names=LLAMA_NAMES,
    demands={"hidden_act": ("silu", "swish")},
)

QWEN_WINDOWS = Windows(4096, switch="use_sliding_window", first=("max_window_layers", 28))

QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    sizes=LLAMA_SIZES | {"kv_heads": Size("num_key_value_heads"), "head_dim": Size("head_dim", lambda _: 128)},
    flags={
        "qkv_bias": Flag("attention_bias"),
        "out_bias": Flag("attention_bias"),
        "tied": Flag("tie_word_embeddings"),
    },
    epsilon=("rms_norm_eps", 1e-6),
    fixed={"norm": "rms", "positions": "rotary", "mlp": "swiglu", "qk_norm": True},
    names=replace(LLAMA_NAMES, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm"),
    demands={"hidden_act": ("silu", "swish")},
    windows=QWEN_WINDOWS,
)

QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    sizes=LLAMA_SIZES | {"kv_heads": Size("num_key_value_heads")},
    flags={"tied": Flag("tie_word_embeddings")},
    epsilon=("rms_norm_eps", 1e-6),
    fixed={"norm": "rms", "positions": "rotary", "mlp": "swiglu", "qkv_bias": True},
    names=LLAMA_NAMES,
    demands={"hidden_act": ("silu", "swish")},
    windows=QWEN_WINDOWS,
)

MISTRAL = Family(
    architecture="MistralForCausalLM",
    model_type="mistral",
    sizes=LLAMA_SIZES | {"kv_heads": Size("num_key_value_heads", lambda _: 8)},
    flags={"tied": Flag("tie_word_embeddings")},
    epsilon=("rms_norm_eps", 1e-6),
    fixed={"norm": "rms", "positions": "rotary", "mlp": "swiglu"},
    names=LLAMA_NAMES,
    demands={"hidden_act": ("silu", "swish")},
    windows=Windows(4096),
)

GEMMA_NAMES = replace(
    LLAMA_NAMES,
    mlp_norm="pre_feedforward_layernorm",
    attention_norm_after="post_attention_layernorm",
    mlp_norm_after="post_feedforward_layernorm",
)

GEMMA2 = Family(
    architecture="Gemma2ForCausalLM",
    model_type="gemma2",
    sizes=LLAMA_SIZES
    | {"kv_heads": Size("num_key_value_heads", lambda _: 4), "head_dim": Size("head_dim", lambda _: 256)},
    flags={
        "qkv_bias": Flag("attention_bias"),
        "out_bias": Flag("attention_bias"),
        "tied": Flag("tie_word_embeddings", default=True),
    },
    epsilon=("rms_norm_eps", 1e-6),
    fixed={
        "norm": "rms",
        "norm_plus_one": True,
        "norms_after": True,
        "positions": "rotary",
        "mlp": "geglu",
        "embedding_times_root": True,
    },
    names=GEMMA_NAMES,
    demands={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "hidden_act": ("gelu_pytorch_tanh",),
        "use_bidirectional_attention": (None, False),
    },
    harmless=frozenset({"cache_implementation", "sliding_window_size"}),  # the latter of the 9B, which nobody reads
    windows=Windows(4096, every=2),
    amounts={
        "query_scalar": Amount("query_pre_attn_scalar", 256.0),
        "score_cap": Amount("attn_logit_softcapping", 50.0),
        "logit_cap": Amount("final_logit_softcapping", 30.0),
    },
)

GEMMA3 = replace(
    GEMMA2,
    architecture="Gemma3ForCausalLM",
    model_type="gemma3_text",
    fixed={**GEMMA2.fixed, "qk_norm": True},
    demands={**GEMMA2.demands, "attn_logit_softcapping": (None,)},
    names=replace(GEMMA_NAMES, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm"),
    windows=Windows(4096, every=6, every_key="sliding_window_pattern", theta=("rope_local_base_freq", 10000.0)),
    amounts={
        "query_scalar": Amount("query_pre_attn_scalar", 256.0),
        "logit_cap": Amount("final_logit_softcapping", None),
    },
    theta=1000000.0,
)

GPT2 = Family(
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    sizes={
        "vocab": Size("vocab_size"),
        "hidden": Size("n_embd"),
        "layers": Size("n_layer"),
        "heads": Size("n_head"),
        "kv_heads": Size("", lambda sizes: sizes["heads"]),
        "head_dim": Size("", lambda sizes: sizes["hidden"] // sizes["heads"]),
        "mlp_width": Size("n_inner", lambda sizes: 4 * sizes["hidden"]),
        "context_tokens": Size("n_positions"),
    },
    flags={"tied": Flag("tie_word_embeddings", default=True)},
    epsilon=("layer_norm_epsilon", 1e-5),
    fixed={
        "norm": "layer",
        "positions": "learned",
        "mlp": "gelu_tanh",
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
    },
    names=Names(
        prefixes=("transformer.", ""),
        embedding="wte",
        layer="h.{}.",
        attention_norm="ln_1",
        qkv=("attn.c_attn",),
        out="attn.c_proj",
        mlp_norm="ln_2",
        gate_up=("mlp.c_fc",),
        down="mlp.c_proj",
        final_norm="ln_f",
        positions="wpe",
        transposed=True,
        ignorable=(r"h\.\d+\.attn\.(bias|masked_bias)",),
    ),
    demands={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
    },
    harmless=frozenset(
        """
        n_ctx attn_pdrop embd_pdrop resid_pdrop summary_activation summary_first_dropout summary_proj_to_labels
        summary_type summary_use_proj
        """.split()
    ),
)

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, GPT2)


def family_named(name: str) -> Family:
    """The row with that `model_type`."""
    return next(family for family in FAMILIES if family.model_type == name)


def parameter_shapes(spec: DecoderSpec, names: Names) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of `spec` must have, its prefix left off, and its shape there."""
    vectors = ("weight", "bias") if spec.norm == "layer" else ("weight",)
    shapes: dict[str, tuple[int, ...]] = {f"{names.embedding}.weight": (spec.vocab, spec.hidden)}
    if spec.positions == "learned":
        shapes[f"{names.positions}.weight"] = (spec.context_tokens, spec.hidden)
    for layer in range(spec.layers):
        inside = _layer_shapes(spec, names, vectors)
        shapes |= {names.layer.format(layer) + name: shape for name, shape in inside.items()}
    return shapes | {f"{names.final_norm}.{vector}": (spec.hidden,) for vector in vectors}


def _layer_shapes(spec: DecoderSpec, names: Names, vectors: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    qkv = (q, kv, kv) if len(names.qkv) == 3 else (q + 2 * kv,)
    linears = [(name, rows, spec.hidden, spec.qkv_bias) for name, rows in zip(names.qkv, qkv, strict=True)]
    linears += [(names.out, spec.hidden, q, spec.out_bias)]
    linears += [(name, spec.mlp_width, spec.hidden, spec.mlp_bias) for name in names.gate_up]
    linears += [(names.down, spec.hidden, spec.mlp_width, spec.mlp_bias)]
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rows, columns, bias in linears:
        shapes[f"{name}.weight"] = (columns, rows) if names.transposed else (rows, columns)
        shapes |= {f"{name}.bias": (rows,)} if bias else {}
    after = (names.attention_norm_after, names.mlp_norm_after) if spec.norms_after else ()
    for norm in (names.attention_norm, names.mlp_norm, *after):
        shapes |= {f"{norm}.{vector}": (spec.hidden,) for vector in vectors}
    for norm in (names.q_norm, names.k_norm) if spec.qk_norm else ():
        shapes[f"{norm}.weight"] = (spec.head_dim,)
    return shapes
