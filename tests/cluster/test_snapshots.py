"""Snapshots over HTTP: made, listed, downloaded, uploaded, recovered; and what is refused."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.running.agent import RunningAgent
from tests.running.rest import Rest
from tests.running.waiting import wait_until

POINTS = [{"id": i, "vector": [float(i), 1.0, 0.5, 0.25], "payload": {"n": i}} for i in range(200)]


def make_collection(rest: Rest, name: str, *, shards: int = 2) -> None:
    body = {"vectors": {"size": 4, "distance": "Euclid"}, "shard_number": shards}
    assert rest.put(f"/collections/{name}", body).status == 200
    body = {"field_name": "n", "field_schema": "integer"}
    assert rest.put(f"/collections/{name}/index?wait=true", body).status == 200
    assert rest.put(f"/collections/{name}/points?wait=true", {"points": POINTS}).status == 200


def contents(rest: Rest, name: str) -> dict[int, Any]:
    """Every point by its id, and a look that search and filter see the same."""
    scroll = {"limit": 10_000, "with_vector": True}
    points = rest.post(f"/collections/{name}/points/scroll", scroll).result["points"]
    third: Any = {"must": [{"key": "n", "match": {"value": 3}}]}
    query = {"query": [3.0, 1.0, 0.5, 0.25], "limit": 1, "filter": third}
    hits = rest.post(f"/collections/{name}/points/query", query).result["points"]
    assert [hit["id"] for hit in hits] == [p["id"] for p in points if p["payload"]["n"] == 3]
    return {p["id"]: (p["vector"], p["payload"]) for p in points}


def raw(agent: RunningAgent, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def upload(agent: RunningAgent, path: str, content: bytes, field: str = "snapshot") -> tuple[int, bytes]:
    boundary = "b7f3"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="../../x"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return raw(agent, "POST", path, body, **{"Content-Type": f"multipart/form-data; boundary={boundary}"})


def test_a_collection_is_brought_back_by_name_and_by_upload(
    shared_agent: RunningAgent, rest: Rest, collection_name: str
) -> None:
    one = f"/collections/{collection_name}"
    make_collection(rest, collection_name)
    before = contents(rest, collection_name)
    made = rest.post(f"{one}/snapshots").result
    assert rest.get(f"{one}/snapshots").result == [made]

    status, content = raw(shared_agent, "GET", f"{one}/snapshots/{made['name']}")
    assert (status, len(content)) == (200, made["size"])
    assert hashlib.sha256(content).hexdigest() == made["checksum"]

    rest.post(f"{one}/points/delete?wait=true", {"filter": {}})
    assert contents(rest, collection_name) == {}
    body = {"location": f"file:///wherever/{made['name']}", "checksum": made["checksum"]}
    assert rest.put(f"{one}/snapshots/recover", body).result is True
    assert contents(rest, collection_name) == before

    rest.delete(one)
    assert upload(shared_agent, f"{one}/snapshots/upload?priority=snapshot", content)[0] == 200
    assert contents(rest, collection_name) == before
    extra = [{"id": 9_999, "vector": [0.0, 0.0, 0.0, 9.0], "payload": {}}]
    assert rest.put(f"{one}/points?wait=true", {"points": extra}).status == 200
    assert rest.post(f"{one}/points/count", {}).result["count"] == 201

    assert rest.delete(f"{one}/snapshots/{made['name']}").result is True
    assert rest.get(f"{one}/snapshots").result == []
    assert rest.get(f"{one}/snapshots/{made['name']}").status == 404


def test_what_was_brought_back_is_there_after_a_kill(new_agent: Callable[..., RunningAgent]) -> None:
    agent = new_agent().start()
    rest = agent.rest()
    make_collection(rest, "docs")
    before = contents(rest, "docs")
    made = rest.post("/collections/docs/snapshots").result
    rest.post("/collections/docs/points/delete?wait=true", {"points": [1, 2, 3]})
    assert rest.put("/collections/docs/snapshots/recover", {"location": made["name"]}).status == 200
    agent.kill_role("group")
    agent.wait_ended()
    agent.start()
    assert contents(agent.rest(), "docs") == before
    assert agent.rest().get("/collections/docs/snapshots").result == [made]


def test_graphs_come_back_with_our_own_snapshots_and_are_built_anew_for_uploads(
    shared_agent: RunningAgent, rest: Rest, collection_name: str
) -> None:
    one = f"/collections/{collection_name}"
    chance = random.Random(1)
    assert rest.put(one, {"vectors": {"size": 8, "distance": "Euclid"}}).status == 200
    rows = [{"id": i, "vector": [chance.gauss(0, 1) for _ in range(8)]} for i in range(6_000)]
    for begin in range(0, len(rows), 1_000):
        assert rest.put(f"{one}/points?wait=true", {"points": rows[begin : begin + 1_000]}).status == 200

    def graphs() -> int:
        """Of the collection's one shard, which is the newest folder, by its manifest."""
        folders = sorted(
            (shared_agent.data_dir / "shards").iterdir(), key=lambda f: int(f.name.split("-")[0])
        )
        manifest = json.loads((folders[-1] / "manifest.json").read_bytes())
        return sum(len(state.get("segments", ())) for state in manifest["vectors"].values())

    def hits() -> list[Any]:
        query = {"query": rows[7]["vector"], "limit": 10, "params": {"hnsw_ef": 200}}
        return list(rest.post(f"{one}/points/query", query).result["points"])

    wait_until(graphs, within_s=60)
    before = hits()
    made = rest.post(f"{one}/snapshots").result
    content = raw(shared_agent, "GET", f"{one}/snapshots/{made['name']}")[1]
    assert rest.put(f"{one}/snapshots/recover", {"location": made["name"]}).result is True
    assert graphs() >= 1
    assert hits() == before
    assert upload(shared_agent, f"{one}/snapshots/upload", content)[0] == 200
    assert [hit["id"] for hit in hits()] == [hit["id"] for hit in before]
    wait_until(graphs, within_s=60)
    assert [hit["id"] for hit in hits()] == [hit["id"] for hit in before]


def test_a_shard_is_brought_back_alone(shared_agent: RunningAgent, rest: Rest, collection_name: str) -> None:
    one = f"/collections/{collection_name}"
    make_collection(rest, collection_name)
    before = contents(rest, collection_name)
    made = rest.post(f"{one}/shards/1/snapshots").result
    assert rest.get(f"{one}/shards/1/snapshots").result == [made]
    assert rest.get(f"{one}/shards/0/snapshots").result == []
    rest.post(f"{one}/points/delete?wait=true", {"filter": {}})
    assert rest.put(f"{one}/shards/1/snapshots/recover", {"location": made["name"]}).result is True
    after = contents(rest, collection_name)
    assert 0 < len(after) < len(before)
    assert after.items() <= before.items()

    status, streamed = raw(shared_agent, "GET", f"{one}/shards/1/snapshot")
    assert status == 200
    assert len(rest.get(f"{one}/shards/1/snapshots").result) == 1, "a streamed snapshot does not stay"
    rest.post(f"{one}/points/delete?wait=true", {"filter": {}})
    assert upload(shared_agent, f"{one}/shards/1/snapshots/upload", streamed)[0] == 200
    assert contents(rest, collection_name) == after


def test_the_node_is_saved_as_a_whole(shared_agent: RunningAgent, rest: Rest, collection_name: str) -> None:
    make_collection(rest, collection_name, shards=1)
    before = contents(rest, collection_name)
    made = rest.post("/snapshots").result
    assert made in rest.get("/snapshots").result
    rest.delete(f"/collections/{collection_name}")
    body = {"location": made["name"]}
    assert rest.put(f"/collections/{collection_name}/snapshots/recover", body).result is True
    assert contents(rest, collection_name) == before
    assert raw(shared_agent, "GET", f"/snapshots/{made['name']}")[0] == 200
    assert rest.delete(f"/snapshots/{made['name']}").result is True


def test_without_waiting_it_is_accepted_and_done_soon(rest: Rest, collection_name: str) -> None:
    one = f"/collections/{collection_name}"
    make_collection(rest, collection_name)
    assert rest.post(f"{one}/snapshots?wait=false").status == 202
    (made,) = wait_until(lambda: rest.get(f"{one}/snapshots").result, within_s=10)
    body = {"location": made["name"]}
    rest.post(f"{one}/points/delete?wait=true", {"filter": {}})
    assert rest.put(f"{one}/snapshots/recover?wait=false", body).status == 202
    wait_until(lambda: len(contents(rest, collection_name)) == 200, within_s=10)


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:6333/snapshot",
        "https://example.com/a.snapshot",
        "ftp://x/a",
        "gopher://x/a",
        "file:///etc/passwd",
        "file:///etc/",
        "../node.json",
        "",
        "..",
        "a\0.snapshot",
    ],
)
def test_a_snapshot_is_never_fetched_from_where_a_client_points(
    rest: Rest, collection_name: str, location: str
) -> None:
    body = {"location": location}
    began_s = time.monotonic()
    answer = rest.put(f"/collections/{collection_name}/snapshots/recover", body)
    assert answer.status in (400, 404)
    assert time.monotonic() - began_s < 5
    assert rest.get(f"/collections/{collection_name}").status == 404


@pytest.mark.parametrize(
    "name", ["..%2F..%2Fnode.json", "%2e%2e", "%2Fetc%2Fpasswd", "x.snapshot", "c1.json", "a%00.snapshot"]
)
def test_only_listed_names_are_downloaded_or_deleted(
    shared_agent: RunningAgent, rest: Rest, collection_name: str, name: str
) -> None:
    make_collection(rest, collection_name, shards=1)
    for path in (f"/collections/{collection_name}/snapshots/{name}", f"/snapshots/{name}"):
        for method in ("GET", "DELETE"):
            assert raw(shared_agent, method, path)[0] == 404


def test_a_wrong_upload_is_refused_in_words_and_leaves_nothing(
    shared_agent: RunningAgent, rest: Rest, collection_name: str
) -> None:
    path = f"/collections/{collection_name}/snapshots/upload"
    for content in (b"", b"PK\x03\x04", bytes(100_000)):
        status, text = upload(shared_agent, path, content)
        assert status == 400
        assert b"the snapshot cannot be used" in text
    assert raw(shared_agent, "POST", path, b"{}", **{"Content-Type": "application/json"})[0] == 400
    assert raw(shared_agent, "POST", path, b"x", **{"Content-Type": "multipart/form-data"})[0] == 400
    assert raw(shared_agent, "POST", path + "?priority=all", b"")[0] == 400
    assert list((shared_agent.data_dir / "uploads").iterdir()) == []
    assert rest.get(f"/collections/{collection_name}").status == 404


def test_an_upload_that_breaks_off_is_removed(shared_agent: RunningAgent, collection_name: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", shared_agent.port, timeout=30)
    connection.putrequest("POST", f"/collections/{collection_name}/snapshots/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", "1000000")
    connection.endheaders()
    head = b'--b\r\nContent-Disposition: form-data; name="snapshot"; filename="x"\r\n\r\n'
    connection.send(head + bytes(600_000))
    uploads = shared_agent.data_dir / "uploads"
    wait_until(lambda: [p for p in uploads.iterdir() if p.stat().st_size], within_s=10)
    connection.close()
    wait_until(lambda: not list(uploads.iterdir()), within_s=10)


def test_unknown_collections_and_shards_say_so(rest: Rest, collection_name: str) -> None:
    assert rest.post(f"/collections/{collection_name}/snapshots").status == 404
    make_collection(rest, collection_name, shards=1)
    assert rest.post(f"/collections/{collection_name}/shards/7/snapshots").status == 404
    assert rest.post(f"/collections/{collection_name}/shards/x/snapshots").status == 400


def test_what_a_front_was_receiving_goes_with_it(
    new_agent: Callable[..., RunningAgent], collection_name: str
) -> None:
    """And what another front receives meanwhile stays."""
    agent = new_agent(agent={"fronts": 2}).start()
    make_collection(agent.rest(), collection_name, shards=1)
    folder = agent.data_dir / "uploads"
    with ExitStack() as stack:
        for _ in range(UPLOADS_TRIED):
            stack.enter_context(_half_an_upload(agent, collection_name))
        wait_until(lambda: len(_sizes(folder)) >= 5, within_s=10)  # a front takes four
        holders = {_holder(path): path for path in folder.iterdir()}
        fronts = _pids(agent)
        assert set(holders) == fronts, "each front receives some of them"
        victim = min(fronts)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(agent.role("front")) == 2 and victim not in _pids(agent), within_s=10)
        wait_until(lambda: victim not in {_holder(path) for path in folder.iterdir()}, within_s=10)
        wait_until(lambda: {_holder(path) for path in folder.iterdir()} == fronts - {victim}, within_s=10)


UPLOADS_TRIED = 16
"""The kernel chooses the front of each."""


@contextmanager
def _half_an_upload(agent: RunningAgent, collection: str) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", agent.port), 5) as sock:
        sock.sendall(
            f"POST /collections/{collection}/snapshots/upload HTTP/1.1\r\nHost: x\r\n"
            "Content-Length: 9000000\r\nContent-Type: multipart/form-data; boundary=b7f3\r\n\r\n"
            '--b7f3\r\nContent-Disposition: form-data; name="snapshot"; filename="x"\r\n\r\n'.encode()
            + b"x" * 2_000_000
        )
        yield sock


def _sizes(folder: Path) -> list[int]:
    return [size for path in folder.iterdir() if (size := path.stat().st_size)]


def _pids(agent: RunningAgent) -> set[int]:
    return {process.pid for process in agent.role("front")}


def _holder(path: Path) -> int | None:
    """The process that has the file open."""
    for process in psutil.process_iter():
        try:
            if str(path) in {file.path for file in process.open_files()}:
                return process.pid
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return None
