"""Connections between nodes: who gets in, who is refused and in which words, and that seals hold."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest

from agent.link import Answer, Header, Server
from core.errors import ShoalError, Unauthorized, Unavailable
from net.frames import Caller, Framing
from net.logs import log_to
from net.peer_link import WIRE, Identity, Sealed, Trust, WireMismatch, dial, greet

OLD, NEW, OTHER = b"old secret of the cluster", b"new secret of the cluster", b"somebody else's secret"
N1, N2 = Identity("n1", "store", "uuid-1"), Identity("n2", "store", "uuid-1")


class Listener:
    """A store that answers `echo` to peers, and remembers whom it refused."""

    def __init__(self, me: Identity, trust: Trust) -> None:
        self.me, self.trust = me, trust
        self.refused: list[Exception] = []
        self.served: list[Identity] = []
        self.bodies: list[bytes] = []
        self._server = Server({}, log_to(sys.stderr, "logfmt", "error"))

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            framing = await greet(reader, writer, self.me, self.trust)
        except (ShoalError, OSError, EOFError) as problem:
            self.refused.append(problem)
            return
        self.served.append(framing.peer)
        await self._server.serve(framing, {"echo": self.echo})

    async def echo(self, header: Header, body: bytes, deadline: float) -> Answer:
        self.bodies.append(body)
        return header, body

    async def close(self) -> None:
        await self._server.close()


@asynccontextmanager
async def listening(me: Identity, *secrets: bytes) -> AsyncIterator[tuple[Listener, tuple[str, int]]]:
    listener = Listener(me, Trust(secrets))
    server = await asyncio.start_server(listener.accept, "127.0.0.1", 0)
    try:
        yield listener, server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        await listener.close()


@asynccontextmanager
async def calling(
    address: tuple[str, int],
    me: Identity,
    *secrets: bytes,
    change: Callable[[Framing], None] = lambda _: None,
) -> AsyncIterator[Caller]:
    async def opened() -> Framing:
        framing = await dial(address, me, Trust(secrets))
        change(framing)
        return framing

    caller = Caller(opened, "n2")
    try:
        yield caller
    finally:
        await caller.close()


async def test_two_that_hold_the_secret_talk() -> None:
    async with listening(N2, NEW) as (listener, address), calling(address, N1, NEW) as caller:
        assert await caller.call("echo", {"a": 1}, b"x" * 3_000_000, timeout_s=5) == (
            {"a": 1},
            b"x" * 3_000_000,
        )
        assert await caller.call("echo", {}, b"again", timeout_s=5) == ({}, b"again")
        assert listener.served == [N1]


async def test_the_caller_learns_whom_it_reached() -> None:
    async with listening(N2, NEW) as (_, address):
        framing = await dial(address, N1, Trust((NEW,)))
        assert framing.peer == N2
        framing.close()


@pytest.mark.parametrize(
    ("callers", "listeners"), [((NEW, OLD), (OLD,)), ((OLD,), (NEW, OLD)), ((NEW, OLD), (OLD, NEW))]
)
async def test_while_a_secret_is_rotated_either_is_valid(
    callers: tuple[bytes, ...], listeners: tuple[bytes, ...]
) -> None:
    async with listening(N2, *listeners) as (_, address), calling(address, N1, *callers) as caller:
        assert await caller.call("echo", {}, b"hello", timeout_s=5) == ({}, b"hello")


async def test_another_secret_is_refused_in_words_and_reaches_no_handler() -> None:
    async with listening(N2, NEW) as (listener, address), calling(address, N1, OTHER) as caller:
        with pytest.raises(Unauthorized, match="secret_file"):
            await caller.call("echo", {}, timeout_s=5)
        assert listener.bodies == []


async def test_a_listener_without_the_secret_is_not_believed() -> None:
    """It may claim to know any secret: its proof is wrong, and nothing is said to it."""

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(4), "little")
        await reader.readexactly(size)
        for message in (["shoal-welcome", msgspec.to_builtins(N2), b"n" * 32], ["shoal-proof", b"p" * 32]):
            data = msgspec.msgpack.encode(message)
            writer.write(len(data).to_bytes(4, "little") + data)
        heard.set_result(await reader.read())
        writer.close()

    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(pretend, "127.0.0.1", 0)
    with pytest.raises(Unauthorized, match="does not hold"):
        await dial(server.sockets[0].getsockname()[:2], N1, Trust((NEW,)))
    assert await asyncio.wait_for(heard, 5) == b""
    server.close()


@pytest.mark.parametrize(("ahead", "works"), [(1, True), (2, False), (-1, True), (-2, False)])
async def test_one_wire_version_apart_works_and_two_are_refused_in_words(ahead: int, works: bool) -> None:
    other = Identity(N1.node, N1.role, N1.cluster, WIRE + ahead)
    async with listening(N2, NEW) as (listener, address), calling(address, other, NEW) as caller:
        if works:
            assert await caller.call("echo", {}, b"x", timeout_s=5) == ({}, b"x")
            assert listener.served[0].wire == min(WIRE, WIRE + ahead)
            return
        with pytest.raises(WireMismatch, match="more than one apart: upgrade"):
            await caller.call("echo", {}, timeout_s=5)


HOSTILE: list[bytes] = [
    b"",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\xff\xff\xff\xff",
    (5).to_bytes(4, "little") + b"\xc1\xc1\xc1\xc1\xc1",
    (3).to_bytes(4, "little") + b"ab",
]


@pytest.mark.parametrize("said", HOSTILE)
async def test_whoever_does_not_greet_is_refused_and_the_next_is_served(said: bytes) -> None:
    async with listening(N2, NEW) as (listener, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(said)
        writer.write_eof()
        with suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 5)
        writer.close()
        async with calling(address, N1, NEW) as caller:
            assert await caller.call("echo", {}, b"x", timeout_s=5) == ({}, b"x")
        assert listener.bodies == [b"x"]
        assert len(listener.refused) == 1


async def relayed(
    address: tuple[str, int], upstream: Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
) -> asyncio.Server:
    """A man in the middle: what the caller says goes through `upstream`, answers come back as they are."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection(*address)

        async def back() -> None:
            while data := await there.read(65536):
                writer.write(data)
            writer.close()

        async with asyncio.TaskGroup() as both:
            both.create_task(back())
            while data := await reader.read(65536):
                await upstream(data, to_there)
            to_there.close()

    return await asyncio.start_server(relay, "127.0.0.1", 0)


async def test_a_frame_that_is_repeated_or_changed_ends_the_connection_and_is_not_obeyed() -> None:
    for tamper in (lambda data: data + data, lambda data: data[:-1] + bytes([data[-1] ^ 1])):

        async def upstream(
            data: bytes, to_there: asyncio.StreamWriter, tamper: Callable[[bytes], bytes] = tamper
        ) -> None:
            to_there.write(tamper(data) if b"target" in data else data)

        async with listening(N2, NEW) as (listener, address):
            server = await relayed(address, upstream)
            middle = server.sockets[0].getsockname()[:2]
            async with calling(middle, N1, NEW) as caller:
                await caller.call("echo", {}, b"first", timeout_s=5)
                with suppress(Unavailable):
                    await caller.call("echo", {}, b"target", timeout_s=5)
                with suppress(Unavailable):
                    await caller.call("echo", {}, b"after", timeout_s=5)
            server.close()
            assert listener.bodies.count(b"target") <= 1
            assert set(listener.bodies) <= {b"first", b"target", b"after"}


async def test_what_was_overheard_cannot_be_played_again() -> None:
    heard = bytearray()

    async def upstream(data: bytes, to_there: asyncio.StreamWriter) -> None:
        heard.extend(data)
        to_there.write(data)

    async with listening(N2, NEW) as (listener, address):
        server = await relayed(address, upstream)
        async with calling(server.sockets[0].getsockname()[:2], N1, NEW) as caller:
            await caller.call("echo", {}, b"x", timeout_s=5)
        server.close()
        assert listener.bodies == [b"x"]
        reader, writer = await asyncio.open_connection(*address)
        writer.write(bytes(heard))
        writer.write_eof()
        with suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert listener.bodies == [b"x"]
        assert isinstance(listener.refused[0], Unauthorized)


async def test_a_frame_over_the_bound_ends_the_connection() -> None:
    def huge(framing: Framing) -> None:
        assert isinstance(framing, Sealed)
        framing.writer.write(b"\xff" * 32)

    async with listening(N2, NEW) as (listener, address), calling(address, N1, NEW, change=huge) as caller:
        with pytest.raises(Unavailable):
            await caller.call("echo", {}, timeout_s=5)
        assert listener.bodies == []


def test_without_a_secret_or_certificates_nobody_is_trusted() -> None:
    with pytest.raises(Unauthorized, match="secret_file"):
        Trust()
