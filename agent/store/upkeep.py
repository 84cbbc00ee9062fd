"""What a shard does for itself while it serves: checkpoints when they are due, slow readings of it all."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import TypeVar

from agent.store.apply import Applier
from agent.store.checkpoint import Checkpoints
from agent.store.disk_errors import disk_error
from agent.store.pipeline import Pipeline
from agent.store.scrub import Scrub
from agent.store.shard_ports import ShardSettings
from agent.store.threads import run_to_end
from core.errors import Damaged, NoRoom, ShoalError
from core.replication.replica import Replica
from net.logs import Log

T = TypeVar("T")
CHECKPOINT_AGAIN_S = 5.0
CHECKPOINT_PART = 16
"""A checkpoint is due after this part of the shard's size in log, or in rows that died."""
LATE_CHECKPOINTS = 3
QUIET_BYTES = 512 << 10
QUIET_S = 2.0
"""It is also due when nothing has happened for so long, if there are so many bytes to be given back."""
UNAPPLIED_WAIT_S = 0.05
"""How soon it is looked again whether a checkpoint can be made, while what is logged waits to be applied."""
SCRUB_REST_S = 0.05
_PAYLOAD_BYTES = 300
"""What a row is taken to need beside its vectors."""


class Upkeep:
    """Of one open shard. Who changes the manifest, or lets go of what it names, holds `manifest_lock`."""

    def __init__(
        self,
        manifests: Checkpoints,
        pipeline: Pipeline,
        replica: Replica,
        applier: Applier,
        executor: Executor,
        settings: ShardSettings,
        log: Log,
        give_up: Callable[[ShoalError], None],
    ) -> None:
        self._manifests = manifests
        self._pipeline = pipeline
        self._replica = replica
        self._applier = applier
        self._executor = executor
        self._settings = settings
        self._log = log
        self._give_up = give_up
        self._bytes = 0
        self._died = 0
        self._wal_bytes = 0
        """How much had been logged, how many rows had died, how long points.db's WAL was, at the last
        checkpoint."""
        self.manifest_lock = asyncio.Lock()
        self.checkpoints = 0
        self.checkpoint_took_s = 0.0

    async def checkpoint(self, *, clean: bool = False) -> None:
        """Make all that is applied durable in the derived files; let go of log, dead rows, their space.

        Raises NoRoom, Unavailable, Damaged; after the last two no write is taken any more.
        """
        async with self.manifest_lock:
            began_s = time.monotonic()
            written, died = self._pipeline.bytes_written, self._applier.died
            try:
                with suppress(NoRoom):  # then the log keeps what it has, and the rest gets room
                    await self._pipeline.roll_log()
                await self._run(self._manifests.prepare)
                oldest = self._replica.recent.oldest_seq
                async with self._pipeline.applying:
                    await self._run(lambda: self._manifests.finish(oldest_request=oldest, clean=clean))
            except (OSError, sqlite3.Error, Damaged) as error:
                found = disk_error(error, f"a checkpoint of {self._applier.contents.folder}")
                if not isinstance(found, NoRoom):
                    self._give_up(found)  # an fsync that failed must never be repeated over the same data
                raise found from error
            self._bytes, self._died, self._wal_bytes = written, died, self._applier.points.wal_bytes()
            await self._pipeline.cut_log(self._manifests.manifest.checkpoint)
            self.checkpoints += 1
            self.checkpoint_took_s = time.monotonic() - began_s

    async def keep_house(self) -> None:
        """Checkpoints when they are due, if there is anything to do."""
        while True:
            await self._until_due()
            if self._applier.dead or self._replica.applied_seq > self._manifests.manifest.checkpoint:
                try:
                    await self.checkpoint()
                except NoRoom as error:
                    self._log.warning("shard.not_checkpointed", what=str(error))
                    await asyncio.sleep(CHECKPOINT_AGAIN_S)
                except ShoalError:  # told by who gave up
                    return
            else:  # due by what is logged, and none of it is applied yet: let that happen
                await asyncio.sleep(UNAPPLIED_WAIT_S)

    async def _until_due(self) -> None:
        """Return when a checkpoint is due: by size, in a quiet moment, or by time."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._settings.checkpoint_every_s
        while not self._is_large() and loop.time() < end_s:
            applied, worth_it = self._replica.applied_seq, self._is_worth_it()
            if not worth_it:
                await self._pipeline.wait_for(lambda: self._is_large() or self._is_worth_it(), end_s)
                continue
            await self._pipeline.wait_for(self._is_large, min(end_s, loop.time() + QUIET_S))
            if self._replica.applied_seq == applied:
                return

    @property
    def late_rows(self) -> int:
        """How many rows have died beyond what a checkpoint, were it quicker, would have given back by now."""
        died = self._applier.died - self._died
        return max(0, died - LATE_CHECKPOINTS * self._bound_bytes() // self._row_bytes())

    def _is_large(self) -> bool:
        written = self._pipeline.bytes_written - self._bytes
        died_bytes = (self._applier.died - self._died) * self._row_bytes()
        wal_bytes = self._applier.points.wal_bytes() - self._wal_bytes
        return max(written, died_bytes, wal_bytes) >= self._bound_bytes()

    def _bound_bytes(self) -> int:
        wanted = self._applier.points.meta.count * self._row_bytes() // CHECKPOINT_PART
        return min(max(wanted, self._settings.checkpoint_bytes_min), self._settings.checkpoint_bytes_max)

    def _is_worth_it(self) -> bool:
        """What a long read kept from going the last time counts again."""
        dead_bytes = len(self._applier.dead) * self._row_bytes()
        return self._pipeline.bytes_written - self._bytes + dead_bytes >= QUIET_BYTES

    def _row_bytes(self) -> int:
        return _PAYLOAD_BYTES + sum(4 * vector.dim for vector in self._applier.schema.vectors.values())

    async def scrub(self) -> Scrub:
        """Read all that searches rely on, slowly. Raises Damaged."""
        reading = Scrub(self._applier.contents.folder, lambda: self._manifests.manifest)
        record = self._applier.publisher.record
        steps = reading.steps(record.slot_low, record.slot_high)
        while await self._run(next, steps, Scrub) is not Scrub:  # noqa: ASYNC110 - it rests, not waits
            await asyncio.sleep(SCRUB_REST_S)
        return reading

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        return await run_to_end(self._executor, work, *args)
