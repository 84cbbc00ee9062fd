"""Ways to send a request that once were answered late, or not at all."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

from tests.running.agent import RunningAgent
from tests.running.waiting import wait_until


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


def test_clients_that_do_not_read_large_answers_cannot_fill_the_memory(
    new_agent: Callable[..., RunningAgent],
) -> None:
    """Each kept two copies of its answer in the front for as long as it liked: thirty took 3 GB."""
    agent = new_agent(agent={"fronts": 1}).start()
    rest = agent.rest()
    assert rest.put("/collections/c", {"vectors": {}}).status == 200
    for first in range(0, 30, 10):
        points = [
            {"id": n, "vector": {}, "payload": {"t": "x" * 1_000_000}} for n in range(first, first + 10)
        ]
        assert rest.put("/collections/c/points", {"points": points}, wait="true").status == 200
    body = b'{"limit":30}'
    ask = b"POST /collections/c/points/scroll HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
    (front,) = [one for one in agent.processes() if "agent.front" in one.cmdline()]
    clients = []
    heads = []
    for _ in range(20):  # of 30 MB each
        client = socket.create_connection(("127.0.0.1", agent.port), timeout=20)
        clients.append(client)
        client.sendall(ask % (len(body), body))
        heads.append(client.recv(12))
    assert heads.count(b"HTTP/1.1 200") >= 4
    assert heads.count(b"HTTP/1.1 503") >= 4
    assert front.memory_info().rss < 700 << 20
    for client in clients:
        client.close()
    wait_until(
        lambda: rest.post("/collections/c/points/scroll", {"limit": 30}).status == 200, 20, "an answer"
    )
    rest.close()


def test_numbers_of_thousands_of_digits_are_refused_in_words(new_agent: Callable[..., RunningAgent]) -> None:
    """Python reads none of over 4,300 digits: the answer was 500."""
    rest = new_agent().start().rest()
    assert rest.put("/collections/c", {"vectors": {"size": 2, "distance": "Manhattan"}}).status == 200
    digits = "9" * 5000
    assert rest.get(f"/collections/c/points/{digits}").status == 400
    assert rest.post(f"/collections/c/points/count?consistency={digits}", {}).status == 400
    assert rest.post("/collections/c/points/query", {"query": [1, 1]}).result == {"points": []}
    rest.close()


def test_small_answers_to_a_client_that_asks_on_and_on_do_not_fill_the_memory(
    new_agent: Callable[..., RunningAgent],
) -> None:
    """Answers of under 64 KB were written without waiting, however many had not been read."""
    agent = new_agent(agent={"fronts": 1}).start()
    rest = agent.rest()
    assert rest.put("/collections/c", {"vectors": {}}).status == 200
    point = {"id": 1, "vector": {}, "payload": {"t": "x" * 50_000}}
    assert rest.put("/collections/c/points", {"points": [point]}, wait="true").status == 200
    (front,) = [one for one in agent.processes() if "agent.front" in one.cmdline()]
    before = front.memory_info().rss
    with socket.create_connection(("127.0.0.1", agent.port), timeout=5) as client:
        client.settimeout(5)
        ask = b"GET /collections/c/points/1 HTTP/1.1\r\nHost: x\r\n\r\n"
        with suppress(TimeoutError):  # it is not read from any more, as it should
            client.sendall(ask * 200_000)
        assert front.memory_info().rss < before + (60 << 20)
    rest.close()
