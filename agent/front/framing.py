"""Which bytes of a connection are one whole plain request: such can be answered as they arrive.

What is not plain is for aiohttp, and stays so: once it is not certain where a request ends, nothing that
follows on the connection is looked at. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

_HEAD_BYTES_MAX = 2048
_HELD_BYTES_MAX = 256 << 10
"""A request that comes in several pieces is put together up to this size."""
_HEADS_KEPT = 256
"""A client's heads are all alike but for the length of the body: each is parsed once."""
_FIELD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n"
_HEAD = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.1\r\n((?:" + _FIELD + rb")*)\r\n")
_REFUSED = frozenset(
    {"transfer-encoding", "content-encoding", "expect", "upgrade", "origin", "trailer", "te"}
)


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a plain request; the names of `headers` are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    size_bytes: int
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Plain:
    """A whole plain request."""

    head: Head
    body: bytes


@lru_cache(_HEADS_KEPT)
def parse_head(raw: bytes) -> Head | None:
    """A head with its empty line; None if it is not plain: nothing in it may change how a body is read."""
    match = _HEAD.fullmatch(raw)
    if match is None:
        return None
    fields = [line.partition(":") for line in match[3].decode("latin-1").split("\r\n")[:-1]]
    headers = {name.lower(): value.strip(" \t") for name, _, value in fields}
    length = headers.get("content-length", "0")
    if (
        len(headers) < len(fields)  # one is there twice
        or headers.keys() & _REFUSED
        or headers.get("connection", "keep-alive").lower() != "keep-alive"
        or not (length.isascii() and length.isdigit() and len(length) < 10)
    ):
        return None
    return Head(match[1].decode(), match[2].decode(), headers, len(raw), int(length))


class Framing:
    """One connection's bytes, piece by piece."""

    __slots__ = ("_head", "_held", "_is_lost", "_owed_bytes")

    def __init__(self) -> None:
        self._is_lost = False
        self._owed_bytes = 0
        self._head: Head | None = None
        self._held: list[bytes] = []

    @property
    def is_holding(self) -> bool:
        return bool(self._held)

    def feed(self, data: bytes) -> tuple[bytes, Plain | None]:
        """What is to be passed on now, and the plain request that it is, if it is one and whole.

        Nothing is passed on while the rest of a short request is awaited.
        """
        if self._is_lost:
            return data, None
        if self._head is None and self._owed_bytes:
            self._owe(self._owed_bytes - len(data))
            return data, None
        if self._head is None:
            end = data.find(b"\r\n\r\n", 0, _HEAD_BYTES_MAX)
            self._head = parse_head(data[: end + 4]) if end >= 0 else None
            if self._head is None:
                self._is_lost = True
                return data, None
            self._owed_bytes = self._head.size_bytes + self._head.body_bytes
        self._owed_bytes -= len(data)
        head, whole = self._head, self._head.size_bytes + self._head.body_bytes
        if self._owed_bytes > 0 and whole <= _HELD_BYTES_MAX:
            self._held.append(data)
            return b"", None
        if self._held:
            data = self.release() + data
        self._head = None
        self._owe(self._owed_bytes)
        return data, Plain(head, data[head.size_bytes :]) if len(data) == whole else None

    def release(self) -> bytes:
        """What is held, to be passed on although the rest is missing."""
        held, self._held, self._head = b"".join(self._held), [], None
        return held

    def _owe(self, left_bytes: int) -> None:
        """So many bytes of a body that was passed on are still to come."""
        self._owed_bytes = max(0, left_bytes)
        self._is_lost = left_bytes < 0
