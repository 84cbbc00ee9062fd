"""The two stages of a shard's writes: the log (a group, one fsync), the files (a batch, one transaction).

They run side by side, each in a thread of its own while it works; the loop only hands on. What goes in is
what the shard's replica says, whoever proposed it: its effects are performed here, in their order.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from agent.store.apply import Applier
from agent.store.apply_stage import ApplyStage
from agent.store.disk_errors import disk_error
from agent.store.effects import Effects, Nobody, Outside
from agent.store.identity import write_identity
from agent.store.log import LogWriter
from agent.store.log_suffix import LogRange, cut_suffix
from agent.store.recent_entries import Logged, RecentEntries
from agent.store.threads import run_to_end
from agent.store.waiting import Proposal, Waiting
from core.errors import Damaged, InvariantBroken, NoRoom, ShoalError, Unavailable
from core.replication import effects as fx
from core.replication.effects import Effect, Persist, StaleTerm, Truncate
from core.replication.log import Entry
from core.replication.replica import Replica
from core.wire import Op, Outcome

T = TypeVar("T")

GROUP_BYTES_MAX = 16 << 20
ROLL_BYTES_MIN = 512 << 10
RETRY_S = 1.0
"""How soon it is tried again to cut the log, or to keep a promise, where there was no room."""
FOLLOWER_PART = 16
"""A follower keeps this part of that: it may be the next primary, and knows of nobody who lacks anything."""
SNAPSHOT_FACTOR = 16
"""So much more of the log is kept while a snapshot is on its way: else it would be too old on arrival."""
MEMORY_BYTES_MAX = 64 << 20
"""Of entries that are not applied yet; beyond it they are read from the log again."""
MEMORY_BYTES_KEPT = 1 << 20
"""Of applied entries, where other replicas may still need them."""


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


class Pipeline:
    """One shard's writer."""

    def __init__(
        self,
        replica: Replica,
        writer: LogWriter,
        applier: Applier,
        executor: Executor,
        now_us: Callable[[], int],
        give_up: Callable[[ShoalError], None],
        on_sync: Callable[[float], None],
        outside: Outside | None = None,
    ) -> None:
        self._replica = replica
        self._writer = writer
        self._applier = applier
        self._executor = executor
        self._now_us = now_us
        self._give_up = give_up
        self._on_sync = on_sync
        self.outside: Outside = Nobody() if outside is None else outside
        self.on_identity: Callable[[fx.Identity], None] = lambda identity: None
        """Told when another identity is durable."""
        self.counts = Counts()
        self.bytes_written = 0
        self.log_bytes_kept = 0
        self.keep_after: int | None = None
        """A snapshot that ends with this entry is on its way to a replica, which will need what follows."""
        self.memory = RecentEntries(MEMORY_BYTES_MAX)
        self.log_range = LogRange(writer.folder)
        self._changed = asyncio.Event()
        self._stage = ApplyStage(
            replica,
            applier,
            self.memory,
            self.log_range,
            executor,
            applied=self._applied,
            schema_wanted=self._want_schema,
            changed=self._changed.set,
        )
        self._effects = Effects(self._performed(), self._held(), self._hold_failed)
        self._logging = asyncio.Lock()
        self._pending: deque[Proposal] = deque()
        self._pending_bytes = 0
        self._to_log: deque[Persist | Truncate] = deque()
        self._ops: dict[int, Op] = {}
        self._waiting = Waiting(replica.reached)
        self._log_work = asyncio.Event()
        self._refusal: ShoalError | None = None

    @property
    def applying(self) -> asyncio.Lock:
        """Held while a batch is put into the files."""
        return self._stage.lock

    @property
    def stuck(self) -> ShoalError | None:
        """Why what is committed can't be applied just now; it is tried again and again."""
        return self._stage.stuck

    def start(self) -> list[asyncio.Task[None]]:
        """The stages, as tasks that end when they are cancelled."""
        return [asyncio.create_task(self._log_stage()), asyncio.create_task(self._apply_stage())]

    @property
    def apply_s(self) -> float:
        """How long the files took since the start."""
        return self._stage.took_s

    @property
    def rows(self) -> int:
        """How many were touched since the start."""
        return self._stage.rows

    def queued(self) -> Queued:
        applied_seq, log = self._replica.applied_seq, self._replica.log
        entries = len(self._pending) + log.last.seq - applied_seq
        return Queued(entries, self._pending_bytes + log.bytes_after(applied_seq))

    def submit(self, proposal: Proposal) -> asyncio.Future[Outcome]:
        """Queue it. The future gets its outcome, or the reason why there is none."""
        proposal.answer = asyncio.get_running_loop().create_future()
        if (refusal := self._refusal or self.stuck) is not None:  # no queue behind what a full disk holds up
            proposal.answer.set_exception(refusal)
            return proposal.answer
        self._pending.append(proposal)
        self._pending_bytes += len(proposal.encoded)
        self._log_work.set()
        return proposal.answer

    def withdraw(self, proposal: Proposal) -> bool:
        """Nobody waits any more. True if the operation has begun and may take effect."""
        if not proposal.begun and proposal in self._pending:
            self._pending.remove(proposal)
            self._pending_bytes -= len(proposal.encoded)
        return proposal.begun

    async def drain(self) -> None:
        """Wait until all that can be logged and applied now is."""
        while self._is_at_work() and self._refusal is None and self.stuck is None:
            self._changed.clear()
            await self._changed.wait()

    def _is_at_work(self) -> bool:
        if self._effects.is_held:  # a promise is being made; if there is no room for it, that can take long
            return False
        replica = self._replica
        is_logging = replica.persisted_seq < replica.log.last.seq
        return bool(self._pending or self._to_log or is_logging or not self._stage.is_done)

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

    @property
    def is_alone(self) -> bool:
        """Whether no other replica needs the log."""
        return self._replica.is_primary and not self._replica.lags()

    async def cut_log(self, through_seq: int) -> None:
        """Let go of log files that a checkpoint has made superfluous, unless another replica needs them."""
        if not self.is_alone:
            through_seq = min(through_seq, self._needed_after())
        async with self._logging:
            if self._writer.broken is None:
                await self._run(self._writer.cut, through_seq)
        if self._replica.log.base.seq < through_seq <= self._replica.log.last.seq:
            self._replica.log.cut(through_seq)

    def _needed_after(self) -> int:
        """What comes after this entry is kept for others: what they lack, within bounds; of a follower, who
        knows nothing of others, a part of that."""
        log, lags = self._replica.log, self._replica.lags()
        last_seq = log.last.seq
        slowest = last_seq - max(lags.values(), default=0)
        bytes_max = self.log_bytes_kept if lags else self.log_bytes_kept // FOLLOWER_PART
        low, high = log.base.seq, last_seq
        while low < high:  # the first seq after which there are so few bytes
            middle = (low + high) // 2
            low, high = (low, middle) if log.bytes_after(middle) <= bytes_max else (middle + 1, high)
        needed = max(low, slowest) if lags else low
        if (
            self.keep_after is None
            or log.bytes_after(self.keep_after) > SNAPSHOT_FACTOR * self.log_bytes_kept
        ):
            return needed
        return min(needed, self.keep_after)

    async def settled(self) -> None:
        """Return when all that the replica has asked for so far is under way, its identity on disk."""
        await self._effects.settled()

    async def close(self) -> None:
        """Tell everybody who still waits."""
        self._effects.end()
        await self._effects.close()
        self.fail(Unavailable("the agent is shutting down; the write may still take effect"))

    # -- effects ----------------------------------------------------------------------------------------

    def perform(self, effects: Sequence[Effect]) -> None:
        """What a call of the replica returned, at once."""
        self._effects.add(effects)

    def _performed(self) -> dict[type, Callable[[Any], None]]:
        return {
            fx.Persist: self._persist,
            fx.Truncate: self._truncate,
            fx.Apply: lambda e: self._stage.apply_upto(e.last_seq),
            fx.Answer: lambda e: self._waiting.applied(e.seq, e.outcome),
            fx.Reached: lambda _: self._waiting.look(),
            fx.SteppedDown: self._step_down,
            fx.Refuse: lambda _: None,  # told to whoever called
            fx.Send: lambda e: self._tell(lambda: self.outside.send(e.message)),
            fx.SendEntries: lambda e: self._tell(lambda: self.outside.send_entries(e)),
            fx.Reply: lambda e: self._tell(lambda: self.outside.reply(e.message)),
            fx.OfferSnapshot: lambda e: self._tell(lambda: self.outside.offer_snapshot(e)),
            fx.ReadReady: lambda e: self._tell(lambda: self.outside.read_ready(e.token)),
        }

    def _held(self) -> dict[type, Callable[[Any], Awaitable[None]]]:
        return {
            fx.KeepIdentity: lambda e: self._keep_identity(e.identity),
            fx.Install: lambda e: self.outside.install(e.position),
            fx.DeleteReplica: lambda _: self.outside.delete(),
        }

    def _tell(self, tell: Callable[[], None]) -> None:
        if self._refusal is None:  # who cannot trust its disk says nothing more
            tell()

    def _hold_failed(self, error: Exception) -> None:
        self._give_up(disk_error(error, f"keeping the identity of the replica in {self._writer.folder}"))

    async def _keep_identity(self, identity: fx.Identity) -> None:
        while True:
            try:
                await self._run(write_identity, self._writer.folder, identity, self._writer.files)
                break
            except OSError as error:
                if not isinstance(disk_error(error, "the identity"), NoRoom):
                    raise
                await asyncio.sleep(RETRY_S)
        self.on_identity(identity)
        self._log_work.set()

    def _persist(self, effect: Persist) -> None:
        if self._refusal is not None:
            return
        for entry in effect.entries:
            self.memory.add(Logged(entry, self._ops.pop(entry.seq, None)))
        self._to_log.append(effect)
        self._log_work.set()

    def _truncate(self, effect: Truncate) -> None:
        if self._refusal is not None:
            return
        self.memory.truncate(effect.after_seq)
        self._to_log.append(effect)
        self._log_work.set()

    def _step_down(self, effect: fx.SteppedDown) -> None:
        error = StaleTerm(f"the shard is fenced by term {effect.term}; fetch the map and try again")
        self._waiting.reject_all(error)
        self.outside.stepped_down(effect.term)

    # -- the log stage ----------------------------------------------------------------------------------

    async def _log_stage(self) -> None:
        while True:
            await self._log_work.wait()
            self._log_work.clear()
            while self._to_log or (self._pending and not self._effects.is_held):
                try:
                    async with self._logging:
                        await self._log_next()
                except InvariantBroken as error:  # a replica that cannot trust itself says nothing more
                    self._give_up(error)
                    self.fail(error)
                self._changed.set()

    async def _log_next(self) -> None:
        """One write and one fsync for all that waits, or one cut of what conflicts."""
        self._propose_pending()
        if self._to_log and isinstance(self._to_log[0], Truncate):
            await self._cut_suffix(self._to_log[0])
            return
        group: list[Persist] = []
        size = 0
        while self._to_log and size < GROUP_BYTES_MAX and isinstance(effect := self._to_log[0], Persist):
            self._to_log.popleft()
            group.append(effect)
            size += sum(len(entry.op) for entry in effect.entries)
        if group:
            await self._log_group(group, size)

    async def _log_group(self, group: list[Persist], size: int) -> None:
        entries = [entry for effect in group for entry in effect.entries]
        try:
            took_s = await self._run(self._append, entries)
        except NoRoom as error:
            self._withdraw(entries[0].seq, error)
            return
        except Exception as error:  # noqa: BLE001 - whatever it was, who knows what the log's end is now
            found = disk_error(error, f"appending entries {entries[0].seq} to {entries[-1].seq}")
            self._waiting.reject_after(entries[0].seq - 1, found)
            self._give_up(found)
            return
        self.counts.groups += 1
        self.counts.entries += len(entries)
        self.counts.sync_s += took_s
        self._on_sync(took_s)
        self.bytes_written += size
        self.perform(self._replica.persisted(entries[-1].seq, group[-1].generation))

    def _propose_pending(self) -> None:
        size = 0
        while self._pending and size < GROUP_BYTES_MAX and not self._effects.is_held:
            proposal = self._pending.popleft()
            self._pending_bytes -= len(proposal.encoded)
            size += len(proposal.encoded)
            self._propose(proposal)

    def _propose(self, proposal: Proposal) -> None:
        proposal.begun = True
        effects = self._replica.propose(
            proposal.encoded,
            self._now_us(),
            request_id=proposal.request_id,
            number=proposal.number,
            body_hash=proposal.body_hash,
            schema=proposal.schema,
        )
        match effects[0]:
            case Persist(entries=(entry,)):
                self._ops[entry.seq] = proposal.op
                self._waiting.add(entry.seq, proposal)
                self.perform(effects)
            case fx.Attach(seq=seq):
                self._waiting.add(seq, proposal)
            case fx.Answer(seq=seq, outcome=outcome):
                self._waiting.add_applied(seq, proposal, outcome)
            case fx.Refuse(error=error):
                proposal.reject(error)
            case effect:
                raise InvariantBroken(f"a proposal has the effect {effect}")

    def _append(self, entries: list[Entry]) -> float:
        """In a thread. Returns how long the fsync took."""
        self._writer.append(entries)
        began_s = time.monotonic()
        self._writer.sync()
        return time.monotonic() - began_s

    def _withdraw(self, first_seq: int, error: NoRoom) -> None:
        """There was no room for this entry, nor for what follows it."""
        later = [*self._to_log, *self._effects.waiting]
        if any(
            isinstance(effect, fx.Install) or (isinstance(effect, Truncate) and effect.after_seq < first_seq)
            for effect in later
        ):
            return  # it has been cut off meanwhile
        self._replica.withdraw(first_seq - 1)
        kept = [effect for effect in self._to_log if not isinstance(effect, Persist)]
        self._to_log.clear()
        self._to_log.extend(kept)
        self._effects.void_persists()
        self.memory.truncate(first_seq - 1)
        self._ops.clear()
        self._waiting.reject_after(first_seq - 1, error)

    async def _cut_suffix(self, effect: Truncate) -> None:
        try:
            await self._run(cut_suffix, self._writer, effect.after_seq)
        except NoRoom:
            await asyncio.sleep(RETRY_S)
        except Exception as error:  # noqa: BLE001 - whatever it was, who knows what the log's end is now
            self._give_up(disk_error(error, f"cutting the log after entry {effect.after_seq}"))
        else:
            if self._to_log:  # else all was given up meanwhile
                self._to_log.popleft()

    def refuse_writes(self, error: ShoalError) -> None:
        """The log takes nothing more. What is committed is still applied."""
        self._refusal = error
        self._to_log.clear()
        self._pending_bytes = 0
        while self._pending:
            self._pending.popleft().reject(error)
        self._changed.set()

    # -- the apply stage --------------------------------------------------------------------------------

    async def _apply_stage(self) -> None:
        try:
            await self._stage.run()
        except ShoalError as error:
            self._give_up(error)
            self.fail(error)

    def _want_schema(self, version: int) -> None:
        self.outside.schema_wanted(version)

    def _applied(self, outcomes: Sequence[Outcome], last_seq: int) -> None:
        self.perform(self._replica.applied(outcomes, last_seq))
        self.memory.let_go(self._replica.applied_seq, 0 if self.is_alone else MEMORY_BYTES_KEPT)
        self._changed.set()
        self.look_for_damage()

    def look_for_damage(self) -> None:
        """Rows found damaged while they were copied: who knows how many others are."""
        if self._applier.damaged:
            self._give_up(Damaged(f"{self._applier.damaged[0]} does not match its checksum"))

    def fail(self, error: ShoalError) -> None:
        self.refuse_writes(error)
        self._waiting.reject_all(error)
        self._changed.set()

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        return await run_to_end(self._executor, work, *args)
