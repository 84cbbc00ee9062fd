"""Questions among fronts over real links: who is asked, who else when that fails or is late, who no more."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from agent.front.asking import HEDGE_ANYWAY_S, Asking, NotYet, ShardMissing, Where
from agent.link import Answer, Header
from agent.metrics import Metrics
from agent.store.peers import Address, PeerPorts, Peers, PeerServer
from core.balancer import HEDGE_S_START, Balancer, Standing, Strategy
from core.breaker import FAILURES_MAX, PAUSE_S_MIN
from core.cluster import NodeId
from core.errors import BadRequest, DeadlineExceeded, Unavailable
from net.logs import log_to
from net.peer_link import Identity, Trust

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")
SECRET = b"a secret of thirty-two characters"
LATE_S = 5.0


class Fronts:
    """n1 asks n2 and n3; `does` says what each of these does with a question."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._addresses: dict[str, Address] = {}
        self.does: dict[str, Callable[[Header], Awaitable[bytes]]] = {}
        self.asked: list[str] = []
        self.silent: list[str] = []
        self.metrics = Metrics(memoryview(bytearray(1 << 16)))
        self.servers: dict[str, PeerServer] = {}
        self._peers = Peers(self._ports("n1"))
        stack.push_async_callback(self._peers.close)
        self.balancer = Balancer(N1, "", random.Random(5), strategy=Strategy.RANDOM)
        self.balancer.observe(dict.fromkeys((N1, N2, N3), Standing()), time.monotonic())
        self.asking = Asking(self._peers.caller, self.balancer, self.metrics, silent=lambda: self.silent)

    async def start(self, name: str) -> None:
        async def read(header: Header, body: bytes, deadline: float) -> Answer:
            self.asked.append(name)
            return {"points": 1}, await self.does[name](header)

        server = self.servers[name] = PeerServer(self._ports(name), {"front": {"shard.read": read}})
        await server.start(self._addresses.get(name, ("127.0.0.1", 0)))
        self._addresses[name] = server.address
        self._stack.push_async_callback(server.close)

    async def ask(self, *nodes: NodeId, within_s: float = 10, primary: NodeId = N3) -> bytes:
        where = Where(7, 2, nodes, primary, "docs", at_least=5)
        return (await self.asking.ask("shard.read", where, "run", b"", time.monotonic() + within_s))[1]

    def count(self, name: str) -> float:
        return self.metrics.counter(name)._value

    def _ports(self, name: str) -> PeerPorts:
        return PeerPorts(
            me=lambda: Identity(name, "front", "one"),
            trust=Trust((SECRET,)),
            address_of=self._addresses.get,
            metrics=self.metrics,
            log=log_to(sys.stderr, "logfmt", "error"),
        )


async def answers(header: Header) -> bytes:
    return b"found"


async def cannot(header: Header) -> bytes:
    raise Unavailable("not open now")


async def is_late(header: Header) -> bytes:
    await asyncio.sleep(LATE_S)
    return b"late"


@pytest.fixture
async def fronts() -> AsyncIterator[Fronts]:
    async with AsyncExitStack() as stack:
        made = Fronts(stack)
        for name in (N2, N3):
            made.does[name] = answers
            await made.start(name)
        yield made


async def test_another_replica_is_asked_if_one_cannot_answer(fronts: Fronts) -> None:
    fronts.does[N2] = cannot
    for _ in range(10):
        assert await fronts.ask(N2, N3) == b"found"
    assert fronts.count("shoal_remote_read_retries_total") == fronts.asked.count("n2") > 0


async def test_a_late_question_is_asked_again_of_another_and_the_first_answer_counts(fronts: Fronts) -> None:
    fronts.does[N2] = is_late
    began_s = time.monotonic()
    while "n2" not in fronts.asked:
        assert await fronts.ask(N2, N3) == b"found"
    assert HEDGE_S_START <= time.monotonic() - began_s < LATE_S
    assert fronts.count("shoal_remote_read_hedges_total") == 1


async def test_many_late_answers_in_a_row_are_waited_for_a_little_longer(fronts: Fronts) -> None:
    fronts.does[N2] = is_late
    fronts.asking._hedges = 0.0
    began_s = time.monotonic()
    while "n2" not in fronts.asked:
        assert await fronts.ask(N2, N3) == b"found"
    assert HEDGE_ANYWAY_S <= time.monotonic() - began_s < LATE_S


async def test_without_another_replica_a_late_answer_is_waited_for_until_the_deadline(fronts: Fronts) -> None:
    fronts.does[N2] = is_late
    with pytest.raises(DeadlineExceeded):
        await fronts.ask(N2, within_s=0.3)


async def test_a_shard_whose_replicas_all_fail_is_named_with_what_each_said(fronts: Fronts) -> None:
    fronts.does[N2] = fronts.does[N3] = cannot
    with pytest.raises(
        ShardMissing, match=r"shard 2 of collection docs \(on n2, n3\).*not open now"
    ) as raised:
        await fronts.ask(N2, N3)
    assert (raised.value.where.shard, sorted(fronts.asked)) == (2, ["n2", "n3"])


async def test_a_question_that_is_wrong_is_asked_once(fronts: Fronts) -> None:
    async def refuses(header: Header) -> bytes:
        raise BadRequest("no such vector")

    fronts.does[N2] = fronts.does[N3] = refuses
    with pytest.raises(BadRequest):
        await fronts.ask(N2, N3)
    assert len(fronts.asked) == 1


async def test_a_replica_that_is_behind_sends_the_question_to_the_primary(fronts: Fronts) -> None:
    async def is_behind(header: Header) -> bytes:
        assert (header["at_least"], header["at_any_rate"]) == (5, False)
        raise NotYet("at 4")

    async def is_primary(header: Header) -> bytes:
        assert header["at_any_rate"]
        return b"found"

    fronts.does[N2], fronts.does[N3] = is_behind, is_primary
    for _ in range(5):
        assert await fronts.ask(N2, N3) == b"found"


async def test_a_peer_that_fails_again_and_again_is_left_alone_and_probed(fronts: Fronts) -> None:
    await fronts.servers[N2].close()
    for _ in range(FAILURES_MAX):
        with pytest.raises(ShardMissing, match="cannot be reached"):
            await fronts.ask(N2)
    assert fronts.asking.is_broken(N2)
    with pytest.raises(ShardMissing, match="failed repeatedly"):
        await fronts.ask(N2)
    await fronts.start(N2)
    async with asyncio.timeout(10 * PAUSE_S_MIN):
        while fronts.asking.is_broken(N2):
            try:
                assert await fronts.ask(N2) == b"found"
            except ShardMissing:
                await asyncio.sleep(0.01)


async def test_nobody_waits_for_a_peer_of_which_nothing_is_heard(fronts: Fronts) -> None:
    fronts.does[N2], fronts.silent = is_late, ["n2"]
    with pytest.raises(ShardMissing, match="nothing has been heard"):
        await fronts.ask(N2, within_s=LATE_S)
