"""A row a family: Hugging Face's config.json to `DecoderSpec`, and checkpoint names to parameters.

Pure data and its reader, no torch and no files. Transformers 4.x (`rope_theta`, `rope_scaling`) and 5.x
(`rope_parameters`) configs are read alike.
One idea: every field of a config.json is accounted for. A row says which fields become the spec, which ones must have
one certain value for the spec to be the whole truth, and which ones change nothing; any other field is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from penstock.errors import ModelError
from penstock.models.spec import DecoderSpec, RopeScaling

Config = Mapping[str, object]
Derived = Callable[[Mapping[str, int]], int]

DEFAULT_THETA = 10000.0
ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")

# Fields that any config.json may have and that change no logit: names, training, generation defaults, output options.
HARMLESS = frozenset(
    """
    architectures model_type transformers_version torch_dtype dtype use_cache initializer_range tokenizer_class
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id
    attention_dropout hidden_dropout gradient_checkpointing pretraining_tp chunk_size_feed_forward
    return_dict output_attentions output_hidden_states output_scores return_dict_in_generate torchscript tf_legacy_loss
    use_bfloat16 is_decoder finetuning_task task_specific_params problem_type id2label label2id
    prefix suppress_tokens begin_suppress_tokens bad_words_ids exponential_decay_length_penalty remove_invalid_values
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences
    model_max_length
    max_sequence_length unsloth_version unsloth_fixed
    """.split()
)

# Fields that must have one of these values where they are there; anything else is a feature that Penstock lacks.
DEMANDS: Mapping[str, tuple[object, ...]] = {
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False, None),
    "partial_rotary_factor": (None, 1, 1.0),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "sliding_window": (None,),
    "tie_encoder_decoder": (False, None),
    "use_sliding_window": (False, None),
}


class Size(NamedTuple):
    """A whole number of at least 1: which config field has it, and what it is where that is absent or null."""

    key: str
    default: Derived | None = None


class Flag(NamedTuple):
    """A true or false: which config field has it, and what it is where that is absent."""

    key: str
    default: bool = False


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
    transposed: bool = False
    ignorable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """A row: how one `architectures` entry is read.

    Attributes:
        sizes, flags: fields of `DecoderSpec` that config.json decides.
        epsilon: the config field of `norm_eps`, with its default.
        fixed: fields of `DecoderSpec` that are the same in every member.
        demands: config fields and the values under which the spec says everything, on top of `DEMANDS`.
        harmless: config fields that change no logit, on top of `HARMLESS`.
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
    harmless=frozenset({"sliding_window", "max_window_layers"}),  # read only if use_sliding_window
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

FAMILIES = (LLAMA, QWEN3, GPT2)


class FamilySpec(NamedTuple):
    """What a config.json says: the row that reads it, and the decoder that it describes."""

    family: Family
    spec: DecoderSpec


def read_config(config: Config) -> FamilySpec:
    """The family and spec of a config.json.

    Raises:
        ModelError: a field is missing or malformed, or asks for what Penstock does not have.
    """
    family = _family(config)
    _check_demands(config, family)
    sizes = _sizes(config, family)
    flags = {name: _flag(config, flag) for name, flag in family.flags.items()}
    key, default = family.epsilon
    values: dict[str, Any] = {**sizes, **flags, **family.fixed, "norm_eps": _number(config, key, default)}
    if family.fixed["positions"] == "rotary":
        rope = _rope(config, sizes["context_tokens"])
        values |= {"rope_theta": rope.theta, "rope_scaling": rope.scaling}
        if sizes["head_dim"] % 2:
            raise ModelError(f"config.json: head_dim is {sizes['head_dim']}; rotary positions need an even number")
    return FamilySpec(family, DecoderSpec(**values))


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
    for norm in (names.attention_norm, names.mlp_norm):
        shapes |= {f"{norm}.{vector}": (spec.hidden,) for vector in vectors}
    for norm in (names.q_norm, names.k_norm) if spec.qk_norm else ():
        shapes[f"{norm}.weight"] = (spec.head_dim,)
    return shapes


def _family(config: Config) -> Family:
    architectures, model_type = config.get("architectures"), config.get("model_type")
    known = ", ".join(family.architecture for family in FAMILIES)
    if isinstance(architectures, list) and len(architectures) == 1:
        found = [family for family in FAMILIES if family.architecture == architectures[0]]
        found = [family for family in found if model_type in (family.model_type, None)]
    elif architectures is None:
        found = [family for family in FAMILIES if family.model_type == model_type]
    else:
        found = []
    if not found:
        what = f"architectures {architectures!r} and model_type {model_type!r}"
        raise ModelError(f"config.json has {what}; Penstock has {known}. Use a model of one of these families")
    return found[0]


def _check_demands(config: Config, family: Family) -> None:
    demands = {**DEMANDS, **family.demands}
    for key, allowed in demands.items():
        if key in config and key not in family.harmless and config[key] not in allowed:
            raise ModelError(
                f"config.json asks for {key} = {config[key]!r}, which Penstock does not have for "
                f"{family.architecture}; it can be {_either(allowed)}"
            )
    kinds = config.get("layer_types")
    if kinds is not None and kinds != ["full_attention"] * (len(kinds) if isinstance(kinds, list) else 0):
        raise ModelError(f"config.json asks for layer_types = {kinds!r}; Penstock has only full_attention layers")
    rope = {"rope_theta", "rope_scaling", "rope_parameters"} if family.fixed["positions"] == "rotary" else set()
    read = {size.key for size in family.sizes.values()} | {flag.key for flag in family.flags.values()}
    read |= {family.epsilon[0], "layer_types"} | rope
    known = read | HARMLESS | family.harmless | demands.keys()
    unknown = [key for key in config if key not in known and not key.startswith("_")]
    if unknown:
        fields = ", ".join(f"{key} = {str(config[key])[:60]}" for key in unknown)
        raise ModelError(
            f"config.json of {family.architecture} has fields that Penstock does not know: {fields}. They may change "
            "what the model computes; remove them from config.json if they do not"
        )


def _either(values: tuple[object, ...]) -> str:
    return " or ".join("absent" if value is None else repr(value) for value in values)


def _sizes(config: Config, family: Family) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, size in family.sizes.items():
        value = config.get(size.key)
        if value is None and size.default is not None:
            value = size.default(sizes)
        sizes[name] = _size(size.key, value)
    if sizes["heads"] % sizes["kv_heads"]:
        raise ModelError(
            f"config.json: {sizes['heads']} attention heads cannot share {sizes['kv_heads']} key and value heads evenly"
        )
    return sizes


def _size(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"config.json: {key} is {value!r}; it must be a whole number of at least 1")
    return value


def _flag(config: Config, flag: Flag) -> bool:
    value = config.get(flag.key, flag.default)
    if not isinstance(value, bool):
        raise ModelError(f"config.json: {flag.key} is {value!r}; it must be true or false")
    return value


def _number(fields: Config, key: str, default: float | None = None) -> float:
    value = fields.get(key, default)
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    if not usable or not math.isfinite(value) or value <= 0:  # type: ignore[arg-type, operator]
        raise ModelError(f"config.json: {key} is {value!r}; it must be a number above 0")
    return float(value)  # type: ignore[arg-type]


class _Rope(NamedTuple):
    theta: float
    scaling: RopeScaling | None


def _rope(config: Config, context_tokens: int) -> _Rope:
    """Reads `rope_parameters` (5.x), or `rope_theta` and `rope_scaling` (4.x); both may be there if they agree."""
    told = [config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)]
    top = {"rope_theta": config.get("rope_theta") or DEFAULT_THETA}
    readings = {_rope_from({**top, **_rope_fields(fields)}, context_tokens) for fields in told or [{}]}
    if config.get("rope_theta") and readings:
        readings |= {reading._replace(theta=_number(config, "rope_theta")) for reading in readings}
    if len(readings) > 1:
        raise ModelError(
            f"config.json says two things about rotary positions: {' and '.join(map(str, sorted(readings, key=str)))}; "
            "make rope_parameters, rope_scaling and rope_theta agree"
        )
    return readings.pop()


def _rope_fields(fields: object) -> dict[str, object]:
    if not isinstance(fields, dict):
        raise ModelError(f"config.json: rope_parameters or rope_scaling is {fields!r}; it must be an object")
    return {key: value for key, value in fields.items() if value is not None}


def _rope_from(fields: Config, context_tokens: int) -> _Rope:
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ModelError(f"config.json asks for rope_type = {kind!r}; Penstock has 'default' and 'llama3'")
    unknown = fields.keys() - ROPE_KEYS - (set(LLAMA3_KEYS) if kind == "llama3" else set())
    if unknown or fields.get("partial_rotary_factor", 1) != 1:
        names = sorted(unknown) or ["partial_rotary_factor"]
        said = ", ".join(f"{name} = {fields[name]!r}" for name in names)
        raise ModelError(f"config.json asks for {said} of rope_type {kind!r}, which Penstock does not have")
    theta = _number(fields, "rope_theta")
    if kind == "default":
        return _Rope(theta, None)
    factor, low, high = (_number(fields, key) for key in LLAMA3_KEYS[:3])
    original = _size(LLAMA3_KEYS[3], fields.get(LLAMA3_KEYS[3], context_tokens))
    return _Rope(theta, RopeScaling(factor, low, high, original))
