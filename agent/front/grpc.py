"""Tells clients that prefer gRPC, in a status which they show, that this node speaks REST.

It listens on the port after that of REST, where such clients look (6334 after 6333). Each call gets the
status UNIMPLEMENTED and a sentence, by the few frames of HTTP/2 (RFC 9113, 7541) that this takes; of what a
client sends only the heads of its frames are looked at.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from enum import IntEnum

from core.config_values import host_port
from net.logs import Log

PORT_OFFSET = 1
TEXT = "Shoal speaks REST only: make the client without prefer_grpc=True, see docs/grpc.md"
LIFE_S = 10.0
"""Of a connection; a client that calls again connects again."""
CONNECTIONS_MAX = 64
_UNIMPLEMENTED = "12"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_BYTES_MAX = 1 << 14
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4


class Frame(IntEnum):
    DATA = 0
    HEADERS = 1
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


def answer_to(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """What a frame is answered with: settings and pings by an acknowledgement, a call by its refusal."""
    if kind == Frame.SETTINGS and not flags & _ACK:
        return encode(Frame.SETTINGS, _ACK)
    if kind == Frame.PING and not flags & _ACK:
        return encode(Frame.PING, _ACK, payload=payload)
    if kind in (Frame.HEADERS, Frame.CONTINUATION) and flags & _END_HEADERS:
        return encode(Frame.HEADERS, _END_STREAM | _END_HEADERS, stream, _refusal())
    if kind == Frame.DATA and payload:  # or a large upsert would use up the connection's window
        return encode(Frame.WINDOW_UPDATE, payload=len(payload).to_bytes(4, "big"))
    return b""


def encode(kind: Frame, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _refusal() -> bytes:
    """The header block of an answer without a body, in HPACK: literals without compression."""
    block = b"\x88"  # :status 200, from the static table
    for name, value in (
        ("content-type", "application/grpc"),
        ("grpc-status", _UNIMPLEMENTED),
        ("grpc-message", TEXT),
    ):
        # Lengths under 127 are one byte.
        block += bytes((0, len(name))) + name.encode() + bytes((len(value),)) + value.encode()
    return block


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(encode(Frame.SETTINGS))
    if await reader.readexactly(len(_PREFACE)) != _PREFACE:
        return
    while True:
        head = await reader.readexactly(9)
        size = int.from_bytes(head[:3], "big")
        if size > _FRAME_BYTES_MAX:
            return
        payload = await reader.readexactly(size)
        writer.write(answer_to(head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFF_FFFF, payload))
        await writer.drain()


async def listen(address: str, tls: ssl.SSLContext | None, log: Log) -> asyncio.Server | None:
    """Refuse gRPC beside `address`. None, and a line in the log, if that port is taken: REST goes on."""
    host, rest_port = host_port(address)
    connections = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            if connections <= CONNECTIONS_MAX:
                async with asyncio.timeout(LIFE_S):
                    await _converse(reader, writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            return  # it is gone, or had its time
        finally:
            connections -= 1
            writer.close()

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # shared by the fronts, as REST's is
        sock.bind((host, rest_port + PORT_OFFSET))
    except (OSError, OverflowError) as problem:
        sock.close()
        log.info("front.grpc_not_refused", port=rest_port + PORT_OFFSET, text=str(problem))
        return None
    return await asyncio.start_server(refuse, sock=sock, ssl=tls, limit=_FRAME_BYTES_MAX * 2)
