"""Element-wise functions whose every bit is decided by their argument alone.

PyTorch's own `exp`, `silu`, `gelu` and `sum` change with the size of a tensor and an element's place in it: vector and
tail loops round differently. Here everything is built from operations that IEEE 754 rounds exactly (add, multiply,
divide, square root, comparison, integer bits), in a fixed order, so size, place, thread and device do not matter.
All functions take and return float32 unless they say otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOG2_E = 1.4426950408889634
LN2_HIGH = 0.693145751953125  # ln 2 to 15 bits, so that n * LN2_HIGH is exact for |n| < 256
LN2_LOW = 1.42860682030941723212e-6
# 1/k! for k = 7 .. 0: below one unit in the last place on [-ln2/2, ln2/2].
TAYLOR = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
SMALLEST, LARGEST = -87.0, 88.0
SQRT_2_OVER_PI = 0.7978845608028654


def exp(x: Tensor) -> Tensor:
    """e to the x, within 2 units in the last place; x outside [-87, 88] gives the value at that end; exp(0) is 1.

    Cody and Waite's reduction to [-ln2/2, ln2/2], then a polynomial (Software Manual for the Elementary Functions, 6).
    """
    x = x.clamp(SMALLEST, LARGEST)
    n = (x * LOG2_E).round_()
    r = x.sub_(n * LN2_HIGH).sub_(n * LN2_LOW)
    power = torch.full_like(r, TAYLOR[0])
    for coefficient in TAYLOR[1:]:
        power.mul_(r).add_(coefficient)
    scale = (n.to(torch.int32) + 127).bitwise_left_shift_(23).view(torch.float32)
    return power.mul_(scale)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e to the -x)."""
    return 1.0 / exp(-x).add_(1.0)


def tanh(x: Tensor) -> Tensor:
    """2 sigmoid(2 x) - 1: right to about 1e-7, which near 0 is not every digit."""
    return sigmoid(x * 2.0).mul_(2.0).sub_(1.0)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return x * sigmoid(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation (arXiv 1606.08415): x * sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3)."""
    cube = x * x * x
    u = (cube * 0.044715).add_(x).mul_(SQRT_2_OVER_PI)
    return x * sigmoid(u.mul_(2.0))


def tree_sum(x: Tensor) -> Tensor:
    """The sum over the last axis, keeping it with width 1, by halves: the order depends on the axis' width alone."""
    width = x.shape[-1]
    while width > 1:
        half = width // 2
        halves = x[..., :half] + x[..., half : 2 * half]
        x = torch.cat((halves, x[..., 2 * half : width]), dim=-1) if width % 2 else halves
        width = x.shape[-1]
    return x
