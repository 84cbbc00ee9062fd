"""Files that grow, are mapped, and never get shorter: how the store writes them and readers see them.

A reader's view of a shortened file is SIGBUS, and so is a write through a map without blocks
behind it. So a file is only ever extended, by blocks that are really there.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.store.files import Files

U8 = npt.NDArray[np.uint8]

PAGE = 4096
_STEP_MIN = 64 << 10
_STEP_MAX = 64 << 20
_STEP_PART = 16
_SECTOR = 512
"""The unit of st_blocks, whatever the file system's own is."""


def _map(fd: int, size: int, *, writable: bool) -> U8:
    prot = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
    return np.frombuffer(mmap.mmap(fd, size, mmap.MAP_SHARED, prot), dtype=np.uint8)


class MappedFile:
    """A reader's view of a file that somebody else extends. Views stay valid for as long as they are held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes: U8 = np.empty(0, np.uint8)

    def bytes(self, count: int) -> U8:
        """The first `count` bytes, read only. Raises FileNotFoundError, or EOFError if there are fewer."""
        if count > len(self._bytes):
            self._remap(count)
        return self._bytes[:count]

    def array(self, dtype: npt.DTypeLike, count: int, width: int | None = None) -> npt.NDArray[Any]:
        """The first `count` items, or rows of `width` items, of `dtype`."""
        item = np.dtype(dtype).itemsize * (1 if width is None else width)
        flat = self.bytes(count * item).view(dtype)
        return flat if width is None else flat.reshape(count, width)

    def bits(self, count: int) -> U8:
        """The bytes that hold the first `count` bits, packed little."""
        return self.bytes((count + 7) >> 3)

    def _remap(self, count: int) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if size < count:
                raise EOFError(f"{self.path} has {size} bytes, expected at least {count}")
            if count:
                self._bytes = _map(fd, size, writable=False)
        finally:
            os.close(fd)


class GrowingFile:
    """The writer's side: room is allocated in steps, ranges are written, old ranges given back.

    One thread at a time.
    """

    def __init__(self, path: Path, files: Files) -> None:
        self.path = path
        self._files = files
        self._fd = files.open(path)
        found = os.fstat(self._fd)
        self.size = found.st_size
        self._bytes: U8 | None = None
        self.dirty = False
        self._punched = 0
        self._hole_bytes = max(0, self.size - found.st_blocks * _SECTOR)
        """Given back already: a file is ahead of its needs by a part of what it holds, not of its length."""
        self._lost: OSError | None = None

    def reserve(self, size: int) -> None:
        """Make the file at least `size` bytes long, with blocks. Raises OSError (ENOSPC)."""
        if size <= self.size:
            return
        step = min(max((self.size - self._hole_bytes) // _STEP_PART, _STEP_MIN), _STEP_MAX)
        target = -(-max(size, self.size + step) // PAGE) * PAGE
        self._files.allocate(self._fd, self.size, target - self.size)
        self.size = target

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write a range, reserving room for it."""
        self.reserve(offset + len(memoryview(data).cast("B")))
        self._files.write(self._fd, data, offset)
        self.dirty = True

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def bytes(self) -> U8:
        """The whole file as it is now, writable. Mark `dirty` after writing through it."""
        if self._bytes is None or len(self._bytes) < self.size:
            self._bytes = _map(self._fd, self.size, writable=True) if self.size else np.empty(0, np.uint8)
        return self._bytes

    def array(self, dtype: npt.DTypeLike, width: int | None = None) -> npt.NDArray[Any]:
        """All whole items, or rows of `width` items, of `dtype`; writable."""
        item = np.dtype(dtype).itemsize * (1 if width is None else width)
        flat = self.bytes()[: self.size // item * item].view(dtype)
        return flat if width is None else flat.reshape(-1, width)

    def sync(self) -> None:
        """Make it durable, if it was written since the last time."""
        if self._lost is not None:
            raise self._lost
        if self.dirty:
            self.dirty = False  # before, so that a write beside the fsync counts for the next one
            try:
                self._files.sync(self._fd)
            except OSError as error:
                self._lost = error  # the kernel calls the pages clean now: a second fsync proves nothing
                raise

    def punch_below(self, offset: int, unit: int = PAGE) -> None:
        """Give back the whole units (of pages) below `offset`; they read as zeros afterwards."""
        end = offset // unit * unit
        if end > self._punched:
            self._files.punch(self._fd, 0, end)
            self._punched = end
            self._hole_bytes = max(self._hole_bytes, end)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._bytes = None


class GrowingBits:
    """A bitmap by slot in a growing file: bit (slot & 7) of byte slot >> 3."""

    def __init__(self, path: Path, files: Files) -> None:
        self.file = GrowingFile(path, files)

    def reserve(self, slots: int) -> None:
        self.file.reserve((slots + 7) >> 3)

    def set(self, slots: npt.NDArray[np.int64]) -> None:
        """Set bits of slots that are reserved."""
        if len(slots):
            np.bitwise_or.at(self.file.bytes(), slots >> 3, _bit(slots))
            self.file.dirty = True

    def clear(self, slots: npt.NDArray[np.int64]) -> None:
        if len(slots):
            np.bitwise_and.at(self.file.bytes(), slots >> 3, ~_bit(slots))
            self.file.dirty = True

    def get(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = (self.file.bytes()[slots >> 3] & _bit(slots)) != 0
        return found

    def replace(self, slots: npt.NDArray[np.int64], count: int) -> None:
        """Make the bitmap hold exactly `slots`, all below `count`; what lies beyond is cleared too."""
        self.reserve(count)
        fresh = np.zeros(self.file.size << 3, np.uint8)
        fresh[slots] = 1
        self.file.write(0, np.packbits(fresh, bitorder="little").data)

    def below(self, count: int) -> npt.NDArray[np.int64]:
        """The slots below `count` whose bit is set, ascending."""
        bits = np.unpackbits(self.file.bytes()[: (count + 7) >> 3], count=count, bitorder="little")
        return np.flatnonzero(bits)


def _bit(slots: npt.NDArray[np.int64]) -> U8:
    bits: U8 = np.left_shift(1, slots & 7).astype(np.uint8)
    return bits
