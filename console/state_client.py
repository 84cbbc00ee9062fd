"""The StateStore for a console: the cluster's keys, read and written through one agent, else the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.errors import BadRequest, DeadlineExceeded, ShoalError, Unavailable
from net.frames import Answer, Caller, Header

STAGGER_S = 0.45
"""An agent that has not answered for this long may be stopped: the next one is asked beside it."""
USUAL_TIMES, USUAL_SHARE = 3.0, 0.2
"""Where all answers take long it takes so many times the usual: two that propose one key's value outbid each
other, and go on with it when nobody waits for them any more."""
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
        self._agent = ""
        self._usual_s = 0.0

    @property
    def agent(self) -> str:
        """Who has answered last, and is asked first."""
        return self._agent

    async def read(self, key: str, *, timeout_s: float = 3.0) -> Versioned:
        return _found(*await self._ask("state.read", {"key": key}, b"", timeout_s))

    async def list(self, prefix: str, *, timeout_s: float = 5.0) -> dict[str, Versioned]:
        header, _ = await self._ask("state.list", {"prefix": prefix}, b"", timeout_s)
        return {key: Versioned(value, version) for key, version, value in header["items"]}

    async def watch(self, key: str, after: int, *, timeout_s: float = 10.0) -> Versioned | None:
        """What the key holds once it is past that version; None if it was not seen to be by then."""
        agent = self._in_turn()[0]
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

        `value` must be one that only this writer wants. It may be asked of several agents, which all name one
        version and one value: so no more than one of them takes effect, and the others find this value there.
        """
        header: Header = {"key": key, "version": version, "delete": value is None}
        answer, body = await self._ask("state.cas", header, value or b"", timeout_s)
        if "conflict" not in answer:
            return int(answer["version"])
        current = Versioned(None if answer["none"] else body, int(answer["conflict"]))
        if current.value == value and current.version > version:
            return current.version
        return VersionConflict(current)

    # -- one agent, else the next ------------------------------------------------------------------------

    async def _ask(self, kind: str, header: Header, body: bytes, timeout_s: float) -> Answer:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        deadline_s = began_s + timeout_s
        stagger_s = max(STAGGER_S, USUAL_TIMES * self._usual_s)
        asked: dict[asyncio.Task[Answer], str] = {}
        problem: ShoalError | None = None
        failures = 0
        try:
            while (left_s := deadline_s - loop.time()) > 0:
                idle = [agent for agent in self._in_turn() if agent not in asked.values()]
                if idle:
                    call = self._caller(idle[0]).call(kind, header, body, timeout_s=left_s)
                    asked[loop.create_task(call, name=f"{kind}.{idle[0]}")] = idle[0]
                wait_s = min(left_s, stagger_s) if len(idle) > 1 else left_s
                done, _ = await asyncio.wait(asked, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    agent = asked.pop(task)
                    try:
                        answer = task.result()
                    except BadRequest:
                        raise
                    except ShoalError as error:
                        problem = error
                        failures += 1
                        self._failed(agent)
                    else:
                        self._agent = agent
                        self._usual_s += USUAL_SHARE * (loop.time() - began_s - self._usual_s)
                        return answer
                if done and failures % len(self._in_turn()) == 0:
                    await asyncio.sleep(PAUSE_S)
            for agent in asked.values():
                self._failed(agent)
            raise problem or DeadlineExceeded(f"no agent has answered {kind} within {timeout_s:g} s")
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    def _in_turn(self) -> Sequence[str]:
        """Those to ask, in order, beginning with the one that is known to answer."""
        agents = list(self._agents())
        if not agents:
            raise Unavailable("no agent is known to ask for the cluster's state")
        at = agents.index(self._agent) if self._agent in agents else 0
        return agents[at:] + agents[:at]

    def _failed(self, agent: str) -> None:
        """The next one's turn, unless another task has moved on already."""
        in_turn = self._in_turn()
        if agent == in_turn[0]:
            self._agent = in_turn[1 % len(in_turn)]


def _found(header: Header, body: bytes) -> Versioned:
    return Versioned(None if header["none"] else body, int(header["version"]))
