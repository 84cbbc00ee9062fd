"""The event log: what a line holds, and that no reader of it can make a process wait."""

from __future__ import annotations

import io
import json
import os
import pty
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from net.logs import Log, LogFormat, log_to


def said(use: Callable[[Log], None], fmt: LogFormat = "json") -> str:
    stream = io.StringIO()
    use(log_to(stream, fmt, "debug"))
    return stream.getvalue()


def facts(use: Callable[[Log], None]) -> dict[str, Any]:
    line = said(use)
    assert line.count("\n") == 1
    return json.loads(line)


def test_a_line_says_when_how_grave_what_and_the_facts_in_this_order() -> None:
    line = facts(lambda log: log.bind(node="n1").bind(process="store").info("replica.caught_up", took_ms=212))
    assert list(line.items())[1:] == [
        ("level", "info"),
        ("event", "replica.caught_up"),
        ("node", "n1"),
        ("process", "store"),
        ("took_ms", 212),
    ]
    assert line["time"].endswith("Z")
    assert len(line["time"]) == len("2026-01-01T00:00:00.000Z")


def test_logfmt_quotes_what_could_be_misread() -> None:
    line = said(
        lambda log: log.warning(
            "e", a="plain/x.y", b="two words", c='q"=', d=None, e=True, f=1.5, g="", h="é\n", i=[1, "x"]
        ),
        "logfmt",
    )
    assert line.split(" ", 1)[1] == (
        'level=warning event=e a=plain/x.y b="two words" c="q\\"=" d=null e=true f=1.5 g="" '
        'h="é\\n" i="[1, \\"x\\"]"\n'
    )


def test_bind_leaves_the_log_it_was_called_on_as_it_was() -> None:
    stream = io.StringIO()
    log = log_to(stream, "logfmt", "info")
    log.bind(node="n1")
    log.info("e")
    assert "n1" not in stream.getvalue()


def test_events_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    log = log_to(stream, "logfmt", "warning").bind(node="n1")
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [line.split("event=")[1][0] for line in stream.getvalue().splitlines()] == ["c", "d"]


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), b"x", Path("/x"), {1: 2}, "\ud800"]
)
def test_any_value_makes_a_line_that_parses(value: object) -> None:
    read, write = os.pipe()
    with open(read, "rb", closefd=True) as reader, open(write, "w", closefd=True) as stream:
        log_to(stream, "json").info("e", value=value)
        assert "value" in json.loads(reader.readline(), parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize(
    "name", ["api_key", "secret", "cluster_secret", "authorization", "password", "TOKEN"]
)
def test_a_secret_is_never_written(name: str) -> None:
    assert "hunter2" not in said(lambda log: log.info("e", **{name: "hunter2"}))


def test_a_line_is_never_longer_than_a_pipe_takes_at_once() -> None:
    line = said(lambda log: log.info("e", short="s", long="x" * 100_000))
    assert len(line) <= 4096
    assert json.loads(line)["short"] == "s"
    assert json.loads(line)["shortened"] is True
    many = facts(lambda log: log.info("e", **{f"f{i}": "x" * 500 for i in range(100)}))
    assert many["event"] == "e"


def _endless(log: Log, lines: int = 3000) -> None:
    for number in range(lines):
        log.info("e", number=number, text="x" * 200)


def test_a_pipe_that_nobody_reads_loses_lines_and_then_says_how_many() -> None:
    read, write = os.pipe()
    with open(read, "rb") as reader, open(write, "w") as stream:
        log = log_to(stream, "json")
        _endless(log)  # would wait for ever if it waited at all
        os.set_blocking(read, False)
        lines = [json.loads(line) for line in reader.read().splitlines()]
        log.info("after")
        lines += [json.loads(line) for line in reader.read().splitlines()]
    written = [line["number"] for line in lines if line["event"] == "e"]
    lost = sum(line["lines"] for line in lines if line["event"] == "log.dropped")
    assert written == sorted(written)
    assert lost > 0
    assert len(written) + lost == 3000
    assert lines[-1]["event"] == "after"


def test_the_descriptor_that_others_share_stays_as_it_was() -> None:
    read, write = os.pipe()
    with open(read, "rb"), open(write, "w") as stream:
        log_to(stream, "json").info("e")
        assert os.get_blocking(write)


def test_a_journal_that_hangs_makes_nobody_wait() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.dup(ours.fileno()), "w") as stream:
        _endless(log_to(stream, "json"))
        assert json.loads(theirs.recv(65536).splitlines()[0])["number"] == 0


def test_a_reader_that_has_gone_is_no_reason_to_end() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        log_to(stream, "json").info("e")
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, open(os.dup(ours.fileno()), "w") as stream:
        log_to(stream, "json").info("e")


def test_a_stopped_terminal_makes_nobody_wait() -> None:
    master, slave = pty.openpty()
    try:
        with open(slave, "w") as stream:
            _endless(log_to(stream, "logfmt"))
    finally:
        with suppress(OSError):
            os.close(master)


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with open(path, "w") as stream:
        log_to(stream, "logfmt").info("first")
        log_to(stream, "logfmt").info("second")
    assert [line.split("event=")[1] for line in path.read_text().splitlines()] == ["first", "second"]
