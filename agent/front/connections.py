"""The HTTP server of a front: connections with deadlines of their own, because aiohttp sets none for
slow heads and silent connections."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from agent.front.responses import Response
from agent.metrics import Metrics
from core.settings import Settings

HEAD_TIMEOUT_S = 10.0
"""From the connection, or from the first byte of a further request, to the end of its head."""
KEEP_ALIVE_S = 75.0
CONNECTIONS_MAX = 8192
"""Of one front; more are closed at once."""
_SWEEP_S = 1.0

Handle = Callable[[web.BaseRequest], Awaitable[Response]]


class Connection(RequestHandler):
    """One client connection that knows since when it owes the head of a request."""

    __slots__ = ("_server", "client", "head_since")

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
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
        if self.head_since is None and self._current_request is None:
            self.head_since = asyncio.get_running_loop().time()
        super().data_received(data)


class Server(web.Server):
    """web.Server whose connections are counted, bounded and swept."""

    def __init__(self, handle: Handle, metrics: Metrics, settings: Callable[[], Settings]) -> None:
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
        self._given = handle
        self._settings = settings
        self._open: set[Connection] = set()
        self._by_client: Counter[str] = Counter()
        self._gauge = metrics.gauge("shoal_connections")
        self._gauge.set(0)  # those of a front that died are gone
        self._refused = metrics.counter("shoal_connections_refused_total")
        self._timed_out = metrics.counter("shoal_connections_timed_out_total")

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=asyncio.get_running_loop(), **self._kwargs)

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
        if connection not in self._open:
            return
        self._open.remove(connection)
        self._by_client[connection.client] -= 1
        if not self._by_client[connection.client]:
            del self._by_client[connection.client]
        self._gauge.set(len(self._open))

    async def sweep(self) -> None:
        """Close connections that owe a head for too long; runs until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
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
