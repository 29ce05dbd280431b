"""A small model and a profile of it with round numbers, for tests of what is predicted."""

from __future__ import annotations

from penstock.config import EngineConfig
from penstock.models.spec import DecoderSpec
from penstock.profile import Point, Prices, Profile, Rates
from penstock.simulation import Terms

SPEC = DecoderSpec(
    vocab=100,
    hidden=8,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=2,
    mlp_width=16,
    context_tokens=512,
    norm="rms",
    norm_eps=1e-6,
    positions="rotary",
    mlp="swiglu",
)
KV_BYTES = 2 * 3 * 2 * 4  # of one token in bfloat16: layers x heads x (key + value)
BLOCK_BYTES = 4 * KV_BYTES


def config(*, blocks: int = 1000, budget: int = 64, sequences: int = 8) -> EngineConfig:
    return EngineConfig("cpu", "bfloat16", blocks * BLOCK_BYTES, budget, sequences, block_tokens=4, threads=2)


def profile(*, prices: Prices | None = None, rates: Rates | None = None, decide_s: float = 0.0) -> Profile:
    """A step takes 1 s, and 0.5 s more for each token above the first four; logits take 0.25 s."""
    return Profile(
        about={"model": "tiny", "dtype": "bfloat16", "device": "cpu", "threads": "2"},
        numerics={"kernel.linear": "native-portable"},
        measured_at="2026-11-25T21:00:00+00:00",
        block_tokens=4,
        tile_queries=32,
        tokens=(Point(1, 1.0), Point(4, 1.0), Point(64, 31.0)),
        samples=(Point(1, 0.25), Point(8, 0.25)),
        prices=prices or Prices(),
        decide_s=decide_s,
        rates=rates or Rates(1e6, 1e5),
    )


def terms(**asked: int) -> Terms:
    return Terms(SPEC, config(**asked), profile())
