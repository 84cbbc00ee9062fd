"""Effects in order, held back by what must be durable first; who waits for which entry; entries in memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.store.effects import Effects
from agent.store.recent_entries import Logged, RecentEntries
from agent.store.waiting import Proposal, Waiting
from core.errors import Unavailable
from core.replication import effects as fx
from core.replication.effects import Consistency
from core.replication.log import Entry, Position
from core.wire import Nothing, Outcome

IDENTITY = fx.Identity(1, 2, promised=3)


class Performed:
    """What was performed; KeepIdentity and Install wait until they are let."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.failed: list[Exception] = []
        self.durable: asyncio.Queue[Exception | None] = asyncio.Queue()
        self.effects = Effects(
            dict.fromkeys((fx.SteppedDown, fx.Truncate, fx.Persist, fx.ReadReady), self.done.append),
            {fx.KeepIdentity: self._hold, fx.Install: self._hold},
            self.failed.append,
        )

    async def _hold(self, effect: object) -> None:
        problem = await self.durable.get()
        if problem is not None:
            raise problem
        self.done.append(effect)

    async def let(self, problem: Exception | None = None) -> None:
        self.durable.put_nowait(problem)
        for _ in range(5):
            await asyncio.sleep(0)


async def test_what_follows_an_identity_waits_until_it_is_durable() -> None:
    p = Performed()
    first, keep, then, install = (
        fx.SteppedDown(1),
        fx.KeepIdentity(IDENTITY),
        fx.ReadReady(2),
        fx.Install(Position(1, 1)),
    )
    p.effects.add([first, keep, then])
    p.effects.add([install, fx.ReadReady(3)])
    assert (p.done, p.effects.is_held) == ([first], True)
    await p.let()
    assert p.done == [first, keep, then]
    await p.let()
    assert p.done == [first, keep, then, install, fx.ReadReady(3)]
    assert not p.effects.is_held
    await p.effects.settled()


async def test_effects_of_an_effect_come_after_those_that_were_there() -> None:
    done: list[Any] = []

    def perform(effect: fx.ReadReady) -> None:
        done.append(effect.token)
        if effect.token == 1:
            effects.add([fx.ReadReady(3)])
            done.append("after")

    effects = Effects({fx.ReadReady: perform}, {}, lambda _: None)
    effects.add([fx.ReadReady(1), fx.ReadReady(2)])
    assert done == [1, "after", 2, 3]


async def test_nothing_rests_on_an_identity_that_could_not_be_kept() -> None:
    p = Performed()
    p.effects.add([fx.KeepIdentity(IDENTITY), fx.ReadReady(1)])
    problem = OSError("the disk is gone")
    await p.let(problem)
    p.effects.add([fx.ReadReady(2)])
    assert (p.done, p.failed) == ([], [problem])


async def test_entries_that_were_withdrawn_are_not_written() -> None:
    p = Performed()
    entry = Entry(1, 1, 1, b"op")
    p.effects.add([fx.KeepIdentity(IDENTITY), fx.Persist((entry,)), fx.Truncate(0), fx.ReadReady(1)])
    p.effects.void_persists()
    await p.let()
    assert p.done == [fx.KeepIdentity(IDENTITY), fx.Truncate(0), fx.ReadReady(1)]


async def test_after_its_end_nothing_is_performed() -> None:
    p = Performed()
    p.effects.add([fx.KeepIdentity(IDENTITY), fx.ReadReady(1)])
    p.effects.end()
    await p.effects.close()
    p.effects.add([fx.ReadReady(2)])
    assert (p.done, p.failed) == ([], [])


# -- who waits ----------------------------------------------------------------------------------------------


class Reached:
    def __init__(self) -> None:
        self.upto = dict.fromkeys(Consistency, 0)
        self.waiting = Waiting(self.upto.__getitem__)

    def propose(self, seq: int, until: str, consistency: Consistency) -> asyncio.Future[Outcome]:
        proposal = Proposal(Nothing(), b"", b"", 0, b"", 0, until, consistency)
        proposal.answer = asyncio.get_running_loop().create_future()
        self.waiting.add(seq, proposal)
        return proposal.answer


async def test_a_write_is_answered_when_it_has_its_consistency() -> None:
    r = Reached()
    answers = {c: [r.propose(seq, "persisted", c) for seq in (3, 1, 2)] for c in Consistency}
    r.upto |= {Consistency.EVENTUAL: 3, Consistency.QUORUM: 2, Consistency.STRONG: 1}
    r.waiting.look()
    assert [a.done() for a in answers[Consistency.EVENTUAL]] == [True, True, True]
    assert [a.done() for a in answers[Consistency.QUORUM]] == [False, True, True]
    assert [a.done() for a in answers[Consistency.STRONG]] == [False, True, False]


@pytest.mark.parametrize("applied_first", [True, False])
async def test_a_strong_write_that_is_to_be_applied_waits_for_both(applied_first: bool) -> None:
    r, outcome = Reached(), Outcome(touched=4)
    answer = r.propose(1, "applied", Consistency.STRONG)

    def reach() -> None:
        r.upto[Consistency.STRONG] = 1
        r.waiting.look()

    steps = [lambda: r.waiting.applied(1, outcome), reach]
    for step in steps if applied_first else reversed(steps):
        assert not answer.done()
        step()
    assert answer.result() == outcome


async def test_only_entries_that_will_not_be_logged_are_rejected() -> None:
    r = Reached()
    answers = [
        r.propose(seq, how, Consistency.QUORUM) for seq in (1, 2, 3) for how in ("applied", "persisted")
    ]
    r.waiting.reject_after(1, Unavailable("no"))
    assert [a.done() for a in answers] == [False, False, True, True, True, True]
    r.upto[Consistency.QUORUM] = 1
    r.waiting.look()
    r.waiting.applied(1, Outcome())
    assert [a.done() for a in answers[:2]] == [True, True]
    assert all(isinstance(a.exception(), Unavailable) for a in answers[2:])


# -- entries in memory --------------------------------------------------------------------------------------


def entry(seq: int, term: int = 1) -> Entry:
    return Entry(term, seq, seq, bytes(10))


def test_the_newest_entries_are_in_memory_within_their_bound() -> None:
    memory = RecentEntries(50)
    for seq in range(1, 11):
        memory.add(Logged(entry(seq)))
    assert memory.bytes == 50
    assert memory.run(6, 10) == tuple(entry(seq) for seq in range(6, 11))
    assert memory.run(5, 10) is None
    assert memory.run(6, 11) is None
    memory.let_go(8, 10)
    assert memory.run(9, 10) == (entry(9), entry(10))
    memory.let_go(8, 0)
    assert memory.run(9, 10) is not None, "what is not applied stays"


def test_what_is_cut_off_is_not_found_and_its_place_is_taken() -> None:
    memory = RecentEntries(1000)
    for seq in range(1, 6):
        memory.add(Logged(entry(seq)))
    memory.truncate(2)
    assert memory.get(3) is None
    memory.add(Logged(entry(3, term=2)))
    assert memory.run(2, 3) == (entry(2), entry(3, term=2))
    assert memory.bytes == 30


def test_after_a_gap_only_what_follows_is_there() -> None:
    memory = RecentEntries(1000)
    for seq in (1, 2, 50, 51):
        memory.add(Logged(entry(seq)))
    assert memory.get(2) is None
    assert memory.run(50, 51) == (entry(50), entry(51))
    assert memory.bytes == 20
