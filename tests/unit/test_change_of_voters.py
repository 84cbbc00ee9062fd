"""A change of voters on real acceptors, while others read and write."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.store.acceptor import Acceptor
from agent.store.state.changing import ChangeOfVoters
from agent.store.state.port import VersionConflict
from agent.store.state.quorum import QuorumState
from core.consensus.register import Ballots, VoterSet, encode_voters
from core.consensus.voters import VOTERS_KEY, Finished, GaveUp, VoterChange
from core.errors import Unavailable
from tests.unit.conformance_state import write

FIRST = VoterSet(1, frozenset("abc"))
Open = Callable[[str], Acceptor]


@pytest.fixture
async def acceptors(tmp_path: Path) -> AsyncIterator[dict[str, Acceptor]]:
    opened = {name: await Acceptor.open(tmp_path / name, fresh=True) for name in "abcde"}
    state = state_on(opened, "beginning")
    await write(state, VOTERS_KEY, 0, encode_voters(FIRST))
    yield opened
    for acceptor in opened.values():
        await acceptor.close()


def state_on(acceptors: dict[str, Acceptor], proposer: str, voters: VoterSet = FIRST) -> QuorumState:
    return QuorumState(voters, acceptors, proposer=proposer, chance=random.Random(proposer))


async def change(
    acceptors: dict[str, Acceptor], known: VoterSet, target: str, tag: str = "r"
) -> Finished | GaveUp:
    def voter_of(name: str) -> Acceptor:
        if name not in acceptors:
            raise Unavailable(f"{name} is not there")
        return acceptors[name]

    runner = VoterChange(known, frozenset(target), tag=tag)
    work = ChangeOfVoters(runner, voter_of, ballots=Ballots(tag), chance=random.Random(tag))
    return await work.run()


async def count(state: QuorumState, stop: asyncio.Event) -> int:
    """Steps of a counter, one by one, until told to stop."""
    steps = 0
    while not stop.is_set():
        at = await state.read("n")
        wanted = b"%d" % (int(at.value or 0) + 1)
        steps += not isinstance(await state.compare_and_set("n", at.version, wanted), VersionConflict)
    return steps


async def test_voters_change_under_writes_and_nothing_is_lost(acceptors: dict[str, Acceptor]) -> None:
    for n in range(40):
        await write(state_on(acceptors, f"w{n}"), f"jobs/{n}", 0, b"%d" % n)
    stop = asyncio.Event()
    counting = [asyncio.create_task(count(state_on(acceptors, f"p{n}"), stop)) for n in range(2)]
    assert await change(acceptors, FIRST, "cde") == Finished(VoterSet(3, frozenset("cde")))
    stop.set()
    steps = sum(await asyncio.gather(*counting))
    for name in "ab":
        await acceptors[name].close()

    later = state_on(acceptors, "later", VoterSet(3, frozenset("cde")))
    assert steps > 0
    assert (await later.read("n")).value == b"%d" % steps
    found = await later.list("jobs/")
    assert {key: v.value for key, v in found.items()} == {f"jobs/{n}": b"%d" % n for n in range(40)}


async def test_who_knows_only_the_first_voters_is_told_by_one_that_left(
    acceptors: dict[str, Acceptor],
) -> None:
    await change(acceptors, FIRST, "cde")
    version = await write(state_on(acceptors, "behind"), "map", 0, b"x")
    # Not the voters that left have it, but a majority of those of now.
    having = {name for name, acceptor in acceptors.items() if acceptor.cell("map").value.version == version}
    assert having <= set("cde")
    assert len(having) >= 2


async def test_who_sees_no_quorum_asks_every_acceptor_and_dials_those_it_does_not_know(
    acceptors: dict[str, Acceptor],
) -> None:
    await change(acceptors, FIRST, "cde")
    version = await write(state_on(acceptors, "w"), "map", 0, b"x")
    for name in "ab":  # a majority of the only voters that it knows
        await acceptors[name].close()
    behind = QuorumState(
        FIRST,
        {name: acceptors[name] for name in "abc"},
        proposer="behind",
        chance=random.Random(1),
        dial=acceptors.__getitem__,
    )
    assert list(await behind.list("m")) == ["map"]
    assert (await behind.read("map")).version == version
    assert behind.voters == VoterSet(3, frozenset("cde"))


async def test_a_list_by_voters_that_were_replaced_is_made_again(acceptors: dict[str, Acceptor]) -> None:
    behind = state_on(acceptors, "behind")
    await change(acceptors, FIRST, "de")
    await write(state_on(acceptors, "w", VoterSet(3, frozenset("de"))), "jobs/1", 0, b"x")
    assert list(await behind.list("jobs/")) == ["jobs/1"]


async def test_two_changes_at_once_end_in_one_set(acceptors: dict[str, Acceptor]) -> None:
    ends = await asyncio.gather(change(acceptors, FIRST, "cde", "r1"), change(acceptors, FIRST, "abd", "r2"))
    assert all(isinstance(end, Finished) for end in ends)
    newest = max((end.voters for end in ends), key=lambda voters: voters.number)
    assert newest.joint is None
    assert newest.members in (frozenset("cde"), frozenset("abd"))
    version = await write(state_on(acceptors, "after"), "map", 0, b"x")
    assert (await state_on(acceptors, "again", newest).read("map")).version == version


async def test_new_voters_that_never_answer_are_set_back(acceptors: dict[str, Acceptor]) -> None:
    end = await change(acceptors, FIRST, "xyz")
    assert end == Finished(VoterSet(3, frozenset("abc")))
    await write(state_on(acceptors, "after"), "map", 0, b"x")
