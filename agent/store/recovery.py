"""A shard's files made whole at a start: found, checked, brought level with the log, or refused."""

from __future__ import annotations

import secrets
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from agent.store.apply import Applier, DeadSlot, committed
from agent.store.contents import Contents, column_files
from agent.store.files import Files
from agent.store.identity import read_identity, write_identity
from agent.store.log import LogOwner, LogWriter
from agent.store.log_reading import FoundLog, keep_valid_part, read_log
from agent.store.manifest import (
    BLOCK_BYTES,
    NAME,
    FileBlocks,
    Manifest,
    Segment,
    ShardSchema,
    damaged_blocks,
    read_manifest,
    write_manifest,
)
from agent.store.membership import NO_GROUP, Group, Membership
from agent.store.points import NAME as POINTS_NAME
from agent.store.publishing import Publisher
from agent.store.redo import Redo
from agent.store.segments import damage_of, damage_of_mean, remove_unnamed
from agent.store.vectors import VectorFile
from core.errors import Damaged
from core.hashing import KEY_BYTES
from core.replication.log import Log, Position
from core.replication.recent import RecentRequests, Remembered
from core.replication.replica import Apply, Identity, Replica
from core.wire import decode_op

I64 = npt.NDArray[np.int64]
IDS = "columns/ids.bin"
"""How the manifest names that file."""
ROWS_CHECKED_BYTES_MAX = 400 << 20
POINTS_CHECKED_MAX = 300_000
"""What is checked at a start, in half a second each; the scrubber looks at larger shards."""
_BATCH_ENTRIES = 32
_ROWS = 4096


@dataclass(slots=True)
class Recovered:
    """An open shard. `notes`: what was found wrong, and put right."""

    contents: Contents
    applier: Applier
    replica: Replica
    writer: LogWriter
    manifest: Manifest
    ready: set[int]
    """Columns that are complete; the others must be filled from points.db."""
    notes: list[str] = field(default_factory=list)
    redone: int = 0
    """Slots whose vectors were written again."""
    replayed: int = 0
    """Entries that were applied only now."""
    checked: bool = True
    """Every live row was; else the scrubber must look at them."""


class Recovery:
    """Opens the files in `folder` in a thread. Nothing is published as open before all is level."""

    def __init__(
        self,
        folder: Path,
        shard: tuple[int, int],
        schema: ShardSchema,
        files: Files,
        publisher: Publisher,
        membership: Membership = NO_GROUP,
    ) -> None:
        self._membership = membership
        self._folder = folder
        self._shard = shard
        self._schema = schema
        self._files = files
        self._publisher = publisher
        self.notes: list[str] = []
        self._checked = True

    def create(self, identity: Identity) -> None:
        """An empty shard. Safe to repeat if a crash cut it off: the manifest comes last."""
        for name in ("log", "columns", "vectors", "segments"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        for path in [*self._folder.glob("*"), *self._folder.glob("*/*")]:
            if path.is_file():
                self._files.unlink(path)
        owner = LogOwner(*self._shard, identity.incarnation, identity.history)
        writer = LogWriter(self._folder / "log", owner, self._files)
        writer.begin_file(Position(0, 0))
        writer.close()
        write_identity(self._folder / "log", identity, self._files)
        self._files.sync_folder(self._folder)
        self._files.sync_folder(self._folder.parent)
        write_manifest(self._folder / NAME, self._new_manifest(identity), self._files)

    def open(self) -> Recovered:
        """Raises Damaged, naming file and offset, if what was acknowledged cannot be had."""
        log_folder = self._folder / "log"
        self._remove_leftovers()
        identity, wrong = read_identity(log_folder)
        if wrong:
            self.notes += wrong
            write_identity(log_folder, identity, self._files)
        owner = LogOwner(*self._shard, identity.incarnation, identity.history)
        found = read_log(log_folder, owner)
        self.notes += found.bad_headers
        manifest = self._read_manifest(identity, found)
        ready = self._keep_good_columns(manifest)
        contents = self._open_contents(manifest, found)
        try:
            return self._level(identity, owner, found, manifest, contents, ready)
        except BaseException:
            contents.close()
            raise

    # -- files ------------------------------------------------------------------------------------------

    def _remove_leftovers(self) -> None:
        for path in [*self._folder.glob("*.new"), *self._folder.glob("*/*.new")]:
            self._files.unlink(path)

    def _new_manifest(self, identity: Identity) -> Manifest:
        collection, shard = self._shard
        return Manifest(
            number=1,
            collection=collection,
            shard=shard,
            incarnation=identity.incarnation,
            history=identity.history,
            checkpoint=0,
            slot_low=0,
            slot_high=0,
        )

    def _read_manifest(self, identity: Identity, found: FoundLog) -> Manifest:
        """The manifest, or one that claims only what the log's beginning proves."""
        path = self._folder / NAME
        try:
            manifest = read_manifest(path)
        except FileNotFoundError:
            self.notes.append(f"{path}: missing, made anew")
        except Damaged as error:
            self.notes.append(f"{error}; made anew")
        else:
            if (manifest.incarnation, manifest.history) != (identity.incarnation, identity.history):
                raise Damaged(
                    f"{path}: belongs to replica {manifest.incarnation}, not {identity.incarnation}"
                )
            return manifest
        return msgspec.structs.replace(self._new_manifest(identity), checkpoint=found.base.seq)

    def _keep_good_columns(self, manifest: Manifest) -> set[int]:
        """The columns that are as the clean end of the last run left them. All others begin empty."""
        ready = set()
        for k in self._schema.columns:
            paths = column_files(self._folder, k)
            state = manifest.columns.get(str(k))
            # Columns change in place, so only a clean end says what they must be.
            if (
                manifest.clean
                and state is not None
                and state.ready
                and self._column_is_whole(manifest, k, paths)
            ):
                ready.add(k)
                continue
            for path in paths:
                self._files.unlink(path)
        return ready

    def _column_is_whole(self, manifest: Manifest, k: int, paths: list[Path]) -> bool:
        blocks = {name: b for name, b in manifest.files.items() if name.startswith(f"columns/{k}.")}
        if {f"columns/{path.name}" for path in paths} == blocks.keys() and all(
            path.stat().st_size == (known := blocks[f"columns/{path.name}"]).bytes
            and not damaged_blocks(memoryview(path.read_bytes()), known)
            for path in paths
        ):
            return True
        self.notes.append(f"{self._folder / 'columns'}: index {k} is damaged, made anew from points.db")
        return False

    def _open_contents(self, manifest: Manifest, found: FoundLog) -> Contents:
        """Raises Damaged if points.db is lost and the log does not reach back to its beginning."""
        path = self._folder / POINTS_NAME
        reason = None
        try:
            contents = Contents(self._folder, self._schema, self._files)
            if contents.points.meta.applied >= manifest.checkpoint:
                if contents.points.meta.count <= POINTS_CHECKED_MAX:
                    contents.points.check()
                return contents
            reason = f"{path}: holds entries up to {contents.points.meta.applied}, not {manifest.checkpoint}"
            contents.close()
        except Damaged as error:
            reason = str(error)
        if found.base.seq > 0 or found.gaps:
            raise Damaged(f"{reason}; the log begins at {found.base.seq + 1} and cannot rebuild it")
        self.notes.append(f"{reason}; made anew from the log")
        for name in (POINTS_NAME, POINTS_NAME + "-wal", POINTS_NAME + "-shm"):
            self._files.unlink(self._folder / name)
        contents = Contents(self._folder, self._schema, self._files)
        contents.forget_from(0)
        return contents

    # -- bringing level ---------------------------------------------------------------------------------

    def _level(
        self,
        identity: Identity,
        owner: LogOwner,
        found: FoundLog,
        manifest: Manifest,
        contents: Contents,
        ready: set[int],
    ) -> Recovered:
        meta = contents.points.meta
        if meta.applied < manifest.checkpoint:  # points.db is made anew, and with it the numbers of slots
            manifest = msgspec.structs.replace(self._new_manifest(identity), number=manifest.number)
        self._check_log(found, manifest.checkpoint, meta.applied)
        writer = self._open_log(owner, found, meta.applied)
        low = min(manifest.slot_high, meta.slot_high)
        manifest = self._check_checksums(manifest, contents, low)
        contents.reserve(meta.slot_high)
        redone = Redo(contents, low).redo(
            e for e in found.entries if manifest.checkpoint < e.seq <= meta.applied
        )
        contents.forget_from(meta.slot_high)
        _derive(contents, low, manifest.slot_low)
        self._check_rows(found, contents, manifest.slot_low)
        manifest = self._checked_manifest(manifest, contents)
        remove_unnamed(self._folder, manifest, self._files)
        applier = Applier(contents, self._publisher, self._schema)
        applier.dead = [] if manifest.clean else _dead_slots(contents)  # a clean end purges them all
        group = self._membership.group_of(identity)
        replica = _replica(identity, group, found, meta.applied, contents.points.remembered())
        recovered = Recovered(contents, applier, replica, writer, manifest, ready, self.notes, redone)
        recovered.checked = self._checked and meta.count <= POINTS_CHECKED_MAX
        recovered.replayed = _replay(recovered, found)
        return recovered

    def _check_log(self, found: FoundLog, checkpoint: int, applied: int) -> None:
        for gap in found.gaps:
            if gap.last_seq > checkpoint:
                raise Damaged(f"{gap}; the checkpoint has entries up to {checkpoint} only")
            self.notes.append(f"{gap}; the checkpoint has them")
        if found.base.seq > applied:
            raise Damaged(
                f"{self._folder / 'log'}: begins at {found.base.seq + 1}, needed from {applied + 1}"
            )
        if found.last.seq < applied and checkpoint < applied:
            where = found.newest or self._folder / "log"
            raise Damaged(
                f"{where}: entries from {found.last.seq + 1} at offset {found.end} are missing or damaged; "
                f"entries up to {applied} were applied, the checkpoint has those up to {checkpoint}"
            )

    def _open_log(self, owner: LogOwner, found: FoundLog, applied: int) -> LogWriter:
        """Ready to append behind what is valid and known to be on disk."""
        writer = LogWriter(self._folder / "log", owner, self._files)
        if found.torn_bytes:
            self.notes.append(f"{found.newest}: cut at offset {found.end}, behind it a torn append")
        last = max(found.last, Position(found.last.term, applied))
        # A file with a bad header, or that ends before what is applied, is left for the next cut.
        if found.newest is None or found.newest_is_headless or found.last.seq < applied:
            writer.begin_file(last)
            return writer
        if found.last.seq > applied or found.torn_bytes:
            # Only a durable copy counts: after a failed fsync the cache may show what the disk lacks.
            keep_valid_part(found, self._files)
        writer.continue_file(found.newest, found.end, last)
        return writer

    def _check_checksums(self, manifest: Manifest, contents: Contents, low: int) -> Manifest:
        """Files whose blocks never change once written. Slots below `low` were there at the checkpoint."""
        files = dict(manifest.files)
        known = files.get(IDS)
        if known is not None:
            contents.ids.reserve(known.bytes)
            first = manifest.slot_low * KEY_BYTES // BLOCK_BYTES  # what is below may be a hole
            for block in damaged_blocks(contents.ids.bytes().data, known, first=first):
                self.notes.append(f"{contents.ids.path}: block {block} is damaged, made anew from points.db")
                begin, end = block * BLOCK_BYTES // KEY_BYTES, (block + 1) * BLOCK_BYTES // KEY_BYTES + 1
                _write_ids(contents, begin, min(end, low))
                files.pop(IDS, None)  # ids of dead slots are gone, so the block has another checksum now
        for vector in contents.vectors.values():
            known = files.get(crcs_name(vector.v))
            if known is not None:
                self._check_crcs(vector, known, manifest.slot_low * 4 // BLOCK_BYTES)
        return msgspec.structs.replace(manifest, files=files)

    def _check_crcs(self, vector: VectorFile, known: FileBlocks, first: int) -> None:
        """Make a damaged block of row checksums anew from the rows, if that gives its own checksum."""
        vector.crcs_file.reserve(known.bytes)
        for block in damaged_blocks(vector.crcs_file.bytes().data, known, first=first):
            begin, end = block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, known.bytes)
            vector.reserve(end // 4)
            made = vector.crcs_from_rows(begin // 4, end // 4).tobytes()
            if zlib.crc32(made) != known.crcs[block]:
                raise Damaged(
                    f"{vector.crcs_file.path}: block {block} at offset {begin}, or its rows, are damaged"
                )
            vector.crcs_file.write(begin, made)
            self.notes.append(f"{vector.crcs_file.path}: block {block} was damaged, made anew from the rows")

    def _check_rows(self, found: FoundLog, contents: Contents, slot_low: int) -> None:
        """Every live row against its checksum, unless there are so many that the scrubber must do it."""
        live = contents.points.live_slots()
        for vector in contents.vectors.values():
            if len(live) * vector.row_bytes > ROWS_CHECKED_BYTES_MAX:
                self._checked = False
                continue
            bad = damaged_rows(vector, live)
            if len(bad):
                # The log may reach back further than the checkpoint.
                Redo(contents, 0).redo(e for e in found.entries if e.seq <= contents.points.meta.applied)
                _derive(contents, contents.points.meta.slot_high, slot_low)
                left = damaged_rows(vector, live)
                if len(left):
                    raise Damaged(
                        f"{vector.rows_file.path}: {len(left)} rows are damaged, first slot {left[0]}"
                    )
                self.notes.append(
                    f"{vector.rows_file.path}: {len(bad)} rows were damaged, made anew from the log"
                )

    def _checked_manifest(self, manifest: Manifest, contents: Contents) -> Manifest:
        """Without segments that are damaged, missing, or over slots that points.db never got."""
        high = contents.points.meta.slot_high
        vectors = {}
        for v, state in manifest.vectors.items():
            good = tuple(s for s in state.segments if s.high <= high and self._is_whole(s))
            # A delta goes on where the base ends.
            if len(good) < len(state.segments) and (not good or good[0].kind != "base"):
                good = ()
            if (
                good
                and state.mean is not None
                and not self._is_fine(damage_of_mean(self._folder, state.mean))
            ):
                good = ()
            vectors[v] = msgspec.structs.replace(state, segments=good, mean=state.mean if good else None)
        return msgspec.structs.replace(manifest, vectors=vectors)

    def _is_whole(self, segment: Segment) -> bool:
        return self._is_fine(damage_of(self._folder, segment))

    def _is_fine(self, damage: str | None) -> bool:
        if damage is not None:
            self.notes.append(f"{damage}; dropped, to be built again")
        return damage is None


def crcs_name(v: int) -> str:
    """How the manifest names the file of row checksums."""
    return f"vectors/{v}.crc"


def damaged_rows(vector: VectorFile, slots: I64) -> I64:
    """Those of the slots whose row does not match its checksum; a slice at a time, to be light on memory."""
    slices = [vector.damaged(slots[at : at + _ROWS]) for at in range(0, len(slots), _ROWS)]
    return np.concatenate(slices) if slices else slots[:0]


def _derive(contents: Contents, low: int, slot_low: int) -> None:
    """What follows from points.db and the rows: ids from slot `low` on, live bits, has bits."""
    high = contents.points.meta.slot_high
    _write_ids(contents, low, high)
    contents.live.replace(contents.points.live_slots(), high)
    for vector in contents.vectors.values():
        vector.rebuild_has(slot_low, high)


def _write_ids(contents: Contents, low: int, high: int) -> None:
    contents.ids.reserve(high * KEY_BYTES)
    keys = contents.ids.array(np.uint8, KEY_BYTES)
    contents.ids.dirty = True
    for at in range(low, high, _ROWS):
        rows = contents.points.keys_between(at, min(at + _ROWS, high))
        if rows:
            joined = np.frombuffer(b"".join([key for _, key in rows]), np.uint8)
            keys[[slot for slot, _ in rows]] = joined.reshape(-1, KEY_BYTES)


def _dead_slots(contents: Contents) -> list[DeadSlot]:
    """Rows of slots that are live no more. No search of an earlier process can still look for them."""
    dead = np.setdiff1d(contents.points.row_slots(), contents.points.live_slots(), assume_unique=True)
    return [DeadSlot(int(slot), 0, 0.0) for slot in dead]


def _replica(
    identity: Identity, group: Group, found: FoundLog, applied: int, remembered: list[Remembered]
) -> Replica:
    entries = found.entries
    base = found.base
    if not group.members and (found.gaps or found.last.seq < applied):
        raise Damaged(
            f"the log of replica {group.me.incarnation} on {group.me.node} has lost entries that others "
            "may count on; it must be made anew from them"
        )
    if found.gaps or found.last.seq < applied:  # only what follows the contents is a run without holes
        entries = [entry for entry in entries if entry.seq > applied]
        base = Position(entries[0].term if entries else found.last.term, applied)
    log = Log(base)
    for entry in entries:
        log.append(entry.position, len(entry.op))
    recent = RecentRequests()
    for request in remembered:
        recent.remember(request)
    times = [entry.time_us for entry in found.entries[-1:]] + [r.time_us for r in remembered[-1:]]
    replica = Replica(
        identity,
        log,
        me=group.me,
        members=group.members,
        run=secrets.randbits(63),
        applied=applied,
        time_us=max(times, default=0),
        recent=recent,
    )
    replica.remember(entry for entry in entries if entry.seq > applied)
    return replica


def _replay(recovered: Recovered, found: FoundLog) -> int:
    """Commit and apply what the log has beyond the contents, as at any other time.

    One of several members does so when it hears what is committed.
    """
    replica = recovered.replica
    first = replica.applied_seq
    pending = [entry for entry in found.entries if entry.seq > first]
    for effect in replica.persisted(replica.log.last.seq):
        if isinstance(effect, Apply):
            for at in range(0, len(pending), _BATCH_ENTRIES):
                batch = [committed(entry, decode_op(entry.op)) for entry in pending[at : at + _BATCH_ENTRIES]]
                replica.applied(recovered.applier.apply(batch), batch[-1].seq)
    return replica.applied_seq - first
