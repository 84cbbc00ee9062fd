"""The log on disk: what was synced is read back, what was torn is cut, what is damaged is told from it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.store.files import Files
from agent.store.log import ENTRY, HEADER, LogOwner, LogWriter, list_files, padded
from agent.store.log_reading import FoundLog, keep_valid_part, read_log
from core.errors import Damaged, NoRoom, Unavailable
from core.replication.log import Entry, Position
from tests.storing.failing import FailingFiles

OWNER = LogOwner(collection=7, shard=0, incarnation=11, history=12)


def entry(seq: int, op: bytes = b"op", **fields: object) -> Entry:
    return Entry(**{"term": 1, "seq": seq, "time_us": seq * 10, "op": op, **fields})  # type: ignore[arg-type]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[LogWriter]:
    made = LogWriter(tmp_path, OWNER, Files(), file_bytes_max=1 << 16)
    made.begin_file(Position(0, 0))
    yield made
    made.close()


def append(writer: LogWriter, *groups: list[Entry]) -> None:
    for group in groups:
        writer.append(group)
        writer.sync()


def seqs(log: FoundLog) -> list[int]:
    return [e.seq for e in log.entries]


def newest(folder: Path) -> Path:
    return list_files(folder)[-1]


def offset_of(number: int, size: int = 2) -> int:
    """Where the entry of that number is, if all have ops of that size."""
    return HEADER.size + number * (ENTRY.size + padded(size))


def change(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_entries_come_back_as_they_were_written(writer: LogWriter, tmp_path: Path) -> None:
    entries = [
        entry(1, b"", schema=3),
        entry(2, b"x" * 1001, request_id=b"r" * 16, number=5, body_hash=b"h" * 16),
        entry(3, term=4),
    ]
    append(writer, entries[:2], entries[2:])
    found = read_log(tmp_path, OWNER)
    assert found.entries == entries
    assert (found.gaps, found.torn_bytes, found.last) == ([], 0, Position(4, 3))


def test_a_new_log_is_empty(writer: LogWriter, tmp_path: Path) -> None:
    found = read_log(tmp_path, OWNER)
    assert (found.entries, found.base, found.end) == ([], Position(0, 0), HEADER.size)


def test_a_folder_without_files_has_nothing(tmp_path: Path) -> None:
    assert read_log(tmp_path, OWNER).newest is None


def test_a_file_goes_on_behind_what_is_valid(writer: LogWriter, tmp_path: Path) -> None:
    append(writer, [entry(1)])
    found = read_log(tmp_path, OWNER)
    assert found.newest is not None
    again = LogWriter(tmp_path, OWNER, Files())
    again.continue_file(found.newest, found.end, found.last)
    append(again, [entry(2)])
    again.close()
    assert seqs(read_log(tmp_path, OWNER)) == [1, 2]


def test_full_files_are_followed_by_others_and_cut_when_all_in_them_is_superfluous(
    writer: LogWriter, tmp_path: Path
) -> None:
    for seq in range(1, 8):
        append(writer, [entry(seq, b"x" * 30_000)])
    assert [int(p.stem) for p in list_files(tmp_path)] == [1, 4, 7]
    writer.cut(5)
    assert [int(p.stem) for p in list_files(tmp_path)] == [4, 7]
    found = read_log(tmp_path, OWNER)
    assert (found.base, seqs(found)) == (Position(1, 3), [4, 5, 6, 7])
    writer.cut(7)
    assert [int(p.stem) for p in list_files(tmp_path)] == [7], "the newest is never removed"


def test_a_log_of_another_shard_is_refused(writer: LogWriter, tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="belongs to"):
        read_log(tmp_path, OWNER._replace(incarnation=99))


# -- torn by a crash ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut_at", [1, 40, 79, 80, 81])
def test_a_last_entry_that_was_not_written_to_its_end_is_cut(
    writer: LogWriter, tmp_path: Path, cut_at: int
) -> None:
    append(writer, [entry(1)])
    writer.append([entry(2)])
    path = newest(tmp_path)
    data = path.read_bytes()
    change(path, offset_of(1) + cut_at, bytes(len(data) - offset_of(1) - cut_at))
    found = read_log(tmp_path, OWNER)
    assert (seqs(found), found.gaps, found.end) == ([1], [], offset_of(1))


def test_a_group_of_which_only_a_later_entry_reached_the_disk_is_torn_not_damaged(
    writer: LogWriter, tmp_path: Path
) -> None:
    append(writer, [entry(1)])
    writer.append([entry(2), entry(3)])
    change(newest(tmp_path), offset_of(1), bytes(ENTRY.size))
    found = read_log(tmp_path, OWNER)
    assert (seqs(found), found.gaps) == ([1], [])
    assert found.torn_bytes > 0


def test_the_valid_part_alone_is_kept_and_durable(writer: LogWriter, tmp_path: Path) -> None:
    append(writer, [entry(1)])
    writer.append([entry(2)])
    change(newest(tmp_path), offset_of(1) + 3, b"?")
    keep_valid_part(read_log(tmp_path, OWNER), Files())
    again = read_log(tmp_path, OWNER)
    assert (seqs(again), again.torn_bytes) == ([1], 0)
    assert newest(tmp_path).stat().st_size == offset_of(1)


# -- damaged -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 4, 8, 16, 24, 32, 40, 56, 72, 76, 80, 81])
def test_any_flipped_byte_of_a_synced_entry_is_found(writer: LogWriter, tmp_path: Path, at: int) -> None:
    append(writer, [entry(1)], [entry(2)], [entry(3)])
    path = newest(tmp_path)
    place = offset_of(1) + at
    change(path, place, bytes([path.read_bytes()[place] ^ 0x10]))
    found = read_log(tmp_path, OWNER)
    (gap,) = found.gaps
    assert (gap.path, gap.offset, gap.first_seq, gap.last_seq) == (path, offset_of(1), 2, 2)
    assert seqs(found) == [1, 3]
    assert path.name in str(gap)


def test_damage_in_an_older_file_is_never_taken_for_a_torn_end(writer: LogWriter, tmp_path: Path) -> None:
    for seq in range(1, 6):
        append(writer, [entry(seq, b"x" * 30_000)])
    path = list_files(tmp_path)[0]
    change(path, offset_of(2, 30_000) + 100, b"y")
    (gap,) = read_log(tmp_path, OWNER).gaps
    assert (gap.path, gap.first_seq, gap.last_seq) == (path, 3, 3)


def test_a_missing_file_is_a_gap(writer: LogWriter, tmp_path: Path) -> None:
    for seq in range(1, 8):
        append(writer, [entry(seq, b"x" * 30_000)])
    list_files(tmp_path)[1].unlink()
    found = read_log(tmp_path, OWNER)
    assert [(gap.first_seq, gap.last_seq) for gap in found.gaps] == [(4, 6)]
    assert seqs(found) == [1, 2, 3, 7]


def test_a_damaged_header_is_noted_and_its_entries_are_read(writer: LogWriter, tmp_path: Path) -> None:
    append(writer, [entry(1)])
    change(newest(tmp_path), 20, b"?")
    found = read_log(tmp_path, OWNER)
    assert seqs(found) == [1]
    assert found.newest_is_headless
    assert "offset 0" in found.bad_headers[0]


# -- a disk that fails -------------------------------------------------------------------------------------


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[tuple[LogWriter, FailingFiles]]:
    files = FailingFiles()
    made = LogWriter(tmp_path, OWNER, files)
    made.begin_file(Position(0, 0))
    append(made, [entry(1)])
    yield made, files
    made.close()


def test_a_failed_fsync_is_never_retried(failing: tuple[LogWriter, FailingFiles]) -> None:
    writer, files = failing
    writer.append([entry(2)])
    files.failing = {"datasync": errno.EIO}
    with pytest.raises(Unavailable, match="fsync"):
        writer.sync()
    files.failing = {}
    with pytest.raises(Unavailable):
        writer.sync()
    with pytest.raises(Unavailable):
        writer.append([entry(3)])
    assert writer.synced == 1


def test_a_failed_write_breaks_the_log(failing: tuple[LogWriter, FailingFiles]) -> None:
    writer, files = failing
    files.failing = {"write": errno.EIO}
    with pytest.raises(Unavailable):
        writer.append([entry(2)])
    assert writer.broken is not None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_is_said_before_a_byte_is_written_and_passes(
    failing: tuple[LogWriter, FailingFiles], tmp_path: Path, code: int
) -> None:
    writer, files = failing
    files.failing = {"allocate": code}
    with pytest.raises(NoRoom):
        writer.append([entry(2, b"x" * (2 << 20))])
    files.failing = {}
    append(writer, [entry(2)])
    assert seqs(read_log(tmp_path, OWNER)) == [1, 2]


class FullFolder(Files):
    """A disk that has no room for what follows a rename: the name may be there, or not, after a crash."""

    def __init__(self) -> None:
        self.is_full = False

    def sync_folder(self, path: Path) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().sync_folder(path)


def test_a_new_file_that_may_have_its_name_is_not_followed_by_more_in_the_old_one(tmp_path: Path) -> None:
    files = FullFolder()
    writer = LogWriter(tmp_path, OWNER, files)
    writer.begin_file(Position(0, 0))
    writer.append([entry(1)])
    files.is_full = True
    with pytest.raises(Unavailable, match="refused until the agent is restarted"):
        writer.roll()
    files.is_full = False
    with pytest.raises(Unavailable):
        writer.append([entry(2)])
    writer.close()
    found = read_log(tmp_path, OWNER)
    assert (seqs(found), found.gaps, found.bad_headers) == ([1], [], [])
