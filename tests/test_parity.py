"""Protects what the models compute: the same logits and greedy tokens as transformers, feature by feature, in float32.

Each case is a random checkpoint that transformers itself writes; in the config format of 4.x it means the same.
For every field of `DecoderSpec`, a case has a value there that shows, and a test that it does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from penstock.checkpoint import Checkpoint, find_checkpoint
from penstock.config import EngineConfig
from penstock.engine import Finished, open_engine
from penstock.errors import ModelError
from penstock.executor import TorchExecutor
from penstock.kernels.table import select
from penstock.kv import KVCache
from penstock.models.decoder import Decoder, StepTensors
from penstock.models.load import load_weights
from penstock.models.spec import DecoderSpec
from penstock.request import Request, SamplingParams, TokenSpan
from penstock.step import Chunk
from penstock.weights import DecoderWeights, dense
from tests.checkpoints import CONTEXT, LLAMA3_ROPE, VOCABULARY, as_format_4, tokenizer_json, write_json
from tests.models import last, plan

pytestmark = pytest.mark.torch

TOLERANCE = 1e-4  # of the largest logit
OUTPUT_TOKENS = 64
SHARED = 33
LENGTHS = (34, 40, 97, 150)

ROTARY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 0.02,
}
LEARNED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": CONTEXT,
    "layer_norm_epsilon": 0.02,
}
BIASED = {**ROTARY, "attention_bias": True, "mlp_bias": True}
LLAMA3 = {**ROTARY, "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500000.0}, "tie_word_embeddings": True}
MISTRAL = {key: value for key, value in ROTARY.items() if key != "head_dim"} | {"sliding_window": 20}
QWEN2 = {**MISTRAL, "sliding_window": 130, "use_sliding_window": True, "max_window_layers": 1}
QWEN3 = {**ROTARY, "head_dim": 24, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}

ALTERNATING = {
    "sliding_window": 20,
    "use_sliding_window": True,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}

GEMMA2 = {**ROTARY, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 30.0}
GEMMA2 |= {"sliding_window": 20}
GEMMA3 = {**ROTARY, "query_pre_attn_scalar": 24, "sliding_window": 40, "layer_types": ALTERNATING["layer_types"]}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {**ROTARY, "num_key_value_heads": 4}),
    "llama3": ("Llama", LLAMA3),
    "llama biases": ("Llama", BIASED),
    "llama wide heads": ("Llama", {**ROTARY, "head_dim": 32, "num_key_value_heads": 1}),
    "mistral": ("Mistral", MISTRAL),
    "mistral without windows": ("Mistral", {**MISTRAL, "sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2", {**QWEN2, "use_sliding_window": False, "tie_word_embeddings": True}),
    "qwen2 with windows": ("Qwen2", QWEN2),
    "qwen3": ("Qwen3", QWEN3),
    "qwen3 with windows": ("Qwen3", {**QWEN3, **ALTERNATING}),
    "qwen3 tied biases": ("Qwen3", {**QWEN3, "attention_bias": True, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2", GEMMA2),
    "gemma2 without caps": ("Gemma2", GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3": ("Gemma3", GEMMA3),
    "gemma3 tall": ("Gemma3", {**GEMMA3, "layer_types": None, "num_hidden_layers": 7, "sliding_window": 1024}),
    "gpt2": ("GPT2", LEARNED),
    "gpt2 untied wide": ("GPT2", {**LEARNED, "n_inner": 80, "tie_word_embeddings": False}),
}


@dataclass(frozen=True)
class Written:
    """A checkpoint, and the model that transformers reads from it."""

    folder: Path
    theirs: Any

    @property
    def checkpoint(self) -> Checkpoint:
        return find_checkpoint(str(self.folder))

    def logits(self, tokens: list[int]) -> Tensor:
        with torch.inference_mode():
            result: Tensor = self.theirs(torch.tensor([tokens])).logits[0]
        return result

    def would_say(self, tokens: list[int], answer: list[int]) -> bool:
        """Whether this is the greedy answer: each token of it the likeliest behind the prompt and those before it."""
        likeliest = self.logits(tokens + answer).argmax(-1).tolist()
        return bool(likeliest[len(tokens) - 1 : -1] == answer)


Case = Callable[[str], Written]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Writes each case once."""
    written: dict[str, Written] = {}

    def find(name: str) -> Written:
        if name not in written:
            written[name] = write(tmp_path_factory.mktemp("model"), *CASES[name])
        return written[name]

    return find


def write(folder: Path, family: str, settings: dict[str, Any]) -> Written:
    import transformers

    model = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(family, f"{family}ForCausalLM"))
    config = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config"))(**settings)
    torch.manual_seed(0)
    theirs = model(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            randomize(name, parameter)
    theirs.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    # The attention that has soft caps; for the others it computes what SDPA does.
    theirs = model.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return Written(folder, theirs.eval())


def randomize(name: str, parameter: Tensor) -> None:
    if parameter.dim() == 2:
        table = any(part in name for part in ("embed", "wte", "wpe"))
        parameter.normal_(std=1.0 if table else min(parameter.shape) ** -0.5)
    else:
        parameter.normal_(mean=0.0 if name.endswith("bias") else 1.0, std=0.3)  # 1 + that for Gemma's norms


def in_format_4(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    for file in checkpoint.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = as_format_4(json.loads((folder / "config.json").read_text()))
    write_json(folder / "config.json", config)
    return find_checkpoint(str(folder))


class RecordingDecoder(Decoder):
    """Keeps the logits of its last step."""

    logits: Tensor

    def forward(self, step: StepTensors, cache: KVCache) -> Tensor:
        self.logits = super().forward(step, cache)
        return self.logits


def our_logits(spec: DecoderSpec, weights: DecoderWeights, tokens: list[int], *, chunk_tokens: int) -> Tensor:
    """The logits of every position, computed in chunks of at most that many tokens."""
    num_blocks = -(-len(tokens) // 16)
    cache = KVCache(spec, num_blocks=num_blocks, block_tokens=16, dtype=torch.float32, device="cpu")
    decoder = RecordingDecoder(spec, weights, select("cpu").kernels)
    executor = TorchExecutor(decoder, cache, device="cpu")
    found = []
    for step, start in enumerate(range(0, len(tokens), chunk_tokens), start=1):
        part = tuple(tokens[start : start + chunk_tokens])
        samples = tuple(sample for offset in range(len(part)) for sample in last(offset))
        executor.collect(executor.submit(plan(Chunk(1, start, part, (tuple(range(num_blocks)),), samples), step=step)))
        found.append(decoder.logits.clone())
    return torch.cat(found)


def prompts() -> list[list[int]]:
    """Of different lengths, the first `SHARED` tokens the same."""
    draws = torch.randint(0, VOCABULARY, (len(LENGTHS) + 1, max(LENGTHS)), generator=torch.Generator().manual_seed(5))
    shared, *rest = draws.tolist()
    return [shared[:SHARED] + own[: length - SHARED] for own, length in zip(rest, LENGTHS, strict=True)]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def our_greedy(checkpoint: Checkpoint, *, token_budget: int) -> list[list[int]]:
    """Greedy tokens of all prompts, run together through the engine."""
    config = EngineConfig("cpu", "float32", kv_memory_bytes=2**24, token_budget=token_budget, max_sequences=8)
    engine = open_engine(checkpoint, config, decode=str)
    params = SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.0, ignore_eos=True)
    numbers = [engine.add(Request((TokenSpan(tuple(tokens)),), params)) for tokens in prompts()]
    done: dict[int, list[int]] = {}
    while engine.num_unfinished:
        for event in engine.step():
            if isinstance(event, Finished):
                done[event.number] = list(event.answer.completions[0].token_ids)
    return [done[number] for number in numbers]


@pytest.mark.parametrize("name", CASES)
def test_the_config_format_of_4_means_the_same(case: Case, name: str, tmp_path: Path) -> None:
    new = case(name).checkpoint
    old = in_format_4(new, tmp_path)
    assert (old.spec, old.family, old.dtype, old.eos_ids) == (new.spec, new.family, new.dtype, new.eos_ids)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_tokens_are_those_of_transformers(case: Case, name: str) -> None:
    written = case(name)
    checkpoint = written.checkpoint
    weights = load_weights(checkpoint, device="cpu", dtype="float32")
    for tokens in prompts():
        theirs = written.logits(tokens)
        for chunk_tokens in (len(tokens), 13):
            ours = our_logits(checkpoint.spec, weights, tokens, chunk_tokens=chunk_tokens)
            assert difference(ours, theirs) < TOLERANCE
    answers = our_greedy(checkpoint, token_budget=512)
    assert [len(answer) for answer in answers] == [OUTPUT_TOKENS] * len(LENGTHS)
    assert all(written.would_say(tokens, answer) for tokens, answer in zip(prompts(), answers, strict=True))
    assert our_greedy(checkpoint, token_budget=24) == answers


def unlike(written: Written, spec: DecoderSpec, weights: DecoderWeights) -> bool:
    tokens = prompts()[-1]
    return difference(our_logits(spec, weights, tokens, chunk_tokens=150), written.logits(tokens)) > 10 * TOLERANCE


def up_alone(weights: DecoderWeights) -> DecoderWeights:
    """The gate left out of each MLP."""
    layers = []
    for layer in weights.layers:
        width = layer.gate_up.shape[0] // 2
        layers.append(replace(layer, gate_up=dense(layer.gate_up.parts["weight"][width:])))
    return replace(weights, layers=tuple(layers))


def without_plus_one(weights: DecoderWeights) -> DecoderWeights:
    """The final norm's scale without its 1."""
    return replace(weights, final_norm=replace(weights.final_norm, plus_one=False))


def unchanged(weights: DecoderWeights) -> DecoderWeights:
    return weights


# A case whose value shows, and the decoder without it: fields of the spec, and the weights that go with them.
Weights = Callable[[DecoderWeights], DecoderWeights]
SWITCHED: dict[str, tuple[str, dict[str, Any], Weights]] = {
    "rope_theta": ("qwen3", {"rope_theta": 10000.0}, unchanged),
    "rope_scaling": ("llama3", {"rope_scaling": None}, unchanged),
    "norm_eps": ("llama2", {"norm_eps": 1e-6}, unchanged),
    "norm_eps of LayerNorm": ("gpt2", {"norm_eps": 1e-5}, unchanged),
    "norm": ("gpt2", {"norm": "rms"}, unchanged),
    "positions (learned)": ("gpt2", {"positions": "rotary"}, lambda weights: replace(weights, positions=None)),
    "positions (rotary)": ("llama2", {"positions": "learned"}, unchanged),
    "mlp": ("llama2", {"mlp": "gelu_tanh"}, up_alone),
    "windows": ("mistral", {"windows": ()}, unchanged),
    "windows of some layers": ("qwen2 with windows", {"windows": (None, None, 130)}, unchanged),
    "windows_rope_theta": ("gemma3", {"windows_rope_theta": None}, unchanged),
    "embedding_times_root": ("gemma2", {"embedding_times_root": False}, unchanged),
    "query_scalar": ("gemma2", {"query_scalar": None}, unchanged),
    "score_cap": ("gemma2", {"score_cap": None}, unchanged),
    "logit_cap": ("gemma2", {"logit_cap": None}, unchanged),
    "mlp (geglu)": ("gemma2", {"mlp": "swiglu"}, unchanged),
    "norm_plus_one": ("gemma2", {"norm_plus_one": False}, without_plus_one),
}


@pytest.mark.parametrize("feature", SWITCHED)
def test_logits_show_that_a_field_of_the_spec_is_wrong(case: Case, feature: str) -> None:
    name, changes, change = SWITCHED[feature]
    written = case(name)
    weights = load_weights(written.checkpoint, device="cpu", dtype="float32")
    assert not unlike(written, written.checkpoint.spec, weights)
    assert unlike(written, replace(written.checkpoint.spec, **changes), change(weights))


# Fields that say which tensors there are: a case, and what the names of those tensors have in them.
STORED: dict[str, tuple[str, tuple[str, ...]]] = {
    "qkv_bias": ("llama biases", ("q_proj.bias", "k_proj.bias", "v_proj.bias")),
    "out_bias": ("llama biases", ("o_proj.bias",)),
    "mlp_bias": ("llama biases", ("gate_proj.bias", "up_proj.bias", "down_proj.bias")),
    "qk_norm": ("qwen3", ("q_norm.weight", "k_norm.weight")),
    "norms_after": ("gemma2", ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")),
}
STORED_GPT2: dict[str, tuple[str, tuple[str, ...]]] = {
    "qkv_bias": ("gpt2", ("c_attn.bias",)),
    "out_bias": ("gpt2", ("attn.c_proj.bias",)),
    "mlp_bias": ("gpt2", ("c_fc.bias", "mlp.c_proj.bias")),
}


@pytest.mark.parametrize(("field", "rows"), [(f, STORED) for f in STORED] + [(f, STORED_GPT2) for f in STORED_GPT2])
def test_a_field_that_is_off_is_refused_or_else_shows_in_the_logits(
    case: Case, field: str, rows: dict[str, tuple[str, tuple[str, ...]]], tmp_path: Path
) -> None:
    name, parts = rows[field]
    written = case(name)
    changes: dict[str, Any] = {field: False}
    off = replace(written.checkpoint, spec=replace(written.checkpoint.spec, **changes))
    with pytest.raises(ModelError, match="unknown tensors"):
        load_weights(off, device="cpu", dtype="float32")
    tensors = load_file(written.folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.endswith(parts)}, tmp_path / "model.safetensors")
    weights = load_weights(replace(off, folder=tmp_path), device="cpu", dtype="float32")
    assert unlike(written, off.spec, weights)


@pytest.mark.parametrize(("name", "problem"), [("llama2", "config.json ties"), ("llama3", "lacks: lm_head.weight")])
def test_a_head_that_is_tied_or_not_against_the_checkpoint_is_refused(case: Case, name: str, problem: str) -> None:
    checkpoint = case(name).checkpoint
    wrong = replace(checkpoint, spec=replace(checkpoint.spec, tied=not checkpoint.spec.tied))
    with pytest.raises(ModelError, match=problem):
        load_weights(wrong, device="cpu", dtype="float32")


def test_every_field_of_the_spec_is_covered() -> None:
    covered = {field for _, changes, _ in SWITCHED.values() for field in changes} | STORED.keys() | {"tied"}
    sizes = {"vocab", "hidden", "layers", "heads", "kv_heads", "head_dim", "mlp_width", "context_tokens"}
    assert {field.name for field in fields(DecoderSpec)} == covered | sizes
