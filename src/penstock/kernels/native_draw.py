"""Drawing tokens with the native kernels: samples to the structs of `native/ops.h`, and back to draws.

Owns the C interface of drawing; the rules are those of `sampling.py`, and `native/draw.h` follows them.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from penstock.kernels.native_structs import ADDRESS, COUNT, INT
from penstock.request import TokenLogprob
from penstock.sampling import LEAST_TEMPERATURE, NO_CANDIDATE, NO_LOGPROB, Draw, describe_bad, normalize
from penstock.step import SampleAt

BANNED = float("-inf")


class NativeDraw(ctypes.Structure):
    """`Draw` in native/ops.h."""

    _fields_ = [
        *((name, ctypes.c_double) for name in ("uniform", "top_p", "min_p")),
        *((name, COUNT) for name in ("top_k", "num_top")),
        ("temperature", ctypes.c_float),
        ("weighed", INT),
        *((name, ADDRESS) for name in ("changed", "amounts", "top", "top_logits")),
        *((name, COUNT) for name in ("changes", "token", "bad", "total")),
        *((name, ctypes.c_float) for name in ("highest", "logit")),
        ("possible", INT),
    ]


# The same, for many at once: the numbers that are asked, and the whole of it.
_ASKED = struct.Struct("3d2qfi")
_WHOLE = struct.Struct("3d2qfi4P4q2fi4x")
assert _WHOLE.size == ctypes.sizeof(NativeDraw)


class NativeDraws(ctypes.Structure):
    """`Draws` in native/ops.h."""

    _fields_ = [("logits", ADDRESS), ("draws", ADDRESS), ("rows", COUNT), ("vocab", COUNT)]


class Asked(NamedTuple):
    """A struct for each sample, and the arrays that some point to."""

    structs: ctypes.Array[NativeDraw]
    changes: dict[int, tuple[ctypes.Array[ctypes.c_int64], ctypes.Array[ctypes.c_float]]]
    tops: dict[int, tuple[ctypes.Array[ctypes.c_int64], ctypes.Array[ctypes.c_float]]]


def ask(samples: Sequence[SampleAt], vocab: int) -> Asked:
    """What the library needs to know to draw from rows of `vocab` logits.

    Raises:
        IndexError: a token that is not in the vocabulary is biased or banned.
    """
    asked = Asked((NativeDraw * len(samples))(), {}, {})
    for row, sample in enumerate(samples):
        _ASKED.pack_into(asked.structs, row * _WHOLE.size, *_plain(sample, vocab))
        if sample.bias or sample.banned:
            _point_to_changes(asked, row, sample, vocab=vocab)
        if sample.logprobs:
            _point_to_top(asked, row)
    return asked


def _plain(sample: SampleAt, vocab: int) -> tuple[float | int, ...]:
    """The fields of a struct that are numbers, in order."""
    temperature = max(sample.temperature, LEAST_TEMPERATURE) if sample.temperature > 0.0 else 0.0
    weighed = sample.logprobs is not None
    num_top = min(sample.logprobs or 0, vocab)
    return sample.uniform, sample.top_p, sample.min_p, min(sample.top_k, vocab), num_top, temperature, weighed


def _point_to_changes(asked: Asked, row: int, sample: SampleAt, *, vocab: int) -> None:
    pairs = [*sample.bias, *((token, BANNED) for token in sample.banned)]
    tokens, amounts = zip(*pairs, strict=True)
    if not 0 <= min(tokens) <= max(tokens) < vocab:
        raise IndexError(f"tokens {min(tokens)} to {max(tokens)} are biased or banned, of a vocabulary of {vocab}")
    ids, values = (ctypes.c_int64 * len(pairs))(*tokens), (ctypes.c_float * len(pairs))(*amounts)
    asked.changes[row] = ids, values
    made = asked.structs[row]
    made.changed, made.amounts, made.changes = ctypes.addressof(ids), ctypes.addressof(values), len(pairs)


def _point_to_top(asked: Asked, row: int) -> None:
    made = asked.structs[row]
    ids, values = (ctypes.c_int64 * made.num_top)(), (ctypes.c_float * made.num_top)()
    asked.tops[row] = ids, values
    made.top, made.top_logits = ctypes.addressof(ids), ctypes.addressof(values)


def read(asked: Asked, vocab: int) -> Iterator[Draw]:
    """What came of each sample."""
    for row, fields in enumerate(_WHOLE.iter_unpack(asked.structs)):
        weighed, (token, bad, total, highest, logit, possible) = fields[6], fields[-6:]
        if bad:
            yield Draw(None, describe_bad(bad, vocab))
        elif not possible:
            yield Draw(None, NO_CANDIDATE)
        elif not weighed:
            yield Draw(TokenLogprob(token, NO_LOGPROB, ()))
        else:
            top = list(zip(*asked.tops[row], strict=True)) if row in asked.tops else []
            yield Draw(normalize((token, logit), top, highest=highest, total=total))
