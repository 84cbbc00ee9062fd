"""The StateStore for a console: the cluster's keys, read and written through one agent, else the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.errors import BadRequest, DeadlineExceeded, ShoalError, Unavailable
from net.frames import Answer, Caller, Header

TRY_S = 0.4
"""An agent that has not answered for this long may be stopped: the next one is asked."""
TRY_S_MAX = 3.2
PAUSE_S = 0.05
"""After every agent has failed, before the first is asked again."""


@dataclass(frozen=True, slots=True)
class Versioned:
    value: bytes | None
    version: int


@dataclass(frozen=True, slots=True)
class VersionConflict:
    """The key is at another version. The CAS has not taken effect and never will; or it has, its answer was
    lost, and others have built upon it: what is there decides."""

    current: Versioned


class StateClient:
    """Each call raises Unavailable or DeadlineExceeded if no agent answers within its `timeout_s`.

    A CAS that raises may still take effect.
    """

    def __init__(self, caller: Callable[[str], Caller], agents: Callable[[], Sequence[str]]) -> None:
        self._caller, self._agents = caller, agents
        self._agent: str | None = None
        self._try_s = TRY_S

    @property
    def agent(self) -> str | None:
        """Through whom it works now."""
        return self._agent

    async def read(self, key: str, *, timeout_s: float = 3.0) -> Versioned:
        return _found(*await self._ask("state.read", {"key": key}, timeout_s))

    async def list(self, prefix: str, *, timeout_s: float = 5.0) -> dict[str, Versioned]:
        header, _ = await self._ask("state.list", {"prefix": prefix}, timeout_s)
        return {key: Versioned(value, version) for key, version, value in header["items"]}

    async def watch(self, key: str, after: int, *, timeout_s: float = 10.0) -> Versioned | None:
        """What the key holds once it is past that version; None if it is not by then."""
        agent = self._current()
        try:
            asked = {"key": key, "after": after}
            return _found(*(await self._caller(agent).call("state.watch", asked, timeout_s=timeout_s)))
        except DeadlineExceeded:
            return None
        except ShoalError:
            self._failed(agent)
            raise

    async def compare_and_set(
        self, key: str, version: int, value: bytes | None, *, timeout_s: float = 3.0
    ) -> int | VersionConflict:
        """The new version, or why not. `None`: delete the key.

        `value` must be one that only this writer wants: it tells its own write by it.
        """
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        header: Header = {"key": key, "version": version, "delete": value is None}
        is_unsure = False
        attempt = 0
        while True:
            try:
                if is_unsure:
                    # An earlier try may have taken effect, or may do so while this one is under way.
                    # Both name one version and one value, so no more than one of them counts.
                    there = _found(*await self._once("state.read", {"key": key}, b"", deadline_s))
                    if there.version != version:
                        return self._settled(there, value)
                answer, body = await self._once("state.cas", header, value or b"", deadline_s)
            except ShoalError as problem:
                is_unsure = True
                attempt += 1
                await self._again(problem, attempt, deadline_s)
                continue
            if "conflict" not in answer:
                return int(answer["version"])
            current = Versioned(None if answer["none"] else body, int(answer["conflict"]))
            return self._settled(current, value) if is_unsure else VersionConflict(current)

    @staticmethod
    def _settled(there: Versioned, value: bytes | None) -> int | VersionConflict:
        return there.version if there.value == value else VersionConflict(there)

    # -- one agent, else the next ------------------------------------------------------------------------

    async def _ask(self, kind: str, header: Header, timeout_s: float) -> Answer:
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        attempt = 0
        while True:
            try:
                return await self._once(kind, header, b"", deadline_s)
            except ShoalError as problem:
                attempt += 1
                await self._again(problem, attempt, deadline_s)

    async def _once(self, kind: str, header: Header, body: bytes, deadline_s: float) -> Answer:
        left_s = deadline_s - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise DeadlineExceeded(f"no agent has answered {kind} of {header.get('key', 'the keys')} in time")
        agent = self._current()
        try:
            answer = await self._caller(agent).call(kind, header, body, timeout_s=min(left_s, self._try_s))
        except ShoalError:
            self._failed(agent)
            raise
        self._try_s = TRY_S
        return answer

    async def _again(self, problem: ShoalError, attempt: int, deadline_s: float) -> None:
        """Raises the problem if there is no use or no time for another try."""
        if isinstance(problem, BadRequest):
            raise problem
        if attempt % max(1, len(self._agents())) == 0:
            # Slow, perhaps, rather than dead: a patience that grows lets one of them finish.
            self._try_s = min(TRY_S_MAX, 2 * self._try_s)
            await asyncio.sleep(PAUSE_S)
        if asyncio.get_running_loop().time() >= deadline_s:
            raise problem

    def _current(self) -> str:
        agents = self._agents()
        if not agents:
            raise Unavailable("no agent is known to ask for the cluster's state")
        if self._agent not in agents:
            self._agent = agents[0]
        assert self._agent is not None
        return self._agent

    def _failed(self, agent: str) -> None:
        """The next one's turn, unless another task has moved on already."""
        agents = list(self._agents())
        if agent == self._agent and agent in agents:
            self._agent = agents[(agents.index(agent) + 1) % len(agents)]


def _found(header: Header, body: bytes) -> Versioned:
    return Versioned(None if header["none"] else body, int(header["version"]))
