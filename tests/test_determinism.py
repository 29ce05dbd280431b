"""Protects promise 3: a row's answer depends on the row alone, to the bit, log-probabilities included.

The same 500 rows, greedy and sampled, are answered alone, together, shuffled, under small and large token budgets,
with and without shared prefixes, and with so little KV that sequences are preempted: on the native kernels that this
machine takes by itself and on the reference kernels (which are slow: every fifth row, but for together and little KV);
fewer rows, on every instruction set below. Killed and resumed: `test_resume.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pytest
import torch

from penstock.engine import Engine, Finished, Numerics
from penstock.executor import TorchExecutor
from penstock.request import Answer, Namespace, Request, SamplingParams, TokenSpan, stream_key
from penstock.scheduler import Scheduler
from tests.models import GEMMA, GPT2, LLAMA, QWEN3, WINDOWS, executor, native_isas, opened, random_weights, usual_isa

pytestmark = pytest.mark.torch

NUM_ROWS = 500
SPECS = {"llama": LLAMA, "qwen3": QWEN3, "gpt2": GPT2, "windows": WINDOWS, "gemma": GEMMA}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KERNELS = ["reference", *usual_isa()]
STYLES = [
    SamplingParams(temperature=0.0, logprobs=3),
    SamplingParams(temperature=1.0, logprobs=1),
    SamplingParams(temperature=0.7, top_p=0.9, logprobs=0),
    SamplingParams(temperature=1.3, top_k=20, min_p=0.02, logprobs=5, seed=4),
    SamplingParams(temperature=1.0, n=2, logprobs=0, stop=("7,",)),
    SamplingParams(temperature=0.0, logprobs=2, logit_bias=((3, 4.0), (8, -50.0)), min_tokens=2, stop_token_ids=(3,)),
]


@cache
def rows() -> tuple[Request, ...]:
    """Rows in 12 groups that share a beginning of 0 to 150 tokens; 1 to 250 tokens long, 1 to 10 to be drawn."""
    rng = random.Random(11)
    prefixes = [tuple(rng.choices(range(131), k=rng.choice([0, 15, 16, 17, 60, 128, 150]))) for _ in range(12)]
    made = []
    for i in range(NUM_ROWS):
        own = tuple(rng.choices(range(131), k=rng.randint(1, rng.choice([3, 20, 100]))))
        params = replace(STYLES[i % len(STYLES)], max_tokens=rng.randint(2, 10))
        key = stream_key(params.seed, job_seed=0, custom_id=f"row-{i}")
        made.append(Request((TokenSpan(rng.choice(prefixes) + own),), params, key))
    return tuple(made)


def decode(ids: Sequence[int]) -> str:
    return "".join(f"{i}," for i in ids)


def answer_all(
    requests: Sequence[Request],
    tensors: TorchExecutor,
    *,
    num_blocks: int = 400,
    block_tokens: int = 16,
    token_budget: int = 256,
    expected_tokens: int | None = None,
) -> tuple[list[Answer], Engine]:
    """The answers in the order of the requests, and the engine that gave them; too short a guess makes it preempt."""
    scheduler = Scheduler(num_blocks=num_blocks, block_tokens=block_tokens, token_budget=token_budget, max_sequences=32)
    engine = Engine(
        scheduler, tensors, decode=decode, eos_ids=frozenset({1}), context_tokens=4096, numerics=Numerics({})
    )
    numbers = {engine.add(request, expected_tokens): place for place, request in enumerate(requests)}
    answers: dict[int, Answer] = {}
    while engine.num_unfinished:
        for event in engine.step():
            if isinstance(event, Finished):
                answers[numbers[event.number]] = replace(event.answer, cached_tokens=0)
    return [answers[i] for i in range(len(requests))], engine


class Model(NamedTuple):
    """What answers: kernels by their instruction set, and the dtype."""

    kernels: str
    dtype: str
    name: str = "llama"

    def open(self, *, num_blocks: int = 400, block_tokens: int = 16) -> TorchExecutor:
        return executor(
            SPECS[self.name],
            dtype=DTYPES[self.dtype],
            num_blocks=num_blocks,
            block_tokens=block_tokens,
            native=opened(self.kernels),
        )


@cache
def tensors_of(model: Model) -> TorchExecutor:
    return model.open()


@cache
def together(model: Model) -> list[Answer]:
    answers, engine = answer_all(rows(), tensors_of(model))
    assert engine.stats().cached_tokens > 5_000
    assert len({c.token_ids for a in answers for c in a.completions}) > 300, "the answers are too alike to tell"
    return answers


def some(model: Model) -> slice:
    """Which rows are asked again: on the slow kernels every fifth, of all styles and all shared beginnings."""
    return slice(2, None, 5) if model.kernels == "reference" else slice(None)


@pytest.fixture(params=[Model(kernels, dtype) for kernels in KERNELS for dtype in DTYPES], ids="-".join)
def model(request: pytest.FixtureRequest) -> Model:
    made: Model = request.param
    return made


def test_alone(model: Model) -> None:
    tensors = tensors_of(model)
    assert [answer_all([row], tensors)[0][0] for row in rows()[some(model)]] == together(model)[some(model)]


def test_shuffled(model: Model) -> None:
    order = list(range(NUM_ROWS))[some(model)]
    random.Random(5).shuffle(order)
    answers, _ = answer_all([rows()[i] for i in order], tensors_of(model))
    assert answers == [together(model)[i] for i in order]


@pytest.mark.parametrize("token_budget", [32, 2048])
def test_under_any_token_budget(model: Model, token_budget: int) -> None:
    answers, _ = answer_all(rows()[some(model)], tensors_of(model), token_budget=token_budget)
    assert answers == together(model)[some(model)]


def test_without_prefix_hits(model: Model) -> None:
    salted = [replace(row, namespace=Namespace(salt=str(i))) for i, row in enumerate(rows()[some(model)])]
    answers, engine = answer_all(salted, tensors_of(model))
    most_from_samples = sum(len(row.prompt_tokens) for row in salted if row.params.n > 1)
    assert engine.stats().cached_tokens <= most_from_samples
    assert answers == together(model)[some(model)]


def test_with_little_kv(model: Model) -> None:
    tensors = model.open(num_blocks=67, block_tokens=4)
    answers, engine = answer_all(rows(), tensors, num_blocks=67, block_tokens=4, expected_tokens=1)
    assert engine.stats().preemptions > 3
    assert answers == together(model)


@pytest.mark.parametrize(
    ("name", "kernels"),
    # without what the tests above do with more rows
    [(name, one) for name in SPECS for one in ("reference", *native_isas()) if name != "llama" or one not in KERNELS],
)
def test_in_every_family_on_every_instruction_set(name: str, kernels: str) -> None:
    few = rows()[::5]
    model = Model(kernels, "bfloat16", name)
    first, _ = answer_all(few, model.open())
    small = model.open(num_blocks=90, block_tokens=4)
    backwards, engine = answer_all(few[::-1], small, num_blocks=90, block_tokens=4, token_budget=48, expected_tokens=1)
    assert engine.stats().preemptions > 0
    assert backwards[::-1] == first


def test_a_wrong_row_would_be_noticed(model: Model) -> None:
    """The comparison is sharp: weights that differ in one element give other log-probabilities."""
    weights = random_weights(LLAMA, dtype=DTYPES[model.dtype])
    weights.layers[0].down.parts["weight"][0, 0] *= 1.01
    tensors = executor(LLAMA, dtype=DTYPES[model.dtype], num_blocks=400, weights=weights, native=opened(model.kernels))
    answers, _ = answer_all(rows()[:50], tensors)
    assert answers != together(model)[:50]
