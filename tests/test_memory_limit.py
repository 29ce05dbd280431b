"""Protects that running out of memory is an event and not an end: a real process under an address-space limit.

The same rows are answered with room and without. Without, a step of 2,048 tokens cannot be held: the engine must shrink
the step, go on, say so once, and give the same bits.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import write_llama

pytestmark = pytest.mark.torch

CHILD = """
import json, random, resource, sys
from penstock import LLM, SamplingParams

room = int(sys.argv[2])
llm = LLM(sys.argv[1], device="cpu", kv_memory="16MiB", token_budget=2048)
llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2, temperature=0.0))  # threads and caches are there now
if room:
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
rng = random.Random(1)
prompts = [[rng.randrange(290) for _ in range(rng.randint(100, 200))] for _ in range(24)]
results = llm.generate(prompts, SamplingParams(max_tokens=4, temperature=1.0, logprobs=2))
answers = [[list(r.token_ids), r.logprobs] for r in results]
print(json.dumps({"answers": answers, "notes": llm.stats().notes, "steps": llm.stats().steps}))
"""


def answer(model: Path, *, room_bytes: int) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(model), str(room_bytes)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_a_step_that_memory_cannot_hold_is_made_smaller_and_the_answers_stay_the_same(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "wide", config={"intermediate_size": 16384})  # 2,048 rows take 256 MiB a product
    plenty = answer(model, room_bytes=0)
    little = answer(model, room_bytes=150 * 2**20)
    assert plenty["notes"] == []
    notes = little["notes"]
    assert isinstance(notes, list)
    assert len(notes) == 1
    assert notes[0].startswith("memory ran out: token budget lowered from 2048 to ")
    assert little["answers"] == plenty["answers"]
