"""What holds for every test.

Idle OpenMP threads sleep as in the product: on a busy machine spinning ones cost a factor of 50. Where Python keeps
nothing that it compiles, the many processes that tests start would compile all of us each time. And no example of
Hypothesis has a time by which it must be done: benchmarks do the timing.
"""

from __future__ import annotations

import os

from hypothesis import settings

from penstock.config import wait_passively

wait_passively()
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
