"""Idle OpenMP threads sleep in the tests as in the product: on a busy machine spinning ones cost a factor of 50.

Nor has an example of Hypothesis a time by which it must be done: benchmarks do the timing.
"""

from __future__ import annotations

from hypothesis import settings

from penstock.config import wait_passively

wait_passively()
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
