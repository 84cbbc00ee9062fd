"""Stands for election for as long as it runs: drives core/consensus/lease.py over the StateStore.

While it leads, one reign runs; it is cancelled in the instant in which the lease may be another's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from console.state_client import StateClient, VersionConflict, Versioned
from core.consensus.lease import (
    LEADER_KEY,
    NOBODY,
    CompareAndSet,
    Effect,
    Election,
    Lead,
    Lease,
    Read,
    StopLeading,
    Timing,
    decode_lease,
    encode_lease,
)
from core.errors import ShoalError
from net.logs import Log

FINISH_S = 5.0
"""For what a leader has under way when it is told to stop."""
TIMING = Timing(answer_s=1.2)
"""What is asked through an agent that hangs is asked of the next one in time; a slow answer still counts."""
DEPOSED_S = 0.5
HINT_S = 0.5
"""For so long a follower waits for news of the lease before it asks for it."""
HAND_OVER_S = 2.0
"""For emptying the lease; after it a successor waits for the rest of the ttl."""


class Deposed(ShoalError):
    """The cluster's state bears a higher leader's term: this one stops at once."""

    code, status = "deposed", 409

    def __init__(self, key: str, *, mine: int, theirs: int) -> None:
        super().__init__(f"{key} was stamped by the leader of term {theirs}, this one leads in term {mine}")


@dataclass(frozen=True, slots=True)
class Reign:
    """One term of leading."""

    term: int
    may_act: Callable[[], bool]
    """Whether the lease still holds: to be asked before each act."""
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    """Once set: begin nothing more, finish what is under way, return."""


Govern = Callable[[Reign], Awaitable[None]]
"""What a leader does until it is cancelled or told to end. Raises Deposed if it sees a higher stamp."""


class Leadership:
    """`run` returns after `stop`, when the lease is handed over or was never held."""

    def __init__(
        self,
        name: str,
        state: StateClient,
        govern: Govern,
        log: Log,
        *,
        timing: Timing = TIMING,
        chance: random.Random | None = None,
    ) -> None:
        self._name, self._state, self._govern, self._log = name, state, govern, log
        self._timing = timing
        self._chance = chance or random.Random()
        self._stopped = asyncio.Event()
        self._candidacy: _Candidacy | None = None

    @property
    def term(self) -> int | None:
        """The term in which it leads, if it does."""
        return self._candidacy.term if self._candidacy is not None else None

    @property
    def lease(self) -> Lease | None:
        """What the key `leader` was last seen to hold."""
        return self._candidacy.election.lease if self._candidacy is not None else None

    def stop(self) -> None:
        self._stopped.set()
        if self._candidacy is not None:
            self._candidacy.leave()

    async def run(self) -> None:
        while not self._stopped.is_set():
            # Another holder each time: a lease from before it was deposed must not look like its own.
            holder = f"{self._name}/{self._chance.getrandbits(64):016x}"
            election = Election(holder, time.monotonic(), self._chance, self._timing)
            self._candidacy = _Candidacy(
                holder, election, self._state, self._govern, self._timing.answer_s, self._log
            )
            await self._candidacy.run()
            with suppress(TimeoutError):  # deposed: whoever stamped higher has a moment to lead
                async with asyncio.timeout(DEPOSED_S):
                    await self._stopped.wait()


class _Candidacy:
    """From the first look at the key until it has stepped down."""

    def __init__(
        self,
        holder: str,
        election: Election,
        state: StateClient,
        govern: Govern,
        answer_s: float,
        log: Log,
    ) -> None:
        self._holder, self.election = holder, election
        self._state, self._govern, self._answer_s, self._log = state, govern, answer_s, log
        self._woken = asyncio.Event()
        self._leaving_s: float | None = None
        self._left_s: float | None = None
        self._reign: Reign | None = None
        self._reigning: asyncio.Task[None] | None = None
        self._seen_holder: str | None = None
        self._seen_version: int | None = None
        """What was read last, and nothing was written since: a hint is then enough."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def term(self) -> int | None:
        return self._reign.term if self._reign is not None else None

    def leave(self) -> None:
        if self._leaving_s is None:
            self._leaving_s = time.monotonic()
        if self._reign is not None:
            self._reign.ending.set()
        self._woken.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while not self._is_over(now_s := time.monotonic()):
                if self._left_s is None and self._is_ready_to_leave(now_s):
                    self._left_s = now_s
                    self._do(self.election.step_down(now_s), group)
                else:
                    self._do(self.election.tick(now_s), group)
                await self._wait(self.election.wake_s)
            self._stop_reign()
            for task in self._tasks:
                task.cancel()

    def _is_over(self, now_s: float) -> bool:
        if self._left_s is None:
            return False
        return self.election.finished or now_s > self._left_s + HAND_OVER_S

    def _is_ready_to_leave(self, now_s: float) -> bool:
        if self._leaving_s is None:
            return False
        is_idle = self._reigning is None or self._reigning.done()
        return is_idle or now_s > self._leaving_s + FINISH_S

    async def _wait(self, until_s: float) -> None:
        with suppress(TimeoutError):  # then it is time for a tick
            async with asyncio.timeout(max(0.0, until_s - time.monotonic())):
                await self._woken.wait()
        self._woken.clear()

    # -- effects ------------------------------------------------------------------------------------------

    def _do(self, effects: list[Effect], group: asyncio.TaskGroup) -> None:
        self._tell_who_leads()
        for effect in effects:
            match effect:
                case Read() | CompareAndSet():
                    task = group.create_task(self._ask(effect, group), name="leadership.ask")
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                case Lead(term=term):
                    if self._reign is None:
                        self._begin_reign(term, group)
                case StopLeading(term=term):
                    self._log.info("leader.stopped", term=term)
                    self._stop_reign()

    async def _ask(self, question: Read | CompareAndSet, group: asyncio.TaskGroup) -> None:
        effects: list[Effect] = []
        try:
            if isinstance(question, Read):
                answer: int | Versioned = await self._look()
            else:
                self._seen_version = None
                written = await self._state.compare_and_set(
                    LEADER_KEY, question.version, encode_lease(question.lease), timeout_s=self._answer_s
                )
                answer = written.current if isinstance(written, VersionConflict) else written
        except ShoalError as problem:
            self._log.debug("leader.no_answer", text=str(problem))
            self.election.on_failed(question.asked, time.monotonic())
        else:
            now_s = time.monotonic()
            if isinstance(answer, int):
                effects = self.election.on_written(question.asked, answer, now_s)
            else:
                lease = decode_lease(answer.value) if answer.value is not None else None
                is_led = lease is not None and lease.holder not in (NOBODY, self._holder)
                self._seen_version = answer.version if is_led else None
                effects = self.election.on_read(question.asked, lease, answer.version, now_s)
        self._do(effects, group)
        self._woken.set()

    async def _look(self) -> Versioned:
        """A follower takes a hint: it costs no ballot and no fsync. It acts only by a CAS at that version."""
        hint_s = min(HINT_S, self._answer_s / 2)
        if self._seen_version is not None:
            found = await self._state.watch(LEADER_KEY, self._seen_version, timeout_s=hint_s)
            if found is not None:
                return found
        return await self._state.read(LEADER_KEY, timeout_s=self._answer_s - hint_s)

    def _tell_who_leads(self) -> None:
        lease = self.election.lease
        if lease is not None and lease.holder != self._seen_holder:
            self._seen_holder = lease.holder
            self._log.info("leader.seen", holder=lease.holder or "nobody", term=lease.term)

    # -- the reign ------------------------------------------------------------------------------------------

    def _begin_reign(self, term: int, group: asyncio.TaskGroup) -> None:
        self._log.info("leader.elected", term=term)
        reign = Reign(term, lambda: self._reign is reign and self.election.may_act(time.monotonic()))
        if self._leaving_s is not None:
            reign.ending.set()
        self._reign = reign
        self._reigning = group.create_task(self._rule(reign, self._reigning), name=f"reign.{term}")

    def _stop_reign(self) -> None:
        self._reign = None
        if self._reigning is not None:
            self._reigning.cancel()

    async def _rule(self, reign: Reign, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        try:
            await self._govern(reign)
        except* Deposed as problems:
            self._log.warning("leader.deposed", term=reign.term, text=str(problems.exceptions[0]))
            self.leave()
        finally:
            self._woken.set()
