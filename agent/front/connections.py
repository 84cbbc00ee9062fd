"""The HTTP server of a front: connections with deadlines of their own, because aiohttp sets none for
slow heads and silent connections; and plain requests that are answered without its tasks."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, cast

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from agent.front.framing import Framing, Plain
from agent.front.responses import Response, WholeResponse
from agent.metrics import Metrics
from core.settings import Settings

HEAD_TIMEOUT_S = 10.0
"""From the connection, or from the first byte of a further request, to the end of its head."""
KEEP_ALIVE_S = 75.0
CONNECTIONS_MAX = 8192
"""Of one front; more are closed at once."""
HOLDING_MAX = 64
"""Connections whose half requests wait for the rest here, not in aiohttp; until the next sweep at most."""
AT_ONCE_MAX = 64
"""Requests that are answered as they arrive, in one turn of the loop, which must not stand still."""
_SWEEP_S = 1.0
_WHY_CHARS_MAX = 100

Handle = Callable[[web.BaseRequest], Awaitable[Response]]
AtOnce = Callable[[Plain], bytes | None]


class Connection(RequestHandler):
    """One client connection that knows since when it owes the head of a request."""

    __slots__ = ("_framing", "_server", "client", "head_since")

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self._framing = Framing()
        self.head_since: float | None = None
        self.client = ""
        """Its address."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.head_since = asyncio.get_running_loop().time()
        self.client = (transport.get_extra_info("peername") or ("",))[0]
        if not self._server.admit(self):
            transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not data:  # aiohttp says so to itself: go on with what was left when its buffer was full
            super().data_received(data)
            return
        passed, plain = self._framing.feed(data)
        if plain is not None and self._answer(plain):
            return
        if self.head_since is None and self._current_request is None:
            self.head_since = self._loop.time()
        self._server.note_holding(self, self._framing.is_holding)
        if passed:
            super().data_received(passed)

    def pass_on(self) -> None:
        """Give aiohttp what is held: it has deadlines for the rest."""
        self._server.note_holding(self, False)
        super().data_received(self._framing.release())

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """A head that can't be read: an answer like all others, that ends the connection."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way already")
        # What follows the first line shows the bytes in question.
        why = (message or HTTPStatus(status).phrase).partition("\n")[0].rstrip(":")[:_WHY_CHARS_MAX]
        error = {"error": f"the request is not HTTP: {why}" if status < 500 else "internal error"}
        body = msgspec.json.encode({"status": error, "time": 0.0, "result": None})
        code = "bad-request" if status < 500 else "internal"
        response = WholeResponse(body, status=status, headers={"X-Shoal-Error": code})
        response.force_close()
        return cast(web.StreamResponse, response)

    def _answer(self, plain: Plain) -> bool:
        """Whether it has been answered: only if nothing is under way, and the client takes its answers."""
        transport, waiter = self.transport, self._waiter
        if transport is None or waiter is None or waiter.done() or transport.get_write_buffer_size():
            return False
        answer = self._server.answer_at_once(plain)
        if answer is None:
            return False
        transport.write(answer)
        self.head_since = None
        self._next_keepalive_close_time = self._loop.time() + KEEP_ALIVE_S
        return True


class Server(web.Server):
    """web.Server whose connections are counted, bounded and swept."""

    def __init__(
        self, handle: Handle, at_once: AtOnce, metrics: Metrics, settings: Callable[[], Settings]
    ) -> None:
        """`at_once` gives the whole answer to a plain request, or None, and then `handle` is asked."""
        # aiohttp logs a traceback for every head that it can't parse: strangers could fill the disk so.
        quiet = logging.getLogger(__name__)
        quiet.setLevel(logging.CRITICAL)
        super().__init__(
            self._handle_head,
            request_factory=self._make_request,
            keepalive_timeout=KEEP_ALIVE_S,
            access_log=None,
            logger=quiet,
            auto_decompress=False,  # a compressed body is refused, see app.py
        )
        self._given, self._at_once = handle, at_once
        self._settings = settings
        self._open: set[Connection] = set()
        self._by_client: Counter[str] = Counter()
        self._holding: set[Connection] = set()
        self._turn_s, self._answered_in_turn = 0.0, 0
        self._gauge = metrics.gauge("shoal_connections")
        self._gauge.set(0)  # those of a front that died are gone
        self._refused = metrics.counter("shoal_connections_refused_total")
        self._timed_out = metrics.counter("shoal_connections_timed_out_total")

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=asyncio.get_running_loop(), **self._kwargs)

    @property
    def holding(self) -> int:
        """Connections that hold part of a request."""
        return len(self._holding)

    def admit(self, connection: Connection) -> bool:
        """False: one too many, in all or of this client."""
        of_client = self._by_client[connection.client]
        if len(self._open) >= CONNECTIONS_MAX or of_client >= self._settings().client_connections_max:
            self._refused.add()
            return False
        self._open.add(connection)
        self._by_client[connection.client] = of_client + 1
        self._gauge.set(len(self._open))
        return True

    def forget(self, connection: Connection) -> None:
        self._holding.discard(connection)
        if connection not in self._open:
            return
        self._open.remove(connection)
        self._by_client[connection.client] -= 1
        if not self._by_client[connection.client]:
            del self._by_client[connection.client]
        self._gauge.set(len(self._open))

    def note_holding(self, connection: Connection, is_holding: bool) -> None:
        """Whether a connection holds part of a request; not many may."""
        if not is_holding:
            self._holding.discard(connection)
        elif len(self._holding) < HOLDING_MAX or connection in self._holding:
            self._holding.add(connection)
        else:
            connection.pass_on()

    def pass_on_held(self) -> None:
        """Let aiohttp wait for the rest of every request that is half here."""
        for connection in list(self._holding):
            connection.pass_on()

    def answer_at_once(self, plain: Plain) -> bytes | None:
        """The whole answer, if it can be given now."""
        now_s = asyncio.get_running_loop().time()  # stands still during a turn
        if now_s != self._turn_s:
            self._turn_s, self._answered_in_turn = now_s, 0
        if self._answered_in_turn >= AT_ONCE_MAX:
            return None
        answer = self._at_once(plain)
        self._answered_in_turn += answer is not None
        return answer

    async def sweep(self) -> None:
        """Close connections that owe a head for too long; runs until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.pass_on_held()
            oldest = loop.time() - HEAD_TIMEOUT_S
            for connection in list(self._open):
                if connection.head_since is not None and connection.head_since < oldest:
                    self._timed_out.add()
                    connection.force_close()
                    if connection.transport is not None:
                        connection.transport.abort()

    async def _handle_head(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.head_since = None
        return cast(web.StreamResponse, await self._given(request))

    def _make_request(
        self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any
    ) -> web.BaseRequest:
        return web.BaseRequest(
            message,
            payload,
            protocol,
            writer,
            task,
            asyncio.get_running_loop(),
            client_max_size=self._settings().body_bytes_max,
        )
