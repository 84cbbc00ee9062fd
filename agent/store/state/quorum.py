"""The StateStore on voters: drives the proposer of core/consensus/register.py over acceptors."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from typing import TypeVar

from agent.store.state.port import VersionConflict, Versioned
from agent.store.state.rounds import BACKOFF_S_MAX, BACKOFF_S_MIN, Voter, run_round
from core.consensus.register import (
    Again,
    Ask,
    Ballots,
    Change,
    Conflicting,
    Done,
    Found,
    Operation,
    Outcome,
    Read,
    Told,
    Unsettled,
    Value,
    VoterSet,
    Write,
    Written,
)
from core.consensus.voters import VOTERS_KEY
from core.errors import ShoalError, Unavailable

SETTLE_TIMEOUT_S = 5.0
ASK_TIMEOUT_S = 1.0

T = TypeVar("T")


class QuorumState:
    """A StateStore over a set of voters. `proposer` must be new at every start of this process.

    It hears of newer voters from the acceptors that it knows, and reaches those that it doesn't by `dial`.
    """

    def __init__(
        self,
        voters: VoterSet,
        acceptors: Mapping[str, Voter],
        *,
        proposer: str,
        chance: random.Random,
        timeout_s: float = SETTLE_TIMEOUT_S,
        dial: Callable[[str], Voter] | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._voters = voters
        self._acceptors = dict(acceptors)
        self._dial = dial
        self._ballots = Ballots(proposer)
        self._proposer = proposer
        self._writes = 0
        self._chance = chance
        # Operations of one process on one key go one after another, or they would outbid each other.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def voters(self) -> VoterSet:
        """The newest set of voters that it has heard of."""
        return self._voters

    async def read(self, key: str) -> Versioned:
        match await self._settle(key, Read()):
            case Found(value):
                return _versioned(value)
            case other:
                raise AssertionError(other)

    async def compare_and_set(self, key: str, version: int, value: bytes) -> int | VersionConflict:
        return await self._write(key, version, value)

    async def delete(self, key: str, version: int) -> int | VersionConflict:
        return await self._write(key, version, None)

    async def watch(self, key: str, after_version: int) -> Versioned:
        (first,) = await self._gather(lambda a: a.wait_accepted(key, after_version), bool)
        return _versioned(first.value)

    async def list(self, prefix: str) -> dict[str, Versioned]:
        while True:
            voters = self._voters
            keys: set[str] = set().union(*await self._gather(lambda a: a.keys(prefix), voters.is_quorum))
            # Reading proves that these voters were asked before others took their place: keys may lack none.
            found = await asyncio.gather(*(self.read(key) for key in sorted({*keys, VOTERS_KEY})))
            if self._voters is voters:
                named = zip(sorted({*keys, VOTERS_KEY}), found, strict=True)
                return {key: v for key, v in named if v.value is not None and key in keys}

    async def _gather(
        self, ask: Callable[[Voter], Awaitable[T]], is_enough: Callable[[Collection[str]], bool]
    ) -> tuple[T, ...]:
        """The answers of the first voters that are enough. Raises Unavailable if too few can answer."""
        names = sorted(self._voters.everyone())
        asked = {asyncio.ensure_future(self._ask(name, ask)): name for name in names}
        answers: dict[str, T] = {}
        problem: ShoalError | None = None
        waiting = set(asked)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    try:
                        answers[asked[task]] = task.result()
                    except ShoalError as error:
                        problem = error
                    else:
                        if is_enough(answers.keys()):
                            return tuple(answers.values())
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise Unavailable(f"{len(answers)} of {len(asked)} voters answer: {problem}")

    async def _write(self, key: str, version: int, data: bytes | None) -> int | VersionConflict:
        self._writes += 1
        tag = f"{self._proposer}/{self._writes}"
        match await self._settle(key, Write(version, data, tag)):
            case Written(new_version):
                return new_version
            case Conflicting(current):
                return VersionConflict(_versioned(current))
            case Unsettled():
                raise Unavailable(
                    f"register {key}: no voter remembers if this write took effect; read it again"
                )
            case Found() as other:
                raise AssertionError(other)

    async def _settle(self, key: str, change: Change) -> Outcome:
        loop = asyncio.get_running_loop()
        async with self._turns[key]:
            operation = Operation(key, change)
            above, problem, backoff_s = 0, "no voter answered", BACKOFF_S_MIN
            deadline_s = loop.time() + self._timeout_s
            while loop.time() < deadline_s:
                begun = operation.begin(self._ballots.next(above), self._voters)
                result = await run_round(self._voter, operation, begun)
                if isinstance(result, Done):
                    return result.outcome
                if isinstance(result, Again):
                    above, problem = result.counter, "other proposers outbid it"
                    self._learn(result.voters)
                else:
                    problem = result
                    await self._ask_for_newer_voters()
                # At random, or rivals would outbid each other in step.
                await asyncio.sleep(self._chance.random() * backoff_s)
                backoff_s = min(BACKOFF_S_MAX, 2 * backoff_s)
        raise Unavailable(f"register {key}: not settled in {self._timeout_s} s: {problem}")

    def _voter(self, name: str) -> Voter:
        if name not in self._acceptors:
            if self._dial is None:
                raise Unavailable(f"voter {name} is not known here")
            self._acceptors[name] = self._dial(name)
        return self._acceptors[name]

    async def _ask(self, name: str, ask: Callable[[Voter], Awaitable[T]]) -> T:
        return await ask(self._voter(name))

    def _learn(self, voters: VoterSet) -> None:
        if voters.number > self._voters.number:
            self._voters = voters

    async def _ask_for_newer_voters(self) -> None:
        """Of all acceptors that it ever knew: those that should vote may be gone for good."""
        ballot = self._ballots.next()

        async def ask(name: str) -> None:
            with suppress(ShoalError, TimeoutError):
                async with asyncio.timeout(ASK_TIMEOUT_S):
                    told = await self._voter(name).handle(Ask(ballot))
                if isinstance(told, Told) and told.voters is not None:
                    self._learn(told.voters)

        await asyncio.gather(*(ask(name) for name in sorted({*self._acceptors, *self._voters.everyone()})))


def _versioned(value: Value) -> Versioned:
    return Versioned(value.data, value.version)
