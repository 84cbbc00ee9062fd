"""Ways to send a request that once were answered late, or not at all."""

from __future__ import annotations

import socket
from collections.abc import Callable

from tests.running.agent import RunningAgent


def test_a_client_that_asks_before_it_sends_its_body_is_told_to_go_on(
    new_agent: Callable[..., RunningAgent],
) -> None:
    """`Expect: 100-continue`, as curl sends it with bodies over a megabyte: it waited a second each time."""
    agent = new_agent().start()
    body = b'{"vectors":{"size":2,"distance":"Dot"}}'
    head = b"PUT /collections/c HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", agent.port), timeout=5) as client:
        client.sendall(head % len(body))
        assert client.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
        client.sendall(head % (1 << 30))
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")
