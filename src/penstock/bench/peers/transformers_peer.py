"""Hugging Face transformers' continuous batching, run by its own Python: `--against transformers=VENV/bin/python`.

It is `generate_batch` (see `__init__.py` for the lines that this speaks), called one level lower, because that takes
one output length for all requests. As `generate_batch` does, requests go in sorted, so that equal beginnings meet.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

PAGE_TOKENS = 256  # its default
STEP_TOKENS = 2048  # left alone, it takes a step that is too large for the memory of most machines


def main() -> None:
    """Load, say so, and run the workloads that stdin names."""
    with open(sys.argv[1], encoding="utf-8") as file:
        terms = json.load(file)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    torch.set_num_threads(terms["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        terms["checkpoint"], dtype=getattr(torch, terms["dtype"]), attn_implementation="sdpa"
    )
    settings = continuous_batching(transformers, model.config, terms)
    if terms["warm_up"]:
        run(torch, transformers, model, settings, [{"prompt_token_ids": list(range(60)), "max_tokens": 4}])
    title = f"transformers {transformers.__version__} (continuous batching)"
    notes = [f"its steps take {STEP_TOKENS} tokens"]
    why_not = "it counts no tokens that its prefix cache saved"
    say({"ready": True, "title": title, "notes": notes, "computed_why_not": why_not})
    for line in sys.stdin:
        with open(line.rstrip("\n"), encoding="utf-8") as file:
            say(run(torch, transformers, model, settings, [json.loads(row) for row in file]))


def continuous_batching(transformers: Any, config: Any, terms: dict[str, Any]) -> Any:
    """Its settings: the same KV bytes and sequences at once as everybody."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    element_bytes = 4 if terms["dtype"] == "float32" else 2
    page_bytes = PAGE_TOKENS * 2 * config.num_hidden_layers * heads * width * element_bytes
    return transformers.generation.configuration_utils.ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=max(1, terms["kv_bytes"] // page_bytes),
        max_batch_tokens=max(STEP_TOKENS, terms["max_sequences"]),
        max_requests_per_batch=terms["max_sequences"],
        allow_block_sharing=True,
    )


def run(torch: Any, transformers: Any, model: Any, settings: Any, rows: list[dict[str, Any]]) -> dict[str, object]:
    """Run a workload on a new, empty cache; making it is not timed."""
    longest = max(row["max_tokens"] for row in rows)
    greedy = transformers.GenerationConfig(do_sample=False, max_new_tokens=longest, eos_token_id=-1, pad_token_id=0)
    ordered = sorted(rows, key=lambda row: row["prompt_token_ids"], reverse=True)
    output_tokens = finished = 0
    with (
        torch.no_grad(),
        model.continuous_batching_context_manager(
            generation_config=greedy, continuous_batching_config=settings, timeout=5
        ) as manager,
    ):
        started = time.perf_counter()
        for row in ordered:
            manager.add_request(row["prompt_token_ids"], max_new_tokens=row["max_tokens"], eos_token_id=-1)
        while finished < len(rows):
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise SystemExit(f"its generation thread ended with {finished} of {len(rows)} requests finished")
            if result is not None and result.is_finished():
                finished += 1
                output_tokens += len(result.generated_tokens)
        wall_s = time.perf_counter() - started
    prompt_tokens = sum(len(row["prompt_token_ids"]) for row in rows)
    return {"wall_s": wall_s, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens}


def say(answer: dict[str, object]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
