"""Calls between the processes of one agent over a Unix socket, and the server's side of any link.

server = Server(handlers, log)
await server.start("store.sock")
header, body = await Client("store.sock").call("view.get", {}, timeout_s=5)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec

from core.errors import BadRequest, ShoalError
from net.frames import (
    CALLS_MAX,
    NO_ANSWER,
    STREAM_BYTES,
    Answer,
    BrokenFrame,
    Caller,
    Framing,
    Handler,
    Header,
    Plain,
    Reply,
    decode_call,
    encode,
    raise_again,
)
from net.logs import Log

__all__ = ["Answer", "Client", "Handler", "Header", "Server", "raise_again", "whole"]


def whole(header: Header, key: str) -> int:
    """A number that a call must carry. Raises BadRequest."""
    value = header.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadRequest(f"{key}: expected a whole number, got {str(value)[:40]!r}")
    return value


class Client(Caller):
    """One connection to this node's store."""

    def __init__(self, path: str) -> None:
        super().__init__(self._connect, "the store")
        self._path = path

    async def _connect(self) -> Framing:
        return Plain(*await asyncio.open_unix_connection(self._path, limit=STREAM_BYTES))


class Server:
    """Serves calls. Handlers run beside each other; order is theirs to keep."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        log: Log,
        on_malformed: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._handlers = handlers
        self._log, self._on_malformed = log, on_malformed
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.under_way = 0

    async def start(self, path: str) -> None:
        self._server = await asyncio.start_unix_server(self._accept, path, limit=STREAM_BYTES)

    async def close(self) -> None:
        """Stop accepting and end the connections; calls under way are cancelled."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.serve(Plain(reader, writer), self._handlers)

    async def serve(self, framing: Framing, handlers: Mapping[str, Handler]) -> None:
        """Serve one connection until it ends, or `close`."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        room = asyncio.Semaphore(CALLS_MAX)
        try:
            async with asyncio.TaskGroup() as calls:
                while True:
                    try:
                        number, header, body = await framing.read()
                    except BrokenFrame as problem:
                        self._on_malformed(str(problem))
                        break
                    except (asyncio.IncompleteReadError, ConnectionError):
                        break  # the other side ended; its calls finish, their answers go nowhere
                    await room.acquire()  # one that asks more than it may is read no further
                    call = calls.create_task(self._answer(framing, handlers, number, header, body))
                    call.add_done_callback(lambda _: room.release())
        except asyncio.CancelledError:
            pass  # close() ends this connection; asyncio's stream server awaits nobody here
        finally:
            self._connections.discard(task)
            framing.close()

    async def _answer(
        self, framing: Framing, handlers: Mapping[str, Handler], number: int, header: bytes, body: bytes
    ) -> None:
        self.under_way += 1
        reply, answer_body = Reply({}), b""
        try:
            call = decode_call(header)
            handler = handlers.get(call.kind)
            if handler is None:
                raise BadRequest(f"unknown call {call.kind}")
            deadline = asyncio.get_running_loop().time() + call.left_s
            answer_header, answer_body = await handler(call.header, body, deadline)
            reply = Reply(answer_header)
        except ShoalError as error:
            reply = Reply({}, error.code, str(error), error.retry_after_s)
        except msgspec.MsgspecError as error:
            self._on_malformed(f"a malformed call: {error}")
            reply = Reply({}, BadRequest.code, f"a malformed call: {error}")
        except Exception as bug:  # noqa: BLE001 - the caller gets an answer, the log the cause
            self._log.error("link.handler_failed", exc=bug, at_ns=time.monotonic_ns())
            reply = Reply({}, "internal", f"internal error ({type(bug).__name__}); see the store's log")
        finally:
            self.under_way -= 1
        if number != NO_ANSWER and not framing.is_closing():
            framing.write(number, encode(reply), answer_body)
            with suppress(ConnectionError):  # the asker is gone; nobody is left to tell
                await framing.drain()
