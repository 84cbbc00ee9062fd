"""A shard's files into a snapshot while it is written to, and back out of one into a new folder, all checked.

What is copied is points.db as of one transaction and the rows of its slots: rows are written before the
transaction that names them and never change, so they fit together. Live bits, ids and columns are derived
from them when the new shard is opened; so is the log, which begins behind the last applied entry.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from agent.graphs import file_hash
from agent.points_reader import ROW_COLUMNS, Row, connect_readonly, meta, row_crc
from agent.store.archive import ArchiveReader, ArchiveWriter, SavedShard
from agent.store.files import Files
from agent.store.identity import write_identity
from agent.store.log import LogOwner, LogWriter
from agent.store.manifest import NAME, Manifest, VectorParams, VectorState, write_manifest
from agent.store.points import NAME as POINTS_NAME
from agent.store.points import SCHEMA, PointsDb
from agent.store.vectors import ABSENT
from agent.store.vectors import row_crc as vector_crc
from core.errors import BadRequest, Damaged
from core.hashing import KEY_BYTES, shard_of
from core.replication.log import Position
from core.replication.replica import Identity

F32 = npt.NDArray[np.float32]
U32 = npt.NDArray[np.uint32]
_ROWS = 4096
_SLOT_MAX = 1 << 48


# -- into a snapshot


def save_shard(
    writer: ArchiveWriter, folder: Path, manifest: Manifest, *, prefix: str, scratch: Path
) -> SavedShard:
    """Copies a shard whose rows nobody lets go meanwhile (`Shard.frozen`). Raises Damaged, OSError."""
    with closing(connect_readonly(folder / POINTS_NAME)) as source, closing(sqlite3.connect(scratch)) as copy:
        # All pages in one step: with fewer each write begins the copy anew.
        source.backup(copy, pages=-1)
        copy.execute("PRAGMA journal_mode = DELETE")
        stored = meta(copy)
    slot_high = stored.get("slot_high", 0)
    writer.add(f"{prefix}/{POINTS_NAME}", _chunks(scratch, 0, scratch.stat().st_size))
    scratch.unlink()
    vectors: dict[int, VectorState] = {}
    for v, state in manifest.vectors.items():
        rows, crcs = folder / "vectors" / f"{v}.f32", folder / "vectors" / f"{v}.crc"
        low, row_bytes = manifest.slot_low, state.dim * 4
        _check_saved_rows(rows, crcs, low, slot_high, state.dim)
        writer.add(f"{prefix}/vectors/{v}.f32", _chunks(rows, low * row_bytes, slot_high * row_bytes))
        writer.add(f"{prefix}/vectors/{v}.crc", _chunks(crcs, low * 4, slot_high * 4))
        for file in _graph_files(state):
            path = folder / "segments" / file
            writer.add(f"{prefix}/segments/{file}", _chunks(path, 0, path.stat().st_size))
        vectors[int(v)] = state
    return SavedShard(
        number=manifest.shard,
        applied=stored.get("applied", 0),
        slot_low=min(manifest.slot_low, slot_high),
        slot_high=slot_high,
        points=stored.get("count", 0),
        vectors=vectors,
    )


def _graph_files(state: VectorState) -> list[str]:
    named = [segment.file for segment in state.segments] + ([state.mean] if state.mean else [])
    return [Path(file).name for file in named]


def _chunks(path: Path, begin: int, end: int) -> Iterator[bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while begin < end:
            chunk = os.pread(fd, min(end - begin, 4 << 20), begin)
            if not chunk:
                raise Damaged(f"{path}: ends at {begin}, expected {end} bytes")
            yield chunk
            begin += len(chunk)
    finally:
        os.close(fd)


def _check_saved_rows(rows: Path, crcs: Path, low: int, high: int, dim: int) -> None:
    """A copy must not carry damage on: every row against its checksum."""
    bad = _bad_rows(rows, crcs, low, high, dim, first_slot=0)
    if bad:
        raise Damaged(f"{rows}: the row of slot {bad[0]} does not match its checksum; no snapshot was made")


def _bad_rows(rows: Path, crcs: Path, low: int, high: int, dim: int, *, first_slot: int) -> list[int]:
    """Slots in low..high-1 whose row differs from its checksum. The files' first item is `first_slot`'s."""
    if low >= high:
        return []
    bad: list[int] = []
    with rows.open("rb") as row_file, crcs.open("rb") as crc_file:
        row_file.seek((low - first_slot) * dim * 4)
        crc_file.seek((low - first_slot) * 4)
        for begin in range(low, high, _ROWS):
            count = min(_ROWS, high - begin)
            data = memoryview(row_file.read(count * dim * 4))
            stored: U32 = np.frombuffer(crc_file.read(count * 4), "<u4")
            values: F32 = np.frombuffer(data, "<f4").reshape(-1, dim)
            finite: npt.NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(values), axis=1)
            for i in np.flatnonzero(stored != ABSENT).tolist():
                row = data[i * dim * 4 : (i + 1) * dim * 4]
                if not finite[i] or vector_crc(row, begin + i) != stored[i]:
                    bad.append(begin + i)
    return bad


# -- out of a snapshot


@dataclass(frozen=True, slots=True)
class Target:
    """The shard to make. `vectors`: number in the snapshot → number and parameters here."""

    folder: Path
    collection: int
    shard: int
    shard_count: int
    identity: Identity
    schema: int
    vectors: Mapping[int, tuple[int, VectorParams]]
    term: int | None = None
    """Of the last applied entry, where others have the log that goes on from it; else the promised one."""
    copy: int = 0
    """Makes the contents others than those that this replica has had before."""


def build_shard(
    reader: ArchiveReader, saved: SavedShard, target: Target, *, prefix: str, with_graphs: bool, files: Files
) -> None:
    """Makes the folder, durable when this returns. Raises BadRequest for a snapshot that is not whole.

    `with_graphs`: take the graphs over; only from a file that this node wrote, because a graph that was
    tampered with is not found out when it is opened. Else the builder makes them anew.
    """
    if not 0 <= saved.slot_low <= saved.slot_high < _SLOT_MAX or saved.applied < 0:
        raise _bad(f"shard {saved.number} has slots {saved.slot_low}..{saved.slot_high}")
    folder = target.folder
    folder.mkdir(parents=True)
    for name in ("log", "columns", "vectors", "segments"):
        (folder / name).mkdir()
    reader.copy(f"{prefix}/{POINTS_NAME}", folder / POINTS_NAME)
    _check_points(folder / POINTS_NAME, saved, target, files)
    # Room begins at the first row: what lies below stays a hole.
    with (folder / "columns" / "ids.bin").open("wb") as ids:
        ids.truncate(saved.slot_low * KEY_BYTES)
    states = {
        str(v): _build_vector(reader, saved, old, v, params, folder, prefix, with_graphs=with_graphs)
        for old, (v, params) in target.vectors.items()
    }
    owner = LogOwner(target.collection, target.shard, target.identity.incarnation, target.identity.history)
    log = LogWriter(folder / "log", owner, files)
    term = target.identity.promised if target.term is None else target.term
    log.begin_file(Position(term, saved.applied))
    log.close()
    write_identity(folder / "log", target.identity, files)
    manifest = Manifest(
        number=1,
        collection=target.collection,
        shard=target.shard,
        incarnation=target.identity.incarnation,
        history=target.identity.history,
        copy=target.copy,
        checkpoint=saved.applied,
        slot_low=saved.slot_low,
        slot_high=0,  # nothing derived is there yet: it is made when the shard is opened
        schema=target.schema,
        vectors=states,
    )
    for name in ("vectors", "segments", "columns"):
        files.sync_folder(folder / name)
    write_manifest(folder / NAME, manifest, files)
    files.sync_folder(folder.parent)


def _build_vector(
    reader: ArchiveReader,
    saved: SavedShard,
    old: int,
    v: int,
    params: VectorParams,
    folder: Path,
    prefix: str,
    *,
    with_graphs: bool,
) -> VectorState:
    rows, crcs = folder / "vectors" / f"{v}.f32", folder / "vectors" / f"{v}.crc"
    count, row_bytes = saved.slot_high - saved.slot_low, params.dim * 4
    for path, item_bytes in ((rows, row_bytes), (crcs, 4)):
        name = f"{prefix}/vectors/{old}.{path.suffix[1:]}"
        if reader.entry(name).size_bytes != count * item_bytes:
            raise _bad(f"its file {name} has not {count} items of {item_bytes} bytes")
        reader.copy(name, path, at=saved.slot_low * item_bytes)
    bad = _bad_rows(rows, crcs, saved.slot_low, saved.slot_high, params.dim, first_slot=0)
    if bad:
        raise _bad(f"the row of slot {bad[0]} of vector {old} is not finite or does not match its checksum")
    state = saved.vectors.get(old)
    given = msgspec.structs.asdict(params)
    if not with_graphs or state is None or any(getattr(state, name) != given[name] for name in given):
        return VectorState(**given)
    return _take_graphs(reader, state, v, folder, prefix, given)


def _take_graphs(
    reader: ArchiveReader,
    state: VectorState,
    v: int,
    folder: Path,
    prefix: str,
    given: Mapping[str, object],
) -> VectorState:
    """The graphs under this vector's number: files are named `<v>.<hash>.<kind>`."""

    def copied(file: str) -> str:
        _, _, rest = Path(file).name.partition(".")
        name = f"{v}.{rest}"
        reader.copy(f"{prefix}/segments/{Path(file).name}", folder / "segments" / name)
        return str(Path(file).parent / name)

    segments = []
    for segment in state.segments:
        renamed = msgspec.structs.replace(segment, file=copied(segment.file))
        if file_hash(folder / "segments" / Path(renamed.file).name) != segment.hash:
            raise _bad(f"its graph {segment.file} does not match its hash")
        segments.append(renamed)
    mean = copied(state.mean) if state.mean else None
    return VectorState(**given, mean=mean, segments=tuple(segments))  # type: ignore[arg-type]


def _check_points(path: Path, saved: SavedShard, target: Target, files: Files) -> None:
    """Every row and id: a database from elsewhere may hold anything, and still be a database."""
    try:
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA trusted_schema = OFF")
            if _schema_of(db) != _expected_schema():
                raise _bad(f"points.db of shard {saved.number} has other tables than Shoal makes")
            stored = meta(db)
            if stored.get("applied", 0) != saved.applied or stored.get("slot_high", 0) != saved.slot_high:
                raise _bad(f"points.db of shard {saved.number} is not of entry {saved.applied}")
            for raw in db.execute(f"SELECT {ROW_COLUMNS} FROM rows"):
                _check_row(Row._make(raw), saved)
            for (key,) in db.execute("SELECT id FROM ids"):
                if len(key) != KEY_BYTES or shard_of(key, target.shard_count) != target.shard:
                    raise _bad(f"points.db of shard {saved.number} has an id of another shard")
        points = PointsDb(path, files)
        try:
            points.check()
            points.checkpoint()
        finally:
            points.close()
    except (sqlite3.DatabaseError, Damaged, TypeError, ValueError) as e:
        raise _bad(f"points.db of shard {saved.number}: {str(e)[:200]}") from None
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        files.sync(fd)
    finally:
        os.close(fd)


def _schema_of(db: sqlite3.Connection) -> set[tuple[str, str, str]]:
    return set(db.execute("SELECT type, name, sql FROM sqlite_master"))


def _expected_schema() -> set[tuple[str, str, str]]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        return _schema_of(db)


def _check_row(row: Row, saved: SavedShard) -> None:
    slot, key, payload = row.slot, row.id, row.payload
    if (
        not saved.slot_low <= slot < saved.slot_high
        or len(key) != KEY_BYTES
        or row.crc != row_crc(slot, key, row.seq, row.born, payload)
        or not 0 <= row.seq <= saved.applied
    ):
        raise _bad(f"points.db of shard {saved.number}: the row of slot {slot} is damaged")
    if payload:
        msgspec.json.decode(payload, type=dict)


def _bad(why: str) -> BadRequest:
    return BadRequest(f"Wrong input: the snapshot cannot be used: {why}")
