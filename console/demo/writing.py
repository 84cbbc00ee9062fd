"""Writers that go on while nodes die: each write is tried, through one node after the other, until it is
acknowledged, and every acknowledgement is remembered."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import aiohttp

from core.hashing import id_key, shard_of

MODULE = "written while a node was killed"
"""The payload's `module` of these points: nobody asks for it, and it finds them all."""
_FIRST_ID = 1_000_000  # far above the texts'
_TRY_S = 5.0
_PAUSE_S = 0.01
"""Between the writes of one writer: two cores also run three nodes, and one of them is to start again."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One write that a client may count on. Times are time.monotonic()."""

    point: int
    begun_s: float
    done_s: float


@dataclass(slots=True)
class Writer:
    """Writes to one shard, one point after the other, until it is cancelled."""

    shard: int
    shard_count: int
    collection: str
    urls: Sequence[str]
    vector: Sequence[float]
    acknowledged: list[Acknowledged] = field(default_factory=list)
    failed_tries: int = 0

    async def run(self, session: aiohttp.ClientSession) -> None:
        urls = itertools.cycle([*self.urls[self.shard % len(self.urls) :], *self.urls])
        url = next(urls)
        for point in self._points():
            begun_s = time.monotonic()
            while not await self._put(session, url, point):
                self.failed_tries += 1
                url = next(urls)
                await asyncio.sleep(_PAUSE_S)
            self.acknowledged.append(Acknowledged(point, begun_s, time.monotonic()))
            await asyncio.sleep(_PAUSE_S)

    def first_after(self, since_s: float) -> Acknowledged | None:
        """The first acknowledged write that was begun after that moment."""
        return next((write for write in self.acknowledged if write.begun_s >= since_s), None)

    async def _put(self, session: aiohttp.ClientSession, url: str, point: int) -> bool:
        """Whether it was acknowledged. The same point again is harmless."""
        written = {"id": point, "vector": self.vector, "payload": {"module": MODULE}}
        try:
            async with session.put(
                f"{url}/collections/{self.collection}/points",
                params={"wait": "true"},
                json={"points": [written]},
                timeout=aiohttp.ClientTimeout(total=_TRY_S),
            ) as answer:
                await answer.read()
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    def _points(self) -> Iterator[int]:
        return (n for n in itertools.count(_FIRST_ID) if shard_of(id_key(n), self.shard_count) == self.shard)
