"""Calls by gRPC are refused in words, frame by frame; whatever else is sent ends the connection."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator

import pytest

from agent.front import grpc
from agent.front.grpc import Frame, answer_to, encode
from net.logs import log_to
from tests.running.ports import PortPair

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.mark.parametrize(
    ("frame", "answer"),
    [
        ((Frame.SETTINGS, 0, 0, b"\0" * 6), encode(Frame.SETTINGS, 1)),
        ((Frame.SETTINGS, 1, 0, b""), b""),
        ((Frame.PING, 0, 0, b"12345678"), encode(Frame.PING, 1, payload=b"12345678")),
        ((Frame.PING, 1, 0, b"12345678"), b""),
        ((Frame.DATA, 0, 1, b"abc"), encode(Frame.WINDOW_UPDATE, payload=b"\0\0\0\3")),
        ((Frame.DATA, 1, 1, b""), b""),
        ((Frame.HEADERS, 0, 1, b"first half"), b""),
        ((Frame.WINDOW_UPDATE, 0, 0, b"\0\0\0\1"), b""),
        ((99, 0, 0, b"of a later version"), b""),
    ],
)
def test_frames_beside_calls_are_answered_as_the_protocol_asks(
    frame: tuple[int, int, int, bytes], answer: bytes
) -> None:
    assert answer_to(*frame) == answer


@pytest.mark.parametrize("kind", [Frame.HEADERS, Frame.CONTINUATION])
def test_a_call_is_answered_by_a_status_and_a_sentence(kind: Frame) -> None:
    answer = answer_to(kind, 4, 7, b"whatever it says")
    assert (answer[3], answer[4], answer[5:9]) == (Frame.HEADERS, 1 | 4, b"\0\0\0\7")
    assert int.from_bytes(answer[:3], "big") == len(answer) - 9
    assert b"grpc-status\x0212" in answer
    assert b"REST only" in answer


@pytest.fixture
async def port() -> AsyncIterator[int]:
    with PortPair() as pair:
        server = await grpc.listen(f"127.0.0.1:{pair.port}", None, log_to(io.StringIO()))
        assert server is not None
        yield pair.port + grpc.PORT_OFFSET
        server.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        PREFACE + b"\xff\xff\xff" + bytes(6),  # a frame of 16 MiB
        PREFACE[:-1] + b"x",
    ],
)
async def test_what_is_no_call_ends_the_connection(port: int, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    async with asyncio.timeout(5):
        assert await reader.read() == encode(Frame.SETTINGS)
    writer.close()


async def test_a_silent_connection_ends(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc, "LIFE_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(5):
        await reader.read()
    writer.close()


async def test_a_port_that_is_taken_is_only_logged() -> None:
    log = io.StringIO()
    with PortPair() as pair:
        taken = await asyncio.start_server(lambda r, w: None, "127.0.0.1", pair.port + grpc.PORT_OFFSET)
        assert await grpc.listen(f"127.0.0.1:{pair.port}", None, log_to(log)) is None
        taken.close()
    assert "front.grpc_not_refused" in log.getvalue()
