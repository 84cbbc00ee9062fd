"""Whole answers, head and body in one write: half the cost of building them header by header."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion10

from core.errors import InvariantBroken

_DRAIN_BYTES = 64 << 10
_STALLED_S = 30.0
"""A client that takes nothing of its answer for this long has its connection aborted."""
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_NO_BODY = (204, 304)


class Unsent:
    """How many bytes of large answers are in memory until their clients have taken them."""

    __slots__ = ("bytes_",)

    def __init__(self) -> None:
        self.bytes_ = 0


class WholeResponse:
    """What aiohttp's connection needs of a response: `prepare`, `write_eof`, `keep_alive`."""

    __slots__ = (
        "_body", "_close", "_content_type", "_unsent", "headers", "keep_alive", "prepared", "status"
    )  # fmt: skip

    def __init__(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        unsent: Unsent | None = None,
    ) -> None:
        """`unsent` counts the body while it is being sent: an answer that is never sent is never counted."""
        self._body, self.status, self._content_type = body, status, content_type
        self._unsent = unsent
        self.headers: dict[str, str] = dict(headers or {})
        self.keep_alive = True
        self.prepared = False
        self._close = False

    @property
    def body_bytes(self) -> int:
        return len(self._body)

    def force_close(self) -> None:
        """The connection ends with this answer."""
        self._close = True

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send it."""
        size = len(self._body)
        if self._unsent is None:
            await self._send(request)
            return
        self._unsent.bytes_ += size
        try:
            await self._send(request)
        finally:
            self._unsent.bytes_ -= size

    async def _send(self, request: web.BaseRequest) -> None:
        self.prepared = True
        self.keep_alive = request.keep_alive and not self._close
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has closed the connection")
        body = b"" if request.method == "HEAD" or self.status in _NO_BODY else self._body
        head = self._head(is_old=request.version == HttpVersion10)
        if len(body) <= _DRAIN_BYTES:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        # Small answers add up, too: to a client that asks on and on without reading.
        if transport.get_write_buffer_size() > _DRAIN_BYTES:
            await _taken(request, transport)

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to send."""

    def whole(self) -> bytes:
        """Head and body for a client that speaks HTTP/1.1 and keeps its connection."""
        self.prepared = True
        return self._head(is_old=False) + self._body

    def _head(self, *, is_old: bool) -> bytes:
        lines = [
            b"HTTP/1.1 %d %s" % (self.status, _REASONS[self.status]),
            b"Date: " + rfc822_formatted_time().encode(),
        ]
        if self.status not in _NO_BODY:
            lines.append(b"Content-Type: " + self._content_type.encode())
            lines.append(b"Content-Length: %d" % len(self._body))
        if not self.keep_alive:
            lines.append(b"Connection: close")
        elif is_old:
            lines.append(b"Connection: keep-alive")
        for name, value in self.headers.items():
            line = f"{name}: {value}".encode("latin-1", "replace")
            if b"\r" in line or b"\n" in line:
                raise InvariantBroken(f"header {name} holds a line break")
            lines.append(line)
        lines.append(b"\r\n")
        return b"\r\n".join(lines)


Response = web.StreamResponse | WholeResponse


async def _taken(request: web.BaseRequest, transport: asyncio.Transport) -> None:
    """Wait until the client has taken its answer, as long as it takes some of it now and then."""
    left = transport.get_write_buffer_size()
    while True:
        try:
            async with asyncio.timeout(_STALLED_S):
                await request.writer.drain()
            return
        except TimeoutError:
            before, left = left, transport.get_write_buffer_size()
            if left >= before:
                transport.abort()
                raise ConnectionResetError("the client does not read its answer") from None
