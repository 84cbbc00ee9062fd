"""Committed operations, put into a shard's files and published: one transaction a batch, in a thread."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agent.columns.reader import ColumnReader
from agent.columns.writer import ColumnWriter, Prepared
from agent.page import ShardFlag
from agent.points_reader import Row, rows_from
from agent.store.contents import Contents
from agent.store.disk_errors import disk_error
from agent.store.manifest import ShardSchema
from agent.store.matching import PointTest, compile_where, parse_where, possible
from agent.store.points import NewRow
from agent.store.publishing import Publisher
from core.errors import NoRoom, TooLarge
from core.hashing import KEY_BYTES
from core.payload import (
    PAYLOAD_BYTES_MAX,
    Path,
    Payload,
    decode_payload,
    delete_keys,
    encode_payload,
    merge,
    parse_path,
    parse_set_path,
    set_payload,
)
from core.replication.log import Entry
from core.replication.recent import Remembered
from core.wire import (
    ClearPayload,
    Delete,
    DeletePayload,
    DeleteVectors,
    Nothing,
    Op,
    Outcome,
    OverwritePayload,
    Rows,
    SetPayload,
    UpdateMode,
    UpdateVectors,
    Upsert,
)

I64 = npt.NDArray[np.int64]
_SCAN_ROWS = 1024
PayloadOp = SetPayload | OverwritePayload | DeletePayload | ClearPayload


class Committed(NamedTuple):
    """An entry to apply. `request` is there if its answer is to be kept."""

    seq: int
    op: Op
    request: Remembered | None = None


def committed(entry: Entry, op: Op) -> Committed:
    """The entry with its operation decoded."""
    if not entry.request_id:
        return Committed(entry.seq, op)
    request = Remembered(entry.request_id, entry.number, entry.body_hash, entry.seq, entry.time_us)
    return Committed(entry.seq, op, request)


class DeadSlot(NamedTuple):
    """A slot whose row still waits for searches that saw it alive."""

    slot: int
    seq: int
    died_s: float


class _Edit(NamedTuple):
    """Payloads edited in place, and what each column is to say of them."""

    slots: I64
    columns: list[tuple[ColumnWriter, Prepared]]


class Applier:
    """The one who changes a shard's contents. `dead` are the slots whose rows a checkpoint will purge."""

    def __init__(self, contents: Contents, publisher: Publisher, schema: ShardSchema) -> None:
        self.contents = contents
        self.points = contents.points
        self.publisher = publisher
        self.schema = schema
        self.dead: list[DeadSlot] = []
        self.died = 0
        """How many slots did since the start."""
        self.damaged: list[str] = []
        """What was found damaged while it was copied."""
        self._new: list[I64] = []
        self._old: list[int] = []
        self._edits: list[_Edit] = []
        self.ready: set[int] = set()
        """The payload indexes that are filled."""
        self._by_number: dict[int, ColumnReader] = {}

    # -- a batch ----------------------------------------------------------------------------------------

    def apply(self, batch: Sequence[Committed]) -> list[Outcome]:
        """Apply entries in order and publish them, all or none.

        Raises NoRoom (try again later), or what the disk says; the contents are then as before.
        """
        outcomes: list[Outcome] = []
        with self._transaction():
            for entry in batch:
                outcomes.append(self._apply_op(entry.seq, entry.op))
            answered = [
                Remembered(r.request_id, r.number, r.body_hash, r.seq, r.time_us, outcome)
                for entry, outcome in zip(batch, outcomes)
                if (r := entry.request) is not None
            ]
            if answered:
                self.points.remember(answered)
            self.points.commit(batch[-1].seq)
        self._publish()
        return outcomes

    def relocate(self, slots: I64) -> int:
        """Give the live ones of these slots new slots, and return how many there were.

        Not a logged operation, yet replay stays right: the copies are on disk before the transaction
        that names them, so either all of the move is found after a crash or nothing of it. A row keeps
        its `seq` and `born`: redoing the entry that made it only writes the same bytes again.
        """
        with self._transaction():
            rows = list(self.points.rows(slots.tolist()).values())
            current = self.points.slots_of([row.id for row in rows])
            rows = sorted(row for row in rows if current.get(row.id) == row.slot)
            if rows:
                first = self._begin_slots(len(rows))
                old = np.array([row.slot for row in rows])
                new = np.arange(first, first + len(rows))
                self._copy_vectors(old, new)
                moved = [NewRow(first + i, r.id, r.seq, r.born, r.payload) for i, r in enumerate(rows)]
                self._put_rows(moved, {row.id: row.slot for row in rows})
                self.contents.sync()
            self.points.commit(self.points.meta.applied)
        self._publish()
        return len(rows)

    def _transaction(self) -> _Transaction:
        return _Transaction(self)

    def begin(self) -> None:
        self._new, self._old, self._edits = [], [], []
        self.points.begin()

    def abandon(self) -> None:
        """Undo what the batch did so far."""
        self.points.rollback()
        self.contents.forget_from(self.points.meta.slot_high)
        for column in self.contents.columns.values():
            column.forget()

    def _publish(self) -> None:
        """In the order that a reader beside us relies on: it copies the live bits first, the record after."""
        meta, live = self.points.meta, self.contents.live
        self._edit_columns()
        self.publisher.update(on=ShardFlag.PUBLISHING, slot_high=meta.slot_high)
        old = np.array(self._old, np.int64)
        new = np.concatenate(self._new) if self._new else old[:0]
        live.set(new[~np.isin(new, old)] if len(old) else new)
        live.clear(old)
        self.publisher.update(off=ShardFlag.PUBLISHING, applied=meta.applied, points=meta.count)
        now_s = time.monotonic()
        self.dead += [DeadSlot(slot, meta.applied, now_s) for slot in self._old]
        self.died += len(self._old)

    def _edit_columns(self) -> None:
        """What searches know of edited payloads, changed in place. Without columns, too, the page counts the
        edits: fronts keep what they found in payloads for as long as nothing is edited."""
        if not self._edits:
            return
        for edit in self._edits:
            for column, _ in edit.columns:
                column.mark(edit.slots)
        self.publisher.begin_edit()
        for edit in self._edits:
            for column, prepared in edit.columns:
                column.edit(prepared)
        self.publisher.end_edit()
        for edit in self._edits:
            for column, _ in edit.columns:
                column.unmark(edit.slots)

    def fill_columns(self, ks: Sequence[int], low: int, high: int) -> None:
        """Put the live points of slots low..high-1 into columns that nobody looks at yet."""
        rows = rows_from(self.points.db, low, high, high - low)
        live = self.contents.live.get(np.array([row.slot for row in rows], np.int64))
        rows = [row for row, lives in zip(rows, live) if lives]
        slots = np.array([row.slot for row in rows], np.int64)
        payloads = [decode_payload(row.payload) for row in rows]
        for k in ks:
            if k in self.contents.columns:
                self.contents.columns[k].put(slots, payloads)

    # -- operations -------------------------------------------------------------------------------------

    def _apply_op(self, seq: int, op: Op) -> Outcome:
        match op:
            case Upsert():
                return self._upsert(seq, op)
            case Delete():
                found, _ = self._points_of(op.ids, op.where)
                self.points.delete(found)
                self._old += found.values()
                return Outcome(touched=len(found))
            case UpdateVectors():
                return self._change_vectors(seq, op.ids, op.where, op.rows, ())
            case DeleteVectors():
                return self._change_vectors(seq, op.ids, op.where, (), op.vs)
            case Nothing():
                return Outcome()
            case _:
                return self._edit_payloads(seq, op)

    def _upsert(self, seq: int, op: Upsert) -> Outcome:
        keys = split_keys(op.ids)
        old = self.points.slots_of(keys)
        chosen = self._chosen(op, keys, old)
        if chosen is None:
            first = self._begin_slots(len(keys))
            for part in op.rows:
                self._put_vectors(first, part)
            payloads: Sequence[bytes] = op.payloads
        else:
            first = self._begin_slots(len(chosen))
            for part in op.rows:
                self._put_chosen(first, part, chosen)
            keys = [keys[i] for i in chosen]
            payloads = [op.payloads[i] for i in chosen]
            old = {key: old[key] for key in keys if key in old}
        rows = [
            NewRow(slot, key, seq, seq, payload)
            for slot, (key, payload) in enumerate(zip(keys, payloads), first)
        ]
        self._put_rows(rows, old)
        return Outcome(touched=len(rows))

    def _chosen(self, op: Upsert, keys: list[bytes], old: dict[bytes, int]) -> list[int] | None:
        """Positions of the points that mode and filter let through; None for all."""
        if op.mode == UpdateMode.UPSERT and op.where is None:
            return None
        allowed = set(old)
        if op.where is not None and old:
            test = self._test(op.where)
            rows = self.points.rows(list(old.values()))
            allowed = {row.id for row in rows.values() if test(row)}
        # A new point passes unless only updates are asked for; an old one if the filter (if any) holds.
        return [
            i
            for i, key in enumerate(keys)
            if (
                op.mode != UpdateMode.INSERT_ONLY and key in allowed
                if key in old
                else op.mode != UpdateMode.UPDATE_ONLY
            )
        ]

    def _change_vectors(
        self, seq: int, ids: bytes, where: bytes | None, rows: Sequence[Rows], removed: Sequence[int]
    ) -> Outcome:
        """New slots with some vectors replaced or removed, the others copied."""
        found, missing = self._points_of(ids, None if rows else where)
        if rows and where is not None:  # here the filter restricts, as in an upsert
            test = self._test(where)
            found = {
                row.id: slot for slot, row in self.points.rows(list(found.values())).items() if test(row)
            }
        if not found:
            return Outcome(missing=missing)
        named = [key for key in split_keys(ids) if key in found]
        keys = list(dict.fromkeys([*named, *found]))
        first = self._begin_slots(len(keys))
        old = np.array([found[key] for key in keys])
        self._copy_vectors(old, np.arange(first, first + len(keys)), without=removed)
        positions = {key: i for i, key in enumerate(split_keys(ids))}
        given = [positions[key] for key in keys if key in positions]
        for part in rows:
            self._put_chosen(first, part, given)
        stored = self.points.rows(old.tolist())
        fresh = [NewRow(first + i, key, seq, seq, stored[found[key]].payload) for i, key in enumerate(keys)]
        self._put_rows(fresh, found)
        return Outcome(touched=len(keys), missing=missing)

    def _edit_payloads(self, seq: int, op: PayloadOp) -> Outcome:
        """Other payloads in the same slots."""
        found, missing = self._points_of(op.ids, op.where)
        edit = payload_edit(op)
        slots = sorted(found.values())
        touched = 0
        too_large: list[bytes] = []
        for at in range(0, len(slots), _SCAN_ROWS):  # of all at once, memory could not hold the payloads
            stored = self.points.rows(slots[at : at + _SCAN_ROWS])
            touched += self._edit_rows(seq, sorted(stored.values()), edit, too_large)
        return Outcome(touched=touched, missing=missing, too_large=min(too_large, default=None))

    def _edit_rows(
        self, seq: int, stored: Sequence[Row], edit: Callable[[bytes], Payload], too_large: list[bytes]
    ) -> int:
        rows, payloads = [], []
        for row in stored:
            try:
                payload = edit(row.payload)
                encoded = encode_payload(payload) if payload else b""
            except TooLarge:
                too_large.append(row.id)
                continue
            if len(encoded) > max(PAYLOAD_BYTES_MAX, len(row.payload)):
                too_large.append(row.id)
                continue
            payloads.append(payload)
            rows.append(NewRow(row.slot, row.id, seq, row.born, encoded))
        self.points.edit(rows)
        if rows:
            slots = np.array([row.slot for row in rows])
            columns = self.contents.columns.values()
            self._edits.append(
                _Edit(slots, [(column, column.prepare(slots, payloads)) for column in columns])
            )
        return len(rows)

    # -- parts of operations ----------------------------------------------------------------------------

    def _points_of(self, ids: bytes, where: bytes | None) -> tuple[dict[bytes, int], bytes | None]:
        """id → slot of the points that are named or match, and the first named one that does not exist."""
        keys = split_keys(ids)
        found = self.points.slots_of(keys)
        missing = next((key for key in keys if key not in found), None)
        if where is not None:
            test = self._test(where)
            found |= {row.id: row.slot for row in self._possible_rows(where) if test(row)}
        return found, missing

    def _possible_rows(self, where: bytes) -> Iterator[Row]:
        """All live rows that can match, as of this moment in the transaction."""
        slots = self._possible_slots(where)
        if slots is None:
            slots = self.points.live_slots()
        for at in range(0, len(slots), _SCAN_ROWS):
            rows = self.points.rows(slots[at : at + _SCAN_ROWS].tolist()).values()
            current = self.points.slots_of([row.id for row in rows])
            yield from (row for row in rows if current.get(row.id) == row.slot)

    def _possible_slots(self, where: bytes) -> I64 | None:
        """The slots that columns and ids do not rule out; None if they rule out nothing."""
        readers, condition = self._readers(), parse_where(where)
        if not readers or condition is None:  # while the shard is opened, there are none
            return None
        low, high = self.publisher.record.slot_low, self.points.meta.slot_high
        bits = possible(condition, readers, self.points.slots_of, low, high)
        if bits is None:
            return None
        bits = bits.copy()
        for edit in self._edits:  # their columns follow when this is committed
            bits[edit.slots - low] = True
        return np.flatnonzero(bits) + low

    def _readers(self) -> dict[Path, ColumnReader]:
        """The columns that are filled, by path."""
        folder, known = self.contents.folder / "columns", self._by_number
        self._by_number = {
            k: known.get(k) or ColumnReader(folder, k, self.schema.columns[k])
            for k in self.ready & self.contents.columns.keys()
        }
        return {parse_path(self.schema.columns[k].path): column for k, column in self._by_number.items()}

    def _test(self, where: bytes) -> PointTest:
        return compile_where(where, self.schema, self.contents.vectors)

    def _begin_slots(self, count: int) -> int:
        first = self.points.take_slots(count)
        self.contents.reserve(first + count)
        self._new.append(np.arange(first, first + count))
        return first

    def _put_vectors(self, first: int, rows: Rows) -> None:
        vector = self.contents.vectors.get(rows.v)
        if vector is None:  # removed from the schema after the operation was logged
            return
        if rows.has is None:
            vector.put(first, rows.data)
        else:
            slots = first + np.flatnonzero(np.frombuffer(rows.has, np.uint8))
            vector.put_scattered(slots, np.frombuffer(rows.data, "<f4").reshape(-1, rows.dim))

    def _put_chosen(self, first: int, rows: Rows, chosen: Sequence[int]) -> None:
        """Write the vectors of the operation's points at these positions to consecutive slots."""
        vector = self.contents.vectors.get(rows.v)
        if vector is not None and chosen:
            slots, matrix = chosen_rows(rows, chosen)
            vector.put_scattered(first + slots, matrix)

    def _copy_vectors(self, old: I64, new: I64, without: Sequence[int] = ()) -> None:
        for v, vector in self.contents.vectors.items():
            if v not in without:
                bad = vector.copy(old, new)
                self.damaged += [f"{vector.rows_file.path}: the row of slot {slot}" for slot in bad]

    def _put_rows(self, rows: Sequence[NewRow], old: dict[bytes, int]) -> None:
        """ids.bin, columns and points.db of new consecutive slots."""
        if not rows:
            return
        first = rows[0].slot
        self.contents.ids.write(first * KEY_BYTES, b"".join([row.id for row in rows]))
        if self.contents.columns:
            slots = np.arange(first, first + len(rows))
            payloads = [decode_payload(row.payload) for row in rows]
            for column in self.contents.columns.values():
                column.put(slots, payloads)
        self.points.put(rows, old)
        self._old += old.values()


class _Transaction:
    """Undoes the batch if its block ends by an error, and says NoRoom where that is the reason."""

    def __init__(self, applier: Applier) -> None:
        self._applier = applier

    def __enter__(self) -> None:
        self._applier.begin()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        self._applier.abandon()
        if isinstance(error, OSError | sqlite3.Error):
            found = disk_error(error, f"the files of {self._applier.contents.folder}")
            if isinstance(found, NoRoom):
                raise found from error


def split_keys(ids: bytes) -> list[bytes]:
    return [ids[at : at + KEY_BYTES] for at in range(0, len(ids), KEY_BYTES)]


def chosen_rows(rows: Rows, chosen: Sequence[int]) -> tuple[I64, npt.NDArray[np.float32]]:
    """Which of the points at `chosen` have the vector (indexes into `chosen`), and their rows."""
    matrix = np.frombuffer(rows.data, "<f4").reshape(-1, rows.dim)
    wanted = np.array(chosen, np.int64)
    if rows.has is None:
        return np.arange(len(wanted)), matrix[wanted]
    has = np.frombuffer(rows.has, np.uint8) != 0
    row_of = np.cumsum(has) - 1
    present = np.flatnonzero(has[wanted])
    return present, matrix[row_of[wanted[present]]]


def payload_edit(op: PayloadOp) -> Callable[[bytes], Payload]:
    """What the operation makes of a stored payload."""
    match op:
        case SetPayload():
            new = decode_payload(op.payload)
            path = None if op.path is None else parse_set_path(op.path, new)
            if path is None:
                return lambda old: merge(decode_payload(old), new)
            return lambda old: set_payload(decode_payload(old), new, path)
        case OverwritePayload():
            fresh = decode_payload(op.payload)
            return lambda _: fresh
        case DeletePayload():
            paths = [parse_path(path) for path in op.paths]
            return lambda old: delete_keys(decode_payload(old), paths)
        case ClearPayload():
            return lambda _: {}
