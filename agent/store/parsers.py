"""Where bodies are parsed so that it disturbs nobody: here, in a thread, or in a process beside the store.

Parsing holds the interpreter's lock: 4 ms for 256 points of 384 numbers, half of what the store does for
them. So a parser stays ready, and the store writes to its log and its files meanwhile; without a free one,
a thread does it. A body of 32 MB takes 124 ms, so the large ones get a process each, of which few run.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from agent.store.parsing import ANSWER, HEAD, Prepared, Target, order, prepare, prepared_of
from core.errors import Unavailable
from net.logs import Log

T = TypeVar("T")
HERE_BYTES_MAX = 64 << 10
"""Smaller bodies are parsed on the loop: handing them on would take longer."""
READY_BYTES_MAX = 4 << 20
"""Larger bodies get a process of their own."""
WAITING_MAX = 2
"""Bodies for one parser; a thread is quicker than to be the third."""
LARGE_AT_ONCE = 2
ROOM = 20
"""Times its body an answer may have: an id of one digit becomes 17 bytes in two places."""
HUNG_S = 20.0
"""A parser that has not answered for so long is killed."""
KEPT_BYTES = 8 << 20
"""Of shared memory, between two bodies."""


def ready_count() -> int:
    """How many parsers stay ready: with one processor they would only take it from the store."""
    return min(2, len(os.sched_getaffinity(0)) // 2)


class Gone(Exception):
    """The parser was lost before it got the body."""


class Parser:
    """A process that parses one body after the other. `start` it, and `close` it in the end."""

    def __init__(self, body_bytes_max: int) -> None:
        size = body_bytes_max * ROOM
        self._fd = os.memfd_create("shoal-parser", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, size)  # what is not used takes no memory
        self._memory = mmap.mmap(self._fd, size)
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self.waiting = 0

    async def start(self) -> None:
        """Return when it is ready, which takes as long as its imports. Raises OSError."""
        command = (sys.executable, "-P", "-m", "agent.parser", str(os.getpid()), str(self._fd))
        self._process = await asyncio.create_subprocess_exec(
            *command,
            str(len(self._memory)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(self._fd,),
        )
        try:
            async with asyncio.timeout(HUNG_S):
                await self._answer(self._process)
        except asyncio.IncompleteReadError:
            raise ChildProcessError("it ended at its start") from None

    @property
    def is_lost(self) -> bool:
        return self._process is None or self._process.returncode is not None

    async def prepare(self, kind: str, body: bytes, target: Target) -> list[Prepared]:
        """As parsing.prepare. Raises Gone if the process was lost before, and Unavailable if it is lost over
        this body, which may be why."""
        self.waiting += 1
        try:
            async with self._turn:
                if self.is_lost:
                    raise Gone
                return await _to_its_end(self._exchange(order(kind, target), body))
        finally:
            self.waiting -= 1

    async def _exchange(self, head: bytes, body: bytes) -> list[Prepared]:
        process = self._process
        try:
            assert process is not None
            assert process.stdin is not None
            self._memory[: len(body)] = body
            async with asyncio.timeout(HUNG_S):
                process.stdin.write(HEAD.pack(len(head), len(body)) + head)
                await process.stdin.drain()
                size = await self._answer(process)
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError) as problem:
            await self.close()
            raise Unavailable(f"parsing {len(body)} bytes failed ({problem}); try again") from None
        answer = self._memory[:size]
        if max(size, len(body)) > KEPT_BYTES:
            self._memory.madvise(mmap.MADV_REMOVE)
        return prepared_of(answer)

    @staticmethod
    async def _answer(process: asyncio.subprocess.Process) -> int:
        assert process.stdout is not None
        size: int = ANSWER.unpack(await process.stdout.readexactly(ANSWER.size))[0]
        return size

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._process = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Parsers:
    """`prepare` bodies. Between `start` and `close` some parsers stay ready."""

    def __init__(self, log: Log, count: int | None = None) -> None:
        self._log = log
        self._count = ready_count() if count is None else count
        self._ready: list[Parser] = []
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    async def start(self) -> None:
        """Start the parsers that are missing."""
        self._ready = [parser for parser in self._ready if not parser.is_lost]
        while len(self._ready) < self._count:
            parser = Parser(READY_BYTES_MAX)
            try:
                await parser.start()
            except OSError as problem:  # threads do it meanwhile
                self._log.warning("store.parser_not_started", text=str(problem))
                await parser.close()
                return
            self._ready.append(parser)

    async def prepare(self, kind: str, body: bytes, target: Target) -> list[Prepared]:
        """As parsing.prepare. Raises Unavailable if a process was lost over it."""
        if len(body) <= HERE_BYTES_MAX:
            return prepare(kind, body, target)
        if len(body) > READY_BYTES_MAX:
            async with self._large:
                return await self._apart(kind, body, target)
        free = min((p for p in self._ready if not p.is_lost), key=lambda p: p.waiting, default=None)
        if free is None or free.waiting >= WAITING_MAX:
            return await asyncio.to_thread(prepare, kind, body, target)
        try:
            return await free.prepare(kind, body, target)
        except Gone:
            return await asyncio.to_thread(prepare, kind, body, target)

    async def _apart(self, kind: str, body: bytes, target: Target) -> list[Prepared]:
        parser = Parser(len(body))
        try:
            await parser.start()
            return await parser.prepare(kind, body, target)
        except (OSError, Gone) as problem:
            raise Unavailable(f"parsing {len(body)} bytes failed ({problem}); try again") from None
        finally:
            await parser.close()

    async def close(self) -> None:
        for parser in self._ready:
            await parser.close()
        self._ready = []


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """A cancelled caller is cancelled when the work is done: until then the memory is in use."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
