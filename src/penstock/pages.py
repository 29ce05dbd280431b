"""Gives memory back to the system: a file's pages that were read through a mapping, and the holes of the heap.

Owns the two calls of the C library that do so. Both are hints without an effect on any value: dropped pages of a file
are read again if they are needed, and where the C library has no such call the memory stays taken.
One idea: a mapped file counts as memory of the process page by page as it is read, so what was copied is let go.
"""

from __future__ import annotations

import ctypes
import mmap

from torch import Tensor

_LIBRARY = ctypes.CDLL(None, use_errno=True)
_PAGE = mmap.PAGESIZE


def drop_mapped(tensor: Tensor) -> None:
    """Let go of the whole pages under a tensor that lies in a mapped file and is not written to."""
    start = -(-tensor.data_ptr() // _PAGE) * _PAGE
    end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // _PAGE * _PAGE
    if end > start and hasattr(_LIBRARY, "madvise"):
        _LIBRARY.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def trim_heap() -> None:
    """Give back the free pages of the heap (glibc keeps what lies between blocks that are in use)."""
    if hasattr(_LIBRARY, "malloc_trim"):
        _LIBRARY.malloc_trim(ctypes.c_size_t(0))
