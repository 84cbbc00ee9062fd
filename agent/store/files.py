"""The few calls by which a store changes its disk: a port, so that a test can crash at the n-th one."""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

_FALLOC_KEEP_SIZE = 1
_FALLOC_PUNCH_HOLE = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Files:
    """The real disk. Every method may raise OSError and none swallows one."""

    def open(self, path: Path) -> int:
        """A descriptor to read and write `path`, made if it is missing."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        left = memoryview(data).cast("B")
        while left:
            done = os.pwrite(fd, left, offset)
            left, offset = left[done:], offset + done

    def allocate(self, fd: int, offset: int, size: int) -> None:
        """Take the blocks now: writing through a map into a file without room is SIGBUS."""
        os.posix_fallocate(fd, offset, size)

    def punch(self, fd: int, offset: int, size: int) -> None:
        """Give blocks back; the file keeps its size, and readers of a map see zeros there."""
        if size <= 0 or _libc.fallocate(fd, _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, offset, size) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS):  # such a file system only keeps more than it needs
            raise OSError(code, os.strerror(code))

    def datasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_folder(self, path: Path) -> None:
        """Make names in a folder durable: after a create, a rename, an unlink."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sync(fd)
        finally:
            os.close(fd)

    def commit(self, path: Path) -> AbstractContextManager[None]:
        """Around each commit of SQLite to the database at `path`: nothing here, a place to crash in tests."""
        return nullcontext()

    def checkpoint(self, path: Path) -> AbstractContextManager[None]:
        """Likewise where SQLite fsyncs its WAL, moves it into the database at `path`, and fsyncs that."""
        return nullcontext()

    def replace(self, path: Path, data: bytes) -> None:
        """Put `data` at `path` so that after any crash the file is the old one or the new one."""
        fresh = path.with_name(path.name + ".new")
        fd = self.open(fresh)
        try:
            os.ftruncate(fd, 0)
            self.write(fd, data, 0)
            self.sync(fd)
        finally:
            os.close(fd)
        self.rename(fresh, path)
        self.sync_folder(path.parent)
