"""Whether there is a CUDA device and how much of its memory is free: what the automatic settings ask before loading."""

from __future__ import annotations

import torch


def cuda_free_bytes() -> int | None:
    """Free memory of the current CUDA device; None: there is none that PyTorch can use."""
    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info()
    return int(free)
