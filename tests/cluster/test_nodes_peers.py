"""What strangers, and peers gone mad, say to a node's peer_address: refused, counted, and nothing changes."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest

from core.errors import Conflict, ShoalError, Unauthorized
from net.frames import Caller
from net.peer_link import Identity, Role, Trust, WireMismatch, dial
from tests.running.cluster import RunningCluster
from tests.running.load import Load, wait_equal
from tests.running.replicated import NAME, SHARDS, create
from tests.running.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]
KINDS = (
    *(
        "ping",
        "state.read",
        "state.cas",
        "state.list",
        "state.watch",
        "shard.command",
        "replica",
        "map.changed",
    ),
    *("shards.make", "shard.write", "shard.read_at", "snapshot.ask", "snapshot.part", "register"),
    *("register.keys", "register.wait", "shard.read", "shard.state", "no.such.call", ""),
)


@pytest.fixture
def cluster(new_cluster: Callable[..., RunningCluster]) -> RunningCluster:
    cluster = new_cluster().start()
    create(cluster)
    return cluster


def refusals(cluster: RunningCluster, node: str = "n1") -> int:
    """As its metrics tell."""
    rest = cluster.nodes[node].rest()
    text = rest.get("/metrics").text
    rest.close()
    return sum(
        int(float(n)) for n in re.findall(r"^shoal_peer_refusals_total(?:\{.*\})? (\S+)$", text, re.MULTILINE)
    )


async def test_strangers_are_refused_and_counted(cluster: RunningCluster) -> None:
    address = ("127.0.0.1", cluster.ports["n1"].peer_port)
    before, was = cluster.truth.shards(NAME), refusals(cluster)
    rng = random.Random(1)
    said = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        struct.pack("<I", 1 << 31) + b"x",
        struct.pack("<I", 20) + rng.randbytes(20),
        struct.pack("<I", 100) + msgspec.msgpack.encode(["shoal-proof", b"x" * 32]).ljust(100, b"\0"),
        rng.randbytes(5000),
    ]
    for data in said:
        await asyncio.to_thread(_say, address, data)
    uuid = cluster.truth.map().cluster
    mine = Trust((cluster.secret,))
    strangers: list[tuple[Identity, Trust, type[ShoalError]]] = [
        (Identity("n2", "store", uuid), Trust((b"not the secret of this cluster",)), Unauthorized),
        (Identity("n2", "store", "another-cluster"), mine, Conflict),
        (Identity("n2", "store", uuid, wire=9), mine, WireMismatch),
    ]
    for who, trust, refusal in strangers:
        with pytest.raises(refusal):
            await dial(address, who, trust)
    wait_until(lambda: refusals(cluster) - was >= len(said) + len(strangers), 10, "refusals in the metrics")
    _nothing_changed(cluster, before)


def _say(address: tuple[str, int], data: bytes) -> None:
    """Until the node ends the connection; what it answers is never more than a refusal."""
    with socket.create_connection(address, timeout=10) as connection:
        with suppress(ConnectionError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            assert len(connection.recv(4096)) < 400


class Overheard:
    """All that one connection said, and both of its ends."""

    def __init__(self) -> None:
        self.said = bytearray()
        self.to_node: asyncio.StreamWriter | None = None
        self.ended = asyncio.Event()


@asynccontextmanager
async def overheard(address: tuple[str, int]) -> AsyncIterator[tuple[tuple[str, int], Overheard]]:
    """A listener that hands on what it hears, and can say it again."""
    heard = Overheard()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keep: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if keep:
                    heard.said += data
                writer.write(data)
                await writer.drain()
        heard.ended.set()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_node, heard.to_node = await asyncio.open_connection(*address)
        await asyncio.gather(pump(reader, heard.to_node, True), pump(from_node, writer, False))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[:2], heard
    finally:
        server.close()


async def test_what_was_overheard_cannot_be_said_again(cluster: RunningCluster) -> None:
    address = ("127.0.0.1", cluster.ports["n1"].peer_port)
    before, was = cluster.truth.shards(NAME), refusals(cluster)
    me = Identity("spy", "console", cluster.truth.map().cluster)
    async with overheard(address) as (through, heard):
        caller = Caller(lambda: dial(through, me, Trust((cluster.secret,))), "n1")
        await caller.call("ping", {}, timeout_s=5)
        greeted = len(heard.said)
        await caller.call("state.cas", {"key": "settings/spy", "version": 0}, b"once", timeout_s=5)
        frame = bytes(heard.said[greeted:])
        assert cluster.truth.read("settings/spy") == b"once"
        # The same frame again on the same connection, and the whole conversation on another.
        assert heard.to_node is not None
        heard.to_node.write(frame)
        await asyncio.wait_for(heard.ended.wait(), 10)
        await asyncio.to_thread(_say, address, bytes(heard.said))
        await caller.close()
    wait_until(lambda: refusals(cluster) - was >= 2, 10, "refusals in the metrics")
    _nothing_changed(cluster, before)


@pytest.mark.parametrize("role", ["store", "console", "front"])
async def test_a_peer_that_talks_nonsense_changes_nothing(cluster: RunningCluster, role: Role) -> None:
    address = ("127.0.0.1", cluster.ports["n1"].peer_port)
    before = cluster.truth.shards(NAME)
    me = Identity("n2", role, cluster.truth.map().cluster)
    rng = random.Random(role)
    caller = Caller(lambda: dial(address, me, Trust((cluster.secret,))), "n1")
    wrong: list[str] = []
    answered = 0
    for kind in KINDS:
        for _ in range(12):
            header = rng.choice([{}, _nonsense(rng), {"collection": 1, "shard": 0, "kind": "Append"}])
            body = rng.randbytes(rng.choice([0, 1, 30, 3000]))
            try:
                await caller.call(kind, header, body, timeout_s=0.5)
            except ShoalError as problem:
                if problem.code == "internal" or "connection was lost" in str(problem):
                    wrong.append(f"{kind} {header} {body[:30]!r}: {problem}")
            else:
                answered += 1
    await caller.close()
    print(f"\n{role}: {len(KINDS) * 12} nonsensical calls, {answered} of them answered")
    assert not wrong, "\n".join(wrong[:8])
    _nothing_changed(cluster, before)


def _nonsense(rng: random.Random) -> dict[str, object]:
    keys = [
        "key",
        "version",
        "collection",
        "shard",
        "kind",
        "term",
        "epoch",
        "prefix",
        "after",
        "leader_term",
    ]
    values: list[object] = [-1, 1 << 63, "", "x" * 300, None, [], {}, 1.5, True, b"\xff", [[1]], 0]
    header = {key: rng.choice(values) for key in rng.sample(keys, rng.randint(1, 6))}
    if header.get("leader_term") == 1 << 63:
        del header["leader_term"]  # that is no nonsense: it would rightly depose every leader
    return header


def _nothing_changed(cluster: RunningCluster, before: object) -> None:
    """The shards are as they were, all processes live, and clients are served."""
    load = Load(cluster, NAME, SHARDS)
    with load.running():
        load.wait_more(30)
    assert load.refused == []
    load.check(wait_equal(cluster, NAME))
    assert cluster.truth.shards(NAME) == before
    assert all(node.is_running() and len(node.role("store")) == 1 for node in cluster.nodes.values())
