"""The link: calls, errors and lost connections between two real ends on a real socket."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.link import Answer, Client, Handler, Header, Server
from core.errors import BadRequest, DeadlineExceeded, NotFound, RateLimited, ShoalError, Unavailable
from net.frames import Caller, Plain
from net.logs import log_to


@asynccontextmanager
async def linked(tmp_path: Path, handlers: Mapping[str, Handler]) -> AsyncIterator[tuple[Server, Client]]:
    server = Server(handlers, log_to(sys.stderr, "logfmt", "error"))
    await server.start(str(tmp_path / "s"))
    client = Client(str(tmp_path / "s"))
    try:
        yield server, client
    finally:
        await client.close()
        await server.close()


async def echo(header: Header, body: bytes, deadline: float) -> Answer:
    return header, body[::-1]


async def test_a_call_brings_header_and_body_back(tmp_path: Path) -> None:
    async with linked(tmp_path, {"echo": echo}) as (_, client):
        assert await client.call("echo", {"a": [1, "b"]}, b"xyz", timeout_s=5) == ({"a": [1, "b"]}, b"zyx")


async def test_a_body_of_megabytes_arrives_whole(tmp_path: Path) -> None:
    body = bytes(range(256)) * 40_000
    async with linked(tmp_path, {"echo": echo}) as (_, client):
        assert (await client.call("echo", {}, body, timeout_s=5))[1] == body[::-1]


async def test_calls_are_answered_in_the_order_in_which_they_finish(tmp_path: Path) -> None:
    second_done = asyncio.Event()

    async def first(header: Header, body: bytes, deadline: float) -> Answer:
        await second_done.wait()
        return {}, b"first"

    async with linked(tmp_path, {"first": first, "echo": echo}) as (_, client):
        waiting = asyncio.create_task(client.call("first", {}, timeout_s=5))
        assert await client.call("echo", {}, b"2", timeout_s=5) == ({}, b"2")
        second_done.set()
        assert (await waiting)[1] == b"first"


@pytest.mark.parametrize(
    "error", [BadRequest("points[3].id: no"), NotFound.collection("x"), RateLimited("x", retry_after_s=7)]
)
async def test_an_error_is_raised_again_with_its_class_and_text(tmp_path: Path, error: ShoalError) -> None:
    async def fail(header: Header, body: bytes, deadline: float) -> Answer:
        raise error

    async with linked(tmp_path, {"fail": fail}) as (_, client):
        with pytest.raises(type(error)) as caught:
            await client.call("fail", {}, timeout_s=5)
    assert str(caught.value) == str(error)
    assert caught.value.retry_after_s == error.retry_after_s


async def test_a_bug_in_a_handler_is_an_internal_error_and_the_link_lives(tmp_path: Path) -> None:
    async def bug(header: Header, body: bytes, deadline: float) -> Answer:
        raise ZeroDivisionError

    async with linked(tmp_path, {"bug": bug, "echo": echo}) as (_, client):
        with pytest.raises(ShoalError, match="ZeroDivisionError"):
            await client.call("bug", {}, timeout_s=5)
        assert (await client.call("echo", {}, b"ok", timeout_s=5))[1] == b"ko"


async def test_a_call_that_takes_too_long_says_so(tmp_path: Path) -> None:
    async def never(header: Header, body: bytes, deadline: float) -> Answer:
        await asyncio.Event().wait()
        return {}, b""

    async with linked(tmp_path, {"never": never}) as (_, client):
        with pytest.raises(DeadlineExceeded, match="never"):
            await client.call("never", {}, timeout_s=0.05)


async def test_the_handler_learns_the_deadline_of_its_caller(tmp_path: Path) -> None:
    async def left(header: Header, body: bytes, deadline: float) -> Answer:
        return {"left_s": deadline - asyncio.get_running_loop().time()}, b""

    async with linked(tmp_path, {"left": left}) as (_, client):
        header, _ = await client.call("left", {}, timeout_s=30)
    assert 20 < header["left_s"] <= 30


async def test_a_lost_connection_ends_all_calls_and_the_next_call_connects_again(tmp_path: Path) -> None:
    began = asyncio.Event()

    async def never(header: Header, body: bytes, deadline: float) -> Answer:
        began.set()
        await asyncio.Event().wait()
        return {}, b""

    async with linked(tmp_path, {"never": never, "echo": echo}) as (server, client):
        waiting = asyncio.create_task(client.call("never", {}, timeout_s=30))
        await began.wait()
        await server.close()
        with pytest.raises(Unavailable):
            await waiting
        again = Server({"echo": echo}, log_to(sys.stderr, "logfmt", "error"))
        (tmp_path / "s").unlink(missing_ok=True)
        await again.start(str(tmp_path / "s"))
        try:
            assert (await client.call("echo", {}, b"ab", timeout_s=5))[1] == b"ba"
        finally:
            await again.close()


async def test_without_a_server_a_call_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await Client(str(tmp_path / "nobody")).call("echo", {}, timeout_s=1)


async def test_a_caller_that_is_closed_while_it_dials_keeps_no_connection(tmp_path: Path) -> None:
    server = Server({"echo": echo}, log_to(sys.stderr, "logfmt", "error"))
    await server.start(str(tmp_path / "s"))
    dialling, may_go_on = asyncio.Event(), asyncio.Event()
    made: list[Plain] = []

    async def dial() -> Plain:
        dialling.set()
        await may_go_on.wait()
        made.append(Plain(*await asyncio.open_unix_connection(str(tmp_path / "s"))))
        return made[0]

    caller = Caller(dial, "a server")
    calling = asyncio.create_task(caller.call("echo", {}, timeout_s=5))
    await dialling.wait()
    await caller.close()
    may_go_on.set()
    with pytest.raises(Unavailable, match="closed here"):
        await calling
    assert made[0].is_closing()
    assert not caller.is_open
    await server.close()
