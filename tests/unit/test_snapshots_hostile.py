"""Snapshots that were damaged, or made with other intentions: refused in words, nothing changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.points_reader import row_crc
from agent.store.archive import _HEAD, _TRAILER, FORMAT, MAGIC, ArchiveReader, Table
from agent.store.snapshot_folder import Scope
from agent.store.snapshots import SNAPSHOTS, UPLOADS
from core.api.config import CollectionParams, Distance, Hnsw, VectorParams
from core.errors import BadRequest, ShoalError
from core.hashing import id_key
from tests.unit.store_node import StoreNode, expected, store_node

PARAMS = CollectionParams(vectors={"": VectorParams(4, Distance.DOT)}, unnamed=True, shard_number=2)
FILE = f"{'a' * 32}.part"
COPY = Scope("copy")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[StoreNode]:
    async with store_node(tmp_path) as node:
        await node.catalogue.create_collection("docs", PARAMS, who="")
        await node.upsert("docs", list(range(20)))
        yield node


async def snapshot(node: StoreNode) -> bytes:
    made = await node.snapshots.make(Scope("docs"))
    return (node.data / SNAPSHOTS / made.name).read_bytes()


async def refused(node: StoreNode, content: bytes, scope: Scope = COPY) -> str:
    """Uploads it: the text with which it is refused, after a look that nothing was changed by it."""
    path = node.data / UPLOADS / FILE
    path.write_bytes(content)
    before = (sorted(os.listdir(node.data / "shards")), node.catalogue.map.collections)
    with pytest.raises(ShoalError) as caught:
        await node.snapshots.recover_upload(scope, FILE, checksum=None, who="")
    assert caught.value.status in (400, 422), str(caught.value)
    assert (sorted(os.listdir(node.data / "shards")), node.catalogue.map.collections) == before
    assert not path.exists()
    return str(caught.value)


def parts(content: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A snapshot's table and its files by name."""
    at, length, _, _ = _TRAILER.unpack(content[-_TRAILER.size :])
    table = msgspec.json.decode(content[at : at + length])
    files = {f["name"]: content[f["offset"] : f["offset"] + f["size_bytes"]] for f in table["files"]}
    return table, files


def packed(
    table: dict[str, Any], files: dict[str, bytes], *, change: Callable[[Any], None] | None = None
) -> bytes:
    """A container with right hashes over whatever it holds. `change`: edits the table's files at the end."""
    body, entries = bytearray(_HEAD.pack(MAGIC, FORMAT, 0)), []
    for name, data in files.items():
        digest = hashlib.blake2b(data, digest_size=32).hexdigest()
        entries.append({"name": name, "offset": len(body), "size_bytes": len(data), "hash": digest})
        body += data
    table = {**table, "files": entries}
    if change is not None:
        change(table["files"])
    encoded = msgspec.json.encode(table)
    trailer = _TRAILER.pack(len(body), len(encoded), hashlib.sha256(encoded).digest(), MAGIC)
    return bytes(body) + encoded + trailer


async def test_what_the_tests_repack_is_recovered_if_nothing_is_changed(node: StoreNode) -> None:
    content = packed(*parts(await snapshot(node)))
    (node.data / UPLOADS / FILE).write_bytes(content)
    await node.snapshots.recover_upload(COPY, FILE, checksum=None, who="")
    assert await node.points("copy") == expected(list(range(20)))


async def test_every_flipped_byte_and_every_cut_is_found(node: StoreNode, tmp_path: Path) -> None:
    content = await snapshot(node)
    path = tmp_path / "damaged"
    step = len(content) // 400
    for at in [*range(0, len(content), step), *range(len(content) - 60, len(content))]:
        flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        for damaged in (flipped, content[:at], content + b"x"):
            path.write_bytes(damaged)
            assert not is_whole(path), at
    path.write_bytes(content)
    assert is_whole(path)


def is_whole(path: Path) -> bool:
    try:
        reader = ArchiveReader(path)
    except BadRequest:
        return False
    try:
        for n, entry in enumerate(reader.table.files):
            target = path.with_name(f"copied-{n}")
            try:
                reader.copy(entry.name, target)
            finally:
                target.unlink()
    except BadRequest:
        return False
    finally:
        reader.close()
    return msgspec.json.encode(reader.table) == table_bytes(path)


def table_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    at, length, _, _ = _TRAILER.unpack(content[-_TRAILER.size :])
    return content[at : at + length]


async def test_a_damaged_snapshot_of_our_own_is_refused_by_its_recorded_checksum(node: StoreNode) -> None:
    made = await node.snapshots.make(Scope("docs"))
    path = node.data / SNAPSHOTS / made.name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadRequest, match="checksum mismatch"):
        await node.snapshots.recover(COPY, made.name, checksum=None, who="")


@pytest.mark.parametrize(
    "name",
    [
        "../../evil",
        "/etc/passwd",
        "1-0/../points.db",
        "1-0/log/x",
        "1-0/vectors/1.f32/../../../x",
        "1-0/segments/../x",
        "1-0\\points.db",
        "1-0/points.db\0",
        "1-0/vectors/1.f32\n",
    ],
)
async def test_names_that_are_not_ours_are_refused(node: StoreNode, name: str) -> None:
    table, files = parts(await snapshot(node))
    assert "is not one that Shoal gives" in await refused(node, packed(table, {**files, name: b"x"}))


def _overlap(files: Any) -> None:
    files[1]["offset"] = files[0]["offset"]


def _beyond(files: Any) -> None:
    files[-1]["size_bytes"] = 1 << 60


def _negative(files: Any) -> None:
    files[0]["size_bytes"] = -1


def _twice(files: Any) -> None:
    files[1]["name"] = files[0]["name"]


def _gap(files: Any) -> None:
    del files[1]


@pytest.mark.parametrize("change", [_overlap, _beyond, _negative, _twice, _gap])
async def test_files_that_do_not_fill_the_container_exactly_are_refused(
    node: StoreNode, change: Callable[[Any], None]
) -> None:
    assert "the snapshot cannot be used" in await refused(
        node, packed(*parts(await snapshot(node)), change=change)
    )


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(200), bytes(10_000), MAGIC * 100])
async def test_other_files_are_refused(node: StoreNode, content: bytes) -> None:
    assert "the snapshot cannot be used" in await refused(node, content)


async def test_a_link_is_not_followed(node: StoreNode, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(await snapshot(node))
    (node.data / UPLOADS / FILE).symlink_to(outside)
    with pytest.raises(BadRequest, match="cannot be opened"):
        await node.snapshots.recover_upload(COPY, FILE, checksum=None, who="")
    assert outside.exists()
    (node.data / SNAPSHOTS / "c1-linked.snapshot").symlink_to(outside)
    assert "c1-linked.snapshot" not in {info.name for info in await node.snapshots.list(Scope("docs"))}


def _params(**fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(table: dict[str, Any]) -> None:
        table["collections"][0]["collection"]["params"] |= msgspec.to_builtins(fields)

    return change


def _saved(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda table: table["collections"][0].update(fields)


def _collection(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda table: table["collections"][0]["collection"].update(fields)


def _shard(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda table: table["collections"][0]["shards"][0].update(fields)


@pytest.mark.parametrize(
    "change",
    [
        _params(vectors={"": {"size": 1 << 30, "distance": "Dot"}}),
        _params(vectors={"": {"size": 0, "distance": "Dot"}}),
        _params(vectors={"": {"size": 5, "distance": "Dot"}}),
        _params(vectors={"": {"size": 4, "distance": "Nearest"}}),
        _params(vectors={"a": {"size": 4, "distance": "Dot"}}),
        _params(hnsw_config=Hnsw(m=1 << 20)),
        _params(hnsw_config=Hnsw(graph_dtype="i8")),
        _params(shard_number=1),
        _saved(shard_count=1 << 40),
        _saved(shards=[]),
        _collection(vectors={"": 0}),
        _collection(vectors={"": 1 << 40}, next_vector=1 << 50),
        _collection(indexes={"a": {"number": 1, "schema": {"type": "secret"}}}, next_index=2),
        _collection(indexes={"a[": {"number": 1, "schema": {"type": "keyword"}}}, next_index=2),
        _shard(slot_high=1 << 60),
        _shard(slot_low=-1),
        _shard(slot_low=3),
        _shard(applied=0),
        _shard(number=7),
    ],
)
async def test_tables_that_no_cluster_would_write_are_refused(
    node: StoreNode, change: Callable[[dict[str, Any]], None]
) -> None:
    table, files = parts(await snapshot(node))
    change(table)
    await refused(node, packed(table, files))


def _sql(*statements: str) -> Callable[[sqlite3.Connection], None]:
    def change(db: sqlite3.Connection) -> None:
        for statement in statements:
            db.execute(statement)

    return change


def _another_shards_point(db: sqlite3.Connection) -> None:
    slot, seq, born, payload = db.execute("SELECT slot, seq, born, payload FROM rows LIMIT 1").fetchone()
    for n in range(100, 200):
        key = id_key(n)
        db.execute("UPDATE ids SET id = ? WHERE slot = ?", (key, slot))
        crc = row_crc(slot, key, seq, born, payload)
        db.execute("UPDATE rows SET id = ?, crc = ? WHERE slot = ?", (key, crc, slot))
        slot += 1
        if db.execute("SELECT 1 FROM rows WHERE slot = ?", (slot,)).fetchone() is None:
            break
        seq, born, payload = db.execute(
            "SELECT seq, born, payload FROM rows WHERE slot = ?", (slot,)
        ).fetchone()


def _payload_that_is_no_json(db: sqlite3.Connection) -> None:
    slot, key, seq, born = db.execute("SELECT slot, id, seq, born FROM rows LIMIT 1").fetchone()
    payload = b'{"a":1},"status":"ok"'
    crc = row_crc(slot, key, seq, born, payload)
    db.execute("UPDATE rows SET payload = ?, crc = ? WHERE slot = ?", (payload, crc, slot))


@pytest.mark.parametrize(
    "change",
    [
        _sql("CREATE TRIGGER t AFTER INSERT ON rows BEGIN DELETE FROM ids; END"),
        _sql("CREATE TABLE more (a)"),
        _sql("CREATE VIEW v AS SELECT 1"),
        _sql("DROP TABLE recent"),
        _sql("DELETE FROM rows WHERE slot = (SELECT MIN(slot) FROM rows)"),
        _sql("DELETE FROM ids WHERE slot = (SELECT MIN(slot) FROM ids)"),
        _sql("UPDATE rows SET payload = x'7b7d'"),
        _sql("UPDATE rows SET slot = slot + 1000000"),
        _sql("UPDATE ids SET slot = 'x'"),
        _sql("UPDATE meta SET value = 'x'"),
        _sql("INSERT INTO meta VALUES ('surprise', 1)"),
        _sql("DELETE FROM meta"),
        _another_shards_point,
        _payload_that_is_no_json,
    ],
)
async def test_databases_that_a_store_would_not_write_are_refused(
    node: StoreNode, tmp_path: Path, change: Callable[[sqlite3.Connection], None]
) -> None:
    table, files = parts(await snapshot(node))
    path = tmp_path / "changed.db"
    path.write_bytes(files["1-0/points.db"])
    db = sqlite3.connect(path)
    change(db)
    db.commit()
    db.close()
    await refused(node, packed(table, {**files, "1-0/points.db": path.read_bytes()}))
    await refused(node, packed(table, {**files, "1-0/points.db": b"no database" * 100}))


async def test_rows_that_are_not_finite_or_not_theirs_are_refused(node: StoreNode) -> None:
    table, files = parts(await snapshot(node))
    rows = np.frombuffer(files["1-0/vectors/1.f32"], "<f4").copy()
    rows[0] = np.nan
    crcs = np.frombuffer(files["1-0/vectors/1.crc"], "<u4").copy()
    assert "not finite" in await refused(node, packed(table, {**files, "1-0/vectors/1.f32": rows.tobytes()}))
    crcs[0] = zlib.crc32(rows[:4].tobytes(), 0)
    both = {"1-0/vectors/1.f32": rows.tobytes(), "1-0/vectors/1.crc": crcs.tobytes()}
    assert "not finite" in await refused(node, packed(table, {**files, **both}))
    short = {"1-0/vectors/1.f32": rows[:-4].tobytes()}
    assert "has not" in await refused(node, packed(table, {**files, **short}))
    del files["1-0/vectors/1.f32"]
    assert "is missing" in await refused(node, packed(table, files))


async def test_a_graph_in_an_upload_is_not_believed(node: StoreNode) -> None:
    """usearch opens a corrupt file without a word, so only a file that this node wrote brings its graphs."""
    table, files = parts(await snapshot(node))
    segment = {
        "kind": "base",
        "file": "segments/1.00.usearch",
        "low": 0,
        "high": 1,
        "count": 1,
        "bytes": 1,
        "hash": "00",
    }
    table["collections"][0]["shards"][0]["vectors"]["1"]["segments"] = [segment]
    path = node.data / UPLOADS / FILE
    path.write_bytes(packed(table, {**files, "1-0/segments/1.00.usearch": b"evil"}))
    await node.snapshots.recover_upload(COPY, FILE, checksum=None, who="")
    assert all(v.segments == () for s in node.open.values() for v in s.manifest.vectors.values())
    assert await node.points("copy") == expected(list(range(20)))


async def test_a_table_may_not_be_so_large_that_reading_it_takes_the_memory(
    node: StoreNode, tmp_path: Path
) -> None:
    path = tmp_path / "large"
    head = _HEAD.pack(MAGIC, FORMAT, 0)
    length = 1 << 30
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + length)
        file.seek(0, os.SEEK_END)
        file.write(_TRAILER.pack(len(head), length, bytes(32), MAGIC))
    with pytest.raises(BadRequest, match="table is not where"):
        ArchiveReader(path)


def test_a_table_without_a_collection_is_refused_by_its_type() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"kind":"collection","cluster":"","made_us":1}', type=Table)


async def test_a_copy_never_writes_over_a_file_that_is_there(node: StoreNode, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(await snapshot(node))
    reader = ArchiveReader(path)
    target = tmp_path / "target"
    target.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        reader.copy("1-0/points.db", target)
    reader.close()
    shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    assert not (tmp_path / "elsewhere").exists()
