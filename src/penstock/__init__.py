"""Penstock runs large files of prompts through open-weight language models and never loses a row.

The public names are `LLM`, `Result` and `SamplingParams`; they are loaded on first use, so `import penstock` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.llm import LLM, Result
    from penstock.request import SamplingParams

    __version__: str

__all__ = ["LLM", "Result", "SamplingParams", "__version__"]


def __getattr__(name: str) -> object:
    """Load a public name."""
    if name == "__version__":
        from importlib.metadata import version

        return version("penstock")
    if name == "SamplingParams":
        from penstock.request import SamplingParams

        return SamplingParams
    if name in {"LLM", "Result"}:
        from penstock import llm

        return getattr(llm, name)
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")
