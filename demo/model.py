"""The demo model: a small Llama in plain PyTorch, and its export as a Hugging Face folder.

Weights are kept in float32 and used in bfloat16, so the float32 copy is what the optimizers move. The
parameter names are those of LlamaForCausalLM; `export` writes config.json, model.safetensors (bfloat16),
generation_config.json, tokenizer.json and tokenizer_config.json, which transformers loads as they are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from tokens import CHAT_TEMPLATE, END_OF_TEXT, TURN_END, VOCABULARY

EPSILON = 1e-6
MAX_POSITIONS = 4096


@dataclass(frozen=True)
class Shape:
    """The model's sizes."""

    width: int = 256
    layers: int = 6
    heads: int = 4
    inner: int = 704
    theta: float = 10000.0

    @property
    def head(self) -> int:
        """The width of one head."""
        return self.width // self.heads


class Linear(nn.Module):
    """A bias-free matrix, kept in float32 and applied in bfloat16 by its users."""

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * scale * inputs**-0.5)


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """The input at unit root mean square, scaled."""
        return functional.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), EPSILON)


def joined(*parts: Linear) -> Tensor:
    """Several matrices over the same input as one bfloat16 matrix."""
    return torch.cat([part.weight for part in parts]).to(torch.bfloat16)


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, width = shape.heads, shape.width
        self.q_proj, self.k_proj, self.v_proj = (Linear(width, width) for _ in range(3))
        self.o_proj = Linear(width, width, (2 * shape.layers) ** -0.5)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """What the layer adds for each position, seeing only earlier ones."""
        batch, length, width = x.shape
        mixed = functional.linear(x, joined(self.q_proj, self.k_proj, self.v_proj))
        heads = mixed.view(batch, length, 3 * self.heads, width // self.heads).transpose(1, 2)
        turning, values = heads[:, : 2 * self.heads], heads[:, 2 * self.heads :]
        first, second = turning.chunk(2, -1)
        turned = turning * cos + torch.cat((-second, first), -1) * sin
        queries, keys = turned.chunk(2, 1)
        seen = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return functional.linear(seen.transpose(1, 2).reshape(batch, length, width), joined(self.o_proj))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (Linear(shape.width, shape.inner) for _ in range(2))
        self.down_proj = Linear(shape.inner, shape.width, (2 * shape.layers) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer adds for each position."""
        gate, up = functional.linear(x, joined(self.gate_proj, self.up_proj)).chunk(2, -1)
        return functional.linear(functional.silu(gate) * up, joined(self.down_proj))


class Layer(nn.Module):
    """One pre-norm block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(shape.width), Attention(shape)
        self.post_attention_layernorm, self.mlp = Norm(shape.width), Mlp(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The states after this block."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        mixed: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return mixed


class Llama(nn.Module):
    """The whole model; `forward` gives final states, `logits` the scores of chosen ones."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, shape.width)
        nn.init.normal_(self.embed_tokens.weight, std=shape.width**-0.5)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.width)
        steps = shape.theta ** (-torch.arange(0, shape.head, 2) / shape.head)
        angles = torch.outer(torch.arange(MAX_POSITIONS), torch.cat((steps, steps)))
        self.register_buffer("cos", angles.cos().to(torch.bfloat16), persistent=False)
        self.register_buffer("sin", angles.sin().to(torch.bfloat16), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """The final states of every position."""
        cos, sin = self.get_buffer("cos")[: ids.shape[1]], self.get_buffer("sin")[: ids.shape[1]]
        x = functional.embedding(ids, self.embed_tokens.weight.to(torch.bfloat16))
        for layer in self.layers:
            x = layer(x, cos, sin)
        normed: Tensor = self.norm(x)
        return normed

    def logits(self, states: Tensor) -> Tensor:
        """Scores of every token for the given states; the embedding is tied."""
        return functional.linear(states, self.embed_tokens.weight.to(torch.bfloat16)).float()


def config(shape: Shape, end: int, pad: int) -> dict[str, object]:
    """The model's config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.head,
        "hidden_act": "silu",
        "rms_norm_eps": EPSILON,
        "rope_theta": shape.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.theta},
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": True,
        "vocab_size": VOCABULARY,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": pad,
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
        "use_cache": True,
    }


def write_json(file: Path, content: dict[str, object]) -> None:
    """Writes indented JSON."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def export(model: Llama, shape: Shape, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    vocabulary = tokenizer.get_vocab()
    end, pad = vocabulary[TURN_END], vocabulary[END_OF_TEXT]
    write_json(folder / "config.json", config(shape, end, pad))
    write_json(
        folder / "generation_config.json",
        {"do_sample": False, "eos_token_id": end, "pad_token_id": pad},
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": TURN_END,
            "pad_token": END_OF_TEXT,
            "model_max_length": MAX_POSITIONS,
        },
    )
    tokenizer.save(str(folder / "tokenizer.json"))
