"""llama.cpp through llama-cpp-python, run by its own Python: `--against llamacpp=VENV/bin/python` (which needs `gguf`).

See `__init__.py` for the lines that this speaks. The checkpoint is converted to GGUF once, into the temporary folder.
Requests run as llama.cpp's server runs them: in slots, each with an equal part of the KV memory; a request goes to the
idle slot whose last one begins most like it, and only what differs is computed; generating slots come first in a step.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

FAMILIES = {"Qwen3ForCausalLM": "QWEN3", "Qwen2ForCausalLM": "QWEN2", "LlamaForCausalLM": "LLAMA"}
STEP_TOKENS = 2048  # its default
MOST_SLOTS = 256  # as it is built
SLOT_TOKENS = 256  # a slot's positions are a multiple of it
GGML_F32, GGML_F16 = 0, 1


def main() -> None:
    """Convert and load, say so, and run the workloads that stdin names."""
    with open(sys.argv[1], encoding="utf-8") as file:
        terms = json.load(file)
    llama: Any = importlib.import_module("llama_cpp")
    notes = []
    path = gguf_path(terms)
    if not path.exists():
        started = time.perf_counter()
        convert(Path(terms["checkpoint"]), path, wide=terms["dtype"] == "float32")
        notes.append(f"the first start converted the checkpoint to GGUF, {time.perf_counter() - started:.0f} s of it")
    slots = Slots(llama, path, terms)
    if terms["warm_up"]:
        slots.run([{"prompt_token_ids": list(range(60)), "max_tokens": 4}])
    notes.append(f"{slots.count} sequences at once, each with {slots.slot_tokens} positions of KV of its own")
    say({"ready": True, "title": f"llama.cpp (llama-cpp-python {llama.__version__})", "notes": notes})
    for line in sys.stdin:
        with open(line.rstrip("\n"), encoding="utf-8") as file:
            say(slots.run([json.loads(row) for row in file]))


class Slot:
    """A sequence of the cache: `tokens` are in it, `pending` go in next; `wanted` outputs are still to come."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.tokens: list[int] = []
        self.pending: list[int] = []
        self.wanted = 0
        self.used_step = 0


class Slots:
    """A loaded model and its slots."""

    def __init__(self, llama: Any, path: Path, terms: dict[str, Any]) -> None:
        self._llama = llama
        self.slot_tokens = -(-terms["context_tokens"] // SLOT_TOKENS) * SLOT_TOKENS
        kv_tokens = terms["kv_bytes"] // kv_token_bytes(terms)
        self.count = max(1, min(terms["max_sequences"], MOST_SLOTS, kv_tokens // self.slot_tokens))
        model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
        settings = llama.llama_context_default_params()
        settings.n_ctx = self.count * self.slot_tokens
        settings.n_batch = STEP_TOKENS
        settings.n_seq_max = self.count
        settings.n_threads = settings.n_threads_batch = terms["threads"]
        settings.type_k = settings.type_v = GGML_F32 if terms["dtype"] == "float32" else GGML_F16
        self._context = llama.llama_init_from_model(model, settings)
        if not self._context:
            raise SystemExit(f"llama.cpp could not load {path}")
        self._memory = llama.llama_get_memory(self._context)
        self._batch = llama.llama_batch_init(STEP_TOKENS, 0, 1)
        self._vocab = read_config(terms)["vocab_size"]
        self._slots: list[Slot] = []
        self._computed_tokens = 0

    def run(self, rows: list[dict[str, Any]]) -> dict[str, object]:
        """Run a workload on an empty cache."""
        self._llama.llama_memory_clear(self._memory, False)  # noqa: FBT003  a C function
        self._slots = [Slot(number) for number in range(self.count)]
        self._computed_tokens = output_tokens = step = 0
        waiting = list(reversed(rows))
        started = time.perf_counter()
        while waiting or any(slot.wanted for slot in self._slots):
            step += 1
            while waiting and not all(slot.wanted for slot in self._slots):
                self._admit(waiting.pop())
            output_tokens += self._step(step)
        wall_s = time.perf_counter() - started
        prompt_tokens = sum(len(row["prompt_token_ids"]) for row in rows)
        return {
            "wall_s": wall_s,
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "computed_tokens": self._computed_tokens,
        }

    def _admit(self, row: dict[str, Any]) -> None:
        """Into the idle slot that begins most like it; of equals, the one that was used longest ago."""
        prompt = row["prompt_token_ids"]
        idle = [slot for slot in self._slots if not slot.wanted]
        kept, _, number = max((common(slot.tokens, prompt[:-1]), -slot.used_step, slot.number) for slot in idle)
        slot = self._slots[number]
        self._llama.llama_memory_seq_rm(self._memory, number, kept, -1)
        slot.tokens, slot.pending, slot.wanted = prompt[:kept], prompt[kept:], row["max_tokens"]

    def _step(self, step: int) -> int:
        """Compute a step; gives the number of tokens that came out."""
        ends: list[tuple[Slot, int]] = []
        self._batch.n_tokens = 0
        for slot in sorted((slot for slot in self._slots if slot.wanted), key=lambda slot: len(slot.pending)):
            room = STEP_TOKENS - self._batch.n_tokens
            self._put(slot, slot.pending[:room], is_last=len(slot.pending) <= room)
            slot.used_step = step
            if not slot.pending:
                ends.append((slot, self._batch.n_tokens - 1))
        code = self._llama.llama_decode(self._context, self._batch)
        if code:
            raise SystemExit(f"llama_decode failed with {code}")
        self._computed_tokens += self._batch.n_tokens
        for slot, index in ends:
            slot.wanted -= 1
            slot.pending = [self._best(index)] if slot.wanted else []
        return len(ends)

    def _put(self, slot: Slot, tokens: list[int], *, is_last: bool) -> None:
        batch = self._batch
        for token in tokens:
            i = batch.n_tokens
            batch.token[i], batch.pos[i] = token, len(slot.tokens)
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, slot.number, 0
            slot.tokens.append(token)
            batch.n_tokens += 1
        slot.pending = slot.pending[len(tokens) :]
        if is_last:
            batch.logits[batch.n_tokens - 1] = 1

    def _best(self, index: int) -> int:
        numpy: Any = importlib.import_module("numpy")
        logits = self._llama.llama_get_logits_ith(self._context, index)
        return int(
            numpy.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self._vocab,)).argmax()
        )


def common(a: list[int], b: list[int]) -> int:
    """How many tokens two lists have in common from their start on."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


# The checkpoint


def read_config(terms: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's config.json."""
    found: dict[str, Any] = json.loads((Path(terms["checkpoint"]) / "config.json").read_text(encoding="utf-8"))
    return found


def head_width(config: dict[str, Any]) -> int:
    """The width of an attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def kv_token_bytes(terms: dict[str, Any]) -> int:
    """Bytes of KV of one position."""
    config = read_config(terms)
    elements = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_width(config)
    return int(elements * (4 if terms["dtype"] == "float32" else 2))


def gguf_path(terms: dict[str, Any]) -> Path:
    """Where the converted checkpoint is kept: another one for another checkpoint, dtype or version of its files."""
    files = sorted(Path(terms["checkpoint"]).glob("*.safetensors"))
    what = [terms["dtype"], *((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"penstock-llamacpp-{digest}.gguf"


def convert(folder: Path, path: Path, *, wide: bool) -> None:
    """Write a checkpoint as GGUF: matrices in bfloat16 (`wide`: in float32), vectors in float32, no vocabulary."""
    gguf: Any = importlib.import_module("gguf")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = FAMILIES.get(config["architectures"][0])
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if family is None or rope.get("rope_type", "default") != "default":
        raise SystemExit(f"{config['architectures'][0]} with positions {rope} has no conversion to GGUF here")
    arch = gguf.MODEL_ARCH[family]
    unfinished = path.with_suffix(f".{os.getpid()}")
    writer = gguf.GGUFWriter(unfinished, gguf.MODEL_ARCH_NAMES[arch])
    describe(writer, config, rope.get("rope_theta") or config["rope_theta"])
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for name, tensor in tensors(folder):
        if family == "LLAMA" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if wide or tensor.ndim == 1:
            writer.add_tensor(new_name, as_float32(tensor))
        else:
            writer.add_tensor(new_name, tensor, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)


def describe(writer: Any, config: dict[str, Any], theta: float) -> None:
    """Write the shape of the model."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_width(config))
    writer.add_value_length(head_width(config))
    writer.add_rope_dimension_count(head_width(config))
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


def tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """The tensors of a checkpoint in bfloat16, as their bits, for numpy has no such type."""
    numpy: Any = importlib.import_module("numpy")
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
        data = numpy.memmap(path, numpy.uint8, "r", 8 + header_bytes)
        for name, found in header.items():
            if name == "__metadata__":
                continue
            if found["dtype"] != "BF16":
                raise SystemExit(f"{name} is {found['dtype']}; only bfloat16 checkpoints are converted to GGUF here")
            start, end = found["data_offsets"]
            yield name, data[start:end].view(numpy.uint16).reshape(found["shape"])


def as_float32(bits: Any) -> Any:
    """The same numbers in float32."""
    numpy: Any = importlib.import_module("numpy")
    return (bits.astype(numpy.uint32) << 16).view(numpy.float32)


def say(answer: dict[str, object]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
