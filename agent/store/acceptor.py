"""A voter's durable acceptor: each request is fsynced, in two copies of one log, before it is answered.

Two copies keep a lone node's truth through a rotten sector. Every start, and every growth past a bound,
writes both anew: what is served was written and fsynced by this process.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agent.store.acceptor_log import COPIES, Loaded, Saved, encode_log, encode_records, load
from agent.store.files import Files
from core.consensus.register import ADOPTED_KEY, Answer, Cell, Request, on_request
from core.errors import NoRoom, StartRefused, Unavailable

LOG_BYTES_MIN = 512 << 10
"""Preallocated, so that the register has room for some time after the disk is full."""
BATCH_MAX = 256
GROWTH_MAX = 4  # rewritten when the log is this many times what it holds, and LOG_BYTES_MIN at least


class Acceptor:
    """Answers requests of proposers, in order, each after its fsync.

    Open with `Acceptor.open(folder, fresh=…)`. After a failed fsync it refuses everything until a restart.
    """

    def __init__(self, folder: Path, loaded: Loaded, files: Files) -> None:
        self._folder = folder
        self._disk = files
        self._voters = loaded.voters
        self._cells = loaded.cells
        self._generation = loaded.generation
        self.damage = loaded.damage
        self._files: list[int] = []
        self._number = 0
        self._size_bytes = 0
        self._allocated_bytes = 0
        self._broken: str | None = None
        self._waiting: list[tuple[Request, asyncio.Future[Answer]]] = []
        self._turn: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="acceptor")

    @classmethod
    async def open(cls, folder: Path, *, fresh: bool, files: Files | None = None) -> Acceptor:
        """`fresh`: this node never belonged to a cluster, so an empty folder is right; else it is damage."""
        disk = files or Files()
        loaded = await asyncio.to_thread(load, folder, disk, fresh=fresh)
        acceptor = cls(folder, loaded, disk)
        await asyncio.get_running_loop().run_in_executor(acceptor._thread, acceptor._begin, loaded)
        return acceptor

    async def keys(self, prefix: str) -> list[str]:
        """Keys of which there is a cell here, also of deleted ones, and of those that are only promised."""
        return sorted(key for key in self._cells if key.startswith(prefix) and key != ADOPTED_KEY)

    def cell(self, key: str) -> Cell:
        return self._cells.get(key) or Cell()

    async def wait_accepted(self, key: str, after_version: int) -> Cell:
        async with self._changed:
            await self._changed.wait_for(lambda: self.cell(key).value.version > after_version)
        return self.cell(key)

    async def handle(self, request: Request) -> Answer:
        """A caller that is cancelled gives up its answer; what was begun is finished, in order."""
        if self._broken is not None:
            raise self._refusal()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        if self._turn is None:
            self._turn = asyncio.create_task(self._answer_all())
        return await answer

    async def close(self) -> None:
        if self._turn is not None:
            await self._turn
        self._thread.shutdown(wait=True)
        for fd in self._files:
            os.close(fd)
        self._files = []
        self._broken = self._broken or "it is closed"

    async def _answer_all(self) -> None:
        """Requests that came while the last fsync ran share the next one."""
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
            answers: Sequence[Answer | Exception]
            try:
                answers = await self._answer_batch([request for request, _ in batch])
            except Exception as e:  # noqa: BLE001 - whatever it is, those who wait must be told
                answers = [e] * len(batch)
            for (_, waiter), answer in zip(batch, answers, strict=True):
                if waiter.done():  # cancelled
                    continue
                if isinstance(answer, Exception):
                    waiter.set_exception(answer)
                else:
                    waiter.set_result(answer)
        self._turn = None

    async def _answer_batch(self, requests: Sequence[Request]) -> list[Answer]:
        if self._broken is not None:
            raise self._refusal()
        voters, cells = self._voters, dict[str, Cell]()
        saved: list[Saved] = []
        answers: list[Answer] = []
        for request in requests:
            cell = cells.get(request.key) or self.cell(request.key)
            step = on_request(cell, voters, request)
            voters = step.adopt_voters or voters
            if step.persist is not None or step.adopt_voters is not None:
                cells[request.key] = step.persist or cell
                saved.append(Saved(voters, request.key, cells[request.key]))
            answers.append(step.answer)
        if saved:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._persist, saved)
            self._voters = voters
            self._cells |= cells
            async with self._changed:
                self._changed.notify_all()
        return answers

    def _refusal(self) -> Unavailable:
        return Unavailable(f"this node's register answers nothing: {self._broken}; restart the agent")

    # Below: in the acceptor's thread.

    def _persist(self, saved: Sequence[Saved]) -> None:
        records = encode_records(saved, synced=self._number)
        if self._size_bytes + len(records) > self._allocated_bytes:
            # The new log holds the state so far; the records then follow it.
            self._rewrite_if_room()
            records = encode_records(saved, synced=self._number)
        try:
            for fd in self._files:
                self._disk.allocate(fd, self._size_bytes, len(records))
        except OSError as e:
            if _is_full(e):
                raise NoRoom(f"the register cannot grow in {self._folder}: {e.strerror}; free space") from e
            raise self._fail(e) from e
        try:
            for fd in self._files:
                self._disk.write(fd, records, self._size_bytes)
            for fd in self._files:
                self._disk.datasync(fd)
        except OSError as e:
            # Linux marks the pages clean: a second fsync would succeed and prove nothing.
            raise self._fail(e) from e
        self._number += len(saved)
        self._size_bytes += len(records)

    def _begin(self, loaded: Loaded) -> None:
        try:
            self._rewrite()
        except OSError as e:
            if not _is_full(e) or loaded.identical is None:
                raise StartRefused(f"cannot write the register in {self._folder}: {e.strerror}") from e
            self._write_in_place(loaded.identical, loaded.number)

    def _rewrite_if_room(self) -> None:
        try:
            self._rewrite()
        except OSError as e:
            if not _is_full(e):
                raise self._fail(e) from e

    def _fail(self, e: OSError) -> Unavailable:
        self._broken = f"writing to {self._folder} failed: {e.strerror}"
        return Unavailable(f"the register failed: {self._broken}; restart the agent")

    def _rewrite(self) -> None:
        """Both copies anew: both on disk before either takes its name, both named before either grows."""
        saved = [Saved(self._voters, "", Cell())]
        saved += [Saved(self._voters, key, cell) for key, cell in sorted(self._cells.items())]
        content, number = encode_log(self._generation + 1, saved)
        allocated = max(LOG_BYTES_MIN, GROWTH_MAX * len(content))
        fds: list[int] = []
        try:
            for name in COPIES:
                fds.append(self._disk.open(self._folder / f"{name}.new"))
                self._disk.allocate(fds[-1], 0, allocated)
                # What a crash left in a spare must not look like records behind the new ones.
                left = os.pread(fds[-1], os.fstat(fds[-1]).st_size, 0).rstrip(b"\0")
                self._disk.write(fds[-1], content.ljust(len(left), b"\0"), 0)
                self._disk.sync(fds[-1])
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        try:
            for name in COPIES:
                self._disk.rename(self._folder / f"{name}.new", self._folder / name)
            self._disk.sync_folder(self._folder)
        except OSError as e:
            # Which files have the names now is unknown, so neither old nor new ones may grow.
            raise self._fail(e) from e
        self._use(fds, number, len(content), allocated)
        self._generation += 1
        self._keep_spares()

    def _keep_spares(self) -> None:
        """Room for the next copies: when the disk is full, collections must still be deleted."""
        try:
            for name in COPIES:
                fd = self._disk.open(self._folder / f"{name}.new")
                try:
                    self._disk.allocate(fd, 0, LOG_BYTES_MIN)
                finally:
                    os.close(fd)
        except OSError as e:
            if not _is_full(e):
                raise self._fail(e) from e

    def _write_in_place(self, content: bytes, number: int) -> None:
        """On a full disk: the same bytes over themselves, so that this process's fsync covers them."""
        fds = [self._disk.open(self._folder / name) for name in COPIES]
        size_bytes = min(os.fstat(fd).st_size for fd in fds)
        for fd in fds:
            self._disk.write(fd, content.ljust(size_bytes, b"\0"), 0)
            self._disk.sync(fd)
        self._use(fds, number, len(content), size_bytes)

    def _use(self, fds: list[int], number: int, size_bytes: int, allocated_bytes: int) -> None:
        for fd in self._files:
            os.close(fd)
        self._files, self._number = fds, number
        self._size_bytes, self._allocated_bytes = size_bytes, allocated_bytes


def _is_full(e: OSError) -> bool:
    return e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
