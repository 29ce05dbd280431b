"""Idle OpenMP threads sleep in the tests as in the product: on a busy machine spinning ones cost a factor of 50."""

from __future__ import annotations

from penstock.config import wait_passively

wait_passively()
