"""Structured event log: constant event names, facts in fields, one line an event, never a wait.

    log = log_to(sys.stderr, "json", "info").bind(node="n1", process="front-0")
    log.info("request.slow", path="/collections/docs/points/query", took_ms=1204)

There is nothing to configure process-wide: whoever logs is handed a `Log`, and binds what it knows. A reader
of stderr that stops reading must not stop a node: what can't be written at once is dropped and counted, and
the count is the next thing said (`log.dropped`). Several processes share one stderr: a line is never longer
than what a pipe takes in one piece.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, TextIO

LogFormat = Literal["json", "logfmt"]
LogLevel = Literal["debug", "info", "warning", "error"]

_RANK = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_LINE_BYTES_MAX = select.PIPE_BUF  # beyond it, lines of several processes could be mixed in a pipe
_TEXT_CHARS_MAX = 512  # of one field, in a line that would be too long
_SECRET = re.compile(r"(^|_)(secret|password|token|authorization|api_?key)$", re.IGNORECASE)
_BARE = re.compile(r"[^\s\"=\\\x00-\x1f]+\Z")

Write = Callable[[bytes], bool]
"""Takes one whole line; False if it could not be written without waiting."""


class Log:
    """An immutable logger: `bind` makes another one that says more."""

    __slots__ = ("_fields", "_format", "_least", "_sink")

    def __init__(self, sink: _Sink, fmt: LogFormat, least: int, fields: dict[str, object]) -> None:
        self._sink = sink
        self._format: LogFormat = fmt
        self._least = least
        self._fields = fields

    def bind(self, **fields: object) -> Log:
        """The same log with these fields in every line."""
        return Log(self._sink, self._format, self._least, self._fields | fields)

    def debug(self, event: str, **fields: object) -> None:
        self._say("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._say("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._say("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._say("error", event, fields)

    def _say(self, level: LogLevel, event: str, fields: dict[str, object]) -> None:
        if _RANK[level] < self._least:
            return
        if self._sink.dropped:
            # The reader is back, perhaps: what was lost comes before what is new.
            lost, self._sink.dropped = self._sink.dropped, 0
            if not self._sink.write(self._line("warning", "log.dropped", {"lines": lost})):
                self._sink.dropped = lost
        if not self._sink.write(self._line(level, event, fields)):
            self._sink.dropped += 1

    def _line(self, level: LogLevel, event: str, fields: dict[str, object]) -> bytes:
        facts: dict[str, object] = {"time": _timestamp(time.time()), "level": level, "event": event}
        facts |= {name: _plain(name, value) for name, value in (self._fields | fields).items()}
        line = _encode(self._format, facts)
        if len(line) > _LINE_BYTES_MAX:
            short = {name: _shortened(value) for name, value in facts.items()}
            line = _encode(self._format, short | {"shortened": True})
        if len(line) > _LINE_BYTES_MAX:
            line = _encode(self._format, dict(list(facts.items())[:3]) | {"shortened": True})
        return line


def log_to(stream: TextIO, fmt: LogFormat = "logfmt", level: LogLevel = "info") -> Log:
    """A log that writes to a stream: by its descriptor if it has one, else (StringIO) by its `write`."""
    return Log(_Sink(_writer(stream)), fmt, _RANK[level], {})


class _Sink:
    """Where the lines go, and how many have been lost since the last one that went."""

    __slots__ = ("dropped", "write")

    def __init__(self, write: Write) -> None:
        self.write = write
        self.dropped = 0


def _writer(stream: TextIO) -> Write:
    try:
        fd = stream.fileno()
    except (OSError, ValueError):
        return lambda line: stream.write(line.decode()) >= 0
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):  # the journal's
        return _socket_writer(fd)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with suppress(OSError):  # another user's terminal: then the descriptor as it is will have to do
            # O_NONBLOCK on the inherited descriptor would change it for the shell and for our siblings, too.
            # Opened again it is our own. Never closed: it lives as long as the process.
            fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return lambda line: _write(fd, line)


def _write(fd: int, line: bytes) -> bool:
    try:
        return os.write(fd, line) > 0
    except OSError:  # full pipe, stopped terminal, closed reader, full disk: none may stop a node
        return False


def _socket_writer(fd: int) -> Write:
    sock = socket.socket(fileno=os.dup(fd))

    def write(line: bytes) -> bool:
        try:
            return sock.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) > 0
        except OSError:
            return False

    return write


def _timestamp(now_s: float) -> str:
    milliseconds = int(now_s * 1000)
    second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{second}.{milliseconds % 1000:03d}Z"


def _plain(name: str, value: object) -> object:
    if _SECRET.search(name):
        return "(secret)"  # a slip of the caller's must not end in a file that others read
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # JSON has no NaN and no infinity
    if value is None or isinstance(value, str | bool | int | list | tuple | dict):
        return value
    return str(value)


def _shortened(value: object) -> object:
    if isinstance(value, bool | int | float) or value is None:
        return value
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= _TEXT_CHARS_MAX else text[:_TEXT_CHARS_MAX] + "…"


def _encode(fmt: LogFormat, facts: dict[str, object]) -> bytes:
    if fmt == "json":
        text = json.dumps(facts, ensure_ascii=False, default=str, separators=(",", ":"))
    else:
        text = " ".join(f"{name}={_logfmt(value)}" for name, value in facts.items())
    return (text + "\n").encode(errors="backslashreplace")


def _logfmt(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if _BARE.match(text) else json.dumps(text, ensure_ascii=False)
