"""Frames: calls and answers on one kept connection, many at once. What the processes of a cluster speak.

A frame is a fixed head (sizes, call number), a MessagePack header and a raw body, so that a body
of megabytes is handed on as it came. An error travels as its code and text and is raised again.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import msgspec

from core.errors import DeadlineExceeded, Overloaded, ShoalError, Unavailable

Header = dict[str, Any]
Answer = tuple[Header, bytes]
Handler = Callable[[Header, bytes, float], Awaitable[Answer]]
"""Takes header, body and the deadline (loop time); returns header and body, or raises ShoalError."""

HEAD = struct.Struct("<IIQ")
STREAM_BYTES = 4 << 20
HEADER_BYTES_MAX = 64 << 20
BODY_BYTES_MAX = 1 << 30
NO_ANSWER = 0
"""The number of a frame that wants none."""
UNSENT_BYTES_MAX = 64 << 20
"""Of one connection; what is only told is dropped beyond it: whoever is that slow must catch up later."""
CALLS_MAX = 2048
"""Calls under way on one connection; more are refused, never queued without a bound."""


class BrokenFrame(ConnectionError):
    """What came is no frame, or not the one that was sent: nothing after it can be trusted either."""


class Call(msgspec.Struct, frozen=True, array_like=True):
    kind: str
    header: Header
    left_s: float


class Reply(msgspec.Struct, frozen=True, array_like=True):
    header: Header
    code: str | None = None
    text: str = ""
    retry_after_s: int | None = None


encode = msgspec.msgpack.Encoder().encode
decode_call = msgspec.msgpack.Decoder(Call).decode
_decode_reply = msgspec.msgpack.Decoder(Reply).decode


class Framing(Protocol):
    """How frames lie on a connection. Not for two tasks at once in one direction."""

    async def read(self) -> tuple[int, bytes, bytes]:
        """Number, header and body of the next frame. Raises ConnectionError, IncompleteReadError."""
        ...

    def write(self, number: int, header: bytes, body: bytes) -> None: ...

    def unsent_bytes(self) -> int: ...

    async def drain(self) -> None: ...

    def close(self) -> None: ...

    def is_closing(self) -> bool: ...


class Plain:
    """Frames as they are: for a socket that only this node's own processes can open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read(self) -> tuple[int, bytes, bytes]:
        header_size, body_size, number = HEAD.unpack(await self.reader.readexactly(HEAD.size))
        if header_size > HEADER_BYTES_MAX or body_size > BODY_BYTES_MAX:
            raise BrokenFrame(f"frame of {header_size} + {body_size} bytes is over the bound")
        header = await self.reader.readexactly(header_size)
        return number, header, await self.reader.readexactly(body_size) if body_size else b""

    def write(self, number: int, header: bytes, body: bytes) -> None:
        self.writer.writelines((HEAD.pack(len(header), len(body), number), header, body))

    def unsent_bytes(self) -> int:
        return self.writer.transport.get_write_buffer_size()

    async def drain(self) -> None:
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()

    def is_closing(self) -> bool:
        return self.writer.is_closing()


def _errors_by_code() -> dict[str, type[ShoalError]]:
    found: dict[str, type[ShoalError]] = {}
    waiting: list[type[ShoalError]] = [ShoalError]
    while waiting:
        kind = waiting.pop()
        found.setdefault(kind.code, kind)
        waiting.extend(kind.__subclasses__())
    return found


def raise_again(code: str, text: str, retry_after_s: int | None = None) -> NoReturn:
    """Raise the error that another process told by its code and text."""
    kind = _errors_by_code().get(code, ShoalError)
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.retry_after_s = retry_after_s
    raise error


@dataclass(eq=False, slots=True)
class _Connection:
    framing: Framing
    waiting: dict[int, asyncio.Future[Answer]]
    reading: asyncio.Task[None]


class Caller:
    """One connection, opened when it is needed and again when it was lost. For many tasks at once.

    `dial` opens it; `whom` names the other side in errors.
    """

    def __init__(self, dial: Callable[[], Awaitable[Framing]], whom: str) -> None:
        self._dial, self._whom = dial, whom
        self._numbers = itertools.count(1)
        self._connection: _Connection | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    @property
    def under_way(self) -> int:
        """Calls that wait for their answer."""
        return len(self._connection.waiting) if self._connection is not None else 0

    async def call(self, kind: str, header: Header, body: bytes = b"", *, timeout_s: float) -> Answer:
        """Ask and wait. Raises the error that the other side raised, Unavailable if the connection
        is lost, DeadlineExceeded after `timeout_s`; then the call may still take effect."""
        if self.under_way >= CALLS_MAX:
            raise Overloaded(f"{CALLS_MAX} calls to {self._whom} are under way; retry later")
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._open()
                number = next(self._numbers)
                answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
                connection.waiting[number] = answer
                try:
                    connection.framing.write(number, encode(Call(kind, header, timeout_s)), body)
                    await connection.framing.drain()
                    return await answer
                finally:
                    connection.waiting.pop(number, None)
                    if answer.done() and not answer.cancelled():
                        answer.exception()  # it may have come in the turn in which the time was up
        except TimeoutError:
            raise DeadlineExceeded(f"no answer to {kind} within {timeout_s:g} s") from None
        except OSError as problem:
            raise Unavailable(f"{self._whom} cannot be reached: {problem}") from problem

    def tell(self, kind: str, header: Header, body: bytes = b"") -> bool:
        """Send what wants no answer, if there is a connection with room for it; else it is dropped: False.

        Who tells must be ready for loss. `open` makes the connection.
        """
        connection = self._connection
        if connection is None or connection.framing.is_closing():
            return False
        if connection.framing.unsent_bytes() + len(body) > UNSENT_BYTES_MAX:
            return False
        connection.framing.write(NO_ANSWER, encode(Call(kind, header, 0.0)), body)
        return True

    async def open(self, timeout_s: float) -> None:
        """Connect, unless there is a connection. Raises like `call`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._open()
        except TimeoutError:
            raise DeadlineExceeded(f"no connection to {self._whom} within {timeout_s:g} s") from None
        except OSError as problem:
            raise Unavailable(f"{self._whom} cannot be reached: {problem}") from problem

    async def close(self) -> None:
        self._closed = True
        if (connection := self._connection) is not None:
            connection.reading.cancel()
            with suppress(asyncio.CancelledError):
                await connection.reading

    async def _open(self) -> _Connection:
        async with self._opening:
            if self._closed:
                raise ConnectionError("the connection was closed here")
            if self._connection is None:
                framing = await self._dial()
                if self._was_closed():  # while it was dialled: nobody would end it
                    framing.close()
                    raise ConnectionError("the connection was closed here")
                waiting: dict[int, asyncio.Future[Answer]] = {}
                reading = asyncio.create_task(self._read(framing, waiting), name=f"frames.{self._whom}")
                self._connection = _Connection(framing, waiting, reading)
            return self._connection

    def _was_closed(self) -> bool:
        return self._closed

    async def _read(self, framing: Framing, waiting: dict[int, asyncio.Future[Answer]]) -> None:
        lost: Exception = ConnectionError("the connection was closed")
        try:
            while True:
                number, header, body = await framing.read()
                answer = waiting.get(number)
                if answer is None or answer.done():  # its waiter gave up
                    continue
                reply = _decode_reply(header)
                if reply.code is None:
                    answer.set_result((reply.header, body))
                else:
                    try:
                        raise_again(reply.code, reply.text, reply.retry_after_s)
                    except ShoalError as error:
                        answer.set_exception(error)
        except (asyncio.IncompleteReadError, OSError, msgspec.MsgspecError) as problem:
            lost = ConnectionError(f"the connection was lost: {problem}")
        finally:
            framing.close()
            self._connection = None
            for answer in waiting.values():
                if not answer.done():
                    answer.set_exception(lost)
