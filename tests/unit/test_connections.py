"""Plain requests are answered as they arrive, in order, and everything else as aiohttp reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from agent.front.connections import Server
from agent.front.framing import Plain
from agent.front.responses import Response, WholeResponse
from agent.metrics import Metrics
from agent.page import METRICS_BYTES
from core.settings import Settings

GATE = b"wait"


class Echo:
    """Answers with `quick:` or `slow:` and the body; to a body GATE only once `gate` is set."""

    def __init__(self, *, quick: bool) -> None:
        self.is_quick = quick
        self.gate = asyncio.Event()
        self.waiting = asyncio.Event()

    def at_once(self, plain: Plain) -> bytes | None:
        if not self.is_quick or plain.body == GATE:
            return None
        return WholeResponse(b"quick:" + plain.body).whole()

    async def handle(self, http: web.BaseRequest) -> Response:
        body = await http.read()
        if body == GATE:
            self.waiting.set()
            await self.gate.wait()
        return WholeResponse(b"slow:" + body)


@asynccontextmanager
async def connected(echo: Echo) -> AsyncIterator[tuple[Server, asyncio.StreamReader, asyncio.StreamWriter]]:
    server = Server(echo.handle, echo.at_once, Metrics(memoryview(bytearray(METRICS_BYTES))), Settings)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        # Until aiohttp waits for a request, it gets all of them.
        while not (await _asked(reader, writer, b"first")).startswith(b"quick" if echo.is_quick else b"slow"):
            pass
        yield server, reader, writer
        writer.close()
        listener.close()
        await server.shutdown(1.0)


async def _asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> bytes:
    writer.write(request(body))
    return await answer(reader)


def request(body: bytes, *lines: bytes) -> bytes:
    head = [b"POST / HTTP/1.1", b"Host: h", b"Content-Length: %d" % len(body), *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    [length] = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return await reader.readexactly(int(length.split(b":")[1]))


async def test_a_plain_request_is_answered_as_it_arrives() -> None:
    async with connected(Echo(quick=True)) as (_, reader, writer):
        for body in (b"a", b"b" * 100_000):  # the second comes in pieces
            writer.write(request(body))
            assert await answer(reader) == b"quick:" + body


async def test_what_is_not_plain_or_not_answered_at_once_is_handled() -> None:
    async with connected(Echo(quick=True)) as (_, reader, writer):
        writer.write(request(b"a", b"Origin: https://example.org"))
        assert await answer(reader) == b"slow:a"
    async with connected(Echo(quick=False)) as (_, reader, writer):
        writer.write(request(b"b"))
        assert await answer(reader) == b"slow:b"


async def test_no_answer_overtakes_one_that_is_under_way() -> None:
    echo = Echo(quick=True)
    async with connected(echo) as (_, reader, writer):
        writer.write(request(GATE))
        await echo.waiting.wait()
        writer.write(request(b"behind"))
        asyncio.get_running_loop().call_later(0.05, echo.gate.set)  # it has arrived by then
        assert await answer(reader) == b"slow:" + GATE
        assert await answer(reader) == b"slow:behind"


async def test_half_a_request_is_given_to_aiohttp_and_the_rest_follows() -> None:
    async with connected(Echo(quick=True)) as (server, reader, writer):
        whole = request(b"in two")
        writer.write(whole[:-3])
        while not server.holding:
            await asyncio.sleep(0)
        server.pass_on_held()
        assert not server.holding
        writer.write(whole[-3:])
        assert await answer(reader) == b"slow:in two"


async def test_a_body_whose_end_fills_what_aiohttp_buffers_is_read_whole() -> None:
    async with connected(Echo(quick=False)) as (server, reader, _):
        [connection] = server._open
        whole = request(b"x" * 600_000)
        connection.data_received(whole[:500_000])
        connection.data_received(whole[500_000:])  # before anybody could read
        assert await answer(reader) == b"slow:" + b"x" * 600_000
