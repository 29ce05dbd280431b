"""Protects the llama.cpp peer's own part, with a library that computes nothing: slots, reuse, counts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.bench.peers import llamacpp_peer
from penstock.bench.peers.llamacpp_peer import Slots, common, kv_token_bytes

CONFIG = {
    "num_hidden_layers": 2,
    "num_key_value_heads": 3,
    "num_attention_heads": 6,
    "hidden_size": 48,
    "vocab_size": 9,
}


class Library:
    """llama.cpp's functions; `cache` holds the tokens of each sequence, `steps` the sequences of each step."""

    def __init__(self) -> None:
        self.cache: dict[int, list[int]] = {}
        self.steps: list[list[int]] = []
        self.settings = SimpleNamespace()
        for name in ("llama_model_default_params", "llama_get_memory"):
            setattr(self, name, lambda *_: SimpleNamespace())

    def llama_context_default_params(self) -> SimpleNamespace:
        return self.settings

    def llama_model_load_from_file(self, *_: object) -> str:
        return "model"

    def llama_init_from_model(self, *_: object) -> str:
        return "context"

    def llama_batch_init(self, size: int, *_: int) -> SimpleNamespace:
        columns = {name: [0] * size for name in ("token", "pos", "n_seq_id", "logits")}
        return SimpleNamespace(n_tokens=0, seq_id=[[0] for _ in range(size)], **columns)

    def llama_memory_clear(self, *_: object) -> None:
        self.cache = {}

    def llama_memory_seq_rm(self, _: object, number: int, start: int, end: int) -> None:
        assert end == -1
        self.cache[number] = self.cache.get(number, [])[:start]

    def llama_decode(self, _: object, batch: Any) -> int:
        self.steps.append([batch.seq_id[i][0] for i in range(batch.n_tokens)])
        for i in range(batch.n_tokens):
            held = self.cache.setdefault(batch.seq_id[i][0], [])
            assert batch.pos[i] == len(held), "a position is written twice or left out"
            held.append(batch.token[i])
        return 0


def slots(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> tuple[Slots, Library]:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    terms = {"checkpoint": str(folder), "dtype": "bfloat16", "threads": 2, "max_sequences": 2, "context_tokens": 20}
    library = Library()
    monkeypatch.setattr(Slots, "_best", lambda _, __: 7)
    return Slots(library, folder / "x.gguf", {**terms, "kv_bytes": 2**20, **changes}), library


def row(prompt: list[int], output: int) -> dict[str, Any]:
    return {"prompt_token_ids": prompt, "max_tokens": output}


def test_every_request_runs_to_its_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some, library = slots(tmp_path, monkeypatch)
    done = some.run([row([1, 2, 3], 3), row([4, 5], 1), row([6], 2)])
    assert (done["prompt_tokens"], done["output_tokens"], done["computed_tokens"]) == (6, 6, 6 + 2 + 0 + 1)
    # The shorter one is in slot 0, which takes the third request as soon as it is free.
    assert library.steps == [[0, 0, 1, 1, 1], [0, 1], [0, 1]]


def test_a_request_goes_where_its_beginning_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some, _ = slots(tmp_path, monkeypatch)
    rows = [row([1, 2, 3, 4], 1), row([5, 6, 7, 8], 1), row([5, 6, 7, 9], 1), row([1, 2, 3, 4], 1)]
    assert some.run(rows)["computed_tokens"] == 4 + 4 + 1 + 1  # of an equal prompt, its last token
    assert some.run(rows)["computed_tokens"] == 10, "a workload starts on an empty cache"


def test_the_kv_memory_is_divided_among_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token_bytes = 2 * 2 * 3 * 8 * 2
    some, library = slots(tmp_path, monkeypatch, kv_bytes=token_bytes * 256 * 5, max_sequences=64)
    assert kv_token_bytes({"checkpoint": str(tmp_path), "dtype": "bfloat16"}) == token_bytes
    assert (some.count, some.slot_tokens, library.settings.n_ctx) == (5, 256, 5 * 256)
    wide, library = slots(tmp_path, monkeypatch, kv_bytes=token_bytes * 256 * 5, dtype="float32", context_tokens=257)
    assert (wide.count, wide.slot_tokens, library.settings.type_k) == (1, 512, llamacpp_peer.GGML_F32)


def test_a_long_prompt_takes_several_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp_peer, "STEP_TOKENS", 8)
    some, library = slots(tmp_path, monkeypatch)
    done = some.run([row(list(range(12)), 2), row([1, 2], 4)])
    assert [len(step) for step in library.steps] == [8, 7, 2, 1]
    assert done["computed_tokens"] == 12 + 1 + 2 + 3


def test_a_failed_step_ends_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some, library = slots(tmp_path, monkeypatch)
    monkeypatch.setattr(library, "llama_decode", lambda *_: 1)
    with pytest.raises(SystemExit, match="llama_decode failed with 1"):
        some.run([row([1], 1)])


def test_common_beginnings() -> None:
    assert [common([1, 2, 3], other) for other in ([1, 2, 4], [1, 2], [2], [1, 2, 3, 4])] == [2, 2, 0, 3]


def test_a_checkpoint_s_numbers_stay_the_same(tmp_path: Path) -> None:
    header = {"__metadata__": {}, "w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [4, 12]}}
    text = json.dumps(header).encode()
    bits = [0x3F80, 0xC000, 0x0000, 0x3E80]  # 1, -2, 0, 1/4
    data = b"pad." + b"".join(b.to_bytes(2, "little") for b in bits)
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    [(name, tensor)] = llamacpp_peer.tensors(tmp_path)
    assert name == "w"
    assert tensor.tolist() == [bits[:2], bits[2:]]
    assert llamacpp_peer.as_float32(tensor).tolist() == [[1.0, -2.0], [0.0, 0.25]]


@pytest.mark.parametrize(
    "changes",
    [{"architectures": ["Other"]}, {"architectures": ["LlamaForCausalLM"], "rope_scaling": {"rope_type": "llama3"}}],
)
def test_what_it_cannot_convert_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace())
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
    with pytest.raises(SystemExit, match="has no conversion to GGUF here"):
        llamacpp_peer.convert(tmp_path, tmp_path / "x.gguf", wide=False)
