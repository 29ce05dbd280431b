"""`read_config`: Hugging Face's config.json to `DecoderSpec`, by the row of its family.

Pure data, no torch and no files. Configs of transformers 4.x (`rope_theta`, `rope_scaling`) and 5.x
(`rope_parameters`) are read alike.
One idea: every field of a config.json is accounted for. A row says which fields become the spec, which ones must have
one certain value for the spec to be the whole truth, and which ones change nothing; any other field is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from penstock.errors import ModelError
from penstock.models.families import FAMILIES, Amount, Family, Flag, Windows
from penstock.models.spec import DecoderSpec, RopeScaling

Config = Mapping[str, object]

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

SLIDING, FULL = "sliding_attention", "full_attention"  # the two kinds in `layer_types`

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
    values |= {name: _amount(config, amount) for name, amount in family.amounts.items()}
    windows = _windows(config, family, layers=sizes["layers"], context_tokens=sizes["context_tokens"])
    values["windows"] = windows
    if family.fixed["positions"] == "rotary":
        config = _with_rope_by_layer(config, family)
        rope = _rope(config, sizes["context_tokens"], default_theta=family.theta)
        values |= {"rope_theta": rope.theta, "rope_scaling": rope.scaling}
        if windows and family.windows is not None and family.windows.theta is not None:
            values["windows_rope_theta"] = _number(config, *family.windows.theta)
        if sizes["head_dim"] % 2:
            raise ModelError(f"config.json: head_dim is {sizes['head_dim']}; rotary positions need an even number")
    return FamilySpec(family, DecoderSpec(**values))


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
    windows = family.windows.keys if family.windows is not None else set()
    for key, allowed in demands.items():
        if key in config and key not in family.harmless | windows and config[key] not in allowed:
            raise ModelError(
                f"config.json asks for {key} = {config[key]!r}, which Penstock does not have for "
                f"{family.architecture}; it can be {_either(allowed)}"
            )
    rope = {"rope_theta", "rope_scaling", "rope_parameters"} if family.fixed["positions"] == "rotary" else set()
    read = {size.key for size in family.sizes.values()} | {flag.key for flag in family.flags.values()}
    read |= {amount.key for amount in family.amounts.values()}
    read |= {family.epsilon[0], "layer_types"} | rope | windows
    known = read | HARMLESS | family.harmless | demands.keys()
    unknown = [key for key in config if key not in known and not key.startswith("_")]
    if unknown:
        fields = ", ".join(f"{key} = {str(config[key])[:60]}" for key in unknown)
        raise ModelError(
            f"config.json of {family.architecture} has fields that Penstock does not know: {fields}. They may change "
            "what the model computes; remove them from config.json if they do not"
        )


def _windows(config: Config, family: Family, *, layers: int, context_tokens: int) -> tuple[int | None, ...]:
    """The window of each layer; empty where none has one that changes anything.

    As transformers reads it: `layer_types` comes before what else says which layers have one. A window that reaches
    over the whole context changes something where it says which rotary base a layer has.
    """
    rule = family.windows
    size = config.get("sliding_window", rule.default) if rule is not None else None
    if rule is None or (rule.switch is not None and not _flag(config, Flag(rule.switch))):
        size = None
    first = 0
    if rule is not None and rule.first is not None:
        first = _size(rule.first[0], config.get(*rule.first), least=0)
    every = _every(config, rule)
    has_one = [layer >= first and (every is None or (layer + 1) % every != 0) for layer in range(layers)]
    usual = [SLIDING if size is not None and has else FULL for has in has_one]
    kinds = config.get("layer_types") or usual
    allowed = (FULL,) if rule is None else (FULL, SLIDING)
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in allowed for kind in kinds):
        found = str(kinds)[:200]
        raise ModelError(f"config.json has layer_types = {found}; it must be a list of {layers} {_either(allowed)}")
    if size is None and rule is not None and rule.theta is not None and config.get("layer_types") != [FULL] * layers:
        raise ModelError("config.json: sliding_window is None, and so nothing says how far its sliding layers see")
    if size is None or SLIDING not in kinds:
        return ()
    window = _size("sliding_window", size)
    matters = window < context_tokens or (rule is not None and rule.theta is not None)
    return tuple(window if kind == SLIDING else None for kind in kinds) if matters else ()


def _every(config: Config, rule: Windows | None) -> int | None:
    if rule is None or rule.every is None or rule.every_key is None:
        return rule.every if rule is not None else None
    return _size(rule.every_key, config.get(rule.every_key, rule.every))


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


def _size(key: str, value: object, *, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ModelError(f"config.json: {key} is {value!r}; it must be a whole number of at least {least}")
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


def _amount(config: Config, amount: Amount) -> float | None:
    if config.get(amount.key, amount.default) is None:
        return None
    return _number(config, amount.key, amount.default)


class _Rope(NamedTuple):
    theta: float
    scaling: RopeScaling | None


def _with_rope_by_layer(config: Config, family: Family) -> Config:
    """`rope_parameters` that says by kind of layer what holds there (5.x), as the fields that 4.x has for it."""
    told = config.get("rope_parameters")
    theta = family.windows.theta if family.windows is not None else None
    if theta is None or not isinstance(told, dict) or not {SLIDING, FULL} & told.keys():
        return config
    sliding, full = ({**_rope_fields(told.get(kind) or {})} for kind in (SLIDING, FULL))
    unknown = [*told.keys() - {SLIDING, FULL}, *sliding.keys() - {"rope_theta", "rope_type"}]
    if unknown or sliding.get("rope_type", "default") != "default":
        raise ModelError(
            f"config.json: rope_parameters is {str(told)[:200]}, of which Penstock does not have everything"
        )
    top = {theta[0]: sliding["rope_theta"]} if "rope_theta" in sliding else {}
    if top and theta[0] in config and config[theta[0]] != top[theta[0]]:
        raise ModelError(f"config.json: {theta[0]} is {config[theta[0]]!r} and in rope_parameters {top[theta[0]]!r}")
    return {**config, **top, "rope_parameters": full}


def _rope(config: Config, context_tokens: int, *, default_theta: float) -> _Rope:
    """Reads `rope_parameters` (5.x), or `rope_theta` and `rope_scaling` (4.x); both may be there if they agree."""
    told = [config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)]
    top = {"rope_theta": config.get("rope_theta") or default_theta}
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
