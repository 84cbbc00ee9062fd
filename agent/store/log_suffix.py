"""The log's end cut off for good, and entries read back from its files: what replicas need beside appending.

Both read what this process has written, from the page cache: only what is known to be on disk may be asked
for, and nothing after a failed fsync.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import closing
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple

from agent.store.disk_errors import disk_error
from agent.store.log import HEADER, LogWriter, first_seq_of, list_files
from agent.store.log_reading import entry_at
from core.errors import Damaged, NoRoom, ShoalError, Unavailable
from core.replication.log import Entry, Position

_PLACES_KEPT = 8


class _Place(NamedTuple):
    """Where an entry begins."""

    path: Path
    seq: int
    offset: int


class LogRange:
    """Reads runs of entries, in a thread. Remembers where the last ones ended, where the next begin."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: deque[_Place] = deque(maxlen=_PLACES_KEPT)

    def read(self, first_seq: int, last_seq: int, bytes_max: int) -> list[Entry]:
        """Entries from first_seq on, of one file, at most to last_seq; at least one, if the files have it.

        Raises Damaged if that entry cannot be read though its file should hold it.
        """
        path = self._file_of(first_seq)
        if path is None:
            return []
        entries: list[Entry] = []
        size = 0
        with _mapped(path) as data:
            offset = self._offset_of(data, path, first_seq)
            while first_seq + len(entries) <= last_seq and size < bytes_max:
                entry, taken = entry_at(data, offset, first_seq + len(entries))
                if entry is None:
                    break
                entries.append(entry)
                offset, size = offset + taken, size + taken
        if entries:
            self._places.append(_Place(path, first_seq + len(entries), offset))
        return entries

    def _file_of(self, seq: int) -> Path | None:
        found = [path for path in list_files(self._folder) if first_seq_of(path) <= seq]
        return found[-1] if found else None

    def _offset_of(self, data: mmap, path: Path, seq: int) -> int:
        near = [place for place in self._places if place.path == path and place.seq <= seq]
        # A place may be of before the end was cut off: it is believed if the entry is there.
        for place in sorted(near, key=lambda place: -place.seq):
            offset = _walk(data, place.offset, place.seq, seq)
            if offset is not None and entry_at(data, offset, seq)[0] is not None:
                return offset
        offset = _walk(data, HEADER.size, first_seq_of(path), seq)
        if offset is None:
            raise Damaged(f"{path}: entry {seq} cannot be read, nor what is before it")
        return offset


def cut_suffix(writer: LogWriter, after_seq: int) -> None:
    """Nothing after `after_seq` is in the log any more, durably, when this returns.

    A crash meanwhile leaves a log that ends anywhere between here and where it ended.
    Raises NoRoom (to be repeated before anything is appended), Damaged, Unavailable; then it is broken.
    """
    if writer.broken is not None:
        raise Unavailable(writer.broken)
    if writer.last.seq <= after_seq:
        return
    try:
        _cut_suffix(writer, after_seq)
    except (OSError, ShoalError) as error:
        found = disk_error(error, f"cutting the log in {writer.folder} after entry {after_seq}")
        if not isinstance(found, NoRoom):
            writer.broken = str(found)
        raise found from error


def _cut_suffix(writer: LogWriter, after_seq: int) -> None:
    files, paths = writer.files, list_files(writer.folder)
    while len(paths) > 1 and first_seq_of(paths[-1]) > after_seq + 1:
        # The newest first, each for sure before the next: never a gap.
        files.unlink(paths.pop())
        files.sync_folder(writer.folder)
    path = paths[-1]
    first_seq = first_seq_of(path)
    if first_seq > after_seq + 1:
        raise Damaged(f"{path}: the log begins at entry {first_seq}, it cannot end at {after_seq}")
    with _mapped(path) as data:
        last, offset = _last_before(data, path, first_seq, after_seq)
        kept = data[:offset]
    # A copy: what is left of the old end in this file could be taken for entries behind a torn append.
    files.replace(path, kept)
    writer.continue_file(path, offset, last)


def _last_before(data: mmap, path: Path, first_seq: int, after_seq: int) -> tuple[Position, int]:
    """The position of entry `after_seq`, and where it ends."""
    if first_seq == after_seq + 1:
        return Position(_base_term(data), after_seq), HEADER.size
    offset = _walk(data, HEADER.size, first_seq, after_seq)
    entry, size = (None, 0) if offset is None else entry_at(data, offset, after_seq)
    if entry is None or offset is None:
        raise Damaged(f"{path}: entry {after_seq} cannot be read, nor what is before it")
    return entry.position, offset + size


def _base_term(data: mmap) -> int:
    return int(HEADER.unpack_from(data)[-2])


def _walk(data: mmap, offset: int, seq: int, to_seq: int) -> int | None:
    """Where entry `to_seq` begins, if there is a run of entries from `seq` at `offset` up to it."""
    while seq < to_seq:
        entry, size = entry_at(data, offset, seq)
        if entry is None:
            return None
        offset, seq = offset + size, seq + 1
    return offset


def _mapped(path: Path) -> closing[mmap]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return closing(mmap(fd, 0, access=ACCESS_READ))
    finally:
        os.close(fd)
