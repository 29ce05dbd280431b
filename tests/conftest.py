"""Idle OpenMP threads sleep in the tests as in the product: on a busy machine spinning ones cost a factor of 50.

And where Python keeps nothing that it compiles, the many processes that tests start would compile all of us each time.
"""

from __future__ import annotations

import os

from penstock.config import wait_passively

wait_passively()
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
