"""Files of rows: lines out of a plain, gzip or zstd file, and the file's digest.

Owns how bytes on disk become numbered lines. What a line means is not known here (`protocol.py` says that).
One idea: a stream of chunks, whatever the compression (found by the first bytes, never by the name), cut into lines.
Memory is bounded by the longest line allowed: a longer one is cut one byte past the limit, and `parse_row` refuses it.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import zstandard

from penstock.errors import Refused
from penstock.fields import MAX_LINE_BYTES

_CHUNK_BYTES = 2**18
_ZSTD_CHUNK_BYTES = 2**12  # compressed; zstd may turn each 4 bytes into a block of 128 KiB, so this bounds memory
_SAMPLE_BYTES = 2**20  # of a file as it is on the disk: its rows are reckoned from so many
_UNREADABLE = (OSError, EOFError, zlib.error, zstandard.ZstdError)
_BLANK = b" \t\r\n"
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class InputLine(NamedTuple):
    """A line that is not blank: its place among those (from 0), its line number (from 1), its bytes without the end.

    `at` is where it starts in the file, in bytes; None: the file is compressed, so no line can be found again.
    """

    row: int
    line: int
    data: bytes
    at: int | None


def read_lines(path: Path) -> Iterator[InputLine]:
    """The lines of a file that are not blank, in order.

    Raises:
        Refused: the file cannot be read, or is compressed and damaged or cut short; the message has the line reached.
    """
    row, line = 0, 0
    try:
        with path.open("rb") as file:
            is_plain = not _is_compressed(file)
            for line, (start, data) in enumerate(_lines(_chunks(file)), 1):
                text = data.removeprefix(_BYTE_ORDER_MARK) if line == 1 else data
                if text.strip(_BLANK):
                    at = start + len(data) - len(text) if is_plain else None
                    yield InputLine(row, line, text.removesuffix(b"\r"), at)
                    row += 1
    except _UNREADABLE as error:
        raise Refused(f"{path} cannot be read past line {line} ({_reason(error)}); make the file anew") from error


class LineReader:
    """Finds lines of a plain file again, by where they start (see `InputLine.at`)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def read(self, at: int, size_bytes: int) -> bytes:
        """The `size_bytes` bytes of the line that starts at `at`.

        Raises:
            Refused: the file cannot be read.
        """
        try:
            self._file = self._file or self._path.open("rb")
            self._file.seek(at)
            return self._file.read(size_bytes)
        except OSError as error:
            raise Refused(f"{self._path} cannot be read at byte {at} ({_reason(error)})") from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def about_rows(path: Path) -> int:
    """How many rows a file has, about: as many to a byte on the disk as at its beginning.

    Raises:
        Refused: the file cannot be read.
    """
    rows = 0
    try:
        with path.open("rb") as file:
            for chunk in _chunks(file):
                rows += chunk.count(b"\n")
                if file.tell() >= _SAMPLE_BYTES:
                    return rows * path.stat().st_size // file.tell()
    except _UNREADABLE as error:
        raise Refused(f"{path} cannot be read ({_reason(error)}); make the file anew") from error
    return rows + 1


def digest(path: Path) -> str:
    """Hex SHA-256 of the file's bytes as they are on disk."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Refused(f"{path} cannot be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _lines(chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Cut chunks into lines: where each starts, and it without its newline, at most one byte longer than the limit."""
    start, end = 0, 0  # of the line at hand: where it starts, and how far it has been read
    held = bytearray()
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            yield (
                start,
                bytes(held) + piece[: MAX_LINE_BYTES + 1 - len(held)] if held else piece[: MAX_LINE_BYTES + 1],
            )
            held.clear()
            start = end = end + len(piece) + 1
        held += rest[: MAX_LINE_BYTES + 1 - len(held)]
        end += len(rest)
    if held:
        yield start, bytes(held)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    start = _first_bytes(file)
    if start.startswith(_GZIP):
        with gzip.GzipFile(fileobj=file) as members:
            yield from _reads(members.read1, _CHUNK_BYTES)  # `read` would lose what stands before damage
    elif start == zstandard.FRAME_HEADER:
        yield from _zstd_chunks(file)
    else:
        yield from _reads(file.read, _CHUNK_BYTES)


def _is_compressed(file: BinaryIO) -> bool:
    start = _first_bytes(file)
    return start.startswith(_GZIP) or start == zstandard.FRAME_HEADER


def _first_bytes(file: BinaryIO) -> bytes:
    start = file.read(4)
    file.seek(0)
    return start


def _reads(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    while chunk := read(size):
        yield chunk


def _zstd_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Decompress frame after frame. (zstandard's own reader takes a cut frame for the end of the file.)"""
    frame = None
    for chunk in _reads(file.read, _ZSTD_CHUNK_BYTES):
        rest = chunk
        while rest:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(rest)
            rest = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last zstd frame is cut short")
