"""Thousands of malformed requests over raw sockets leave the agent as it was."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.running.agent import RunningAgent
from tests.running.malformed import send_malformed
from tests.running.rest import Rest


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(2000, marks=pytest.mark.timeout(120)),
        pytest.param(20_000, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
def test_malformed_requests_leave_the_agent_as_it_was(
    new_agent: Callable[..., RunningAgent], count: int
) -> None:
    """Random bytes, broken heads, wrong lengths, JSON cut short: none is a 5xx, hangs, or changes a thing."""
    agent = new_agent(agent={"fronts": 1}).start()
    rest = agent.rest()
    _fill(rest)
    before = _picture(rest)
    pids = {process.pid for process in agent.processes()}
    rng = random.Random(count)
    answered = sum(send_malformed(agent.port, rng) for _ in range(count))
    print(f"{count} malformed requests, {answered} answered")
    assert answered > count / 3
    assert _picture(rest) == before
    assert pids <= {process.pid for process in agent.processes()}
    assert "Traceback" not in agent.log_path.read_text()
    assert agent.stop() == 0


def _fill(rest: Rest) -> None:
    assert rest.put("/collections/target", {"vectors": {"size": 4, "distance": "Cosine"}}).result is True
    points = [{"id": i, "vector": [1, i, 0, 0], "payload": {"n": i}} for i in range(5)]
    assert rest.put("/collections/target/points", {"points": points}, wait=True).result


def _picture(rest: Rest) -> Any:
    rest.close()
    points = rest.post("/collections/target/points/scroll", {"with_vector": True, "limit": 100}).result
    return points, rest.get("/collections").result, rest.get("/aliases").result


@pytest.mark.parametrize(
    "head",
    [
        b"GET /collections HTTP/1.1\r\n\r\n",  # without Host
        b"G\xc3\x96T / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 10_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["no host", "method", "long path", "two lengths", "long header", "TLS"],
)
def test_a_head_that_cannot_be_read_gets_an_answer_like_all_others(
    shared_agent: RunningAgent, head: bytes
) -> None:
    """In the envelope, ending the connection, and without telling what we are made of."""
    with socket.create_connection(("127.0.0.1", shared_agent.port), 5) as sock:
        sock.sendall(head)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    line, _, rest = answer.partition(b"\r\n")
    headers, _, body = rest.partition(b"\r\n\r\n")
    assert line == b"HTTP/1.1 400 Bad Request"
    assert b"connection: close" in headers.lower()
    assert b"server:" not in headers.lower()
    assert b"aiohttp" not in answer
    told = json.loads(body)
    assert told["result"] is None
    assert told["status"]["error"].startswith("the request is not HTTP: ")
