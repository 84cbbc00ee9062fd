"""Mistakes of other databases that concern one node: names in paths, work before the key, bombs."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.running.agent import RunningAgent
from tests.running.rest import Answer, Rest

pytestmark = pytest.mark.timeout(90)

KEYS = {"full": "key-full-1234567890", "read": "key-read-1234567890", "admin": "key-admin-1234567890"}
SETTINGS = {"full": "api_key_file", "read": "read_only_api_key_file", "admin": "admin_key_file"}
FREE = ("/", "/healthz", "/livez", "/readyz")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    """An agent with a key for each role, and one collection."""
    folder = tmp_path_factory.mktemp("guarded")
    settings = {}
    for role, setting in SETTINGS.items():
        file = folder / f"{role}.key"
        file.write_text(KEYS[role] + "\n")
        file.chmod(0o600)
        settings[setting] = str(file)
    with RunningAgent(folder, agent={"fronts": 1}, cluster=settings) as agent:
        agent.start()
        rest = agent.rest(api_key=KEYS["full"])
        assert rest.put("/collections/c", {"vectors": {"size": 2, "distance": "Dot"}}).result is True
        assert rest.put("/collections/c/points", {"points": [{"id": 1, "vector": [1, 2]}]}, wait=True).result
        yield agent
        assert agent.stop() == 0


def _routes() -> list[tuple[str, str]]:
    """Every method and path of the reference API, as far as it is served, with names filled in."""
    reference = Path(__file__).resolve().parents[3] / "shared" / "reference" / "qdrant-openapi.json"
    if not reference.exists():
        return [("GET", "/collections"), ("PUT", "/collections/c/points"), ("DELETE", "/collections/c")]
    filled = {
        "collection_name": "c", "id": "1", "field_name": "f", "vector_name": "v",
        "snapshot_name": "s", "shard_id": "0", "peer_id": "1",
    }  # fmt: skip
    routes = []
    for path, methods in json.loads(reference.read_text())["paths"].items():
        for name, value in filled.items():
            path = path.replace(f"{{{name}}}", value)
        routes += [(method.upper(), path) for method in methods if method != "parameters"]
    return routes


ROUTES = _routes()
GUARDED = [route for route in ROUTES if route[1] not in FREE]


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("key", [None, "", "wrong", KEYS["full"][:-1], KEYS["full"] + "x", "é"])
def test_without_a_valid_key_no_route_does_anything(
    guarded: RunningAgent, method: str, path: str, key: str | None
) -> None:
    headers = {} if key is None else {"api-key": key.encode().decode("latin-1")}
    answer = guarded.rest().call(method, path, b"{not even json", headers=headers)
    assert answer.status == 401, f"{answer.status} {answer.text[:200]}"
    for secret in KEYS.values():
        assert secret not in answer.text


UNSEEN = ["/no/such/path", "/collections/..%2f..%2fetc", "/openapi.json", "/telemetry", "/metrics"]


@pytest.mark.parametrize("path", UNSEEN)
def test_the_key_is_asked_for_before_routing(guarded: RunningAgent, path: str) -> None:
    """A stranger can't even learn which paths there are."""
    assert guarded.rest().get(path).status == 401


@pytest.mark.parametrize("path", FREE)
def test_probes_need_no_key(guarded: RunningAgent, path: str) -> None:
    assert guarded.rest().get(path).status == 200


READS = {
    "/collections", "/collections/c", "/collections/c/exists", "/collections/c/points/1", "/aliases",
    "/collections/c/aliases", "/collections/c/points", "/collections/c/points/scroll",
    "/collections/c/points/count", "/collections/c/points/query", "/collections/c/points/query/batch",
    "/collections/c/points/query/groups", "/collections/c/facet",
    "/collections/c/points/search/matrix/pairs", "/collections/c/points/search/matrix/offsets",
}  # fmt: skip


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_a_read_only_key_reads_and_nothing_else(guarded: RunningAgent, method: str, path: str) -> None:
    reads = path in READS and (method == "GET" or (method == "POST" and path != "/collections"))
    answer = guarded.rest(api_key=KEYS["read"]).call(method, path, b"{}" if method != "GET" else None)
    if reads:
        assert answer.status not in (401, 403), answer.text[:200]
    elif method != "GET":  # which of the other GETs a reader may see is the product's choice
        assert answer.status == 403, f"{answer.status} {answer.text[:200]}"


def test_a_write_inside_a_batch_is_still_a_write(guarded: RunningAgent) -> None:
    body = {"operations": [{"delete": {"points": [1]}}]}
    assert guarded.rest(api_key=KEYS["read"]).post("/collections/c/points/batch", body).status == 403
    assert guarded.rest(api_key=KEYS["full"]).get("/collections/c/points/1").status == 200


@pytest.mark.parametrize("headers", [
    {"Authorization": f"Bearer {KEYS['full']}"}, {"authorization": f"bearer {KEYS['full']}"},
    {"API-KEY": KEYS["full"]},
])  # fmt: skip
def test_the_key_is_taken_from_either_header(guarded: RunningAgent, headers: dict[str, str]) -> None:
    assert guarded.rest().call("GET", "/collections", headers=headers).status == 200


@pytest.mark.parametrize("headers", [
    {"X-Forwarded-For": "127.0.0.1"}, {"X-Forwarded-User": "admin"}, {"X-Real-IP": "127.0.0.1"},
    {"X-Shoal-Role": "admin"}, {"Authorization": "Basic YWRtaW46YWRtaW4="},
    {"Cookie": f"api-key={KEYS['full']}"},
])  # fmt: skip
def test_no_other_header_gives_an_identity(guarded: RunningAgent, headers: dict[str, str]) -> None:
    assert guarded.rest().call("GET", "/collections", headers=headers).status == 401


def test_keys_are_never_written_down(guarded: RunningAgent) -> None:
    guarded.rest(api_key="key-wrong-" + KEYS["full"]).get("/collections")
    guarded.rest().get(f"/collections?api-key={KEYS['full']}")
    files = [p for p in guarded.folder.rglob("*") if p.is_file() and p.suffix != ".key"]
    for file in files:
        content = file.read_bytes()
        for secret in KEYS.values():
            if file.name != "agent.log":
                assert secret.encode() not in content, file
    log = guarded.log_path.read_text()
    assert KEYS["read"] not in log
    assert "key-wrong-" not in log


def test_beyond_loopback_it_needs_a_key_and_tls(new_agent: Callable[..., RunningAgent]) -> None:
    agent = new_agent()
    agent.write_config(node={"listen": f"0.0.0.0:{agent.port}"})
    agent.spawn()
    assert agent.wait_ended() != 0
    assert "insecure" in agent.log_tail()


ESCAPES = [
    "..", ".", "../x", "../../../../tmp/x", "/etc/passwd", "a/../../b", "..\\x", "a\0b", "a\nb", "%2e%2e",
    "%2F", "~root", "con:", "x" * 300, "a/b", "\u202e", "\ud7ff", "..;/x",
]  # fmt: skip


def _tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.mark.parametrize("name", ESCAPES, ids=ascii)
def test_no_name_escapes_the_data_folder(shared_agent: RunningAgent, rest: Rest, name: str) -> None:
    """In every place where a name stands in a path, percent-encoded and raw."""
    outside = shared_agent.folder
    before = {p for p in _tree(outside) if not p.startswith("data")}
    once, twice = quote(name, safe=""), quote(quote(name, safe=""), safe="")
    for spelt in {once, twice}:
        for method, path, body in (
            ("PUT", f"/collections/{spelt}", {"vectors": {"size": 2, "distance": "Dot"}}),
            ("GET", f"/collections/{spelt}", None),
            ("GET", f"/collections/{spelt}/snapshots/{spelt}", None),
            ("GET", f"/snapshots/{spelt}", None),
            ("DELETE", f"/snapshots/{spelt}", None),
            ("POST", f"/collections/{spelt}/snapshots", None),
            ("DELETE", f"/collections/{spelt}", None),
        ):
            answer = rest.call(method, path, body)
            assert answer.status < 500, f"{method} {path}: {answer.text[:200]}"
            assert "root:" not in answer.text
    assert {p for p in _tree(outside) if not p.startswith("data")} == before
    assert not Path("/tmp/x").exists()


RAW = ["/../../../etc/passwd", "/collections/../../etc/passwd", "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd"]


@pytest.mark.parametrize("raw", RAW)
def test_raw_paths_do_not_reach_the_disk(shared_agent: RunningAgent, raw: str) -> None:
    with socket.create_connection(("127.0.0.1", shared_agent.port), 5) as sock:
        sock.sendall(f"GET {raw} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert b" 200 " not in answer.split(b"\r\n", 1)[0]
    assert b"root:" not in answer


@pytest.mark.parametrize("location", [
    "file:///etc/passwd", "http://127.0.0.1:1/s", "http://169.254.169.254/latest", "ftp://x/y", "gopher://x", "http://[::1]/s",
])  # fmt: skip
def test_snapshots_are_fetched_from_nowhere(rest: Rest, collection_name: str, location: str) -> None:
    rest.put(f"/collections/{collection_name}", {"vectors": {"size": 2, "distance": "Dot"}})
    answer = rest.put(f"/collections/{collection_name}/snapshots/recover", {"location": location}, wait=True)
    assert answer.status in (400, 403, 404), answer.text[:200]  # 404: only the name at its end counts
    assert "root:" not in answer.text
    rest.delete(f"/collections/{collection_name}")


def _post(rest: Rest, body: bytes, encoding: str) -> Answer:
    headers = {"Content-Encoding": encoding}
    return rest.call("POST", "/collections/none/points/query", body, headers=headers)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "gzip of a gigabyte": (lambda: gzip.compress(bytes(1 << 28), 1), "gzip"),
    "20,000 empty gzip members": (lambda: gzip.compress(b"") * 20_000, "gzip"),
    "deflate": (lambda: zlib.compress(bytes(1 << 28), 1), "deflate"),
    "gzip in gzip": (lambda: gzip.compress(gzip.compress(bytes(1 << 26))), "gzip, gzip"),
    "not gzip at all": (lambda: b"hello", "gzip"),
    "cut gzip": (lambda: gzip.compress(b"[1]" * 1000)[:-9], "gzip"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_quickly(shared_agent: RunningAgent, bomb: str) -> None:
    make, encoding = BOMBS[bomb]
    answer = _post(shared_agent.rest(timeout_s=10), make(), encoding)
    assert answer.status in (400, 404, 413, 415), answer.text[:200]
    assert shared_agent.rest(timeout_s=2).get("/healthz").status == 200


def test_a_body_over_the_limit_is_413(rest: Rest) -> None:
    body = b'{"points": [' + b" " * (33 << 20) + b"]}"
    try:
        answer = rest.put("/collections/none/points", body)
    except (BrokenPipeError, ConnectionResetError):
        return  # refused by its length before it was sent: just as well
    assert answer.status == 413


def test_a_limit_as_large_as_the_world_is_no_bomb(rest: Rest, collection_name: str) -> None:
    path = f"/collections/{collection_name}"
    assert rest.put(path, {"vectors": {"size": 2, "distance": "Dot"}}).result
    assert rest.put(f"{path}/points", {"points": [{"id": 1, "vector": [1, 1]}]}, wait=True).result
    for body in ({"query": [1, 1], "limit": 2**40}, {"query": [1, 1], "limit": 2**63, "offset": 2**63}):
        assert rest.post(f"{path}/points/query", body).status in (200, 400, 422)
    assert rest.post(f"{path}/points/scroll", {"limit": 2**40}).status in (200, 400, 422)
    matrix = {"sample": 2**40, "limit": 2**40}
    assert rest.post(f"{path}/points/search/matrix/pairs", matrix).status in (200, 400, 422)
    nested = {"prefetch": {"query": [1, 1]}, "query": [1, 1]}
    for _ in range(200):
        nested = {"prefetch": nested, "query": [1, 1]}
    assert rest.post(f"{path}/points/query", nested).status in (200, 400, 422)
    rest.delete(path)
