"""Whole answers, head and body in one write: half the cost of building them header by header."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion10

from core.errors import InvariantBroken

_DRAIN_BYTES = 64 << 10
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_NO_BODY = (204, 304)


class WholeResponse:
    """What aiohttp's connection needs of a response: `prepare`, `write_eof`, `keep_alive`."""

    __slots__ = ("_body", "_close", "_content_type", "headers", "keep_alive", "prepared", "status")

    def __init__(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._body, self.status, self._content_type = body, status, content_type
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
        self.prepared = True
        self.keep_alive = request.keep_alive and not self._close
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has closed the connection")
        body = b"" if request.method == "HEAD" or self.status in _NO_BODY else self._body
        transport.write(self._head(request) + body)
        if len(body) > _DRAIN_BYTES:
            await request.writer.drain()

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to send."""

    def _head(self, request: web.BaseRequest) -> bytes:
        lines = [
            b"HTTP/1.1 %d %s" % (self.status, _REASONS[self.status]),
            b"Date: " + rfc822_formatted_time().encode(),
        ]
        if self.status not in _NO_BODY:
            lines.append(b"Content-Type: " + self._content_type.encode())
            lines.append(b"Content-Length: %d" % len(self._body))
        if not self.keep_alive:
            lines.append(b"Connection: close")
        elif request.version == HttpVersion10:
            lines.append(b"Connection: keep-alive")
        for name, value in self.headers.items():
            line = f"{name}: {value}".encode("latin-1", "replace")
            if b"\r" in line or b"\n" in line:
                raise InvariantBroken(f"header {name} holds a line break")
            lines.append(line)
        lines.append(b"\r\n")
        return b"\r\n".join(lines)


Response = web.StreamResponse | WholeResponse
