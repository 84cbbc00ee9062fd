"""Proxies between nodes, one for each who-dials-whom: cut (one way too), delay, lose, abort.

What flows is told apart by direction: a cut from a to b holds what a says to b on every connection, whoever
opened it. Held bytes go on when the cut is healed, as they do in TCP: late, and in order.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.running.ports import FRONTS_OFFSET, PEER_OFFSET, PortPair

CHUNK_BYTES = 1 << 16
RESEND_S = 0.2
"""What a lost packet costs where the kernel has to send it again."""


@dataclass(eq=False, slots=True)
class _Flow:
    """All that one node says to another."""

    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0


class Links:
    """`dial` is for cluster.toml; proxies run in a thread from `start` to `close`. Calls from any thread."""

    def __init__(self, ports: dict[str, PortPair], callers: Iterable[str]) -> None:
        self._ports = ports
        self._pairs = [(a, b) for a in callers for b in ports if a != b]
        self._listening = {pair: PortPair() for pair in self._pairs}
        self._flows: dict[tuple[str, str], _Flow] = {}
        self._open: dict[tuple[str, str], set[asyncio.StreamWriter]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._chance = random.Random(1)

    @property
    def dial(self) -> dict[str, str]:
        return {f"{a}->{b}": f"127.0.0.1:{self._listening[a, b].peer_port}" for a, b in self._pairs}

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def close(self) -> None:
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
        self._loop.close()
        for ports in self._listening.values():
            ports.release()

    # -- faults

    def cut(self, a: str, b: str) -> None:
        """Nothing that a says reaches b any more; not the other way round."""
        self._loop.call_soon_threadsafe(self._flow(a, b).is_open.clear)

    def isolate(self, node: str) -> None:
        for a, b in list(self._flows):
            if node in (a, b):
                self.cut(a, b)

    def heal(self) -> None:
        """Everything flows again, and at once."""
        for flow in self._flows.values():
            flow.delay_s = flow.jitter_s = flow.loss = 0.0
            self._loop.call_soon_threadsafe(flow.is_open.set)

    def slow(self, *, delay_s: float = 0.0, jitter_s: float = 0.0, loss: float = 0.0) -> None:
        """All links: each piece takes this much longer; a lost one as long as it takes to be sent again."""
        for flow in self._flows.values():
            flow.delay_s, flow.jitter_s, flow.loss = delay_s, jitter_s, loss

    def abort(self, a: str, b: str) -> None:
        """Reset every connection that a opened to b."""
        self._loop.call_soon_threadsafe(self._abort, a, b)

    def _abort(self, a: str, b: str) -> None:
        for writer in self._open.get((a, b), ()):
            writer.transport.abort()

    # -- in the thread

    def _flow(self, a: str, b: str) -> _Flow:
        return self._flows[a, b]

    async def _listen(self) -> None:
        for a, b in self._pairs:
            for flow in ((a, b), (b, a)):
                self._flows.setdefault(flow, _Flow()).is_open.set()
            for offset in (PEER_OFFSET, FRONTS_OFFSET):
                await self._serve(a, b, offset)

    async def _serve(self, a: str, b: str, offset: int) -> None:
        to_port = self._ports[b].port + offset

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await self._join(a, b, to_port, reader, writer)
            except asyncio.CancelledError:
                writer.transport.abort()
            finally:
                self._tasks.discard(task)

        await asyncio.start_server(connected, "127.0.0.1", self._listening[a, b].port + offset)

    async def _join(
        self, a: str, b: str, to_port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await self._flow(a, b).is_open.wait()  # a SYN that is lost
        try:
            there, here = await asyncio.open_connection("127.0.0.1", to_port)
        except OSError:
            writer.transport.abort()  # nobody listens: seen as a reset
            return
        both = self._open.setdefault((a, b), set())
        both |= {writer, here}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(self._flow(a, b), reader, here))
                group.create_task(self._pump(self._flow(b, a), there, writer))
        finally:
            both -= {writer, here}
            for end in (writer, here):
                end.transport.abort()

    async def _pump(self, flow: _Flow, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        due_s = 0.0
        while True:
            try:
                data = await reader.read(CHUNK_BYTES)
            except OSError:
                data = b""
            if flow.delay_s or flow.jitter_s or flow.loss:
                late_s = flow.delay_s + self._chance.uniform(0, flow.jitter_s)
                late_s += RESEND_S if self._chance.random() < flow.loss else 0.0
                due_s = max(due_s, self._loop.time() + late_s)
                await asyncio.sleep(due_s - self._loop.time())
            await flow.is_open.wait()  # an end is a packet too
            if not data or writer.is_closing():
                writer.close()
                return
            writer.write(data)
            try:
                await writer.drain()
            except OSError:
                return

    async def _end(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
