"""A console's StateStore through agents: the conformance of every adapter, the next agent, lost answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.link import Answer, Header
from console.peers import Links, was_refused
from console.state_client import StateClient, VersionConflict, Versioned
from core.errors import Conflict, DeadlineExceeded, ShoalError, Unavailable
from tests.unit.coordinator_nodes import NODES, TRUST, Cluster, three_nodes, until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with three_nodes(tmp_path) as made:
        yield made


@pytest.fixture
def state(cluster: Cluster) -> StateClient:
    return cluster.console()[1]


async def write(state: StateClient, key: str, version: int, value: bytes | None) -> int:
    answer = await state.compare_and_set(key, version, value)
    assert isinstance(answer, int)
    return answer


async def test_what_was_written_is_read_listed_and_deleted(state: StateClient) -> None:
    assert await state.read("map") == Versioned(None, 0)
    first = await write(state, "shards/1", 0, b"one")
    assert await state.compare_and_set("shards/1", 0, b"two") == VersionConflict(Versioned(b"one", first))
    assert await state.list("shards/") == {"shards/1": Versioned(b"one", first)}
    gone = await write(state, "shards/1", first, None)
    assert await state.read("shards/1") == Versioned(None, gone)


async def test_a_watch_ends_with_the_next_value_or_with_its_time(state: StateClient) -> None:
    first = await write(state, "map", 0, b"one")
    assert await state.watch("map", first, timeout_s=0.05) is None
    watching = asyncio.create_task(state.watch("map", first))
    second = await write(state, "map", first, b"two")
    assert await watching == Versioned(b"two", second)


async def test_the_next_agent_is_asked_when_one_dies_and_stays_the_one(
    cluster: Cluster, state: StateClient
) -> None:
    await state.compare_and_set("map", 0, b"one")
    assert state.agent == "n1"
    await cluster.nodes["n1"].server.close()
    assert (await state.read("map")).value == b"one"
    assert state.agent == "n2"


async def test_the_next_agent_is_asked_when_one_hangs(cluster: Cluster, state: StateClient) -> None:
    hangs = asyncio.Event()

    async def hang(header: Header, body: bytes, deadline: float) -> Answer:
        await hangs.wait()
        return {}, b""

    cluster.nodes["n1"].console["state.read"] = hang
    assert (await state.read("map")).version == 0
    assert state.agent == "n2"


async def test_an_agent_that_hangs_beyond_the_deadline_is_not_asked_first_again(
    cluster: Cluster, state: StateClient
) -> None:
    async def hang(header: Header, body: bytes, deadline: float) -> Answer:
        await asyncio.Event().wait()
        return {}, b""

    for name in ("n1", "n2"):
        cluster.nodes[name].console["state.read"] = hang
    with pytest.raises(DeadlineExceeded):
        await state.read("map", timeout_s=0.05)
    assert state.agent not in ("", "n1")
    assert (await state.read("map")).version == 0
    assert state.agent == "n3"


async def test_a_watch_and_a_list_need_no_voter_that_is_down(cluster: Cluster, state: StateClient) -> None:
    version = await write(state, "map", 0, b"one")
    await cluster.nodes["n3"].server.close()
    assert (await state.list("")).keys() == {"map"}
    watching = asyncio.create_task(state.watch("map", version))
    second = await write(state, "map", version, b"two")
    assert await watching == Versioned(b"two", second)


async def test_without_a_majority_it_says_so_in_time(cluster: Cluster, state: StateClient) -> None:
    for name in ("n2", "n3"):
        await cluster.nodes[name].server.close()
    with pytest.raises(ShoalError) as caught:
        await state.read("map", timeout_s=0.5)
    assert caught.value.code in ("timeout", "unavailable")


async def test_no_agent_at_all_is_unavailable(cluster: Cluster) -> None:
    with pytest.raises(Unavailable, match="no agent is known"):
        await StateClient(cluster.console()[0].caller, list).read("map", timeout_s=0.1)


class LosesAnswers:
    """An agent that writes and then says nothing useful: `after` runs between the two."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cas = cluster.nodes[name].console["state.cas"]
        self.state = cluster.nodes[name].state
        self.then: Iterator[bytes] = iter(())
        self.writes = True
        cluster.nodes[name].console["state.cas"] = self.lose

    async def lose(self, header: Header, body: bytes, deadline: float) -> Answer:
        if self.writes:
            answer, _ = await self._cas(header, body, deadline)
            for value in self.then:
                await self.state.compare_and_set(header["key"], answer["version"], value)
        raise Unavailable("the answer is lost")


async def test_a_write_whose_answer_was_lost_is_found_by_reading(
    cluster: Cluster, state: StateClient
) -> None:
    LosesAnswers(cluster, "n1")
    version = await write(state, "map", 0, b"mine")
    assert await state.read("map") == Versioned(b"mine", version)


async def test_a_write_that_did_not_happen_is_repeated_by_the_next_agent(
    cluster: Cluster, state: StateClient
) -> None:
    LosesAnswers(cluster, "n1").writes = False
    version = await write(state, "map", 0, b"mine")
    assert await state.read("map") == Versioned(b"mine", version)


async def test_a_lost_answer_to_a_write_that_was_overwritten_is_a_conflict_with_what_is_there(
    cluster: Cluster, state: StateClient
) -> None:
    LosesAnswers(cluster, "n1").then = iter([b"theirs"])
    answer = await state.compare_and_set("map", 0, b"mine")
    assert isinstance(answer, VersionConflict)
    assert answer.current.value == b"theirs"


async def test_links_tell_of_a_connection_that_ends_by_itself_and_of_no_other(cluster: Cluster) -> None:
    links, _ = cluster.console()
    lost: list[str] = []
    links.on_lost = lost.append
    for name in NODES:
        await links.caller(name).open(timeout_s=5)
    links.drop(["n1"])
    await cluster.nodes["n2"].server.close()
    await until(lambda: lost)
    assert lost == ["n2"]
    await links.caller("n1").call("ping", {}, timeout_s=5)
    with pytest.raises(Unavailable) as caught:
        await links.caller("n2").open(timeout_s=5)
    assert was_refused(caught.value)


async def test_an_address_of_another_node_is_named(cluster: Cluster) -> None:
    links = Links("ops", TRUST, {"n1": cluster.addresses["n2"]})
    with pytest.raises(Conflict, match="is node n2, not n1"):
        await links.caller("n1").call("ping", {}, timeout_s=5)
    await links.close()


async def test_a_name_whose_addresses_all_refuse_is_refused() -> None:
    both = OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] Connect …")
    mixed = OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 101] …")
    for cause, refused in ((both, True), (mixed, False), (OSError(101, "unreachable"), False)):
        error = Unavailable("node n1 cannot be reached")
        error.__cause__ = cause
        assert was_refused(error) is refused


async def test_a_listener_that_ends_while_it_is_greeted_is_unavailable_and_not_refusing() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    links = Links("ops", TRUST, {"n1": server.sockets[0].getsockname()[:2]})
    with pytest.raises(Unavailable) as caught:
        await links.caller("n1").open(timeout_s=5)
    assert not was_refused(caught.value)
    await links.close()
    server.close()
