"""Disks that end the process at their n-th call: one keeps what was written, one what was fsynced."""

from __future__ import annotations

import os
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agent.store.files import Files

SECTOR = 512
CRASHED = 41
"""The status of a process that came to its n-th call."""


class Crash:
    """Counts calls of the wanted kinds, and ends the process just before the n-th takes effect (0: never)."""

    def __init__(self, at: int, kinds: frozenset[str] = frozenset({"sync", "rename", "commit"})) -> None:
        self.at = at
        self.kinds = kinds
        self.count = 0
        self.last_words: Callable[[], object] = lambda: None
        self.lock = threading.RLock()
        """Who holds it goes on. At the crash it is never released: no other thread gets further."""

    def point(self, kind: str) -> None:
        if kind in self.kinds:
            self.count += 1
            if self.count == self.at:
                self.last_words()
                os._exit(CRASHED)


class CrashingFiles(Files):
    """The real disk, until the process is killed: what was written stays, fsynced or not."""

    def __init__(self, crash: Crash) -> None:
        self.crash = crash

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        with self.crash.lock:
            self.crash.point("write")
            super().write(fd, data, offset)

    def datasync(self, fd: int) -> None:
        with self.crash.lock:
            self.crash.point("sync")
            super().datasync(fd)

    def sync(self, fd: int) -> None:
        with self.crash.lock:
            self.crash.point("sync")
            super().sync(fd)

    def rename(self, source: Path, target: Path) -> None:
        with self.crash.lock:
            self.crash.point("rename")
            super().rename(source, target)

    def unlink(self, path: Path) -> None:
        with self.crash.lock:
            self.crash.point("rename")
            super().unlink(path)

    def punch(self, fd: int, offset: int, size: int) -> None:
        with self.crash.lock:
            self.crash.point("write")
            super().punch(fd, offset, size)

    @contextmanager
    def commit(self, path: Path) -> Iterator[None]:
        with self.crash.lock:
            self.crash.point("commit")
            yield

    @contextmanager
    def checkpoint(self, path: Path) -> Iterator[None]:
        with self.crash.lock:
            self.crash.point("commit")
            yield


@dataclass(frozen=True)
class NameChange:
    """A change that the folder's fsync has not covered; `kept` is a link to what it removed."""

    kind: Literal["create", "rename", "unlink"]
    path: Path
    source: Path | None = None
    kept: Path | None = None


@dataclass
class Platters:
    """What the disk has for sure: contents by inode, and the names that may still change back."""

    durable: dict[int, bytes] = field(default_factory=dict)
    names: list[NameChange] = field(default_factory=list)


class PowerCutFiles(CrashingFiles):
    """A disk with a volatile cache; `cut_power` then decides what of it is left.

    SQLite's own fsyncs are modelled: all of it is durable after a checkpoint, its WAL after a sync of ours.
    """

    def __init__(self, crash: Crash, root: Path, report: Path) -> None:
        super().__init__(crash)
        self.platters = Platters()
        self._links = 0
        for path in root.rglob("*"):
            self._settle(path)
        crash.last_words = lambda: report.write_bytes(pickle.dumps(self.platters))

    def open(self, path: Path) -> int:
        with self.crash.lock:
            fresh = not path.exists()
            fd = super().open(path)
            if fresh:
                self.platters.names.append(NameChange("create", path))
            self.platters.durable.setdefault(os.fstat(fd).st_ino, b"")
            return fd

    def datasync(self, fd: int) -> None:
        with self.crash.lock:
            super().datasync(fd)
            self._settle_fd(fd)

    def sync(self, fd: int) -> None:
        with self.crash.lock:
            super().sync(fd)
            self._settle_fd(fd)

    def rename(self, source: Path, target: Path) -> None:
        with self.crash.lock:
            kept = self._keep(target)
            super().rename(source, target)
            self.platters.names.append(NameChange("rename", target, source, kept))

    def unlink(self, path: Path) -> None:
        with self.crash.lock:
            kept = self._keep(path)
            super().unlink(path)
            if kept is not None:
                self.platters.names.append(NameChange("unlink", path, kept=kept))

    def sync_folder(self, path: Path) -> None:
        with self.crash.lock:
            super().sync_folder(path)
            self.platters.names = [change for change in self.platters.names if change.path.parent != path]

    @contextmanager
    def checkpoint(self, path: Path) -> Iterator[None]:
        with super().checkpoint(path):  # holds the lock: no commit comes in between
            yield
            self._settle(path)
            self._settle(path.with_name(path.name + "-wal"))

    def _keep(self, path: Path) -> Path | None:
        if not path.exists():
            return None
        self._links += 1
        kept = path.with_name(f"{path.name}.{self._links}.kept")
        kept.unlink(missing_ok=True)
        os.link(path, kept)
        return kept

    def _settle_fd(self, fd: int) -> None:
        self._settle(Path(os.readlink(f"/proc/self/fd/{fd}")))

    def _settle(self, path: Path) -> None:
        if path.is_file():
            self.platters.durable[path.stat().st_ino] = path.read_bytes()


def cut_power(root: Path, report: Path, seed: int) -> None:
    """Make the files what a power cut could leave: each sector written since its fsync is old or new."""
    platters: Platters = pickle.loads(report.read_bytes())
    rng = random.Random(seed)
    for path in list(root.rglob("*")):
        if path.is_file() and not path.name.endswith("-shm"):
            _lose_sectors(path, platters.durable, rng)
    keep = rng.randint(0, len(platters.names))
    for change in reversed(platters.names[keep:]):
        _undo(change)
    for path in list(root.rglob("*")):
        # SQLite makes its shared memory anew; the links are ours.
        if path.name.endswith(("-shm", ".kept")):
            path.unlink()


def _undo(change: NameChange) -> None:
    match change.kind:
        case "create":
            change.path.unlink(missing_ok=True)
        case "rename":
            assert change.source is not None
            os.replace(change.path, change.source)
            if change.kept is not None:
                os.link(change.kept, change.path)
        case "unlink":
            assert change.kept is not None
            os.link(change.kept, change.path)


def _lose_sectors(path: Path, durable: dict[int, bytes], rng: random.Random) -> None:
    new, old = path.read_bytes(), durable.get(path.stat().st_ino)
    if old is None:
        # SQLite's own new files; it fsyncs a database's first page and a WAL's header itself.
        old = new[:SECTOR] if path.name.endswith("-wal") else new
    if old == new:
        return
    mixed = bytearray(new)
    padded = old.ljust(len(new), b"\0")
    # SQLite fsyncs a WAL's header before it writes behind it.
    begin = SECTOR if path.name.endswith("-wal") else 0
    chance = rng.choice((0.0, 0.2, 0.5, 0.9, 1.0))
    for at in range(begin, len(new), SECTOR):
        if rng.random() < chance:
            mixed[at : at + SECTOR] = padded[at : at + SECTOR]
    if len(old) < len(new) and rng.random() < 0.3:  # the new size is lost, too
        del mixed[max(len(old), begin) :]
    with path.open("r+b") as file:
        file.write(mixed)
        file.truncate(len(mixed))
