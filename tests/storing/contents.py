"""What a shard holds, read as a front would and checked in every file; and what it should hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agent.mapped import MappedFile
from agent.page import ShardRecord
from agent.points_reader import connect_readonly, keys_from, meta, rows_by_slots
from agent.store.apply import split_keys
from agent.store.manifest import NAME, ShardSchema, VectorParams, read_manifest
from agent.store.vectors import row_crc
from core.api.config import Distance
from core.hashing import KEY_BYTES, id_key, point_id
from core.wire import (
    ClearPayload,
    Delete,
    DeletePayload,
    DeleteVectors,
    Nothing,
    Op,
    OverwritePayload,
    Rows,
    SetPayload,
    UpdateVectors,
    Upsert,
)

DIM, OTHER_DIM = 4, 3
SCHEMA = ShardSchema(
    version=1,
    vectors={
        1: VectorParams(dim=DIM, distance=Distance.COSINE, graph="i8"),
        2: VectorParams(dim=OTHER_DIM, distance=Distance.EUCLID, graph="none"),
    },
    names={"": 1, "other": 2},
)


@dataclass(frozen=True)
class Point:
    payload: dict[str, Any]
    vectors: dict[int, tuple[float, ...]]


Points = dict[int | str, Point]


def read_points(folder: Path, record: ShardRecord) -> Points:
    """All live points. Asserts that ids, rows, live bits, vectors, checksums and counts agree."""
    manifest = read_manifest(folder / NAME)
    db = connect_readonly(folder / "points.db")
    try:
        pairs = keys_from(db, b"", 1 << 40)
        rows = rows_by_slots(db, [slot for _, slot in pairs])
        stored = meta(db)
    finally:
        db.close()
    high = record.slot_high
    assert stored.get("slot_high", 0) == high
    assert stored.get("applied", 0) == record.applied
    assert stored.get("count", 0) == record.points == len(pairs)
    live = np.unpackbits(
        MappedFile(folder / "columns" / "live.bin").bits(high), count=high, bitorder="little"
    )
    assert np.flatnonzero(live).tolist() == sorted(slot for _, slot in pairs), (
        "live bits are not those of the ids"
    )
    ids = MappedFile(folder / "columns" / "ids.bin").array(np.uint8, high, KEY_BYTES)
    points: Points = {}
    for key, slot in pairs:
        row = rows[slot]
        assert row.id == key == ids[slot].tobytes()
        assert slot >= record.slot_low
        vectors = _vectors(folder, slot, manifest.vectors)
        points[point_id(key)] = Point(json.loads(row.payload or b"{}"), vectors)
    return points


def _vectors(folder: Path, slot: int, known: Iterable[str]) -> dict[int, tuple[float, ...]]:
    vectors = {}
    for name in known:
        v = int(name)
        bits = MappedFile(folder / "columns" / f"has.{v}.bin").bits(slot + 1)
        crc = int(MappedFile(folder / "vectors" / f"{v}.crc").array("<u4", slot + 1)[slot])
        has = bool(bits[slot >> 3] >> (slot & 7) & 1)
        assert has == (crc != 0), f"slot {slot}: has.{v} says {has}, its checksum is {crc}"
        if has:
            row = MappedFile(folder / "vectors" / f"{v}.f32").array("<f4", slot + 1, SCHEMA.vectors[v].dim)[
                slot
            ]
            assert row_crc(row.tobytes(), slot) == crc
            vectors[v] = tuple(row.tolist())
    return vectors


def keys(ids: Iterable[int | str]) -> bytes:
    return b"".join(id_key(i) for i in ids)


def rows(v: int, values: Sequence[Sequence[float] | None]) -> Rows:
    data = b"".join(np.array(value, "<f4").tobytes() for value in values if value is not None)
    has = None if None not in values else bytes(value is not None for value in values)
    return Rows(v, SCHEMA.vectors[v].dim, data, has)


def upsert(ids: Sequence[int | str], tag: int, *, other: bool = False) -> Upsert:
    """Whole points whose contents say which write made them."""
    parts = [rows(1, [vector(i, tag) for i in ids])]
    if other:
        parts.append(rows(2, [(float(tag), 1.0, 2.0) if n % 2 else None for n, _ in enumerate(ids)]))
    payloads = tuple(json.dumps({"tag": tag, "id": str(i)}).encode() for i in ids)
    return Upsert(keys(ids), tuple(parts), payloads)


def vector(id_: int | str, tag: int) -> tuple[float, ...]:
    return (float(tag), float(len(str(id_))), 0.5, -1.0)


@dataclass
class Model:
    """What a shard must hold after operations without filters or modes."""

    points: Points = field(default_factory=dict)

    def apply(self, op: Op) -> None:
        ids = [point_id(key) for key in split_keys(b"" if isinstance(op, Nothing) else op.ids)]
        match op:
            case Upsert():
                fresh = _given(ids, op.rows)
                for i, payload in zip(ids, op.payloads):
                    self.points[i] = Point(json.loads(payload or b"{}"), fresh[i])
            case Delete():
                for i in ids:
                    self.points.pop(i, None)
            case SetPayload():
                self._edit(ids, lambda old: {**old, **json.loads(op.payload)})
            case OverwritePayload():
                self._edit(ids, lambda _: json.loads(op.payload))
            case DeletePayload():
                self._edit(ids, lambda old: {k: v for k, v in old.items() if k not in op.paths})
            case ClearPayload():
                self._edit(ids, lambda _: {})
            case UpdateVectors():
                given = _given(ids, op.rows)
                for i in ids:
                    if i in self.points:
                        self._vectors(i, {**self.points[i].vectors, **given[i]})
            case DeleteVectors():
                for i in ids:
                    if i in self.points:
                        left = {v: x for v, x in self.points[i].vectors.items() if v not in op.vs}
                        self._vectors(i, left)

    def _edit(self, ids: list[int | str], edit: Any) -> None:
        for i in ids:
            if i in self.points:
                self.points[i] = Point(edit(self.points[i].payload), self.points[i].vectors)

    def _vectors(self, i: int | str, vectors: dict[int, tuple[float, ...]]) -> None:
        self.points[i] = Point(self.points[i].payload, vectors)


def _given(ids: list[int | str], parts: tuple[Rows, ...]) -> dict[int | str, dict[int, tuple[float, ...]]]:
    given: dict[int | str, dict[int, tuple[float, ...]]] = {i: {} for i in ids}
    for part in parts:
        matrix = iter(np.frombuffer(part.data, "<f4").reshape(-1, part.dim).tolist())
        for n, i in enumerate(ids):
            if part.has is None or part.has[n]:
                given[i][part.v] = tuple(next(matrix))
    return given
