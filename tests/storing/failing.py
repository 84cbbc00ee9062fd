"""A disk whose calls fail while they are told to."""

from __future__ import annotations

import os
from pathlib import Path

from agent.store.files import Files


class FailingFiles(Files):
    """`failing` names calls, and the error that each gives; `only` restricts it to paths that contain it."""

    def __init__(self) -> None:
        self.failing: dict[str, int] = {}
        self.only = ""
        self.failed = 0

    def _fail(self, call: str, fd: int) -> None:
        if call in self.failing and self.only in os.readlink(f"/proc/self/fd/{fd}"):
            self.failed += 1
            raise OSError(self.failing[call], os.strerror(self.failing[call]))

    def open(self, path: Path) -> int:
        if "open" in self.failing and self.only in str(path):
            raise OSError(self.failing["open"], os.strerror(self.failing["open"]))
        return super().open(path)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        self._fail("write", fd)
        super().write(fd, data, offset)

    def allocate(self, fd: int, offset: int, size: int) -> None:
        self._fail("allocate", fd)
        super().allocate(fd, offset, size)

    def datasync(self, fd: int) -> None:
        self._fail("datasync", fd)
        super().datasync(fd)

    def sync(self, fd: int) -> None:
        self._fail("sync", fd)
        super().sync(fd)

    def rename(self, source: Path, target: Path) -> None:
        if "rename" in self.failing:
            raise OSError(self.failing["rename"], os.strerror(self.failing["rename"]))
        super().rename(source, target)
