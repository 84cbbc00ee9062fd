"""Disks that end the process at their n-th call: one keeps what was written, one what was fsynced."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.store.files import Files

SECTOR = 512
CALLS = ("sync", "rename", "commit", "write", "other")


class Crash:
    """Counts calls of the wanted kinds, and ends the process at the n-th (0: never)."""

    def __init__(self, at: int, kinds: frozenset[str] = frozenset({"sync", "rename", "commit"})) -> None:
        self.at = at
        self.kinds = kinds
        self.count = 0
        self.before_exit: Callable[[], None] = lambda: None

    def point(self, kind: str) -> None:
        if kind in self.kinds:
            self.count += 1
            if self.count == self.at:
                self.before_exit()
                os._exit(0)


class CrashingFiles(Files):
    """The real disk, until the process is killed: what was written stays, fsynced or not.

    A crash comes just before a call takes effect, so the n-th and the (n+1)-th are before and after it.
    """

    def __init__(self, crash: Crash) -> None:
        self.crash = crash

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        self.crash.point("write")
        super().write(fd, data, offset)

    def datasync(self, fd: int) -> None:
        self.crash.point("sync")
        super().datasync(fd)

    def sync(self, fd: int) -> None:
        self.crash.point("sync")
        super().sync(fd)

    def rename(self, source: Path, target: Path) -> None:
        self.crash.point("rename")
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self.crash.point("other")
        super().unlink(path)

    def punch(self, fd: int, offset: int, size: int) -> None:
        self.crash.point("other")
        super().punch(fd, offset, size)

    def committed(self, path: Path) -> None:
        self.crash.point("commit")

    def checkpointed(self, path: Path) -> None:
        self.crash.point("commit")


@dataclass(frozen=True)
class _Undo:
    """How a change of names that the folder's fsync has not covered is taken back."""

    folder: Path
    run: Callable[[], None]


class PowerCutFiles(CrashingFiles):
    """A disk with a volatile cache: at the cut, each sector written since the last fsync is new or old at
    random, and so are the names that no fsync of their folder has covered (the last ones first).

    SQLite's own fsyncs are modelled: all of it is durable after a checkpoint, its WAL after a sync of ours.
    """

    def __init__(self, crash: Crash, seed: int, root: Path) -> None:
        super().__init__(crash)
        self._random = random.Random(seed)
        self._durable: dict[int, bytes] = {}
        """By inode: what the disk has."""
        self._undo: list[_Undo] = []
        for path in root.rglob("*"):
            if path.is_file():
                self._settle(path)
        crash.before_exit = lambda: self._cut(root)

    def open(self, path: Path) -> int:
        fresh = not path.exists()
        fd = super().open(path)
        if fresh:
            self._durable[os.fstat(fd).st_ino] = b""
            self._undo.append(_Undo(path.parent, lambda: path.unlink(missing_ok=True)))
        elif os.fstat(fd).st_ino not in self._durable:
            self._durable[os.fstat(fd).st_ino] = b""
        return fd

    def datasync(self, fd: int) -> None:
        super().datasync(fd)
        self._settle_fd(fd)

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self._settle_fd(fd)

    def rename(self, source: Path, target: Path) -> None:
        old = None
        if target.exists():
            old = target.with_name(target.name + ".before-rename")
            old.unlink(missing_ok=True)
            os.link(target, old)
        super().rename(source, target)

        def undo() -> None:
            os.replace(target, source)
            if old is not None:
                os.link(old, target)

        self._undo.append(_Undo(target.parent, undo))

    def unlink(self, path: Path) -> None:
        if not path.exists():
            return
        kept = path.with_name(path.name + ".before-unlink")
        kept.unlink(missing_ok=True)
        os.link(path, kept)
        super().unlink(path)
        self._undo.append(_Undo(path.parent, lambda: os.link(kept, path)))

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        self._undo = [undo for undo in self._undo if undo.folder != path]

    def checkpointed(self, path: Path) -> None:
        super().checkpointed(path)
        self._settle(path)
        self._settle(path.with_name(path.name + "-wal"))

    def _settle_fd(self, fd: int) -> None:
        if os.path.isfile(f"/proc/self/fd/{fd}"):
            self._durable[os.fstat(fd).st_ino] = _content(Path(f"/proc/self/fd/{fd}"))

    def _settle(self, path: Path) -> None:
        if path.exists():
            self._durable[path.stat().st_ino] = _content(path)

    def _cut(self, root: Path) -> None:
        for path in list(root.rglob("*")):
            if path.is_file() and not path.name.endswith("-shm"):
                self._lose_sectors(path)
        keep = self._random.randint(0, len(self._undo))
        for undo in reversed(self._undo[keep:]):
            undo.run()
        for path in list(root.rglob("*")):
            # An shm file holds nothing that survives a start; the others are ours.
            if path.name.endswith(("-shm", ".before-rename", ".before-unlink")):
                path.unlink()

    def _lose_sectors(self, path: Path) -> None:
        new = _content(path)
        old = self._durable.get(path.stat().st_ino, b"" if not path.name.startswith("points.db") else None)
        if old is None or old == new:
            return
        size = max(len(old), len(new)) if self._random.random() < 0.5 else len(new)
        padded_old, padded_new = old.ljust(size, b"\0"), new.ljust(size, b"\0")
        mixed = bytearray(padded_new)
        # SQLite fsyncs a WAL's header before it writes behind it.
        begin = SECTOR if path.name.endswith("-wal") else 0
        chance = self._random.choice((0.0, 0.2, 0.5, 0.9, 1.0))
        for at in range(begin, size, SECTOR):
            if (
                padded_old[at : at + SECTOR] != padded_new[at : at + SECTOR]
                and self._random.random() < chance
            ):
                mixed[at : at + SECTOR] = padded_old[at : at + SECTOR]
        if len(old) < len(new) and self._random.random() < 0.3:  # the new size is lost, too
            del mixed[len(old) :]
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
        os.write(fd, mixed)
        os.close(fd)


def _content(path: Path) -> bytes:
    return path.read_bytes()
