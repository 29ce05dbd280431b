"""Protects loading: every parameter has the values that transformers loads, and no tensor is lost or made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from penstock.checkpoint import find_checkpoint
from penstock.errors import ModelError
from penstock.models.load import load_weights
from penstock.weights import DecoderWeights, Norm, Weight
from tests.checkpoints import write_gpt2, write_llama, write_qwen3

pytestmark = pytest.mark.torch

Write = Callable[..., Path]


def load(folder: Path, dtype: str = "float32") -> DecoderWeights:
    return load_weights(find_checkpoint(str(folder)), device="cpu", dtype=dtype)


def tensors(weights: DecoderWeights) -> Iterator[Tensor]:
    yield weights.embedding.parts["weight"]
    if weights.positions is not None:
        yield weights.positions
    for part in (weights.final_norm, weights.head):
        yield from parts(part)
    for layer in weights.layers:
        for part in (layer.attention_norm, layer.qkv, layer.out, layer.mlp_norm, layer.gate_up, layer.down):
            yield from parts(part)
        yield from parts(layer.q_norm) if layer.q_norm else ()
        yield from parts(layer.k_norm) if layer.k_norm else ()


def parts(part: Norm | Weight) -> Iterator[Tensor]:
    if isinstance(part, Weight):
        yield from part.parts.values()
    else:
        yield from (t for t in (part.weight, part.bias) if t is not None)


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    stored = load_file(folder / "model.safetensors")
    edit(stored)
    save_file(stored, folder / "model.safetensors")


def theirs(folder: Path) -> dict[str, Tensor]:
    from transformers import AutoModelForCausalLM

    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())


@pytest.mark.parametrize("shards", [1, 3])
def test_llama_parameters_are_those_of_transformers(tmp_path: Path, shards: int) -> None:
    folder = write_llama(tmp_path / "m", attention_bias=True, mlp_bias=True, shards=shards)
    ours, state = load(folder), theirs(folder)
    assert torch.equal(ours.embedding.parts["weight"], state["model.embed_tokens.weight"])
    assert torch.equal(ours.head.parts["weight"], state["lm_head.weight"])
    assert torch.equal(ours.final_norm.weight, state["model.norm.weight"])
    for i, layer in enumerate(ours.layers):
        own = {k.removeprefix(f"model.layers.{i}."): v for k, v in state.items() if k.startswith(f"model.layers.{i}.")}
        for kind in ("weight", "bias"):
            q, k, v = (own[f"self_attn.{name}_proj.{kind}"] for name in "qkv")
            assert torch.equal(layer.qkv.parts[kind], torch.cat([q, k, v]))
            assert torch.equal(layer.out.parts[kind], own[f"self_attn.o_proj.{kind}"])
            gate_up = torch.cat([own[f"mlp.gate_proj.{kind}"], own[f"mlp.up_proj.{kind}"]])
            assert torch.equal(layer.gate_up.parts[kind], gate_up)
            assert torch.equal(layer.down.parts[kind], own[f"mlp.down_proj.{kind}"])
        assert torch.equal(layer.attention_norm.weight, own["input_layernorm.weight"])
        assert torch.equal(layer.mlp_norm.weight, own["post_attention_layernorm.weight"])


def test_qwen3_has_norms_of_queries_and_keys(tmp_path: Path) -> None:
    folder = write_qwen3(tmp_path / "m")
    ours, state = load(folder), theirs(folder)
    for i, layer in enumerate(ours.layers):
        assert layer.q_norm is not None
        assert layer.k_norm is not None
        assert torch.equal(layer.q_norm.weight, state[f"model.layers.{i}.self_attn.q_norm.weight"])
        assert torch.equal(layer.k_norm.weight, state[f"model.layers.{i}.self_attn.k_norm.weight"])
        assert layer.qkv.shape == ((4 + 2 + 2) * 24, 64)
    assert ours.head is ours.embedding


@pytest.mark.parametrize("prefix", [True, False])
def test_gpt2_matrices_are_turned_and_both_prefixes_load(tmp_path: Path, prefix: bool) -> None:
    folder = write_gpt2(tmp_path / "m", prefix=prefix)
    ours, state = load(folder), theirs(folder)
    assert ours.positions is not None
    assert torch.equal(ours.positions, state["transformer.wpe.weight"])
    for i, layer in enumerate(ours.layers):
        own = {k.removeprefix(f"transformer.h.{i}."): v for k, v in state.items()}
        pairs = [(layer.qkv, "attn.c_attn"), (layer.out, "attn.c_proj"), (layer.gate_up, "mlp.c_fc")]
        for weight, name in [*pairs, (layer.down, "mlp.c_proj")]:
            assert torch.equal(weight.parts["weight"], own[f"{name}.weight"].t())
            assert torch.equal(weight.parts["bias"], own[f"{name}.bias"])
        for norm, name in [(layer.attention_norm, "ln_1"), (layer.mlp_norm, "ln_2")]:
            assert torch.equal(norm.weight, own[f"{name}.weight"])
            assert norm.bias is not None
            assert torch.equal(norm.bias, own[f"{name}.bias"])


@pytest.mark.parametrize("write", [write_llama, write_qwen3, write_gpt2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tensors_are_aligned_contiguous_and_of_the_asked_dtype(tmp_path: Path, write: Write, dtype: str) -> None:
    for tensor in tensors(load(write(tmp_path / "m", dtype="bfloat16"), dtype)):
        assert tensor.dtype == getattr(torch, dtype)
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0


def test_loaded_tensors_do_not_follow_the_file(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m")
    ours = load(folder)
    before = [tensor.clone() for tensor in tensors(ours)]
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.write(bytes((folder / "model.safetensors").stat().st_size))
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(ours), strict=True))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m")
    change(folder, lambda stored: stored.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lacks: model\.layers\.1\.mlp\.up_proj\.weight;"):
        load(folder)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m")
    change(folder, lambda stored: stored.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}))
    with pytest.raises(ModelError, match=r"unknown tensors: model\.layers\.0\.self_attn\.q_proj\.bias;"):
        load(folder)


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 100}))
    with pytest.raises(ModelError, match=r"gate_proj\.weight is \[96, 64\], and config\.json asks for \[100, 64\]"):
        load(folder)


def test_a_tensor_stored_as_integers_is_refused(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m")
    change(folder, lambda stored: stored.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    with pytest.raises(ModelError, match=r"model\.norm\.weight is stored as I8; Penstock loads F32, BF16, F16"):
        load(folder)


def test_derived_tensors_are_not_needed(tmp_path: Path) -> None:
    llama, gpt2 = write_llama(tmp_path / "l"), write_gpt2(tmp_path / "g", prefix=False)
    change(llama, lambda stored: stored.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    change(gpt2, lambda stored: stored.update({"h.0.attn.bias": torch.ones(1, 1, 4, 4)}))
    assert len(load(llama).layers) == 2
    assert len(load(gpt2).layers) == 2


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m", tied=True)
    change(folder, lambda stored: stored.update({"lm_head.weight": stored["model.embed_tokens.weight"].clone()}))
    ours = load(folder)
    assert ours.head is ours.embedding
    change(folder, lambda stored: stored["lm_head.weight"].add_(1))
    with pytest.raises(ModelError, match=r"config\.json ties lm_head\.weight"):
        load(folder)


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m")
    change(folder, lambda stored: stored["model.norm.weight"].mul_(1e6))
    with pytest.raises(ModelError, match=r"model\.norm\.weight has values that float16 cannot hold"):
        load(folder, "float16")
