"""Files that a later version of Shoal wrote are refused in words, never healed, never changed."""

from __future__ import annotations

import sqlite3
import struct
import zlib
from pathlib import Path

import msgspec
import pytest

from agent.store import acceptor_log, node_identity
from agent.store.acceptor import Acceptor
from agent.store.files import Files
from agent.store.identity import _crc, read_identity, write_identity
from agent.store.log import LogOwner, LogWriter, decode_header
from agent.store.log_reading import read_log
from agent.store.manifest import Manifest, encode_manifest, read_manifest
from agent.store.points import PointsDb
from core.errors import Damaged, StartRefused
from core.replication.log import Position
from core.replication.replica import Identity

OWNER = LogOwner(1, 0, 7, 9)
REFUSED = r"has format 2, this version of Shoal reads 1: run the version"


def log_file(folder: Path) -> Path:
    writer = LogWriter(folder, OWNER, Files())
    writer.begin_file(Position(0, 0))
    writer.close()
    return next(folder.glob("*.log"))


def as_format(raw: bytes, version: int) -> bytes:
    """The log file as that version would begin it: the checksum covers the format."""
    marked = raw[:8] + version.to_bytes(4, "little")
    crc = zlib.crc32(raw[16:64], zlib.crc32(marked[8:12]))
    return marked + crc.to_bytes(4, "little") + raw[16:]


def test_a_log_file_of_a_later_format_is_refused(tmp_path: Path) -> None:
    path = log_file(tmp_path)
    path.write_bytes(as_format(path.read_bytes(), 2))
    with pytest.raises(StartRefused, match=REFUSED) as refused:
        read_log(tmp_path, OWNER)
    assert str(path) in str(refused.value)


def test_a_flipped_bit_of_a_log_files_format_is_damage(tmp_path: Path) -> None:
    path = log_file(tmp_path)
    raw = bytearray(path.read_bytes())
    raw[8] ^= 2
    with pytest.raises(Damaged, match="checksum"):
        decode_header(path, bytes(raw))


async def test_a_register_of_a_later_format_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "acceptor"
    await (await Acceptor.open(folder, fresh=True)).close()
    for name in acceptor_log.COPIES:
        raw = bytearray((folder / name).read_bytes())
        raw[8] = 2
        end = struct.calcsize("<9sQQ")
        raw[end : end + 4] = zlib.crc32(raw[:end]).to_bytes(4, "little")
        (folder / name).write_bytes(raw)
    before = [(folder / name).read_bytes() for name in acceptor_log.COPIES]
    with pytest.raises(StartRefused, match=REFUSED):
        await Acceptor.open(folder, fresh=False)
    assert [(folder / name).read_bytes() for name in acceptor_log.COPIES] == before


def in_later_json(path: Path, bare: bytes) -> None:
    """With its checksum, which is the last field in every version."""
    text, mark, _ = bare.rpartition(b'"crc":')
    path.write_bytes(text + mark + b"%d}" % zlib.crc32(text + mark + b"0}"))


def test_a_manifest_of_a_later_format_is_refused_though_its_fields_are_others(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    in_later_json(path, b'{"number":"of another kind","format":2,"crc":0}')
    with pytest.raises(StartRefused, match=REFUSED):
        read_manifest(path)
    known = Manifest(
        number=1, collection=1, shard=0, incarnation=7, history=9, checkpoint=0, slot_low=0, slot_high=0
    )
    path.write_bytes(encode_manifest(known))
    assert read_manifest(path).format == 1


def test_a_node_json_of_a_later_format_is_refused_though_its_fields_are_others(tmp_path: Path) -> None:
    path = tmp_path / node_identity.NODE_JSON
    in_later_json(path, b'{"node":{"id":"n1"},"format":2,"crc":0}')
    with pytest.raises(StartRefused, match=REFUSED):
        node_identity.read_identity(tmp_path, "n1")


def test_a_replicas_identity_of_a_later_format_is_refused(tmp_path: Path) -> None:
    write_identity(tmp_path, Identity(7, 9, promised=1), Files())
    path = tmp_path / "replica.json"
    later = {"format": 2, "crc": _crc(Identity(7, 9, promised=1), 2)}
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | later))
    with pytest.raises(StartRefused, match=REFUSED):
        read_identity(tmp_path)


def test_a_spoilt_format_of_one_copy_is_damage_that_the_other_heals(tmp_path: Path) -> None:
    write_identity(tmp_path, Identity(7, 9, promised=1), Files())
    path = tmp_path / "replica-copy.json"
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":3'))
    identity, wrong = read_identity(tmp_path)
    assert identity == Identity(7, 9, promised=1)
    assert "checksum" in wrong[0]


def test_a_points_db_of_a_later_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "points.db"
    PointsDb(path, Files()).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 2")
    db.execute("DROP TABLE recent")
    db.close()
    with pytest.raises(StartRefused, match=REFUSED):
        PointsDb(path, Files())
    db = sqlite3.connect(path)
    assert ("recent",) not in db.execute("SELECT name FROM sqlite_master").fetchall()
    db.close()
