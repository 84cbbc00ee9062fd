"""The StateStore on voters: drives the proposer of core/consensus/register.py over acceptors.

Today's only voter is the acceptor of this process; more are added as further `Voter`s, not as another path.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

from agent.store.state.port import VersionConflict, Versioned
from core.consensus.register import (
    Again,
    Answer,
    Ballots,
    Cell,
    Change,
    Conflicting,
    Done,
    Effect,
    Found,
    Operation,
    Outcome,
    Read,
    Request,
    Send,
    Unsettled,
    Value,
    VoterSet,
    Write,
    Written,
)
from core.errors import ShoalError, Unavailable

ROUND_TIMEOUT_S = 2.0
SETTLE_TIMEOUT_S = 5.0
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.005, 0.2

T = TypeVar("T")


class Voter(Protocol):
    """An acceptor, wherever it lives. Raises a ShoalError if it cannot answer."""

    async def handle(self, request: Request) -> Answer: ...

    async def wait_accepted(self, key: str, after_version: int) -> Cell: ...

    async def keys(self, prefix: str) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class _Heard:
    voter: str
    answer: Answer | ShoalError


class QuorumState:
    """A StateStore over a set of voters. `proposer` must be new at every start of this process."""

    def __init__(
        self,
        voters: VoterSet,
        acceptors: Mapping[str, Voter],
        *,
        proposer: str,
        chance: random.Random,
        timeout_s: float = SETTLE_TIMEOUT_S,
    ) -> None:
        self._timeout_s = timeout_s
        self._voters = voters
        self._acceptors = dict(acceptors)
        self._ballots = Ballots(proposer)
        self._proposer = proposer
        self._writes = 0
        self._chance = chance
        # Operations of one process on one key go one after another, or they would outbid each other.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

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
        keys: set[str] = set().union(*await self._gather(lambda a: a.keys(prefix), self._voters.is_quorum))
        found = await asyncio.gather(*(self.read(key) for key in sorted(keys)))
        return {key: v for key, v in zip(sorted(keys), found, strict=True) if v.value is not None}

    async def _gather(
        self, ask: Callable[[Voter], Awaitable[T]], is_enough: Callable[[Collection[str]], bool]
    ) -> tuple[T, ...]:
        """The answers of the first voters that are enough. Raises Unavailable if too few can answer."""
        asked = {asyncio.ensure_future(ask(voter)): name for name, voter in self._acceptors.items()}
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
                result = await self._round(operation, begun)
                if isinstance(result, Done):
                    return result.outcome
                if isinstance(result, Again):
                    above, problem = result.counter, "other proposers outbid it"
                    if result.voters.number > self._voters.number:
                        self._voters, problem = result.voters, "the voters changed"
                else:
                    problem = result
                # At random, or rivals would outbid each other in step.
                await asyncio.sleep(self._chance.random() * backoff_s)
                backoff_s = min(BACKOFF_S_MAX, 2 * backoff_s)
        raise Unavailable(f"register {key}: not settled in {self._timeout_s} s: {problem}")

    async def _round(self, operation: Operation, effects: Sequence[Effect]) -> Done | Again | str:
        """One ballot. A voter that fails is only silent; if too many are: why the last one failed."""
        heard: asyncio.Queue[_Heard] = asyncio.Queue()
        asked: list[asyncio.Task[None]] = []
        problem = f"no quorum within {ROUND_TIMEOUT_S} s"
        with suppress(TimeoutError):  # the problem is returned below
            async with asyncio.timeout(ROUND_TIMEOUT_S), asyncio.TaskGroup() as group:
                answers = 0
                while True:
                    for effect in effects:
                        if not isinstance(effect, Send):
                            for task in asked:
                                task.cancel()
                            return effect
                        asked.append(group.create_task(self._ask(effect, heard)))
                    if answers == len(asked):
                        return problem
                    got = await heard.get()
                    answers += 1
                    effects = []
                    if isinstance(got.answer, ShoalError):
                        problem = str(got.answer)
                    else:
                        effects = operation.on_answer(got.voter, got.answer)
        return problem

    async def _ask(self, send: Send, heard: asyncio.Queue[_Heard]) -> None:
        try:
            answer: Answer | ShoalError = await self._acceptors[send.voter].handle(send.request)
        except ShoalError as e:
            answer = e
        heard.put_nowait(_Heard(send.voter, answer))


def _versioned(value: Value) -> Versioned:
    return Versioned(value.data, value.version)
