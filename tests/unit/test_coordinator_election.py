"""Coordinators that stand for election over real acceptors: one leads, another follows, nobody acts late."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from console.coordinator.leadership import Deposed, Leadership, Reign
from core.consensus.lease import LEADER_KEY, Timing, decode_lease
from tests.unit.coordinator_nodes import LOG, NODES, Cluster, three_nodes, until

QUICK = Timing(ttl_s=0.9, renew_s=0.15, look_s=0.05, jitter_s=0.05, answer_s=0.3)


class Candidate:
    """A coordinator whose reign only notes what it may do."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.links, state = cluster.console(name)
        self.reigns: list[Reign] = []
        self.ended: list[str] = []
        self.depose = asyncio.Event()
        self.leadership = Leadership(
            name, state, self.govern, LOG, timing=QUICK, chance=random.Random(len(name))
        )
        self.task = asyncio.create_task(self.leadership.run())

    @property
    def leads(self) -> bool:
        return bool(self.reigns) and self.reigns[-1].may_act()

    async def govern(self, reign: Reign) -> None:
        self.reigns.append(reign)
        deposed = asyncio.create_task(self.depose.wait())
        ending = asyncio.create_task(reign.ending.wait())
        try:
            await asyncio.wait([deposed, ending], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        finally:
            deposed.cancel()
            ending.cancel()
        if self.depose.is_set():
            self.depose.clear()
            raise Deposed("map", mine=reign.term, theirs=reign.term + 1)
        self.ended.append("handed over")

    async def stop(self) -> None:
        self.leadership.stop()
        await asyncio.wait_for(self.task, 10)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with three_nodes(tmp_path) as made:
        yield made


async def test_of_two_one_leads_and_the_other_takes_over_at_once_when_it_steps_down(
    cluster: Cluster,
) -> None:
    first = Candidate(cluster, "ops-1")
    await until(lambda: first.leads)
    second = Candidate(cluster, "ops-22")
    await until(lambda: second.leadership.lease)
    assert not second.leads
    loop = asyncio.get_running_loop()
    asked_s = loop.time()
    await first.stop()
    assert first.ended == ["handed over"]
    assert not first.leads
    await until(lambda: second.leads)
    assert loop.time() - asked_s < 0.5
    assert second.reigns[-1].term == first.reigns[-1].term + 1
    await second.stop()
    lease = await cluster.nodes["n3"].state.read(LEADER_KEY)
    assert lease.value is not None
    assert decode_lease(lease.value).holder == ""


async def test_a_leader_renews_through_another_agent_when_its_own_dies(cluster: Cluster) -> None:
    leader = Candidate(cluster, "ops-1")
    await until(lambda: leader.leads)
    await cluster.nodes["n1"].server.close()
    seen = leader.leadership.lease
    await until(lambda: (now := leader.leadership.lease) and seen and now.renewals > seen.renewals + 3)
    assert leader.leads
    assert len(leader.reigns) == 1
    await leader.stop()


async def test_a_leader_that_reaches_nobody_stops_before_another_starts(cluster: Cluster) -> None:
    first, second = Candidate(cluster, "ops-1"), Candidate(cluster, "ops-22")
    await until(lambda: first.leads or second.leads)
    old, new = (first, second) if first.leads else (second, first)

    old.links.drop(NODES)
    old.links.learn(dict.fromkeys(NODES, ("127.0.0.1", 1)))
    led_at_once = []

    def new_leads() -> bool:
        led_at_once.append(old.leads and new.leads)
        return new.leads

    await until(new_leads)
    assert not any(led_at_once)
    assert old.ended == ["cancelled"]
    assert new.reigns[-1].term == old.reigns[-1].term + 1
    await new.stop()
    await old.stop()


async def test_who_is_deposed_by_a_stamp_steps_down_and_stands_again(cluster: Cluster) -> None:
    leader = Candidate(cluster, "ops-1")
    await until(lambda: leader.leads)
    leader.depose.set()
    await until(lambda: len(leader.reigns) == 2 and leader.leads)
    assert leader.reigns[1].term == leader.reigns[0].term + 1
    assert not leader.reigns[0].may_act()
    await leader.stop()


async def test_who_never_led_stops_without_writing(cluster: Cluster) -> None:
    leader = Candidate(cluster, "ops-1")
    await until(lambda: leader.leads)
    other = Candidate(cluster, "ops-22")
    await until(lambda: other.leadership.lease)
    await other.stop()
    assert leader.leads
    assert other.reigns == []
    await leader.stop()
