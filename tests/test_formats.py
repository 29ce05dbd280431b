"""Protects that every line of every kind of file arrives once, numbered, in bounded memory, and that damage is told."""

from __future__ import annotations

import gzip
import hashlib
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import assume, given
from hypothesis import strategies as st

from penstock.errors import Refused
from penstock.jobs import formats
from penstock.jobs.formats import InputLine, LineReader, about_rows, digest, read_lines


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def lines_of(path: Path, data: bytes) -> list[tuple[int, int, bytes]]:
    path.write_bytes(data)
    return [line[:3] for line in read_lines(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def test_blank_lines_are_skipped_and_counted(path: Path) -> None:
    assert lines_of(path, b"\n a \n\n \t\r\nb\n\n") == [(0, 2, b" a "), (1, 5, b"b")]


def test_a_file_without_lines_has_none(path: Path) -> None:
    assert lines_of(path, b"") == []
    assert lines_of(path, b"\n \n") == []


def test_line_ends_may_be_those_of_windows_and_the_last_may_be_absent(path: Path) -> None:
    assert lines_of(path, b"a\r\nb\r\nc") == [(0, 1, b"a"), (1, 2, b"b"), (2, 3, b"c")]


def test_a_byte_order_mark_at_the_start_is_no_part_of_the_first_line(path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    assert lines_of(path, mark + b"a\n" + mark + b"b\n") == [(0, 1, b"a"), (1, 2, mark + b"b")]
    assert lines_of(path, mark + b"\na\n") == [(0, 2, b"a")]


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_compressed_files_are_known_by_their_bytes_and_may_have_several_parts(
    path: Path,
    compress: object,
) -> None:
    assert callable(compress)
    data = compress(b"a\nb") + compress(b"") + compress(b"c\n\nd\n")
    assert lines_of(path, data) == [(0, 1, b"a"), (1, 2, b"bc"), (2, 4, b"d")]


def test_a_name_that_promises_compression_is_not_believed(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "rows.gz", b"a\n") == [(0, 1, b"a")]
    assert lines_of(tmp_path / "rows.txt", zstd(b"a\n")) == [(0, 1, b"a")]


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
@pytest.mark.parametrize("cut", [1, 5, 12, 300])
def test_an_archive_that_is_cut_short_is_refused_with_the_line_reached(path: Path, compress: object, cut: int) -> None:
    assert callable(compress)
    rows = b"".join(hashlib.sha256(b"%d" % i).hexdigest().encode() + b"\n" for i in range(20_000))
    path.write_bytes(compress(rows)[:-cut])
    found: list[InputLine] = []
    with pytest.raises(Refused) as caught:
        found.extend(read_lines(path))
    assert f"cannot be read past line {len(found)} (" in str(caught.value)
    assert all(line.data == rows[65 * line.row : 65 * line.row + 64] for line in found)


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_an_archive_with_wrong_bytes_in_it_is_refused(path: Path, compress: object) -> None:
    assert callable(compress)
    data = bytearray(compress(b"".join(b'{"row": %d}\n' % i for i in range(5000))))
    data[len(data) // 2 : len(data) // 2 + 8] = b"\xff\x00\xff\x00\xff\x00\xff\x00"
    with pytest.raises(Refused, match="cannot be read past line"):
        lines_of(path, bytes(data))


def test_bytes_after_an_archive_are_refused(path: Path) -> None:
    with pytest.raises(Refused, match="past line 1 "):
        lines_of(path, gzip.compress(b"a\n") + b"garbage")
    with pytest.raises(Refused, match="past line 1 "):
        lines_of(path, zstd(b"a\n") + b"garbage")


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    for question in (lambda path: list(read_lines(path)), digest):
        with pytest.raises(Refused, match=r"none\.jsonl cannot be read .*No such file"):
            question(tmp_path / "none.jsonl")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="Is a directory"):
        list(read_lines(tmp_path))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_a_line_over_the_limit_is_cut_one_byte_past_it_and_the_next_one_is_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch, pack: object
) -> None:
    assert callable(pack)
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 10)
    data = b"a" * 10 + b"\n" + b"b" * 11 + b"\n" + b"c" * 600_000 + b"\nd\n" + b"e" * 600_000
    kept = [line[2] for line in lines_of(path, pack(data))]
    assert kept == [b"a" * 10, b"b" * 11, b"c" * 11, b"d", b"e" * 11]


def test_a_huge_line_does_not_take_its_size_in_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 2**16)
    path.write_bytes(gzip.compress(b"x" * 2**26))
    tracemalloc.start()
    try:
        assert [len(line.data) for line in read_lines(path)] == [2**16 + 1]
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd])
def test_the_rows_of_a_file_are_reckoned_from_its_beginning(path: Path, compress: Callable[[bytes], bytes]) -> None:
    draw = random.Random(1)
    path.write_bytes(compress(b"".join(b"%d\n" % draw.getrandbits(2000) for _ in range(6000))))
    assert about_rows(path) == pytest.approx(6000, rel=0.1)
    path.write_bytes(compress(b"one\ntwo"))
    assert about_rows(path) == 2
    with pytest.raises(Refused, match="cannot be read"):
        about_rows(path.with_name("absent"))


def test_the_digest_is_that_of_the_bytes_on_disk(path: Path) -> None:
    path.write_bytes(gzip.compress(b"a\n"))
    assert digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@given(st.lists(st.binary(max_size=12)), st.integers(1, 9), st.sampled_from([bytes, gzip.compress, zstd]))
def test_any_lines_come_back(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], chunk: int, pack: object
) -> None:
    assert callable(pack)
    data = b"\n".join(pieces)
    assume(pack is not bytes or not data.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")))  # told by its first bytes
    path = tmp_path_factory.mktemp("rows") / "rows"
    path.write_bytes(pack(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_CHUNK_BYTES", chunk)
        patch.setattr(formats, "_ZSTD_CHUNK_BYTES", chunk)
        found = list(read_lines(path))
    assert [line.row for line in found] == list(range(len(found)))
    stripped = {line.line: line.data.strip() for line in found}
    again = LineReader(path)
    assert all(line.data == again.read(line.at, len(line.data)) for line in found if line.at is not None)
    assert all((line.at is not None) == (pack is bytes) for line in found)
    again.close()
    whole = [piece.strip(b" \t\r\n") for piece in data.split(b"\n")]
    assert stripped == {i: piece.strip() for i, piece in enumerate(whole, 1) if piece} or data[:3] == b"\xef\xbb\xbf"
