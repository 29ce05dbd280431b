"""`RotaryTable`: the cosines and sines of the rotary position embedding, with llama3 scaling where a spec asks for it.

Computed from the same float32 frequencies and angles as Hugging Face's models, but cosine and sine in float64, rounded
to float32, in pieces of one fixed length: a position's values do not depend on how long the table has grown.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from penstock.kernels.reference import Rotary
from penstock.models.spec import RopeScaling

PIECE = 4096  # positions computed at a time


class RotaryTable:
    """Cosines and sines for positions 0 .. context_tokens, computed as far as they have been asked for."""

    def __init__(self, width: int, theta: float, *, scaling: RopeScaling | None, device: torch.device) -> None:
        self._frequencies = frequencies(width, theta, scaling=scaling)
        self._device = device
        self._cosine = torch.empty(0, width // 2, device=device)
        self._sine = torch.empty(0, width // 2, device=device)

    def at(self, positions: Tensor, *, num_positions: int) -> Rotary:
        """Of int64 positions [rows], all below `num_positions`."""
        self._reserve(num_positions)
        return Rotary(self._cosine[positions], self._sine[positions])

    def _reserve(self, num_positions: int) -> None:
        while self._cosine.shape[0] < num_positions:
            start = self._cosine.shape[0]
            positions = torch.arange(start, start + PIECE, dtype=torch.float32)
            angles = (positions[:, None] * self._frequencies[None, :]).double()
            self._cosine = torch.cat((self._cosine, angles.cos().float().to(self._device)))
            self._sine = torch.cat((self._sine, angles.sin().float().to(self._device)))


def frequencies(width: int, theta: float, *, scaling: RopeScaling | None) -> Tensor:
    """The rotary frequencies, float32 [width/2] (arXiv 2104.09864, section 3.4.2)."""
    exponents = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    plain = 1.0 / (theta**exponents)
    return plain if scaling is None else stretch(plain, scaling)


def stretch(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's scaling: long wavelengths are divided by the factor, short ones kept, those between interpolated."""
    context = scaling.original_context_tokens
    longest, shortest = context / scaling.low_freq_factor, context / scaling.high_freq_factor
    wavelength = 2 * math.pi / plain
    smooth = (context / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    between = (1 - smooth) * plain / scaling.factor + smooth * plain
    result = torch.where(wavelength > longest, plain / scaling.factor, plain)
    return torch.where((wavelength <= longest) & (wavelength >= shortest), between, result)
