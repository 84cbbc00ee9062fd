"""Refuses writes before the disk is full or the kernel kills, and lets them back in by itself.

A mapped file without room is SIGBUS, which cannot be caught: so there is always room left.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from core.errors import NoRoom, Overloaded

_BACK = 1.1
"""Writes come back only when a tenth more than the mark is free, so that they do not flap."""
_WRITE_AMPLIFICATION = 4
"""Log, vectors, points.db and its WAL: what a request may take on disk, by its body's size."""
UNSEEN_MAX_BYTES = 16 << 20
"""What writes may take on disk before the next look. The marks leave far more than that."""


@dataclass(frozen=True, slots=True)
class Room:
    """What is free now, in bytes."""

    disk_free: int
    disk_total: int
    memory_available: int


def room_of(folder: str) -> Room:
    """Free room of the file system that holds `folder`, and memory that can be had without swapping
    (the least of the machine's and of this control group's)."""
    disk = os.statvfs(folder)
    return Room(disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize, memory_available())


def memory_available() -> int:
    available = 1 << 62
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) << 10
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = file.read().strip()
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as file:
            used = int(file.read())
    except OSError:
        return available  # no control group of version 2, or none with a limit
    return available if limit == "max" else min(available, int(limit) - used)


class Guards:
    """Whether writes are let in. `look` is called twice a second, and when they have taken much since."""

    def __init__(
        self, disk_low_bytes: Callable[[int], int], memory_low_bytes: int, look: Callable[[], Room]
    ) -> None:
        self._disk_low, self._memory_low, self._look = disk_low_bytes, memory_low_bytes, look
        self.disk_low = False
        self.memory_low = False
        self._unseen_bytes = 0
        self.room = look()
        self.look()

    def look(self) -> None:
        self.room = room = self._look()
        self._unseen_bytes = 0
        disk_mark, memory_mark = self._disk_low(room.disk_total), self._memory_low
        self.disk_low = room.disk_free < disk_mark * (_BACK if self.disk_low else 1)
        self.memory_low = room.memory_available < memory_mark * (_BACK if self.memory_low else 1)

    def admit_copy(self, size_bytes: int) -> None:
        """Let a file of that size be written. Raises NoRoom."""
        self.look()
        self._check_disk(size_bytes, "delete data or snapshots, or add room")

    def admit(self, size_bytes: int) -> None:
        """Let a write of that size in. Raises NoRoom (507) or Overloaded (503)."""
        needed_bytes = size_bytes * _WRITE_AMPLIFICATION
        # A look costs as much as a small write does: they only count what they take.
        if self._unseen_bytes + needed_bytes > UNSEEN_MAX_BYTES:
            self.look()
        remedy = "delete data or add room, writes come back by themselves"
        self._check_disk(self._unseen_bytes + needed_bytes, remedy, refuse=self.disk_low)
        if self.memory_low:
            raise Overloaded(
                f"memory is low: {self.room.memory_available >> 20} MiB are available, "
                f"writes need {self._memory_low >> 20} MiB left; retry later",
                retry_after_s=2,
            )
        self._unseen_bytes += needed_bytes

    def _check_disk(self, needed_bytes: int, remedy: str, *, refuse: bool = False) -> None:
        mark = self._disk_low(self.room.disk_total)
        if refuse or self.room.disk_free - needed_bytes < mark:
            raise NoRoom(
                f"no room: {needed_bytes >> 20} MiB are needed, {self.room.disk_free >> 20} MiB of disk are "
                f"free, {mark >> 20} MiB must be left; {remedy}"
            )
