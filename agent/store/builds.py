"""The builder's work as the store hands it out, what comes of it, and the freeing of dead slots."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.build_jobs import Built, Job, built_of, to_body
from agent.link import Answer, Handler, Header
from agent.mapped import MappedFile
from agent.metrics import Metrics
from agent.page import ShardFlag, ShardRecord
from agent.store.manifest import Manifest, Segment, VectorState
from core.api.config import Distance
from core.build_plan import (
    DEFAULT_RULES,
    BuildKind,
    BuildRules,
    GraphState,
    SegmentSize,
    build_until,
    next_build,
    slots_to_free,
)
from core.errors import Conflict, Damaged, NoRoom, Unavailable
from net.logs import Log

I64 = NDArray[np.int64]

SAVE_S_PER_BYTE = 3.7e-9
"""Until a save was measured on this machine."""
LOOK_S = 0.1
LOOK_SHARE = 0.05
"""Of the loop's time for looking at thousands of shards; then they are looked at less often."""
COUNT_S = 1.0
"""Dead rows of a shard that is written to are counted no more often than this."""
QUIET_S = 2.0
"""Without a write for this long a shard is quiet: also a short tail is folded then."""
FREE_AGAIN_S = 0.5
"""Where a read under way kept the rows from going."""
FREE_ROWS = 1024
"""Moved in one go; writes wait that long."""
FAILED_WAIT_S = 10.0


class BuildShard(Protocol):
    """What is needed of a store's shard."""

    folder: Path

    @property
    def damage(self) -> str | None: ...

    @property
    def manifest(self) -> Manifest: ...

    @property
    def record(self) -> ShardRecord: ...

    def set_building(self, building: bool) -> None: ...

    async def replace_segments(
        self, v: int, segments: Sequence[Segment], *, mean: str | None = None
    ) -> Manifest: ...

    async def relocate(self, slots: Sequence[int]) -> int: ...

    async def checkpoint(self) -> None: ...


class _Running(msgspec.Struct, frozen=True):
    job: Job
    shard: BuildShard
    quiet: bool
    """Nobody waits for it."""


_Due = tuple[BuildShard, int, BuildKind]


@dataclass(slots=True)
class _Seen:
    """A shard as it was when it was looked at last."""

    facts: tuple[object, ...]
    """The rest holds for as long as these are the same; `applied` is the first."""
    written_s: float
    high: int
    """Slots below this are live or dead for good; above, their bits may not be set yet."""
    count_at_s: float
    recount: bool = False
    live: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Up to which slot a vector's graphs go, and how many of their rows live."""
    kinds: dict[bool, list[tuple[int, BuildKind]]] = field(default_factory=dict)
    """What is due, by whether the shard counts as quiet."""


class Builds:
    """Knows what should be built. `shards` gives those that are open now."""

    def __init__(
        self,
        shards: Callable[[], Iterable[BuildShard]],
        log: Log,
        metrics: Metrics,
        rules: Callable[[], BuildRules] = lambda: DEFAULT_RULES,
    ) -> None:
        self._shards, self._log, self._metrics, self._rules = shards, log, metrics, rules
        self._numbers = itertools.count(1)
        self._running: _Running | None = None
        self._save_s_per_byte = SAVE_S_PER_BYTE
        self._seen: dict[BuildShard, _Seen] = {}
        self._failed_until: dict[tuple[Path, int], float] = {}
        self._free_at_s: dict[Path, float] = {}

    def handlers(self) -> Mapping[str, Handler]:
        """For the link."""
        return {"build.next": self._next, "build.done": self._done, "build.failed": self._failed}

    @property
    def wanted(self) -> bool:
        """Whether the builder has work, or is at it."""
        return self._running is not None or any(True for _ in self._due())

    async def keep_house(self) -> None:
        """Flag the shards that are being built, and free the space of dead slots; runs until cancelled."""
        loop, took_s = asyncio.get_running_loop(), 0.0
        while True:
            await asyncio.sleep(max(LOOK_S, took_s / LOOK_SHARE))
            began_s = loop.time()
            self.flag_shards()
            took_s = loop.time() - began_s
            for shard in list(self._shards()):
                await self.free(shard)

    def flag_shards(self) -> None:
        """`yellow` while something is built or due, `green` when not. What is only done because there is
        time for it changes nothing that anybody waits for."""
        due = {id(shard) for shard, _, _ in self._due(quiet_too=False)}
        for shard in self._shards():
            job = self._running
            running = job is not None and job.shard is shard and not job.quiet
            building = running or id(shard) in due
            if building != bool(shard.record.flags & ShardFlag.BUILDING):
                shard.set_building(building)

    # -- what is due ---------------------------------------------------------------------------------------

    def _due(self, *, quiet_too: bool = True, exactly: bool = False) -> Iterator[_Due]:
        rules, now_s = self._rules(), asyncio.get_running_loop().time()
        shards = list(self._shards())
        self._forget_others(shards)
        for shard in shards:
            if shard.damage is not None:
                continue
            seen = self._look(shard, rules, now_s, exactly=exactly)
            quiet = quiet_too and now_s - seen.written_s >= QUIET_S
            kinds = seen.kinds.get(quiet)
            if kinds is None:
                try:
                    kinds = seen.kinds[quiet] = self._kinds(shard, seen, quiet)
                except (OSError, EOFError):
                    continue  # its folder is being put in another's place
            for v, kind in kinds:
                yield shard, v, kind

    def _look(self, shard: BuildShard, rules: BuildRules, now_s: float, *, exactly: bool) -> _Seen:
        """What is known of a shard, anew where the page or the rules have changed: of thousands of shards
        most are the same as before. Dead rows are counted once in a while, or if it must be `exactly`."""
        record = shard.record
        publishing = bool(record.flags & ShardFlag.PUBLISHING)
        facts = (record.applied, record.slot_low, record.slot_high, shard.manifest.number, publishing, rules)
        seen = self._seen.get(shard)
        if seen is None:
            # While new slots are published their bits may not be set yet.
            high = record.slot_low if publishing else record.slot_high
            seen = self._seen[shard] = _Seen(facts, now_s, high, now_s + COUNT_S)
        elif facts != seen.facts:
            if record.applied != seen.facts[0]:
                seen.written_s = now_s
            seen.facts, seen.recount = facts, True
            seen.high = seen.high if publishing else record.slot_high
            seen.kinds.clear()
        if seen.recount and (exactly or now_s >= seen.count_at_s):
            seen.live.clear()
            seen.kinds.clear()
            seen.recount, seen.count_at_s = False, now_s + COUNT_S
        return seen

    def _forget_others(self, shards: Sequence[BuildShard]) -> None:
        """Of shards that were closed nothing is kept."""
        if len(self._seen) > len(shards) or not self._seen.keys() <= set(shards):
            self._seen = {shard: self._seen[shard] for shard in shards if shard in self._seen}
            folders = {shard.folder for shard in shards}
            self._failed_until = {k: s for k, s in self._failed_until.items() if k[0] in folders}
            self._free_at_s = {folder: s for folder, s in self._free_at_s.items() if folder in folders}

    def _kinds(self, shard: BuildShard, seen: _Seen, quiet: bool) -> list[tuple[int, BuildKind]]:
        found = (
            (int(v), self._kind(shard, seen, int(v), s, quiet)) for v, s in shard.manifest.vectors.items()
        )
        return [(v, kind) for v, kind in found if kind is not None]

    def _kind(
        self, shard: BuildShard, seen: _Seen, v: int, state: VectorState, quiet: bool
    ) -> BuildKind | None:
        if state.graph == "none" or state.distance is Distance.MANHATTAN:
            return None
        low = shard.record.slot_low
        live = 0
        if state.segments:
            built, live = seen.live.get(v, (0, 0))
            if built != state.built:
                live = _live(shard.folder, v, low, state.built)
                seen.live[v] = (state.built, live)
        graphs = GraphState(
            [SegmentSize(s.count, s.bytes) for s in state.segments], live, seen.high - max(state.built, low)
        )
        return next_build(graphs, self._save_s_per_byte, self._rules(), quiet=quiet)

    def _most_urgent(self, now_s: float) -> _Due | None:
        """The longest tail first: it is what searches feel."""

        def tail(due: _Due) -> int:
            shard, v, _ = due
            return self._seen[shard].high - shard.manifest.vectors[str(v)].built

        due = self._due(exactly=True)
        ready = [d for d in due if self._failed_until.get((d[0].folder, d[1]), 0.0) <= now_s]
        return max(ready, key=tail, default=None)

    # -- the builder's calls -------------------------------------------------------------------------------

    async def _next(self, header: Header, body: bytes, deadline: float) -> Answer:
        # There is one builder: if it asks, what it had been given is lost.
        self._running = None
        due = self._most_urgent(asyncio.get_running_loop().time())
        if due is None:
            return {}, b""
        shard, v, kind = due
        state, record = shard.manifest.vectors[str(v)], shard.record
        job = Job(
            number=next(self._numbers),
            kind=kind,
            collection=record.collection,
            shard=record.shard,
            v=v,
            folder=str(shard.folder),
            low=record.slot_low,
            high=build_until(
                built=max(state.built, record.slot_low), high=self._seen[shard].high, rules=self._rules()
            ),
            dim=state.dim,
            distance=state.distance,
            graph=state.graph,
            m=state.m,
            ef_construct=state.ef_construct,
            segments=state.segments,
            mean=state.mean,
        )
        waited_for = any(other is shard for other, _, _ in self._due(quiet_too=False))
        self._running = _Running(job, shard, quiet=not waited_for)
        return {}, to_body(job)

    async def _done(self, header: Header, body: bytes, deadline: float) -> Answer:
        built = built_of(body)
        running, self._running = self._running, None
        if running is None or running.job.number != built.number:
            raise Conflict(f"build {built.number} is not the one under way; ask for the next")
        job, shard = running.job, running.shard
        state = shard.manifest.vectors.get(str(job.v))
        if shard not in list(self._shards()) or state is None or state.segments != job.segments:
            raise Conflict(f"build {built.number}: the shard has changed meanwhile; ask for the next")
        await shard.replace_segments(job.v, built.segments, mean=built.mean)
        self._metrics.counter("shoal_builds_total", kind=job.kind).add()
        self._metrics.counter("shoal_build_rows_total").add(built.added)
        self._metrics.counter("shoal_build_seconds_total").add(built.add_s + built.save_s)
        self._learn(built)
        await asyncio.to_thread(remove_unnamed, shard.folder / "segments", shard.manifest)
        self.flag_shards()
        return {}, b""

    async def _failed(self, header: Header, body: bytes, deadline: float) -> Answer:
        running, self._running = self._running, None
        if running is not None:
            retry_s = asyncio.get_running_loop().time() + FAILED_WAIT_S
            self._failed_until[running.shard.folder, running.job.v] = retry_s
        return {}, b""

    def _learn(self, built: Built) -> None:
        size = built.segments[-1].bytes
        if size > 1 << 20:
            self._save_s_per_byte = 0.7 * self._save_s_per_byte + 0.3 * built.save_s / size
            for seen in self._seen.values():
                seen.kinds.clear()

    # -- space ---------------------------------------------------------------------------------------------

    async def free(self, shard: BuildShard) -> None:
        """Move the survivors of the oldest slots up, if the shard spans too many; checkpoints free them."""
        record = shard.record
        count = slots_to_free(low=record.slot_low, high=record.slot_high, live=record.points)
        now_s = asyncio.get_running_loop().time()
        if not count or shard.damage is not None or now_s < self._free_at_s.get(shard.folder, 0.0):
            return
        self._free_at_s[shard.folder] = now_s + FREE_AGAIN_S
        try:
            survivors = _live_slots(shard.folder, record.slot_low, record.slot_low + count)
            for at in range(0, len(survivors), FREE_ROWS):
                await shard.relocate(survivors[at : at + FREE_ROWS].tolist())
            await shard.checkpoint()
            if shard.record.slot_low > record.slot_low:
                self._free_at_s.pop(shard.folder, None)
        except (Damaged, NoRoom, Unavailable, OSError) as problem:
            self._log.warning("store.slots_not_freed", folder=str(shard.folder), text=str(problem))
        except Exception as bug:  # noqa: BLE001 - one shard's trouble must not end the store
            self._log.error("store.slots_not_freed", folder=str(shard.folder), exc=bug)


def remove_unnamed(folder: Path, manifest: Manifest) -> None:
    """Unlink what no vector of the manifest names. Searches that have a file mapped keep it."""
    named = {segment.file for state in manifest.vectors.values() for segment in state.segments}
    named |= {state.mean for state in manifest.vectors.values() if state.mean is not None}
    for path in folder.iterdir():
        if path.name not in named:
            path.unlink(missing_ok=True)


def _live(folder: Path, v: int, low: int, high: int) -> int:
    """How many slots of a range are live and have the vector."""
    if high <= low:
        return 0
    live = MappedFile(folder / "columns" / "live.bin").bits(high)[low >> 3 :]
    has = MappedFile(folder / "columns" / f"has.{v}.bin").bits(high)[low >> 3 :]
    both = live & has
    # Slots beyond the range share its last byte, slots below it its first.
    both[-1] &= 0xFF >> (-high & 7)
    both[0] &= 0xFF << (low & 7) & 0xFF
    return int(np.bitwise_count(both).sum(dtype=np.int64))


def _live_slots(folder: Path, low: int, high: int) -> I64:
    live = MappedFile(folder / "columns" / "live.bin").bits(high)[low >> 3 :]
    bits = np.unpackbits(live, bitorder="little")[low & 7 :][: high - low]
    return np.flatnonzero(bits) + low
