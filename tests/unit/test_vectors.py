"""Rows by slot with checksums and bits: written once, copied with their damage, given back by holes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.mapped import GrowingBits, GrowingFile, MappedFile
from agent.store.files import Files
from agent.store.vectors import VectorFile
from core.errors import Damaged


@pytest.fixture
def vector(tmp_path: Path) -> Iterator[VectorFile]:
    for name in ("vectors", "columns"):
        (tmp_path / name).mkdir()
    made = VectorFile(tmp_path, 3, 4, Files())
    yield made
    made.close()


def rows(*tags: float) -> np.ndarray:
    return np.array([[tag, tag + 1, 0, -tag] for tag in tags], np.float32)


def slots(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_rows_are_read_as_they_were_written(vector: VectorFile) -> None:
    vector.put(5, rows(1, 2).tobytes())
    vector.put_scattered(slots(9, 11, 12), rows(3, 4, 5))
    assert np.array_equal(vector.read(slots(11, 5, 9)), rows(4, 1, 3))
    assert vector.has_it(slots(4, 5, 6, 7, 9, 10, 12, 100_000)).tolist() == [0, 1, 1, 0, 1, 0, 1, 0]


def test_a_changed_row_is_not_read(vector: VectorFile) -> None:
    vector.put(0, rows(1, 2).tobytes())
    vector.rows_file.write(4 * 4, b"\xff")
    assert vector.damaged(slots(0, 1)).tolist() == [1]
    with pytest.raises(Damaged, match="slot 1"):
        vector.read(slots(0, 1))


def test_a_row_in_another_rows_place_is_not_read(vector: VectorFile) -> None:
    vector.put(0, rows(1, 2).tobytes())
    vector.rows_file.write(0, rows(2, 1).tobytes())
    vector.crcs_file.write(0, vector.crcs()[[1, 0]].tobytes())
    assert vector.damaged(slots(0, 1)).tolist() == [0, 1]


def test_a_copy_of_a_damaged_row_is_damaged_too(vector: VectorFile) -> None:
    vector.put(0, rows(1, 2).tobytes())
    vector.rows_file.write(0, b"\xff")
    assert vector.copy(slots(0, 1, 2), slots(10, 11, 12)).tolist() == [0]
    assert vector.damaged(slots(10, 11)).tolist() == [10]
    assert np.array_equal(vector.read(slots(11)), rows(2))
    assert not vector.has_it(slots(12))[0], "what is absent stays absent"


def test_bits_and_checksums_can_each_be_made_from_the_others(vector: VectorFile) -> None:
    vector.put_scattered(slots(1, 2, 5), rows(1, 2, 3))
    vector.has.replace(slots(), 8)
    vector.rebuild_has(0, 8)
    assert vector.has.below(8).tolist() == [1, 2, 5]
    before = vector.crcs()[:8].copy()
    assert np.array_equal(vector.crcs_from_rows(0, 8), before)


def test_what_a_crash_left_behind_does_not_look_like_a_vector(vector: VectorFile) -> None:
    vector.put(0, rows(1, 2, 3).tobytes())
    vector.forget_from(1)
    vector.rebuild_has(0, 3)
    assert vector.has.below(3).tolist() == [0]


def test_a_hole_gives_space_back_and_keeps_what_is_above(vector: VectorFile, tmp_path: Path) -> None:
    count = 100_000
    vector.put(0, np.ones((count, 4), np.float32).tobytes())
    vector.sync()
    path = tmp_path / "vectors" / "3.f32"
    size, before = path.stat().st_size, path.stat().st_blocks
    vector.punch_below(count - 10)
    assert path.stat().st_size == size
    assert path.stat().st_blocks < before / 10
    assert np.array_equal(vector.read(slots(count - 10, count - 1)), np.ones((2, 4), np.float32))


# -- mapped files ------------------------------------------------------------------------------------------


def test_a_reader_sees_what_is_written_after_it_mapped(tmp_path: Path) -> None:
    file = GrowingFile(tmp_path / "f", Files())
    file.write(0, b"abc")
    reader = MappedFile(tmp_path / "f")
    seen = reader.bytes(3)
    file.write(1, b"X")
    assert seen.tobytes() == b"aXc"
    file.write(1 << 20, b"far")
    assert reader.bytes((1 << 20) + 3)[-3:].tobytes() == b"far"
    assert seen.tobytes() == b"aXc", "an old view stays valid"
    file.close()


def test_a_reader_is_told_that_a_file_is_too_short(tmp_path: Path) -> None:
    file = GrowingFile(tmp_path / "f", Files())
    file.reserve(1)
    with pytest.raises(EOFError, match="expected at least"):
        MappedFile(tmp_path / "f").bytes(file.size + 1)
    file.close()


def test_a_file_grows_by_blocks_that_are_there(tmp_path: Path) -> None:
    file = GrowingFile(tmp_path / "f", Files())
    file.reserve(10)
    stat = (tmp_path / "f").stat()
    assert stat.st_size == file.size
    assert stat.st_blocks * 512 >= file.size
    file.close()


def test_bits_are_set_cleared_and_listed(tmp_path: Path) -> None:
    bits = GrowingBits(tmp_path / "b", Files())
    bits.reserve(100)
    bits.set(slots(1, 8, 9, 9, 77))
    bits.clear(slots(8, 50))
    assert bits.below(100).tolist() == [1, 9, 77]
    assert bits.below(77).tolist() == [1, 9]
    assert MappedFile(tmp_path / "b").bits(10).tolist() == [2, 2]
    bits.replace(slots(3), 5)
    assert bits.below(100).tolist() == [3]
    bits.file.close()
