"""Writes tiny random Hugging Face checkpoints for the tests: Llama, Qwen3 and GPT-2, without transformers.

A folder takes a few milliseconds: config.json in the 4.x or 5.x format, safetensors (whole or sharded), a byte-level
BPE tokenizer.json of `VOCABULARY` tokens, tokenizer_config.json with a chat template, generation_config.json. Every
tensor is random, biases and norms included, so that a test notices when one is not used. Fields of config.json go in
`config`, e.g. `write_llama(folder, seed=3, config={"num_hidden_layers": 4})`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

Config = dict[str, object]

MERGED = (
    "Ġ t|h e|Ġt he|t h|Ġ a|i n|r e|e r|o n|Ġ s|a t|e n|i s|Ġ w|o r|e s|n d|Ġ c|Ġ b|o u|Ġ f|i t|in g|Ġ p|e d|Ġ m|a n"
    "|Ġ o|Ġ in|a l|Ġa nd|Ġ d|o w|Ġ h|Ġt o|l e"
)
SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<|end|>", "<|unused_0|>", "<|unused_1|>")
VOCABULARY = 300
BOS, EOS, PAD = 292, 293, 294
CONTEXT = 512
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_ROPE: Config = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


class Layout(TypedDict, total=False):
    """How a folder is written.

    seed: of the weights; dtype: float32, bfloat16, float16; shards: files of weights (more than 1: with an index);
    config_format: "4" or "5"; adds_bos: the tokenizer puts BOS first; chat_template: None for none; template_place:
    "config", "list" (named templates), "jinja" or "json" (files of their own).
    """

    seed: int
    dtype: str
    shards: int
    config_format: str
    adds_bos: bool
    chat_template: str | None
    template_place: str
    config: Mapping[str, object]


def write_llama(
    folder: Path,
    *,
    tied: bool = False,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    rope: Mapping[str, object] | None = None,
    **layout: Unpack[Layout],
) -> Path:
    """A Llama folder; `rope` is a dictionary such as `LLAMA3_ROPE`."""
    fields = {"attention_bias": attention_bias, "mlp_bias": mlp_bias}
    config = _rotary_config("llama", "LlamaForCausalLM", 10000.0, rope) | fields | {"tie_word_embeddings": tied}
    return _write(folder, config, layout)


def write_qwen3(folder: Path, *, tied: bool = True, attention_bias: bool = False, **layout: Unpack[Layout]) -> Path:
    """A Qwen3 folder: heads wider than hidden / heads, norms on queries and keys."""
    config = _rotary_config("qwen3", "Qwen3ForCausalLM", 1000000.0, None)
    config |= {"head_dim": 24, "attention_bias": attention_bias, "tie_word_embeddings": tied}
    config |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 2}
    return _write(folder, config, layout)


def write_gpt2(folder: Path, *, prefix: bool = True, **layout: Unpack[Layout]) -> Path:
    """A GPT-2 folder; `prefix`: whether names start with `transformer.`, as in files that transformers writes."""
    config: Config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": VOCABULARY,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": CONTEXT,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "bos_token_id": EOS,
        "eos_token_id": EOS,
    }
    return _write(folder, config, layout, prefix="transformer." if prefix else "")


def as_format_4(config: Mapping[str, object]) -> Config:
    """A config.json of transformers 5.x in the words of 4.x."""
    old = dict(config)
    old["torch_dtype"] = old.pop("dtype", None)
    old["transformers_version"] = "4.51.3"
    rope = old.pop("rope_parameters", None)
    if isinstance(rope, dict) and "sliding_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    if isinstance(rope, dict):
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        old["rope_theta"] = rope["rope_theta"]
        old["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    return old


def tokenizer_json(*, adds_bos: bool = False) -> str:
    """The tokenizer.json of every folder here: bytes, then merges, then `SPECIAL`; `VOCABULARY` tokens in all."""
    return _tokenizer(adds_bos).to_str()


@functools.cache
def _tokenizer(adds_bos: bool) -> Tokenizer:
    merges = [(first, second) for first, second in (pair.split() for pair in MERGED.split("|"))]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(first + second for first, second in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    assert tokenizer.get_vocab_size() == VOCABULARY
    if adds_bos:
        single = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", BOS)])
        tokenizer.post_processor = single
    return tokenizer


def _rotary_config(model_type: str, architecture: str, theta: float, rope: Mapping[str, object] | None) -> Config:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", **(rope or {}), "rope_theta": theta},
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }


def _write(folder: Path, config: Config, layout: Layout, prefix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    dtype = layout.get("dtype", "float32")
    config = config | {"dtype": dtype, "transformers_version": "5.0.0"} | dict(layout.get("config", {}))
    tensors = _tensors(config, prefix, layout.get("seed", 0), getattr(torch, dtype))
    if layout.get("config_format", "5") == "4":
        config = as_format_4(config)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"eos_token_id": [EOS, VOCABULARY - 3], "pad_token_id": PAD})
    (folder / "tokenizer.json").write_text(tokenizer_json(adds_bos=layout.get("adds_bos", False)), encoding="utf-8")
    _write_template(folder, layout.get("chat_template", CHATML), layout.get("template_place", "config"))
    _write_tensors(folder, tensors, layout.get("shards", 1))
    return folder


def write_json(file: Path, content: Mapping[str, object]) -> None:
    """Writes indented JSON."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_template(folder: Path, template: str | None, place: str) -> None:
    settings: Config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|im_end|>"}
    if template is not None and place == "config":
        settings["chat_template"] = template
    elif template is not None and place == "list":
        named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": template}]
        settings["chat_template"] = named
    elif template is not None and place == "jinja":
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    elif template is not None and place == "json":
        write_json(folder / "chat_template.json", {"chat_template": template})
    write_json(folder / "tokenizer_config.json", settings)


def _write_tensors(folder: Path, tensors: dict[str, Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    where = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(where.values())):
        part = {name: tensor for name, tensor in tensors.items() if where[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})


def _tensors(config: Config, prefix: str, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    shapes = _gpt2_shapes(config, prefix) if config["model_type"] == "gpt2" else _rotary_shapes(config)
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, shape, generator).to(dtype) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator)
    if len(shape) == 2:
        # Conv1D holds [in, out]; the tables of embeddings keep unit variance so that tokens differ.
        table = "embed" in name or "wte" in name or "wpe" in name
        return values if table else values * max(shape) ** -0.5
    return values * 0.2 if name.endswith("bias") else 1.0 + 0.2 * values


def _rotary_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    vocab, hidden, inner, heads, kv_heads, width = (_integer(config, key) for key in keys)
    q, kv = heads * width, kv_heads * width
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(_integer(config, "num_hidden_layers")):
        layer = f"model.layers.{i}."
        attention = {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q)}
        mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        shapes |= _linears(layer + "self_attn.", attention, bias=bool(config.get("attention_bias")))
        shapes |= _linears(layer + "mlp.", mlp, bias=bool(config.get("mlp_bias")))
        shapes |= {layer + f"{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        if config["model_type"] == "qwen3":
            shapes |= {layer + f"self_attn.{norm}.weight": (width,) for norm in ("q_norm", "k_norm")}
    shapes["model.norm.weight"] = (hidden,)
    return shapes if config["tie_word_embeddings"] else shapes | {"lm_head.weight": (vocab, hidden)}


def _linears(prefix: str, shapes: dict[str, tuple[int, int]], *, bias: bool) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {f"{prefix}{name}.weight": shape for name, shape in shapes.items()}
    return found | {f"{prefix}{name}.bias": (shape[0],) for name, shape in shapes.items() if bias}


def _gpt2_shapes(config: Config, prefix: str) -> dict[str, tuple[int, ...]]:
    vocab, hidden, positions = (_integer(config, key) for key in ("vocab_size", "n_embd", "n_positions"))
    inner = _integer(config, "n_inner") if config["n_inner"] else 4 * hidden
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocab, hidden), "wpe.weight": (positions, hidden)}
    for i in range(_integer(config, "n_layer")):
        linears = {"attn.c_attn": (hidden, 3 * hidden), "attn.c_proj": (hidden, hidden)}
        linears |= {"mlp.c_fc": (hidden, inner), "mlp.c_proj": (inner, hidden)}
        for name, shape in linears.items():
            shapes |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": (shape[1],)}
        shapes |= {f"h.{i}.{norm}.{part}": (hidden,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    shapes |= {f"ln_f.{part}": (hidden,) for part in ("weight", "bias")}
    head = {} if config.get("tie_word_embeddings", True) else {"lm_head.weight": (vocab, hidden)}
    return {prefix + name: shape for name, shape in shapes.items()} | head


def _integer(config: Config, key: str) -> int:
    value = config[key]
    assert isinstance(value, int)
    return value
