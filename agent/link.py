"""Frames between the processes of one agent, over a Unix socket: many calls on one connection.

A frame is a fixed head (sizes, call number), a MessagePack header and a raw body, so that a body
of megabytes is handed on as it came. An error travels as its code and text and is raised again.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

import msgspec

from core import errors
from core.errors import DeadlineExceeded, Overloaded, ShoalError, Unavailable
from net.logs import Log

Header = dict[str, Any]
Answer = tuple[Header, bytes]
Handler = Callable[[Header, bytes, float], Awaitable[Answer]]
"""Takes header, body and the deadline (loop time); returns header and body, or raises ShoalError."""

_HEAD = struct.Struct("<IIQ")
_STREAM_BYTES = 4 << 20
_HEADER_BYTES_MAX = 64 << 20
_BODY_BYTES_MAX = 1 << 30
CALLS_MAX = 2048
"""Calls under way on one connection; more are refused, never queued without a bound."""


class _Call(msgspec.Struct, frozen=True, array_like=True):
    kind: str
    header: Header
    left_s: float


class _Reply(msgspec.Struct, frozen=True, array_like=True):
    header: Header
    code: str | None = None
    text: str = ""
    retry_after_s: int | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode_call = msgspec.msgpack.Decoder(_Call).decode
_decode_reply = msgspec.msgpack.Decoder(_Reply).decode


def _errors_by_code() -> dict[str, type[ShoalError]]:
    found: dict[str, type[ShoalError]] = {}
    waiting: list[type[ShoalError]] = [ShoalError]
    while waiting:
        kind = waiting.pop()
        found.setdefault(kind.code, kind)
        waiting.extend(kind.__subclasses__())
    return found


_ERRORS = _errors_by_code()


def raise_again(code: str, text: str, retry_after_s: int | None = None) -> NoReturn:
    """Raise the error that another process told by its code and text."""
    kind = _ERRORS.get(code, ShoalError)
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.retry_after_s = retry_after_s
    raise error


async def _read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    header_size, body_size, number = _HEAD.unpack(await reader.readexactly(_HEAD.size))
    if header_size > _HEADER_BYTES_MAX or body_size > _BODY_BYTES_MAX:
        raise ConnectionError(f"frame of {header_size} + {body_size} bytes is over the bound")
    header = await reader.readexactly(header_size)
    return number, header, await reader.readexactly(body_size) if body_size else b""


def _frame(number: int, header: bytes, body: bytes) -> list[bytes]:
    return [_HEAD.pack(len(header), len(body), number), header, body]


class Client:
    """One connection to the store. `call` may be used by many tasks at once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()

    async def call(self, kind: str, header: Header, body: bytes = b"", *, timeout_s: float) -> Answer:
        """Ask and wait. Raises the error that the other side raised, Unavailable if the connection
        is lost, DeadlineExceeded after `timeout_s`; then the call may still take effect."""
        if len(self._waiting) >= CALLS_MAX:
            raise Overloaded(f"{CALLS_MAX} calls to the store are under way; retry later")
        try:
            async with asyncio.timeout(timeout_s):
                writer = await self._open()
                number = next(self._numbers)
                answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
                self._waiting[number] = answer
                try:
                    writer.writelines(_frame(number, _encode(_Call(kind, header, timeout_s)), body))
                    await writer.drain()
                    return await answer
                finally:
                    self._waiting.pop(number, None)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer to {kind} within {timeout_s:g} s") from None
        except (ConnectionError, OSError) as problem:
            raise Unavailable(f"the store cannot be reached: {problem}") from problem

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with suppress(asyncio.CancelledError):
                await self._reading
        if self._writer is not None:
            self._writer.close()

    async def _open(self) -> asyncio.StreamWriter:
        async with self._opening:
            if self._writer is None:
                reader, self._writer = await asyncio.open_unix_connection(self._path, limit=_STREAM_BYTES)
                self._reading = asyncio.create_task(self._read(reader), name="link.read")
            return self._writer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        lost: Exception = ConnectionError("the connection was closed")
        try:
            while True:
                number, header, body = await _read_frame(reader)
                answer = self._waiting.get(number)
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
            if self._writer is not None:
                self._writer.close()
            self._writer = None
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(lost)


class Server:
    """Serves calls from fronts and builder. Handlers run beside each other; order is theirs to keep."""

    def __init__(self, handlers: Mapping[str, Handler], log: Log) -> None:
        self._handlers = handlers
        self._log = log
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.under_way = 0

    async def start(self, path: str) -> None:
        self._server = await asyncio.start_unix_server(self._accept, path, limit=_STREAM_BYTES)

    async def close(self) -> None:
        """Stop accepting and end the connections; calls under way are cancelled."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            async with asyncio.TaskGroup() as calls:
                while True:
                    try:
                        number, header, body = await _read_frame(reader)
                    except (asyncio.IncompleteReadError, ConnectionError):
                        break  # the other side ended; its calls finish, their answers go nowhere
                    calls.create_task(self._serve(writer, number, header, body))
        except asyncio.CancelledError:
            pass  # close() ends this connection; asyncio's stream server awaits nobody here
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, writer: asyncio.StreamWriter, number: int, header: bytes, body: bytes) -> None:
        self.under_way += 1
        reply, answer_body = _Reply({}), b""
        try:
            call = _decode_call(header)
            handler = self._handlers.get(call.kind)
            if handler is None:
                raise errors.BadRequest(f"unknown call {call.kind}")
            deadline = asyncio.get_running_loop().time() + call.left_s
            answer_header, answer_body = await handler(call.header, body, deadline)
            reply = _Reply(answer_header)
        except ShoalError as error:
            reply = _Reply({}, error.code, str(error), error.retry_after_s)
        except Exception as bug:  # noqa: BLE001 - the caller gets an answer, the log the cause
            self._log.error("link.handler_failed", exc=bug, at_ns=time.monotonic_ns())
            reply = _Reply({}, "internal", f"internal error ({type(bug).__name__}); see the store's log")
        finally:
            self.under_way -= 1
        if not writer.is_closing():
            writer.writelines(_frame(number, _encode(reply), answer_body))
            with suppress(ConnectionError):  # the asker is gone; nobody is left to tell
                await writer.drain()
