"""The StateStore on voters: the conformance suite on one, restarts, rival proposers, voters that fail."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.store.acceptor import Acceptor
from agent.store.state.port import StateStore, VersionConflict, Versioned
from agent.store.state.quorum import QuorumState
from core.consensus.register import VoterSet
from core.errors import Unavailable
from tests.unit.conformance_state import StateStoreConformance, write


def on(*acceptors: Acceptor, proposer: str = "p1", timeout_s: float = 5) -> QuorumState:
    voters = {f"n{i}": acceptor for i, acceptor in enumerate(acceptors, 1)}
    chance = random.Random(proposer)
    return QuorumState(
        VoterSet(1, frozenset(voters)), voters, proposer=proposer, chance=chance, timeout_s=timeout_s
    )


@pytest.fixture
async def acceptor(tmp_path: Path) -> AsyncIterator[Acceptor]:
    acceptor = await Acceptor.open(tmp_path / "acceptor", fresh=True)
    yield acceptor
    await acceptor.close()


class TestOneVoter(StateStoreConformance):
    @pytest.fixture
    def state(self, acceptor: Acceptor) -> StateStore:
        return on(acceptor)


class TestThreeVoters(StateStoreConformance):
    @pytest.fixture
    async def state(self, tmp_path: Path) -> AsyncIterator[StateStore]:
        acceptors = [await Acceptor.open(tmp_path / f"a{n}", fresh=True) for n in range(3)]
        yield on(*acceptors)
        for acceptor in acceptors:
            await acceptor.close()


async def test_a_restart_keeps_values_and_versions(tmp_path: Path) -> None:
    acceptor = await Acceptor.open(tmp_path / "a", fresh=True)
    version = await write(on(acceptor), "map", 0, b"kept")
    await acceptor.close()
    again = await Acceptor.open(tmp_path / "a", fresh=False)
    assert await on(again, proposer="p2").read("map") == Versioned(b"kept", version)
    await again.close()


async def test_rival_proposers_never_lose_a_step(acceptor: Acceptor) -> None:
    async def count(state: QuorumState, steps: int) -> None:
        for _ in range(steps):
            at = await state.read("n")
            while isinstance(
                answer := await state.compare_and_set("n", at.version, b"%d" % (int(at.value or 0) + 1)),
                VersionConflict,
            ):
                at = answer.current

    await asyncio.gather(*(count(on(acceptor, proposer=f"p{n}"), 5) for n in range(3)))
    assert (await on(acceptor, proposer="end").read("n")).value == b"15"


async def test_a_minority_of_failed_voters_is_outvoted_and_a_majority_is_an_error(tmp_path: Path) -> None:
    acceptors = [await Acceptor.open(tmp_path / f"a{n}", fresh=True) for n in range(3)]
    state = on(*acceptors, timeout_s=0.2)
    await acceptors[0].close()
    version = await write(state, "map", 0, b"two of three")
    await acceptors[1].close()
    with pytest.raises(Unavailable, match="register map"):
        await state.compare_and_set("map", version, b"one of three")
    await acceptors[2].close()
