"""The output files: a contiguous prefix of the store's lines, healed where they are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.jobs.export import Export, OutputFile, differences
from penstock.jobs.store import Result

LINES = [b"zero\n", b"one\n", b"two, longer\n", b"three\n"]
RESULTS = [Result(n, line, "internal" if n % 2 else None) for n, line in enumerate(LINES)]


def export_of(folder: Path, results: list[Result]) -> Export:
    def from_row(start: int) -> Iterator[Result]:
        return iter(results[start:])

    errors = OutputFile(folder / "errors", required=False)
    return Export(from_row, OutputFile(folder / "out", required=True), errors)


def test_the_files_grow_with_the_results(tmp_path: Path) -> None:
    results: list[Result] = []
    export = export_of(tmp_path, results)
    export.advance()
    assert (tmp_path / "out").read_bytes() == b""
    assert not (tmp_path / "errors").exists()
    for n in range(4):
        results.append(RESULTS[n])
        export.advance()
        assert (tmp_path / "out").read_bytes() == b"".join(LINES[: n + 1])
        assert export.num_rows == n + 1
    export.sync()
    export.close()
    assert (tmp_path / "errors").read_bytes() == b"one\nthree\n"


@pytest.mark.parametrize(
    ("before", "kept", "cut"),
    [
        (b"", 0, 0),
        (b"zero\none\n", 9, 0),
        (b"zero\non", 5, 2),
        (b"zero\nONE\ntwo, longer\nthree\n", 5, 22),
        (b"".join(LINES) + b"more", 27, 4),
        (b"nothing of it", 0, 13),
    ],
)
def test_the_equal_part_is_kept_and_the_rest_written_anew(tmp_path: Path, before: bytes, kept: int, cut: int) -> None:
    (tmp_path / "out").write_bytes(before)
    (tmp_path / "errors").write_bytes(b"one\nold\n")
    export = export_of(tmp_path, RESULTS)
    export.advance()
    export.close()
    assert (tmp_path / "out").read_bytes() == b"".join(LINES)
    assert (tmp_path / "errors").read_bytes() == b"one\nthree\n"
    assert (export.output.kept_bytes, export.output.cut_bytes) == (kept, cut)


def test_what_is_already_right_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"".join(LINES))
    before = (tmp_path / "out").stat().st_mtime_ns
    export = export_of(tmp_path, RESULTS)
    export.advance()
    export.close()
    assert (tmp_path / "out").stat().st_mtime_ns == before


@given(before=st.binary(max_size=40), cuts=st.lists(st.integers(0, 4), max_size=5))
def test_whatever_was_there_and_however_it_grows_the_file_ends_right(
    tmp_path_factory: pytest.TempPathFactory, before: bytes, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("export")
    (folder / "out").write_bytes(before)
    results: list[Result] = []
    export = export_of(folder, results)
    for count in [*sorted(cuts), 4]:
        results[:] = RESULTS[:count]
        export.advance()
        assert (folder / "out").read_bytes() == b"".join(LINES[:count])
    export.close()


def test_differences_are_told_and_nothing_is_changed(tmp_path: Path) -> None:
    out, errors = tmp_path / "out", tmp_path / "errors"

    def found() -> list[str]:
        return list(differences(iter(RESULTS), output=out, errors=errors))

    out.write_bytes(b"".join(LINES))
    errors.write_bytes(b"one\nthree\n")
    assert found() == []
    out.write_bytes(b"zero\nONE\ntwo, longer\nthree\n")
    assert found() == [f"{out} differs from the job at row 1; running the job again mends it"]
    out.write_bytes(b"zero\n")
    errors.unlink()
    assert found() == [
        f"{out} lacks 3 lines that the job has; running the job again adds them",
        f"{errors} lacks 2 lines that the job has; running the job again adds them",
    ]
    out.write_bytes(b"".join(LINES) + b"x")
    errors.write_bytes(b"one\nthree\n")
    assert found() == [f"{out} has bytes after the last line of the job; running the job again cuts them"]
