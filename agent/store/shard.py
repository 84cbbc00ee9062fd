"""One shard as the store runs it: writes go through its log, then into its files, one after the other.

    ports = ShardPorts(page, places, executor, log)
    shard = await Shard.create(folder, collection=7, shard=0, schema=schema, ports=ports)
    shard = await Shard.open(folder, collection=7, shard=0, schema=schema, ports=ports)
    outcome = await shard.write(op, deadline_s=loop.time() + 5)
    await shard.close()

A shard whose files are damaged opens too: `shard.damage` says why, the page flags it, and it refuses
all calls with Damaged.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from agent.page import ShardFlag, ShardRecord
from agent.store.apply import Applier
from agent.store.checkpoint import Checkpoints
from agent.store.checks import check_op
from agent.store.disk_errors import disk_error
from agent.store.effects import Nobody, Outside
from agent.store.kept_up import KeptUp
from agent.store.log import ID_BYTES, LogWriter
from agent.store.manifest import Manifest, Segment, ShardSchema
from agent.store.membership import NO_GROUP, Membership
from agent.store.pacing import Pacing, tail_bound
from agent.store.pipeline import Pipeline
from agent.store.publishing import Publisher
from agent.store.recovery import Recovered, Recovery
from agent.store.shard_ports import ShardPorts, ShardSettings, ShardStatistics
from agent.store.threads import run_to_end
from agent.store.upkeep import Upkeep
from agent.store.waiting import Proposal
from core.build_plan import slots_beyond
from core.errors import (
    Damaged,
    DeadlineExceeded,
    NoRoom,
    Overloaded,
    ShoalError,
    StartRefused,
    TooLarge,
    Unavailable,
)
from core.hashing import KEY_BYTES
from core.replication.effects import Consistency, Effect
from core.replication.log import Entry
from core.replication.replica import Identity, Replica
from core.wire import ENTRY_BYTES_MAX, DeleteVectors, Op, Outcome, UpdateVectors, Upsert, encode_op

__all__ = ["Shard", "ShardPorts", "ShardSettings", "ShardStatistics", "Until"]

T = TypeVar("T")
Until = Literal["applied", "persisted"]


FILL_SLICE_SLOTS = 1_000
SPACE_EXCESS_WEIGHT = 4
SPACE_EXCESS_ROWS_MAX = 16_000
OPEN_AGAIN_S = 2.0
FILL_AT_START_ROWS_MAX = 20_000
"""A larger shard serves before its columns are filled; filters then look at payloads."""


class Shard:
    """Use `create` or `open`. All methods run on one event loop; the blocking work in the executor."""

    def __init__(
        self,
        folder: Path,
        schema: ShardSchema,
        ports: ShardPorts,
        settings: ShardSettings,
        publisher: Publisher,
        membership: Membership = NO_GROUP,
    ) -> None:
        self.folder = folder
        self.schema = schema
        self.settings = settings
        self.refusal: ShoalError | None = None
        """What every call gets: the shard is damaged, or there was no room to open it."""
        self.notes: list[str] = []
        """What recovery found wrong and put right."""
        self._ports = ports
        self._publisher = publisher
        self._membership = membership
        self._outside: Outside = Nobody()
        self._log = ports.log.bind(shard=f"{publisher.record.collection}/{publisher.record.shard}")
        self._pacing = Pacing()
        self._closing = False
        self._is_open = False
        self._broken: ShoalError | None = None
        """Why writes are refused until a restart."""
        self._filling = asyncio.Lock()
        self._kept_up = KeptUp(self._log, self._stop_writing)
        self._tasks: list[asyncio.Task[None]] = []

    # -- opening and closing ----------------------------------------------------------------------------

    @classmethod
    async def create(
        cls,
        folder: Path,
        *,
        collection: int,
        shard: int,
        schema: ShardSchema,
        ports: ShardPorts,
        settings: ShardSettings | None = None,
    ) -> Shard:
        """`make` and `open`."""
        await cls.make(
            folder,
            collection=collection,
            shard=shard,
            schema=schema,
            ports=ports,
            history=secrets.randbits(63),
        )
        return await cls.open(
            folder, collection=collection, shard=shard, schema=schema, ports=ports, settings=settings
        )

    @classmethod
    async def make(
        cls,
        folder: Path,
        *,
        collection: int,
        shard: int,
        schema: ShardSchema,
        ports: ShardPorts,
        history: int,
    ) -> int:
        """The files of an empty shard, durable before this returns; what an interrupted make left is
        replaced. `history` is the id that all replicas of the shard share. Returns the incarnation."""
        publisher = Publisher(ports.page, ports.places, collection, shard)
        try:
            recovery = Recovery(folder, (collection, shard), schema, ports.files, publisher)
            identity = Identity(secrets.randbits(63), history, promised=1)
            await run_to_end(ports.executor, recovery.create, identity)
        finally:
            publisher.close()
        return identity.incarnation

    @classmethod
    async def open(
        cls,
        folder: Path,
        *,
        collection: int,
        shard: int,
        schema: ShardSchema,
        ports: ShardPorts,
        settings: ShardSettings | None = None,
        membership: Membership = NO_GROUP,
    ) -> Shard:
        """Recover what is in `folder`. If it is damaged, the shard is there and says so.

        `membership`: this node and what the map says of the shard; without, the shard is a set of one.
        """
        publisher = Publisher(ports.page, ports.places, collection, shard)
        opened = cls(folder, schema, ports, settings or ShardSettings(), publisher, membership)
        if not await opened._recover():
            opened._tasks = [asyncio.create_task(opened._recover_when_there_is_room())]
        return opened

    async def _recover(self) -> bool:
        """Bring the files level and begin to serve. False if there is no room for it just now."""
        record = self._publisher.record
        shard = (record.collection, record.shard)
        recovery = Recovery(
            self.folder, shard, self.schema, self._ports.files, self._publisher, self._membership
        )
        began_s = time.monotonic()
        try:
            recovered = await self._run(recovery.open)
            self._start(recovered)
            await self._begin(recovered)
        except StartRefused:
            await self._let_go()
            self._publisher.close()
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is: a node starts, though one shard may not
            found = disk_error(error, f"opening {self.folder}")
            await self._let_go()
            if isinstance(found, NoRoom):
                self.refusal = found
                return False
            self._refuse(found if isinstance(found, Damaged) else Damaged(str(found)))
            return True
        finally:
            self.notes = recovery.notes
            for note in recovery.notes:
                self._log.warning("shard.repaired", what=note)
        self._log.info(
            "shard.opened",
            applied=recovered.replica.applied_seq,
            points=recovered.contents.points.meta.count,
            replayed=recovered.replayed,
            redone=recovered.redone,
            took_ms=round((time.monotonic() - began_s) * 1000),
        )
        return True

    async def _recover_when_there_is_room(self) -> None:
        while True:
            await asyncio.sleep(OPEN_AGAIN_S)
            if await self._recover():
                return

    async def close(self, *, checkpoint: bool = True) -> None:
        """Finish what is in the queue, checkpoint, and let go of the files."""
        if self._closing:
            return
        self._closing = True
        if self._is_open and self.refusal is None:
            await self._pipeline.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._is_open:
            # Not after a failed fsync: the next one would succeed without what the first has lost.
            if checkpoint and self.refusal is None and self._broken is None:
                try:
                    await self._upkeep.checkpoint(clean=True)
                except ShoalError as error:  # the log has it all; the next start takes longer
                    self._log.warning("shard.not_checkpointed", what=str(error))
            await self._pipeline.close()
        await self._let_go()
        self._publisher.close()

    async def _let_go(self) -> None:
        """Close the files, if they are open."""
        if self._is_open:
            self._is_open = False
            await self._run(self._writer.close)
            await self._run(self._applier.contents.close)

    def _start(self, recovered: Recovered) -> None:
        self._replica: Replica = recovered.replica
        self._writer: LogWriter = recovered.writer
        self._applier: Applier = recovered.applier
        self._manifests = Checkpoints(
            recovered.applier, recovered.manifest, self._ports.files, self.settings.purge_after_s
        )
        self._pipeline = Pipeline(
            self._replica,
            self._writer,
            self._applier,
            self._ports.executor,
            self._ports.now_us,
            self._give_up,
            self._ports.on_sync,
            self._outside,
        )
        self._pipeline.on_identity = lambda identity: self._publisher.update(promised=identity.promised)
        self._pipeline.log_bytes_kept = self.settings.log_bytes_kept
        self._is_open = True
        self._upkeep = Upkeep(
            self._manifests,
            self._pipeline,
            self._replica,
            self._applier,
            self._ports.executor,
            self.settings,
            self._log,
            self._give_up,
        )

    async def _begin(self, recovered: Recovered) -> None:
        """Publish, and take writes."""
        # From now on the files change: the manifest must not call them clean, nor an empty column ready.
        self._ready = self._applier.ready = recovered.ready
        await self._run(self._manifests.take_schema, self.schema, self._ready)
        meta, manifest = self._applier.points.meta, self._manifests.manifest
        identity = self._replica.identity
        self.refusal = None
        self._publisher.update(
            incarnation=manifest.contents_id,
            promised=self._replica.identity.promised,
            slot_low=manifest.slot_low,
            slot_high=meta.slot_high,
            applied=meta.applied,
            points=meta.count,
            flags=ShardFlag.OPEN | (ShardFlag.IN_SYNC if self._membership.is_in_sync(identity) else 0),
        )
        self._tasks += [self._kept_up.watch("writing", stage) for stage in self._pipeline.start()]
        self._tasks.append(self._kept_up.again("upkeep", self._upkeep.keep_house)[0])
        if not recovered.checked:
            self._tasks.append(self._kept_up.again("scrub", self._scrub_quietly)[0])
        if self.schema.columns.keys() - self._ready:
            filling, tried = self._kept_up.again("filling of columns", self._fill_columns)
            self._tasks.append(filling)
            if meta.count <= FILL_AT_START_ROWS_MAX:
                await tried.wait()

    @property
    def damage(self) -> str | None:
        """Why the shard cannot be used, or None."""
        return None if self.refusal is None else str(self.refusal)

    def _give_up(self, error: ShoalError) -> None:
        """A write could not be logged, applied or made durable, and none that follows can."""
        if isinstance(error, Damaged):
            self._refuse(error)
            return
        self._log.error("shard.read_only", what=str(error))
        self._broken = error
        self._pipeline.refuse_writes(error)
        self._publisher.set_flags(off=ShardFlag.IN_SYNC)

    def _stop_writing(self, error: ShoalError) -> None:
        """Nobody works on what waits any more."""
        self._give_up(error)
        self._pipeline.fail(error)

    def _refuse(self, damage: Damaged) -> None:
        """Stop serving: what the files say can't be trusted."""
        self.refusal = damage
        self._log.error("shard.damaged", what=str(damage))
        if self._is_open:
            self._pipeline.fail(damage)
        self._publisher.set_flags(on=ShardFlag.DAMAGED, off=ShardFlag.OPEN | ShardFlag.IN_SYNC)

    # -- writing ----------------------------------------------------------------------------------------

    async def write(
        self,
        op: Op,
        *,
        deadline_s: float,
        until: Until = "applied",
        consistency: Consistency = Consistency.QUORUM,
        request_id: bytes = b"",
        number: int = 0,
        body_hash: bytes = b"",
        schema: int = 0,
    ) -> Outcome:
        """Log and apply one operation of at most ENTRY_BYTES_MAX; `deadline_s` is in the loop's time.

        Returns once it has this consistency and is applied and visible, or (`persisted`) once it has this
        consistency: then the outcome says nothing. A second call with the same request id and number gets
        the first one's outcome.
        Raises DeadlineExceeded (the operation may still take effect unless the text denies it), Overloaded,
        NoRoom, Unavailable, Damaged, and Unprocessable for a request id with another body.
        """
        self._check_open()
        if deadline_s <= asyncio.get_running_loop().time():
            raise DeadlineExceeded("the write came after its deadline; it was not begun")
        check_op(op, self.schema)
        encoded = encode_op(op)
        if len(encoded) > ENTRY_BYTES_MAX:
            raise TooLarge(f"an operation of {len(encoded)} bytes, at most {ENTRY_BYTES_MAX} fit in the log")
        queue = self._pipeline.queued()
        if (
            queue.entries >= self.settings.queue_entries_max
            or queue.bytes + len(encoded) > self.settings.queue_bytes_max
        ):
            raise Overloaded(
                f"{queue.entries} writes ({queue.bytes} bytes) wait for this shard already; try again"
            )
        proposal = Proposal(
            op,
            encoded,
            _fixed(request_id),
            number,
            _fixed(body_hash),
            schema or self.schema.version,
            until,
            consistency,
        )
        outcome = await self._wait_for(proposal, deadline_s)
        await self._slow_down(op, deadline_s)
        return outcome

    async def _wait_for(self, proposal: Proposal, deadline_s: float) -> Outcome:
        answer = self._pipeline.submit(proposal)
        try:
            async with asyncio.timeout_at(deadline_s):
                return await answer
        except TimeoutError:
            started = self._pipeline.withdraw(proposal)
            raise DeadlineExceeded(
                "the write was not done in time; it may still take effect"
                if started
                else "the write waited in the queue too long; it was not begun"
            ) from None
        except asyncio.CancelledError:
            self._pipeline.withdraw(proposal)
            raise

    async def _slow_down(self, op: Op, deadline_s: float) -> None:
        """Hold the acknowledgement back while the tail is longer than searches can bear, or while points are
        replaced faster than their space can be given back."""
        rows = 1
        if isinstance(op, Upsert | UpdateVectors | DeleteVectors):  # each of their points takes a new slot
            rows = max(1, len(op.ids) // KEY_BYTES)
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        until_s = self._pacing.hold_until(now_s, rows, max(self._tail_excess(), self._space_excess()))
        if until_s > now_s:
            await asyncio.sleep(min(until_s, deadline_s - 0.05) - now_s)

    def _tail_excess(self) -> int:
        if self.settings.bulk:
            return 0
        tail, bound = self.tail_rows, self.settings.tail_rows_max
        if tail > bound:
            widest = max(vector.dim for vector in self.schema.vectors.values())
            bound = tail_bound(bound, 4 * widest, searched=self._ports.searched())
        return tail - bound

    def _space_excess(self) -> int:
        """In rows of the tail's. Bounded: who deletes much at once must not wait for long afterwards."""
        record = self._publisher.record
        beyond = slots_beyond(low=record.slot_low, high=record.slot_high, live=record.points)
        return min(SPACE_EXCESS_WEIGHT * max(beyond, self._upkeep.late_rows), SPACE_EXCESS_ROWS_MAX)

    @property
    def tail_rows(self) -> int:
        """Slots that are in no graph, of a shard that has graphs."""
        record = self._publisher.record
        if not any(vector.graph != "none" for vector in self.schema.vectors.values()):
            return 0
        return record.slot_high - max(record.built, record.slot_low)

    def _check_open(self) -> None:
        if isinstance(self.refusal, Damaged):
            raise Damaged(f"{self.refusal}; restore the shard from a snapshot")
        if self.refusal is not None:
            raise self.refusal
        if self._broken is not None:
            raise self._broken
        if self._closing:
            raise Unavailable("the agent is shutting down; try again")

    # -- schema, segments, slots ------------------------------------------------------------------------

    async def set_schema(self, schema: ShardSchema) -> None:
        """Take a newer schema: vectors and indexes added and removed. Returns when all is ready."""
        self._check_open()
        async with self._upkeep.manifest_lock:
            await self._exclusively(self._change_schema, schema)
        await self._fill_columns()

    def _change_schema(self, schema: ShardSchema) -> None:
        contents = self._applier.contents
        for v in contents.vectors.keys() - schema.vectors.keys():
            contents.remove_vector(v)
        for v in schema.vectors.keys() - contents.vectors.keys():
            contents.add_vector(v, schema.vectors[v])
        removed = contents.columns.keys() - schema.columns.keys()
        self._ready -= removed
        self._applier.schema = self.schema = schema
        # Searches stop to use a column before its files go.
        self._manifests.take_schema(schema, self._ready)
        for k in removed:
            contents.remove_column(k)
        for k in schema.columns.keys() - contents.columns.keys():
            contents.add_column(k, schema.columns[k])

    async def _fill_columns(self) -> None:
        """Fill the columns that are not ready from points.db, in slices, while writes go on."""
        async with self._filling:
            ks = sorted(self.schema.columns.keys() - self._ready)
            if not ks:
                return
            began_s = time.monotonic()
            high = self._publisher.record.slot_high  # later slots are put there by whoever writes them
            for low in range(self._publisher.record.slot_low, high, FILL_SLICE_SLOTS):
                await self._exclusively(
                    self._applier.fill_columns, ks, low, min(low + FILL_SLICE_SLOTS, high)
                )
            async with self._upkeep.manifest_lock:
                self._ready |= self.schema.columns.keys() & set(ks)
                await self._exclusively(self._manifests.take_schema, self.schema, self._ready)
            self._log.info("shard.columns_filled", ks=ks, took_ms=round((time.monotonic() - began_s) * 1000))

    async def replace_segments(
        self, v: int, segments: Sequence[Segment], *, mean: str | None = None
    ) -> Manifest:
        """Name what the builder made over vector v. Its files must be on disk, complete, under segments/."""
        self._check_open()
        async with self._upkeep.manifest_lock:
            return await self._exclusively(self._replace_segments, v, tuple(segments), mean)

    def _replace_segments(self, v: int, segments: tuple[Segment, ...], mean: str | None) -> Manifest:
        self._ports.files.sync_folder(self.folder / "segments")
        # A graph over slots that points.db may lose and give to other points would answer with strangers.
        self._applier.points.sync()
        manifest = self._manifests.manifest
        state = msgspec.structs.replace(manifest.vectors[str(v)], segments=segments, mean=mean)
        self._manifests.write(vectors={**manifest.vectors, str(v): state})
        return self._manifests.manifest

    async def relocate(self, slots: npt.ArrayLike) -> int:
        """Give the live ones of these slots new slots (vacuum), and return how many there were."""
        self._check_open()
        moved = await self._exclusively(self._applier.relocate, np.asarray(slots, np.int64))
        self._pipeline.look_for_damage()
        return moved

    @property
    def record(self) -> ShardRecord:
        """What the page says of the shard."""
        return self._publisher.record

    def set_building(self, building: bool) -> None:
        """Show whether graphs are being built, or are due."""
        on, off = (ShardFlag.BUILDING, 0) if building else (0, ShardFlag.BUILDING)
        self._publisher.set_flags(on=on, off=off)

    @property
    def applied_seq(self) -> int:
        return self._publisher.record.applied

    @property
    def points_count(self) -> int:
        return self._publisher.record.points

    @property
    def manifest(self) -> Manifest:
        return self._manifests.manifest

    # -- checkpoints ------------------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Make all that is applied durable in the derived files; let go of log, dead rows, their space."""
        self._check_open()
        await self._upkeep.checkpoint()

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[Manifest]:
        """While it is held no row, graph or log that the manifest stands on is let go. Writes go on."""
        self._check_open()
        async with self._upkeep.manifest_lock:
            yield self._manifests.manifest

    async def scrub(self) -> int:
        """Read all that searches rely on, slowly; returns how many slots were looked at.

        Damaged graphs are dropped, to be built again. Raises Damaged for the rest; then it serves no more.
        """
        self._check_open()
        try:
            found = await self._upkeep.scrub()
        except Damaged as error:
            self._refuse(error)
            raise
        for v, damage in found.bad_graphs.items():
            self._log.warning("shard.graph_dropped", what=damage)
            await self.replace_segments(v, ())
        return found.slots

    async def _scrub_quietly(self) -> None:
        """What the start left unchecked, because there was too much of it."""
        began_s = time.monotonic()
        try:
            slots = await self.scrub()
        except (ShoalError, OSError, sqlite3.Error) as error:
            self._log.warning("shard.scrub_ended", what=str(error))
        else:
            self._log.info("shard.scrubbed", slots=slots, took_s=round(time.monotonic() - began_s))

    # -- replication ------------------------------------------------------------------------------------

    @property
    def replica(self) -> Replica | None:
        """None while it may not speak: it is not open, or its disk is not to be trusted."""
        usable = self._is_open and self.refusal is None and self._broken is None and not self._closing
        return self._replica if usable else None

    @property
    def pipeline(self) -> Pipeline:
        return self._pipeline

    def perform(self, effects: Sequence[Effect]) -> None:
        """What a call of the replica returned; in the same turn of the loop as the call."""
        self._pipeline.perform(effects)

    def attach(self, outside: Outside) -> None:
        """Let its replica speak to others."""
        self._outside = outside
        if self._is_open:
            self._pipeline.outside = outside

    async def read_log(self, first_seq: int, last_seq: int) -> list[Entry]:
        """Some of these entries from the first on, from the log's files: all must be on disk."""
        return await self._run(self._pipeline.log_range.read, first_seq, last_seq, ENTRY_BYTES_MAX)

    def stop(self, error: ShoalError) -> None:
        """A rule is broken that only a bug breaks: nothing more is written or said until a restart."""
        self._stop_writing(error)

    def show(self, *, in_sync: bool) -> None:
        """Whether the map counts this replica."""
        on, off = (ShardFlag.IN_SYNC, 0) if in_sync else (0, ShardFlag.IN_SYNC)
        self._publisher.set_flags(on=on, off=off)

    # -- the rest ---------------------------------------------------------------------------------------

    async def promise(self, term: int) -> None:
        """Fence: accept nothing older than `term` from now on; durable before this returns."""
        self.perform(self._replica.promise(term))
        await self._pipeline.settled()

    def statistics(self) -> ShardStatistics:
        queue = self._pipeline.queued()
        counts = self._pipeline.counts
        return ShardStatistics(
            queue_entries=queue.entries,
            queue_bytes=queue.bytes,
            tail_rows=self.tail_rows,
            delay_s=self._pacing.delay_s,
            groups=counts.groups,
            entries=counts.entries,
            log_bytes=self._pipeline.bytes_written,
            sync_s=counts.sync_s,
            apply_s=self._pipeline.apply_s,
            rows=self._pipeline.rows,
            dead_rows=len(self._applier.dead),
            checkpoints=self._upkeep.checkpoints,
            checkpoint_s=self._upkeep.checkpoint_took_s,
            deaths=self._kept_up.deaths,
        )

    async def _exclusively(self, work: Callable[..., T], *args: object) -> T:
        """Run in the executor while no batch is being applied."""
        async with self._pipeline.applying:
            return await self._run(work, *args)

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        return await run_to_end(self._ports.executor, work, *args)


def _fixed(value: bytes) -> bytes:
    """What the log keeps of an id or a hash: nothing, or 16 bytes."""
    if len(value) in (0, ID_BYTES):
        return value
    return blake2b(value, digest_size=ID_BYTES).digest()
