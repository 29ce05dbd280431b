"""`open_device`: a checkpoint and a configuration to an executor on a device, and what its numbers rest on.

Owns the set-up of the tensor side: threads, weights, kernels, KV memory, and the numerics signature. Everything here
happens once, before the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from penstock.checkpoint import Checkpoint
from penstock.config import EngineConfig
from penstock.errors import ConfigError
from penstock.executor import TorchExecutor
from penstock.kernels.native import NOT_ASKED, Native, Opened, open_native
from penstock.kernels.table import NUMERICS_VERSION, Kernels, Selection, find_inexact_product, select
from penstock.kv import KVCache
from penstock.models.decoder import Decoder, linear_weights
from penstock.models.load import load_weights
from penstock.pages import trim_heap

# Instruction sets that change how PyTorch's libraries multiply matrices.
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")


class OpenedDevice(NamedTuple):
    """An executor, its numerics signature, and why it is not row-exact (None: it is)."""

    executor: TorchExecutor
    signature: dict[str, str]
    why_not_exact: str | None


def open_device(
    checkpoint: Checkpoint,
    config: EngineConfig,
    *,
    num_blocks: int,
    wrap_kernels: Callable[[Kernels, Native | None], Kernels] | None = None,
) -> OpenedDevice:
    """Load the weights and build the executor; `wrap_kernels` may put the same ops in wrappers, to time them.

    Raises:
        ConfigError: the device is not there. ModelError: the checkpoint cannot be loaded.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device is cuda and PyTorch {torch.__version__} sees no CUDA device; use --device cpu")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    opened = _open_native(config)
    selection = select(config.device, opened)
    weights = load_weights(checkpoint, device=config.device, dtype=config.dtype, pack=selection.kernels.pack)
    trim_heap()  # of the dense matrices that were packed
    cache = KVCache(
        checkpoint.spec,
        num_blocks=num_blocks,
        block_tokens=config.block_tokens,
        dtype=weights.dtype,
        device=config.device,
    )
    if opened.native is not None:
        for memory in (*cache.keys.values(), *cache.values.values()):
            opened.native.prefer_huge_pages(memory)
    kernels = wrap_kernels(selection.kernels, opened.native) if wrap_kernels else selection.kernels
    decoder = Decoder(checkpoint.spec, weights, kernels)
    executor = TorchExecutor(
        decoder, cache, device=config.device, tile_rows=selection.tile_rows, needs_zeros=selection.needs_zeros
    )
    why_not = _why_not_exact(selection, config.device)
    if why_not is None and selection.why_not_native is not None:  # ours are exact by their making, whatever the shape
        with torch.inference_mode():
            why_not = find_inexact_product(selection.kernels.linear, linear_weights(weights))
    return OpenedDevice(executor, numerics_signature(selection, config), why_not)


def _open_native(config: EngineConfig) -> Opened:
    """The native kernels, for the CPU. One team of threads owns the cores: with them torch computes on one."""
    if config.device != "cpu":
        return NOT_ASKED
    opened = open_native(dtype=config.dtype, threads=torch.get_num_threads(), max_isa=config.max_isa)
    if opened.native is not None:
        torch.set_num_threads(1)
    return opened


def _why_not_exact(selection: Selection, device: str) -> str | None:
    if not selection.not_row_exact:
        return None
    return f"{', '.join(selection.not_row_exact)} on {device} may round differently beside other rows"


def numerics_signature(selection: Selection, config: EngineConfig) -> dict[str, str]:
    """Everything outside the model on which an answer's bits depend, by name."""
    signature = {
        "device": config.device,
        "dtype": config.dtype,
        "quantization": "none",
        "numerics": str(NUMERICS_VERSION),
        "torch": torch.__version__,
        **{f"kernel.{op}": name for op, name in selection.names.items()},
    }
    if config.device == "cuda":
        return signature | {"gpu": torch.cuda.get_device_name()}
    return signature | {"threads": str(torch.get_num_threads()), "instructions": instruction_sets()}


def instruction_sets() -> str:
    """The instruction sets that PyTorch may use here: its own choice of vectors, and what the processor has."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return " ".join([torch.backends.cpu.get_cpu_capability(), *(name for name in INSTRUCTION_SETS if name in flags)])
