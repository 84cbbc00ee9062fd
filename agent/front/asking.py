"""Questions to other nodes' fronts: another replica is asked if one can't answer, also if it is late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from agent.link import Answer, Header
from agent.metrics import Metrics
from core.balancer import Balancer
from core.breaker import Breaker
from core.cluster import NodeId
from core.errors import Damaged, DeadlineExceeded, NotFound, Overloaded, ShoalError, Unavailable
from net.frames import Caller

HEDGES_SHARE, HEDGES_MAX = 0.1, 10.0
"""Second questions, of all; and how many may come in a row. In an overload they would only add to it."""
HEDGE_ANYWAY_S = 0.5
SILENT_LOOK_S = 0.25
_ELSEWHERE = (Unavailable, NotFound, Damaged, Overloaded)
"""What another replica may be able to answer."""


class NotYet(Unavailable):
    """The replica has not applied what the read must see; the primary has."""

    code = "not-yet"


class ShardMissing(Unavailable):
    """No replica of a shard answers. The rest may be read without it."""

    def __init__(self, where: Where, why: str) -> None:
        super().__init__(f"{where.name} does not answer: {why}")
        self.where = where


@dataclass(slots=True, eq=False)
class Where:
    """A shard that is read elsewhere, for the time of one request. `at_least`: what it must have applied."""

    collection: int
    shard: int
    nodes: Sequence[NodeId]
    primary: NodeId
    collection_name: str
    at_least: int = 0
    is_here: bool = False
    """There is a replica on this node, too, that is read if no other answers."""
    is_unplaced: bool = False
    """It was not found in time where a read may be made that sees enough."""
    chosen: NodeId | None = None
    """Who is asked first: who answered the last question, as what was found is there for certain."""

    @property
    def name(self) -> str:
        return f"shard {self.shard} of collection {self.collection_name} (on {', '.join(self.nodes)})"

    def header(self, node: NodeId, kind: str) -> Header:
        return {
            "collection": self.collection,
            "shard": self.shard,
            "kind": kind,
            "at_least": self.at_least,
            "at_any_rate": node == self.primary,
        }


@dataclass(slots=True, eq=False)
class _Question:
    """One question under way: who may still be asked, who is, and what those said who could not answer."""

    call: str
    where: Where
    kind: str
    body: bytes
    deadline_s: float
    left: list[NodeId]
    running: dict[asyncio.Task[Answer], NodeId] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)
    late_s: float = 0.0

    async def wait(self, now_s: float) -> set[asyncio.Task[Answer]]:
        """Those that are done; none if it is time to look around."""
        until_s = self.late_s if self.left and self.late_s > now_s else now_s + SILENT_LOOK_S
        timeout_s = max(0.001, min(self.deadline_s, until_s) - now_s)
        done, _ = await asyncio.wait(self.running, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return done

    def answer_of(self, task: asyncio.Task[Answer]) -> Answer | None:
        """None: it could not, and another may. Raises what no other would answer differently."""
        node = self.running.pop(task)
        try:
            answer = task.result()
        except _ELSEWHERE as problem:
            if _is_about_the_look(problem):
                raise
            self.problems.append(f"{node}: {problem}")
            if isinstance(problem, NotYet):
                self.where.chosen = self.where.primary
            return None
        self.where.chosen = node
        return answer


class Asking:
    """`ask` one question about a shard. `silent` names nodes that have not been heard of for a while."""

    def __init__(
        self,
        caller: Callable[[str], Caller],
        balancer: Balancer,
        metrics: Metrics,
        *,
        silent: Callable[[], Sequence[str]],
    ) -> None:
        self._caller, self._balancer, self._metrics, self._silent = caller, balancer, metrics, silent
        self._breakers: dict[NodeId, Breaker] = {}
        self._hedges = HEDGES_MAX
        self._retried = metrics.counter("shoal_remote_read_retries_total")
        self._hedged = metrics.counter("shoal_remote_read_hedges_total")

    def is_broken(self, node: NodeId) -> bool:
        """Whether its last answers were failures, all of them."""
        return self._breaker(node).is_open

    async def ask(self, call: str, where: Where, kind: str, body: bytes, deadline_s: float) -> Answer:
        """The first answer of its nodes. Raises ShardMissing, DeadlineExceeded, or what the asked raise."""
        question = _Question(call, where, kind, body, deadline_s, list(where.nodes))
        self._hedges = min(HEDGES_MAX, self._hedges + HEDGES_SHARE)
        try:
            while True:
                now_s = time.monotonic()
                if now_s >= deadline_s:
                    raise DeadlineExceeded(f"{where.name} did not answer in time")
                self._ask_one_more(question, now_s)
                if not question.running:
                    why = "; ".join(question.problems) or "its nodes have failed repeatedly"
                    raise ShardMissing(where, why)
                done = await question.wait(now_s)
                for task in done:
                    answer = question.answer_of(task)
                    if answer is not None:
                        return answer
                if not done:
                    await self._leave_silent(question)
        finally:
            await _cancelled(question.running)

    def _ask_one_more(self, question: _Question, now_s: float) -> None:
        """The first node, the next after a failure, or a second one beside one that is late."""
        is_hedge = bool(question.running)
        if is_hedge and now_s < question.late_s:
            return
        if is_hedge and self._hedges < 1 and now_s - question.began_s < HEDGE_ANYWAY_S:
            return
        node = self._next(question.where, question.left, now_s)
        if node is None:
            return
        if is_hedge:
            self._hedges = max(0.0, self._hedges - 1)
            self._hedged.add()
        elif question.problems:
            self._retried.add()
        question.left.remove(node)
        question.late_s = now_s + self._balancer.hedge_after_s(node)
        question.running[asyncio.create_task(self._one(node, question))] = node

    def _next(self, where: Where, left: Sequence[NodeId], now_s: float) -> NodeId | None:
        willing = [node for node in left if self._breaker(node).may_ask(now_s)]
        if not willing:
            willing = [node for node in left if self._breaker(node).is_probed]
        if not willing:
            return None
        return where.chosen if where.chosen in willing else self._balancer.pick(willing, now_s)

    async def _leave_silent(self, question: _Question) -> None:
        """Wait no longer for those of which nothing at all is heard."""
        silent = set(self._silent())
        gone = {task: node for task, node in question.running.items() if node in silent}
        for task, node in gone.items():
            del question.running[task]
            question.problems.append(f"{node}: nothing has been heard of it for a while")
        await _cancelled(gone)
        for node in gone.values():
            self._breaker(node).failed(time.monotonic())

    async def _one(self, node: NodeId, question: _Question) -> Answer:
        header = question.where.header(node, question.kind)
        began_s = time.monotonic()
        breaker = self._breaker(node)
        self._balancer.began(node)
        self._show(node)
        breaker.began()
        try:
            answer = await self._caller(node).call(
                question.call, header, question.body, timeout_s=question.deadline_s - began_s
            )
        except asyncio.CancelledError:
            breaker.gave_up()
            self._finished(node, began_s, ok=True)  # it took so long at least
            raise
        except ShoalError as problem:
            if isinstance(problem.__cause__, OSError):
                breaker.failed(time.monotonic())
            else:
                breaker.succeeded()
            self._metrics.counter("shoal_remote_read_failures_total", node=node).add()
            self._finished(node, began_s, ok=False)
            raise
        breaker.succeeded()
        self._finished(node, began_s, ok=True)
        return answer

    def _finished(self, node: NodeId, began_s: float, *, ok: bool) -> None:
        now_s = time.monotonic()
        self._metrics.histogram("shoal_remote_read_seconds", node=node).observe(now_s - began_s)
        self._balancer.finished(node, now_s - began_s, now_s, ok=ok)
        self._show(node)

    def _show(self, node: NodeId) -> None:
        self._metrics.gauge("shoal_remote_reads_under_way", node=node).set(self._balancer.in_flight(node))

    def _breaker(self, node: NodeId) -> Breaker:
        return self._breakers.setdefault(node, Breaker())


def _is_about_the_look(problem: ShoalError) -> bool:
    """Rows were let go: the read begins anew, as it does at home."""
    return problem.code == "look-too-old"


async def _cancelled(tasks: dict[asyncio.Task[Answer], NodeId]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError, ShoalError):
            await task
