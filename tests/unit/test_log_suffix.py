"""A log's end cut off for good, whatever file it is in; entries read back, also after a cut."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent.store.files import Files
from agent.store.log import LogOwner, LogWriter, list_files
from agent.store.log_reading import read_log
from agent.store.log_suffix import LogRange, cut_suffix
from core.errors import NoRoom, Unavailable
from core.replication.log import Entry, Position
from tests.storing.failing import FailingFiles

OWNER = LogOwner(collection=7, shard=0, incarnation=11, history=12)
FILE_ENTRIES = 4


def entry(seq: int, term: int = 1) -> Entry:
    return Entry(term, seq, seq * 10, b"%d of %d" % (seq, term))


@pytest.fixture
def files() -> FailingFiles:
    return FailingFiles()


@pytest.fixture
def writer(tmp_path: Path, files: FailingFiles) -> Iterator[LogWriter]:
    """Entries 1 to 10, in files of four."""
    made = LogWriter(tmp_path, OWNER, files)
    made.begin_file(Position(0, 0))
    for seq in range(1, 11):
        made.append([entry(seq)])
        made.sync()
        if seq % FILE_ENTRIES == 0:
            made.roll()
    yield made
    made.close()


def found(folder: Path) -> list[tuple[int, int]]:
    log = read_log(folder, OWNER)
    assert not log.gaps
    assert not log.torn_bytes
    return [(e.term, e.seq) for e in log.entries]


@pytest.mark.parametrize("after", range(11))
def test_what_is_cut_off_is_gone_and_the_log_goes_on_there(
    writer: LogWriter, tmp_path: Path, after: int
) -> None:
    cut_suffix(writer, after)
    assert found(tmp_path) == [(1, seq) for seq in range(1, after + 1)]
    assert (writer.last, writer.synced) == (Position(1 if after else 0, after), after)
    writer.append([entry(after + 1, term=2)])
    writer.sync()
    assert found(tmp_path)[after:] == [(2, after + 1)]


def test_a_cut_at_or_behind_the_end_changes_nothing(writer: LogWriter, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in list_files(tmp_path)}
    cut_suffix(writer, 10)
    cut_suffix(writer, 12)
    assert {path: path.read_bytes() for path in list_files(tmp_path)} == before


def test_a_cut_for_which_there_was_no_room_can_be_repeated(
    writer: LogWriter, tmp_path: Path, files: FailingFiles
) -> None:
    files.failing = {"write": errno.ENOSPC}
    with pytest.raises(NoRoom):
        cut_suffix(writer, 6)
    files.failing = {}
    cut_suffix(writer, 6)
    assert found(tmp_path) == [(1, seq) for seq in range(1, 7)]


def test_after_a_cut_that_failed_the_log_takes_nothing(writer: LogWriter, files: FailingFiles) -> None:
    files.failing = {"sync": errno.EIO}
    with pytest.raises(Unavailable):
        cut_suffix(writer, 6)
    files.failing = {}
    with pytest.raises(Unavailable):
        writer.append([entry(11)])


def test_entries_are_read_back_from_anywhere(writer: LogWriter, tmp_path: Path) -> None:
    log = LogRange(tmp_path)
    for first in (1, 3, 9, 2, 4, 5, 10):
        read = log.read(first, 10, 1 << 20)
        assert read[0] == entry(first)
        assert read == [entry(seq) for seq in range(first, first + len(read))]
    assert log.read(2, 3, 1 << 20) == [entry(2), entry(3)]
    assert log.read(2, 4, 1) == [entry(2)]
    assert log.read(11, 12, 1 << 20) == []


def test_a_request_without_a_hash_of_its_body_is_read_back_as_one(writer: LogWriter, tmp_path: Path) -> None:
    request = Entry(1, 11, 110, b"op", request_id=b"drawn by a route", number=2)
    writer.append([request])
    writer.sync()
    assert LogRange(tmp_path).read(11, 11, 1 << 20) == [request]


def test_what_was_read_before_a_cut_is_not_read_after_it(writer: LogWriter, tmp_path: Path) -> None:
    log = LogRange(tmp_path)
    assert log.read(5, 7, 1 << 20) == [entry(seq) for seq in (5, 6, 7)]
    cut_suffix(writer, 5)
    writer.append([Entry(2, 6, 60, b"much longer than the entry that was there"), entry(7, 2), entry(8, 2)])
    writer.sync()
    assert [e.term for e in log.read(6, 8, 1 << 20)] == [2, 2, 2]
    assert log.read(8, 8, 1 << 20) == [entry(8, 2)]


class EndingFiles(Files):
    """The process ends at the n-th call: that one and all later ones do nothing."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, "the process has ended")

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        self._count()
        super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        self._count()
        super().sync(fd)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._count()
        super().unlink(path)


@pytest.mark.parametrize("after", [0, 2, 4, 5, 8])
def test_a_crash_while_the_end_is_cut_off_leaves_a_whole_log_that_ends_not_before_it(
    writer: LogWriter, tmp_path: Path, after: int
) -> None:
    ends: set[int] = set()
    for at in range(100):
        copy = tmp_path / f"copy{at}"
        copy.mkdir()
        for path in list_files(tmp_path):
            (copy / path.name).write_bytes(path.read_bytes())
        log = read_log(copy, OWNER)
        assert log.newest is not None
        files = EndingFiles(at)
        cut = LogWriter(copy, OWNER, files)
        cut.continue_file(log.newest, log.end, log.last)
        with suppress(Unavailable):
            cut_suffix(cut, after)
        cut.close()
        ends.add(len(found(copy)))
        assert found(copy) == [(1, seq) for seq in range(1, len(found(copy)) + 1)]
        if files.left >= 0:
            break
    assert min(ends) == after
    assert max(ends) == 10
