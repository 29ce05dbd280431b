"""What PyTorch is here: version, vectors, and why it has no GPU. Asked by `penstock doctor`; computes nothing."""

from __future__ import annotations

from typing import NamedTuple

import torch


class TorchFacts(NamedTuple):
    """`vectors`: the instruction set that its own ops use; `why_no_gpu` is None where it has one."""

    version: str
    vectors: str
    why_no_gpu: str | None


def torch_facts() -> TorchFacts:
    """Look."""
    return TorchFacts(torch.__version__, torch.backends.cpu.get_cpu_capability(), _why_no_gpu())


def _why_no_gpu() -> str | None:
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    return f"PyTorch is built for CUDA {torch.version.cuda} and finds no device"
