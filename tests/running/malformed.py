"""Requests that no client sends on purpose: random bytes, broken heads, wrong lengths, JSON cut short."""

from __future__ import annotations

import random
import socket

TARGET = b"/collections/target/points"
METHODS = (
    b"GET",
    b"PUT",
    b"POST",
    b"DELETE",
    b"PATCH",
    b"HEAD",
    b"OPTIONS",
    b"BREW",
    b"",
    b"get",
    b"PUT\x00",
)
VERSIONS = (b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9.9", b"HTTP/", b"", b"HTTP/1.1 extra", b"ICY")
PATHS = (
    TARGET,
    TARGET + b"/query",
    TARGET + b"/scroll",
    b"/",
    b"*",
    b"",
    b"/%",
    b"/%zz",
    b"/\xff\xfe",
    b"http://x/",
)
BODY = b'{"points": [{"id": 1, "vector": [1, 2, 3, 4], "payload": {"a": "b"}}]}'
ANSWER_WITHIN_S = 5.0


def malformed(rng: random.Random) -> tuple[bytes, bool]:
    """One request, broken so that it can change nothing; and whether it is complete."""
    make = rng.choice((_noise, _head, _length, _body, _chunks, _headers))
    return make(rng), make in (_length, _body, _headers)


def _noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(1, 400)) + rng.choice((b"", b"\r\n\r\n"))


def _head(rng: random.Random) -> bytes:
    line = b" ".join((rng.choice(METHODS), rng.choice(PATHS), rng.choice(VERSIONS[2:])))
    return line + rng.choice((b"\r\n", b"\n", b"\r")) + b"Host: x\r\n\r\n"


def _length(rng: random.Random) -> bytes:
    length = rng.choice((b"-1", b"abc", b"1e3", b"99999999999999999999", b"0x10", b"", b"1, 2", b"+5", b" "))
    return b"PUT " + TARGET + b" HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\n" + BODY


def _body(rng: random.Random) -> bytes:
    cut = bytearray(BODY[: rng.randint(0, len(BODY) - 1)])  # never whole, so never valid
    for _ in range(rng.randint(0, 3)):
        if cut:
            cut[rng.randrange(len(cut))] = rng.randrange(256)
    if rng.random() < 0.2:
        cut = bytearray(b"[" * rng.randint(1, 5000))
    path = rng.choice((TARGET, TARGET + b"/query", TARGET + b"/delete", TARGET + b"/batch"))
    method = b"PUT" if path == TARGET else b"POST"
    size = str(len(cut)).encode()
    return method + b" " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: " + size + b"\r\n\r\n" + cut


def _chunks(rng: random.Random) -> bytes:
    size = rng.choice((b"zz", b"-5", b"ffffffffffffffffffff", b"5;" + b"x" * 300, b"", b"0x5"))
    head = b"PUT " + TARGET + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    both = rng.choice((b"", b"Content-Length: 5\r\n"))
    return head + both + b"\r\n" + size + b"\r\n{"


def _headers(rng: random.Random) -> bytes:
    broken = rng.choice(
        (
            b"Content-Type application/json",
            b": empty",
            b"A\x00B: c",
            b"X: " + rng.randbytes(20).replace(b"\n", b"\x01").replace(b"\r", b"\x01"),
            b"X: " + b"y" * rng.choice((9000, 70_000)),
            b"\r\n".join(b"X%d: y" % i for i in range(rng.choice((200, 2000)))),
            b"Content-Encoding: br",
            b"Expect: the-unexpected",
            b"Content-Length: 5\r\nContent-Length: 6",
            b"Transfer-Encoding: chunked, identity, gzip",
        )
    )
    return b"PUT " + TARGET + b" HTTP/1.1\r\nHost: x\r\n" + broken + b"\r\n\r\n" + BODY[:-1]


def send_malformed(port: int, rng: random.Random) -> bool:
    """Send one on a connection of its own; whether an answer came before the connection ended.

    Raises TimeoutError if the agent neither answers nor closes.
    """
    request, is_complete = malformed(rng)
    with socket.create_connection(("127.0.0.1", port), ANSWER_WITHIN_S) as sock:
        try:
            sock.sendall(request)
            if not is_complete:
                sock.shutdown(socket.SHUT_WR)  # else the agent would rightly wait for the rest
            answer = sock.recv(65536)
        except (ConnectionResetError, BrokenPipeError):
            return False  # refused while we were still sending
    if answer.startswith(b"HTTP/1."):
        status = int(answer[9:12])
        assert status < 500 or status in (501, 505), (request[:300], answer[:300])
    return bool(answer)
