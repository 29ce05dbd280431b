"""Protects the rows: what a config.json means, in both formats, and that nothing in it is ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from penstock.errors import ModelError
from penstock.models.config_json import read_config
from penstock.models.families import (
    FAMILIES,
    GEMMA2,
    GEMMA3,
    GPT2,
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    family_named,
    parameter_shapes,
)
from penstock.models.spec import DecoderSpec, RopeScaling

Config = dict[str, object]

# As on the hub: Llama 3.2 1B, Llama 2 7B, Qwen3 0.6B (4.x) and GPT-2, which names neither rotary nor KV heads.
LLAMA32: Config = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
LLAMA2: Config = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
QWEN3_06B: Config = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
GPT2_SMALL: Config = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}

LLAMA32_SPEC = DecoderSpec(
    vocab=128256,
    hidden=2048,
    layers=16,
    heads=32,
    kv_heads=8,
    head_dim=64,
    mlp_width=8192,
    context_tokens=131072,
    norm="rms",
    norm_eps=1e-5,
    positions="rotary",
    mlp="swiglu",
    rope_theta=500000.0,
    rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
    tied=True,
)


def changed(config: Mapping[str, object], **fields: object) -> Config:
    return {**config, **fields}


def without(config: Mapping[str, object], *keys: str) -> Config:
    return {key: value for key, value in config.items() if key not in keys}


def test_llama_32() -> None:
    assert read_config(LLAMA32) == (LLAMA, LLAMA32_SPEC)


def test_llama_2() -> None:
    spec = read_config(LLAMA2).spec
    assert (spec.head_dim, spec.kv_heads, spec.rope_theta, spec.rope_scaling) == (128, 32, 10000.0, None)
    assert (spec.tied, spec.qkv_bias, spec.out_bias, spec.mlp_bias, spec.qk_norm) == (False,) * 5


def test_qwen3() -> None:
    family, spec = read_config(QWEN3_06B)
    assert family == QWEN3
    assert (spec.qk_norm, spec.tied, spec.head_dim, spec.rope_theta) == (True, True, 128, 1000000.0)


def test_gpt2() -> None:
    family, spec = read_config(GPT2_SMALL)
    assert family == GPT2
    assert spec == DecoderSpec(
        vocab=50257,
        hidden=768,
        layers=12,
        heads=12,
        kv_heads=12,
        head_dim=64,
        mlp_width=3072,
        context_tokens=1024,
        norm="layer",
        norm_eps=1e-5,
        positions="learned",
        mlp="gelu_tanh",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=True,
    )


def test_format_5_means_the_same_as_format_4() -> None:
    scaling = LLAMA32["rope_scaling"]
    assert isinstance(scaling, dict)
    new = without(LLAMA32, "rope_theta", "rope_scaling", "torch_dtype")
    new |= {"rope_parameters": {**scaling, "rope_theta": 500000.0}, "dtype": "bfloat16"}
    assert read_config(new).spec == LLAMA32_SPEC
    both = {**LLAMA32, **new}
    assert read_config(both).spec == LLAMA32_SPEC


def test_formats_that_disagree_are_refused() -> None:
    other = {"rope_type": "default", "rope_theta": 10000.0}
    for config in (changed(LLAMA32, rope_parameters=other), changed(LLAMA2, rope_theta=5.0, rope_parameters=other)):
        with pytest.raises(ModelError, match=r"says two things about rotary positions: .*; make .* agree"):
            read_config(config)


def test_an_old_rope_type_key_and_a_default_original_length_are_read() -> None:
    scaling = {"type": "llama3", "factor": 2, "low_freq_factor": 1, "high_freq_factor": 4}
    assert read_config(changed(LLAMA2, rope_scaling=scaling)).spec.rope_scaling == RopeScaling(2.0, 1.0, 4.0, 4096)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"architectures": ["GemmaForCausalLM"], "model_type": "gemma"}, r"\['GemmaForCausalLM'\]"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"model_type": "qwen3"}, "model_type 'qwen3'"),
        ({"architectures": ["LlamaForCausalLM", "Other"]}, "Other"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'.*can be 'silu' or 'swish'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config = {'quant_method': 'gptq'}"),
        ({"sliding_window": 4096}, "sliding_window = 4096.*can be absent"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0\.5"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder = True"),
        ({"attention_multiplier": 0.1}, r"does not know: attention_multiplier = 0\.1"),
        ({"logits_soft_cap": 30.0, "embedding_multiplier": 12}, r"logits_soft_cap = 30\.0, embedding_multiplier = 12"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "auto_map"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type = 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_type = 'linear'"),
        ({"rope_scaling": {"type": "default", "mrope_section": [1, 2]}}, r"mrope_section = \[1, 2\]"),
        ({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is None"),
        ({"rope_scaling": "llama3"}, "must be an object"),
        ({"rope_theta": -1.0}, r"rope_theta is -1\.0; it must be a number above 0"),
        ({"vocab_size": 0}, "vocab_size is 0; it must be a whole number of at least 1"),
        ({"hidden_size": "4096"}, "hidden_size is '4096'"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"num_key_value_heads": 5}, "32 attention heads cannot share 5"),
        ({"head_dim": 65}, "head_dim is 65; rotary positions need an even number"),
        ({"attention_bias": "yes"}, "attention_bias is 'yes'; it must be true or false"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
    ],
)
def test_what_penstock_lacks_is_refused_by_name(fields: Config, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        read_config(changed(LLAMA2, **fields))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
        ("reorder_and_upcast_attn", True),
        ("activation_function", "relu"),
        ("add_cross_attention", True),
        ("rope_theta", 10000.0),
    ],
)
def test_what_penstock_lacks_of_gpt2_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ModelError, match=field):
        read_config(changed(GPT2_SMALL, **{field: value}))


def test_values_that_ask_for_nothing_are_fine() -> None:
    plain: Config = {
        "use_sliding_window": False,
        "sliding_window": None,
        "partial_rotary_factor": 1.0,
        "pruned_heads": {},
    }
    assert read_config(changed(LLAMA2, **plain)).spec == read_config(LLAMA2).spec
    layers: Config = {"layer_types": ["full_attention"] * 28, "sliding_window": 4096}
    assert read_config(changed(QWEN3_06B, **layers)).spec == read_config(QWEN3_06B).spec


MISTRAL_7B: Config = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
QWEN25_05B: Config = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def test_mistral() -> None:
    family, spec = read_config(MISTRAL_7B)
    assert family == MISTRAL
    assert (spec.kv_heads, spec.head_dim, spec.qkv_bias, spec.windows) == (8, 128, False, (4096,) * 32)
    assert read_config(without(MISTRAL_7B, "sliding_window")).spec == spec  # as transformers has it
    assert read_config(changed(MISTRAL_7B, sliding_window=None)).spec == replace(spec, windows=())
    assert read_config(changed(MISTRAL_7B, sliding_window=32768)).spec == replace(spec, windows=())


def test_qwen2() -> None:
    family, spec = read_config(QWEN25_05B)
    assert family == QWEN2
    assert (spec.head_dim, spec.tied, spec.windows) == (64, True, ())
    assert (spec.qkv_bias, spec.out_bias, spec.mlp_bias, spec.qk_norm) == (True, False, False, False)


@pytest.mark.parametrize("config", [QWEN25_05B, QWEN3_06B], ids=["qwen2", "qwen3"])
def test_which_layers_of_qwen_have_windows(config: Config) -> None:
    layers = config["num_hidden_layers"]
    assert isinstance(layers, int)
    some = changed(config, use_sliding_window=True, sliding_window=4096, max_window_layers=layers - 2)
    assert read_config(some).spec.windows == (None,) * (layers - 2) + (4096,) * 2
    assert read_config(changed(some, use_sliding_window=False)).spec.windows == ()
    named: Config = {"layer_types": ["sliding_attention"] + ["full_attention"] * (layers - 1)}
    assert read_config(changed(some, **named)).spec.windows == (4096,) + (None,) * (layers - 1)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"sliding_window": 0}, "sliding_window is 0; it must be a whole number of at least 1"),
        ({"sliding_window": "4096"}, "sliding_window is '4096'"),
        ({"layer_types": ["sliding_attention"]}, "it must be a list of 24 'full_attention' or 'sliding_attention'"),
        ({"layer_types": ["linear_attention"] * 24}, "layer_types = .'linear_attention'"),
        ({"max_window_layers": None}, "max_window_layers is None; it must be a whole number of at least 0"),
        ({"use_sliding_window": 1}, "use_sliding_window is 1; it must be true or false"),
    ],
)
def test_windows_that_cannot_be_read_are_refused(fields: Config, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        read_config({**QWEN25_05B, "use_sliding_window": True, "max_window_layers": 0} | fields)


GEMMA2_2B: Config = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 107],
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "initializer_range": 0.02,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.4",
    "use_cache": True,
    "vocab_size": 256000,
}
GEMMA3_270M: Config = {
    "_sliding_window_pattern": 6,
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.55.0.dev0",
    "use_bidirectional_attention": False,
    "use_cache": True,
    "vocab_size": 262144,
}


def test_gemma2() -> None:
    family, spec = read_config(GEMMA2_2B)
    assert family == GEMMA2
    assert (spec.windows, spec.windows_rope_theta, spec.tied) == ((4096, None) * 13, None, True)
    assert (spec.score_cap, spec.logit_cap, spec.query_scalar) == (50.0, 30.0, 256.0)
    assert (spec.mlp, spec.norm_plus_one, spec.norms_after, spec.embedding_times_root) == ("geglu", True, True, True)
    assert read_config(without(GEMMA2_2B, "attn_logit_softcapping", "query_pre_attn_scalar")).spec == spec
    assert read_config(changed(GEMMA2_2B, attn_logit_softcapping=None)).spec == replace(spec, score_cap=None)
    assert read_config(changed(GEMMA2_2B, sliding_window_size=4096)).spec == spec  # as the 9B has it


def test_gemma3() -> None:
    family, spec = read_config(GEMMA3_270M)
    assert family == GEMMA3
    assert (spec.windows, spec.rope_theta, spec.windows_rope_theta) == (((512,) * 5 + (None,)) * 3, 1e6, 1e4)
    assert (spec.qk_norm, spec.score_cap, spec.logit_cap) == (True, None, None)
    usual = without(GEMMA3_270M, "layer_types", "rope_theta", "rope_local_base_freq")
    assert read_config(usual).spec == spec
    assert read_config(changed(usual, sliding_window_pattern=9)).spec.windows == ((512,) * 8 + (None,)) * 2
    # A window that reaches over the whole context still says which rotary base a layer has.
    assert read_config(changed(GEMMA3_270M, sliding_window=32768)).spec.windows_rope_theta == 1e4


def test_what_gemma3_does_not_do_or_leaves_open_is_refused() -> None:
    with pytest.raises(ModelError, match="attn_logit_softcapping = 50"):
        read_config(changed(GEMMA3_270M, attn_logit_softcapping=50.0))  # transformers reads it and computes without
    with pytest.raises(ModelError, match="sliding_window is None"):
        read_config(changed(GEMMA3_270M, sliding_window=None))
    everywhere: Config = {"sliding_window": None, "layer_types": ["full_attention"] * 18}
    assert read_config(changed(GEMMA3_270M, **everywhere)).spec.windows == ()


def test_rotary_positions_by_kind_of_layer() -> None:
    top = without(GEMMA3_270M, "rope_theta", "rope_local_base_freq", "rope_scaling")
    full, sliding = {"rope_type": "default", "rope_theta": 2e6}, {"rope_type": "default", "rope_theta": 3e4}
    spec = read_config({**top, "rope_parameters": {"full_attention": full, "sliding_attention": sliding}}).spec
    assert (spec.rope_theta, spec.windows_rope_theta) == (2e6, 3e4)
    for wrong in (
        {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": sliding},
        {"full_attention": full, "sliding_attention": {"rope_type": "linear", "factor": 8.0}},
        {"full_attention": full, "chunked_attention": sliding},
    ):
        with pytest.raises(ModelError, match="rope_"):
            read_config({**top, "rope_parameters": wrong})
    with pytest.raises(ModelError, match=r"rope_local_base_freq is 10000\.0 and in rope_parameters 30000\.0"):
        read_config({**top, "rope_local_base_freq": 1e4, "rope_parameters": {"sliding_attention": sliding}})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"hidden_activation": "gelu"}, "hidden_activation = 'gelu'"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ({"attn_logit_softcapping": 0}, "attn_logit_softcapping is 0; it must be a number above 0"),
        ({"query_pre_attn_scalar": "256"}, "query_pre_attn_scalar is '256'"),
    ],
)
def test_what_penstock_lacks_of_gemma_is_refused_by_name(fields: Config, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        read_config(changed(GEMMA2_2B, **fields))


def test_biases_of_attention_are_on_both_sides_of_it() -> None:
    llama = read_config(changed(LLAMA2, attention_bias=True, mlp_bias=True)).spec
    assert (llama.qkv_bias, llama.out_bias, llama.mlp_bias) == (True, True, True)
    qwen = read_config(changed(QWEN3_06B, attention_bias=True)).spec
    assert (qwen.qkv_bias, qwen.out_bias, qwen.mlp_bias) == (True, True, False)


def test_rows_are_found_by_name() -> None:
    assert [family_named(family.model_type) for family in FAMILIES] == list(FAMILIES)
    assert read_config(without(LLAMA2, "architectures")).family == LLAMA


def test_the_tensors_of_a_checkpoint_follow_from_its_spec() -> None:
    spec = replace(read_config(QWEN3_06B).spec, layers=1, qkv_bias=True)
    assert parameter_shapes(spec, QWEN3.names) == {
        "embed_tokens.weight": (151936, 1024),
        "layers.0.self_attn.q_proj.weight": (2048, 1024),
        "layers.0.self_attn.q_proj.bias": (2048,),
        "layers.0.self_attn.k_proj.weight": (1024, 1024),
        "layers.0.self_attn.k_proj.bias": (1024,),
        "layers.0.self_attn.v_proj.weight": (1024, 1024),
        "layers.0.self_attn.v_proj.bias": (1024,),
        "layers.0.self_attn.o_proj.weight": (1024, 2048),
        "layers.0.mlp.gate_proj.weight": (3072, 1024),
        "layers.0.mlp.up_proj.weight": (3072, 1024),
        "layers.0.mlp.down_proj.weight": (1024, 3072),
        "layers.0.input_layernorm.weight": (1024,),
        "layers.0.post_attention_layernorm.weight": (1024,),
        "layers.0.self_attn.q_norm.weight": (128,),
        "layers.0.self_attn.k_norm.weight": (128,),
        "norm.weight": (1024,),
    }
    gpt2 = parameter_shapes(replace(read_config(GPT2_SMALL).spec, layers=1), GPT2.names)
    assert gpt2["wpe.weight"] == (1024, 768)
    assert gpt2["h.0.attn.c_attn.weight"] == (768, 2304)
    assert gpt2["h.0.mlp.c_proj.weight"] == (3072, 768)
    assert gpt2["ln_f.bias"] == (768,)
