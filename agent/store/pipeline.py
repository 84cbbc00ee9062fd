"""The two stages of a shard's writes: the log (a group, one fsync), the files (a batch, one transaction).

They run side by side, each in a thread of its own while it works; the loop only hands on.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from agent.store.apply import Applier, Committed, committed
from agent.store.disk_errors import disk_error
from agent.store.identity import write_identity
from agent.store.log import LogWriter
from agent.store.threads import run_to_end
from core.errors import Damaged, InvariantBroken, NoRoom, ShoalError, Unavailable
from core.replication.log import Entry
from core.replication.replica import Answer, Apply, Attach, Identity, Persist, Refuse, Replica
from core.wire import Op, Outcome

T = TypeVar("T")

GROUP_BYTES_MAX = 16 << 20
BATCH_BYTES_MAX = 8 << 20
BATCH_ENTRIES_MAX = 64
ROLL_BYTES_MIN = 512 << 10
RETRY_S = 1.0
"""How soon a batch is tried again for which there was no room."""


@dataclass(eq=False, slots=True)
class Proposal:
    """An operation on its way in."""

    op: Op
    encoded: bytes
    request_id: bytes
    number: int
    body_hash: bytes
    schema: int
    until: str
    answer: asyncio.Future[Outcome] = field(init=False)
    begun: bool = False


class Queued(NamedTuple):
    """What waits or is under way."""

    entries: int
    bytes: int


@dataclass(slots=True)
class Counts:
    """Since the start."""

    groups: int = 0
    entries: int = 0
    sync_s: float = 0.0
    apply_s: float = 0.0
    rows: int = 0


class Pipeline:
    """One shard's writer. `applying` is held while a batch is put into the files."""

    def __init__(
        self,
        replica: Replica,
        writer: LogWriter,
        applier: Applier,
        executor: Executor,
        now_us: Callable[[], int],
        give_up: Callable[[ShoalError], None],
        on_sync: Callable[[float], None],
    ) -> None:
        self._replica = replica
        self._writer = writer
        self._applier = applier
        self._executor = executor
        self._now_us = now_us
        self._give_up = give_up
        self._on_sync = on_sync
        self.applying = asyncio.Lock()
        self.counts = Counts()
        self.bytes_written = 0
        self._logging = asyncio.Lock()
        self._pending: deque[Proposal] = deque()
        self._unapplied: dict[int, tuple[Committed, Proposal]] = {}
        self._ready: deque[tuple[Committed, Proposal]] = deque()
        self._waiting: dict[int, list[Proposal]] = defaultdict(list)
        self._bytes = 0
        self._entries = 0
        self._changed = asyncio.Event()
        self._log_work = asyncio.Event()
        self._apply_work = asyncio.Event()
        self._refusal: ShoalError | None = None
        self.stuck: ShoalError | None = None
        """Why what is committed can't be applied just now; it is tried again and again."""

    def start(self) -> list[asyncio.Task[None]]:
        """The stages, as tasks that end when they are cancelled."""
        return [asyncio.create_task(self._log_stage()), asyncio.create_task(self._apply_stage())]

    def queued(self) -> Queued:
        return Queued(self._entries, self._bytes)

    def submit(self, proposal: Proposal) -> asyncio.Future[Outcome]:
        """Queue it. The future gets its outcome, or the reason why there is none."""
        proposal.answer = asyncio.get_running_loop().create_future()
        if (refusal := self._refusal or self.stuck) is not None:  # no queue behind what a full disk holds up
            proposal.answer.set_exception(refusal)
            return proposal.answer
        self._pending.append(proposal)
        self._count(proposal, 1)
        self._log_work.set()
        return proposal.answer

    def withdraw(self, proposal: Proposal) -> bool:
        """Nobody waits any more. True if the operation has begun and may take effect."""
        if not proposal.begun and proposal in self._pending:
            self._pending.remove(proposal)
            self._count(proposal, -1)
        return proposal.begun

    async def drain(self) -> None:
        """Wait until all that was submitted is applied, or cannot be now."""
        while self._entries and self._refusal is None and self.stuck is None:
            self._changed.clear()
            await self._changed.wait()

    async def wait_for(self, condition: Callable[[], bool], deadline_s: float) -> None:
        """Return when the condition holds after something was logged or applied, or at the deadline."""
        try:
            async with asyncio.timeout_at(deadline_s):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return

    async def roll_log(self) -> None:
        """Go on in a new file, if this one is worth it, so that the checkpoint that begins now can let go
        of all that was logged before it. Raises NoRoom, Unavailable."""
        async with self._logging:
            if self._writer.broken is None and self._writer.file_bytes >= ROLL_BYTES_MIN:
                await self._run(self._writer.roll)

    async def cut_log(self, through_seq: int) -> None:
        """Let go of log files that a checkpoint has made superfluous."""
        async with self._logging:
            if self._writer.broken is None:
                await self._run(self._writer.cut, through_seq)
        if self._replica.log.base.seq < through_seq <= self._replica.log.last.seq:
            self._replica.log.cut(through_seq)

    def keep_identity(self, identity: Identity) -> None:
        write_identity(self._writer.folder, identity, self._writer.files)

    def close(self) -> None:
        """Tell everybody who still waits."""
        self.fail(Unavailable("the agent is shutting down; the write may still take effect"))

    # -- the log stage ----------------------------------------------------------------------------------

    async def _log_stage(self) -> None:
        while True:
            await self._log_work.wait()
            self._log_work.clear()
            while self._pending:
                async with self._logging:
                    await self._log_group()

    async def _log_group(self) -> None:
        """One write and one fsync for all that waits."""
        before_seq = self._replica.log.last.seq
        entries: list[Entry] = []
        size = 0
        while self._pending and size < GROUP_BYTES_MAX:
            proposal = self._pending.popleft()
            size += len(proposal.encoded)
            entries += self._propose(proposal)
        if not entries:
            return
        try:
            took_s = await self._run(self._append, entries)
        except NoRoom as error:
            self._replica.withdraw(before_seq)
            self._forget(entries, error)
            return
        except Exception as error:  # noqa: BLE001 - whatever it was, who knows what the log's end is now
            found = disk_error(error, f"appending entries {entries[0].seq} to {entries[-1].seq}")
            self._forget(entries, found)
            self._give_up(found)
            return
        self.counts.groups += 1
        self.counts.entries += len(entries)
        self.counts.sync_s += took_s
        self._on_sync(took_s)
        self.bytes_written += size
        for effect in self._replica.persisted(entries[-1].seq):
            if isinstance(effect, Apply):
                self._committed(effect)
        self._changed.set()

    def _propose(self, proposal: Proposal) -> list[Entry]:
        """What must be appended for it: one entry, or nothing."""
        proposal.begun = True
        (effect,) = self._replica.propose(
            proposal.encoded,
            self._now_us(),
            request_id=proposal.request_id,
            number=proposal.number,
            body_hash=proposal.body_hash,
            schema=proposal.schema,
        )
        match effect:
            case Persist(entries=(entry,)):
                self._unapplied[entry.seq] = (committed(entry, proposal.op), proposal)
                self._waiting[entry.seq].append(proposal)
                return [entry]
            case Attach(seq=seq):
                if proposal.until == "persisted" and seq <= self._replica.committed:
                    _resolve(proposal, Outcome())
                else:
                    self._waiting[seq].append(proposal)
            case Answer(outcome=outcome):
                _resolve(proposal, outcome)
            case Refuse(error=error):
                _reject(proposal, error)
            case _:
                raise InvariantBroken(f"a proposal has the effect {effect}")
        self._count(proposal, -1)
        return []

    def _append(self, entries: list[Entry]) -> float:
        """In a thread. Returns how long the fsync took."""
        self._writer.append(entries)
        began_s = time.monotonic()
        self._writer.sync()
        return time.monotonic() - began_s

    def _committed(self, effect: Apply) -> None:
        for seq in range(effect.first_seq, effect.last_seq + 1):
            self._ready.append(self._unapplied.pop(seq))
            still = []
            for proposal in self._waiting.pop(seq, ()):
                if proposal.until == "persisted":
                    _resolve(proposal, Outcome())
                else:
                    still.append(proposal)
            if still:
                self._waiting[seq] = still
        self._apply_work.set()

    def _forget(self, entries: list[Entry], error: ShoalError) -> None:
        for entry in entries:
            _, proposal = self._unapplied.pop(entry.seq)
            self._count(proposal, -1)
            for waiting in self._waiting.pop(entry.seq, ()):
                _reject(waiting, error)

    def refuse_writes(self, error: ShoalError) -> None:
        """The log takes nothing more. What is committed is still applied."""
        self._refusal = error
        while self._pending:
            proposal = self._pending.popleft()
            self._count(proposal, -1)
            _reject(proposal, error)

    # -- the apply stage --------------------------------------------------------------------------------

    async def _apply_stage(self) -> None:
        while True:
            await self._apply_work.wait()
            self._apply_work.clear()
            while self._ready:
                batch = self._next_batch()
                if not await self._apply(batch):
                    return

    def _next_batch(self) -> list[tuple[Committed, Proposal]]:
        batch: list[tuple[Committed, Proposal]] = []
        size = 0
        while self._ready and len(batch) < BATCH_ENTRIES_MAX and size < BATCH_BYTES_MAX:
            batch.append(self._ready.popleft())
            size += len(batch[-1][1].encoded)
        return batch

    async def _apply(self, batch: list[tuple[Committed, Proposal]]) -> bool:
        """Try until there is room for it. False if the shard can go on no more."""
        entries = [entry for entry, _ in batch]
        outcomes: list[Outcome] | None = None
        began_s = time.monotonic()
        while outcomes is None:
            try:
                async with self.applying:
                    outcomes = await self._run(self._applier.apply, entries)
            except NoRoom as error:
                self.stuck = error
                self._changed.set()
                await asyncio.sleep(RETRY_S)
            except Exception as error:  # noqa: BLE001 - whatever it was, nothing more can be applied
                what = f"applying entries {entries[0].seq} to {entries[-1].seq}"
                found = disk_error(error, what)
                self._give_up(found)
                self.fail(found)
                return False
        self.stuck = None
        self.counts.apply_s += time.monotonic() - began_s
        for _, proposal in batch:
            self._count(proposal, -1)
        for effect in self._replica.applied(outcomes, entries[-1].seq):
            if isinstance(effect, Answer):
                self.counts.rows += effect.outcome.touched
                for proposal in self._waiting.pop(effect.seq, ()):
                    _resolve(proposal, effect.outcome)
        self._changed.set()
        self.look_for_damage()
        return True

    def look_for_damage(self) -> None:
        """Rows found damaged while they were copied: who knows how many others are."""
        if self._applier.damaged:
            self._give_up(Damaged(f"{self._applier.damaged[0]} does not match its checksum"))

    def fail(self, error: ShoalError) -> None:
        self.refuse_writes(error)
        for waiting in self._waiting.values():
            for proposal in waiting:
                _reject(proposal, error)
        self._waiting.clear()
        self._changed.set()

    def _count(self, proposal: Proposal, sign: int) -> None:
        self._entries += sign
        self._bytes += sign * len(proposal.encoded)

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        return await run_to_end(self._executor, work, *args)


def _resolve(proposal: Proposal, outcome: Outcome) -> None:
    if not proposal.answer.done():
        proposal.answer.set_result(outcome)


def _reject(proposal: Proposal, error: ShoalError) -> None:
    if not proposal.answer.done():
        proposal.answer.set_exception(error)
