"""The second stage of a shard's writes: what is committed goes into the files, a batch at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from agent.store.apply import Applier, committed
from agent.store.disk_errors import disk_error
from agent.store.log_suffix import LogRange
from agent.store.recent_entries import Logged, RecentEntries
from agent.store.threads import run_to_end
from core.errors import Damaged, NoRoom, ShoalError
from core.replication.replica import Replica
from core.wire import Outcome, decode_op

BATCH_BYTES_MAX = 8 << 20
BATCH_ENTRIES_MAX = 64
RETRY_S = 1.0
"""How soon a batch is tried again for which there was no room."""
SCHEMA_RETRY_S = 0.05


class ApplyStage:
    """Entries come from memory, or from the log if there is no room for them there.

    `applied(outcomes, last_seq)` is called after each batch, `schema_wanted(version)` when the next entry was
    checked against a schema that is not here yet, `changed` when it got stuck.
    """

    def __init__(
        self,
        replica: Replica,
        applier: Applier,
        memory: RecentEntries,
        log_range: LogRange,
        executor: Executor,
        *,
        applied: Callable[[Sequence[Outcome], int], None],
        schema_wanted: Callable[[int], None],
        changed: Callable[[], None],
    ) -> None:
        self._replica, self._applier, self._executor = replica, applier, executor
        self._memory, self._log_range = memory, log_range
        self._applied, self._schema_wanted, self._changed = applied, schema_wanted, changed
        self.lock = asyncio.Lock()
        """Held while a batch is put into the files."""
        self.stuck: NoRoom | None = None
        """Why what is committed can't be applied just now; it is tried again and again."""
        self.took_s = 0.0
        self.rows = 0
        self._upto = replica.applied_seq
        self._work = asyncio.Event()

    @property
    def is_done(self) -> bool:
        return self._replica.applied_seq >= self._upto

    def apply_upto(self, seq: int) -> None:
        self._upto = max(self._upto, seq)
        self._work.set()

    async def run(self) -> None:
        """Until it is cancelled. Raises ShoalError when nothing more can be applied."""
        while True:
            await self._work.wait()
            self._work.clear()
            while not self.is_done:
                try:
                    await self._apply_batch()
                except NoRoom as error:
                    self.stuck = error
                    self._changed()
                    await asyncio.sleep(RETRY_S)
                except ShoalError:
                    raise
                except Exception as error:  # whatever it was
                    raise disk_error(error, f"reading entries after {self._replica.applied_seq}") from error

    async def _apply_batch(self) -> None:
        outcomes: list[Outcome] | None = None
        async with self.lock:
            batch = await self._next_batch()
            if not batch:  # a snapshot has overtaken it
                return
            version = batch[0].entry.schema
            if version <= self._applier.schema.version:
                began_s = time.monotonic()
                outcomes = await run_to_end(self._executor, self._put_into_files, batch)
                self.took_s += time.monotonic() - began_s
        if outcomes is None:
            self._schema_wanted(version)
            await asyncio.sleep(SCHEMA_RETRY_S)
            return
        self.stuck = None
        self.rows += sum(outcome.touched for outcome in outcomes)
        self._applied(outcomes, batch[-1].entry.seq)

    async def _next_batch(self) -> list[Logged]:
        """What follows in the files, as far as they know its schema."""
        first_seq, known = self._replica.applied_seq + 1, self._applier.schema.version
        last_seq = min(self._upto, first_seq + BATCH_ENTRIES_MAX - 1)
        batch: list[Logged] = []
        size = 0
        for seq in range(first_seq, last_seq + 1):
            logged = self._memory.get(seq)
            if logged is None or size >= BATCH_BYTES_MAX or (batch and logged.entry.schema > known):
                break
            batch.append(logged)
            size += len(logged.entry.op)
        return batch or await self._read_batch(first_seq, last_seq, known)

    async def _read_batch(self, first_seq: int, last_seq: int, known: int) -> list[Logged]:
        if first_seq > last_seq:
            return []
        read = await run_to_end(self._executor, self._log_range.read, first_seq, last_seq, BATCH_BYTES_MAX)
        if not read:
            raise Damaged(f"the log has no entry {first_seq}, which is committed and not applied")
        newer = next((at for at, entry in enumerate(read) if at > 0 and entry.schema > known), len(read))
        return [Logged(entry) for entry in read[:newer]]

    def _put_into_files(self, batch: list[Logged]) -> list[Outcome]:
        """In a thread. Raises NoRoom, Damaged, Unavailable."""
        try:
            return self._applier.apply(
                [committed(e, decode_op(e.op) if op is None else op) for e, op in batch]
            )
        except Exception as error:  # whatever it was, nothing more can be applied
            what = f"applying entries {batch[0].entry.seq} to {batch[-1].entry.seq}"
            raise disk_error(error, what) from error
