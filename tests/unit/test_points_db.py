"""points.db: rows by slot, slots by id, checksums, and what a transaction leaves behind."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.points_reader import (
    connect_readonly,
    count,
    keys_from,
    page_by_id,
    rows_by_slots,
    rows_from,
    slots_by_keys,
)
from agent.store.files import Files
from agent.store.points import NewRow, PointsDb
from core.errors import Damaged, StartRefused
from core.hashing import id_key
from core.replication.recent import Remembered
from core.wire import Outcome

UUID = "ffffffff-0000-0000-0000-000000000001"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[PointsDb]:
    made = PointsDb(tmp_path / "points.db", Files())
    yield made
    made.close()


@pytest.fixture
def reader(db: PointsDb) -> Iterator[sqlite3.Connection]:
    connection = connect_readonly(db.path)
    yield connection
    connection.close()


def put(db: PointsDb, seq: int, *ids: int | str) -> None:
    """Whole points, in a transaction of their own."""
    db.begin()
    keys = [id_key(i) for i in ids]
    old = db.slots_of(keys)
    first = db.take_slots(len(keys))
    db.put([NewRow(first + n, key, seq, seq, b'{"n":%d}' % n) for n, key in enumerate(keys)], old)
    db.commit(seq)


def test_a_reader_sees_what_was_committed(db: PointsDb, reader: sqlite3.Connection) -> None:
    put(db, 1, 5, UUID, 3)
    assert slots_by_keys(reader, [id_key(UUID), id_key(9), id_key(5)]) == {id_key(5): 0, id_key(UUID): 1}
    rows = rows_by_slots(reader, [2, 0, 7])
    assert {slot: (row.id, row.seq, row.born, row.payload) for slot, row in rows.items()} == {
        0: (id_key(5), 1, 1, b'{"n":0}'),
        2: (id_key(3), 1, 1, b'{"n":2}'),
    }
    assert count(reader) == 3


def test_a_replaced_row_stays_under_its_old_slot(db: PointsDb, reader: sqlite3.Connection) -> None:
    put(db, 1, 5)
    put(db, 2, 5)
    assert slots_by_keys(reader, [id_key(5)]) == {id_key(5): 1}
    assert set(rows_by_slots(reader, [0, 1])) == {0, 1}
    assert count(reader) == 1
    db.begin()
    db.purge([0])
    db.commit(2)
    assert set(rows_by_slots(reader, [0, 1])) == {1}


def test_pages_go_by_id_numbers_before_uuids(db: PointsDb, reader: sqlite3.Connection) -> None:
    put(db, 1, UUID, 300, 2, 10)
    assert [row.id for row in page_by_id(reader, b"", 3)] == [id_key(2), id_key(10), id_key(300)]
    assert keys_from(reader, id_key(300), 9) == [(id_key(300), 1), (id_key(UUID), 0)]
    assert [row.slot for row in rows_from(reader, 1, 9, 2)] == [1, 2]


def test_more_keys_than_one_statement_binds_are_found(db: PointsDb, reader: sqlite3.Connection) -> None:
    put(db, 1, *range(1000))
    assert len(slots_by_keys(reader, [id_key(i) for i in range(1100)])) == 1000
    assert len(rows_by_slots(reader, range(1100))) == 1000


def test_a_rolled_back_batch_leaves_nothing(db: PointsDb, reader: sqlite3.Connection) -> None:
    put(db, 1, 5)
    before = db.meta.digest
    db.begin()
    db.put([NewRow(db.take_slots(1), id_key(6), 2, 2, b"")], {})
    db.rollback()
    assert (db.meta.slot_high, db.meta.count, db.meta.digest) == (1, 1, before)
    assert slots_by_keys(reader, [id_key(6)]) == {}


def test_slots_are_not_given_out_again_though_their_rows_are_gone(db: PointsDb, tmp_path: Path) -> None:
    put(db, 1, 5, 6)
    db.begin()
    db.delete(db.slots_of([id_key(5), id_key(6)]))
    db.purge([0, 1])
    db.commit(2)
    again = PointsDb(tmp_path / "points.db", Files())
    assert (again.meta.slot_high, again.meta.applied, again.meta.count, again.meta.digest) == (2, 2, 0, 0)
    again.close()


def test_a_reader_cannot_write(reader: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM rows")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("UPDATE rows SET payload = CAST('{\"n\":9}' AS BLOB) WHERE slot = 1", "slot 1"),
        ("UPDATE rows SET seq = 9 WHERE slot = 1", "slot 1"),
        ("UPDATE rows SET born = 9 WHERE slot = 1", "slot 1"),
        ("UPDATE rows SET slot = 9 WHERE slot = 1", "slot 9"),
        ("UPDATE rows SET id = 'text' WHERE slot = 1", "slot 1"),
    ],
)
def test_a_changed_row_is_never_answered(
    db: PointsDb, reader: sqlite3.Connection, change: str, what: str
) -> None:
    put(db, 1, 5, 6)
    db.db.execute(change)
    with pytest.raises(Damaged, match=what):
        rows_by_slots(reader, [1, 9])


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM rows WHERE slot = 1",
        "DELETE FROM ids WHERE slot = 1",
        "UPDATE ids SET slot = 0 WHERE slot = 1",
        "UPDATE ids SET id = 'x' WHERE slot = 1",
    ],
)
def test_lost_and_changed_points_are_found_by_count_and_digest(db: PointsDb, change: str) -> None:
    put(db, 1, 5, 6)
    db.check()
    db.db.execute(change)
    with pytest.raises(Damaged, match=r"points\.db"):
        db.check()


@pytest.mark.parametrize("key", ["applied", "slot_high", "count", "digest"])
def test_changed_meta_is_refused_at_the_next_start(db: PointsDb, key: str) -> None:
    put(db, 1, 5, 6)
    db.db.execute("UPDATE meta SET value = value + 1 WHERE key = ?", (key,))
    with pytest.raises(Damaged, match="meta"):
        PointsDb(db.path, Files())


def test_answers_are_remembered_until_they_are_forgotten(db: PointsDb) -> None:
    requests = [Remembered(b"r" * 16, n, b"h" * 16, seq, seq * 10, Outcome(n)) for n, seq in ((0, 3), (1, 7))]
    db.begin()
    db.remember(requests)
    db.commit(7)
    assert db.remembered() == requests
    db.begin()
    db.forget_requests(7)
    db.commit(7)
    assert db.remembered() == requests[1:]


def test_a_changed_answer_is_never_given(db: PointsDb) -> None:
    db.begin()
    db.remember([Remembered(b"r" * 16, 0, b"h" * 16, 3, 30, Outcome(1))])
    db.commit(3)
    db.db.execute("UPDATE recent SET number = 1")
    with pytest.raises(Damaged, match="entry 3"):
        db.remembered()


def test_the_digest_does_not_depend_on_the_way(tmp_path: Path) -> None:
    digests: list[int] = []
    orders: list[list[int | str]] = [[1, 2, UUID], [UUID, 2, 1]]
    for n, order in enumerate(orders):
        (tmp_path / str(n)).mkdir()
        db = PointsDb(tmp_path / str(n) / "points.db", Files())
        db.begin()
        slots: dict[int | str, int] = {1: 0, 2: 1, UUID: 2}
        for i in order:
            db.put([NewRow(slots[i], id_key(i), 1, 1, b"")], {})
        db.put([NewRow(9, id_key(9), 1, 1, b"")], {})
        db.delete({id_key(9): 9})
        db.commit(1)
        digests.append(db.meta.digest)
        db.close()
    assert digests[0] == digests[1] != 0


def test_a_damaged_row_is_named_with_its_point_and_what_to_do(tmp_path: Path) -> None:
    points = PointsDb(tmp_path / "points.db", Files())
    points.begin()
    points.put([NewRow(points.take_slots(1), id_key(77), 1, 1, b'{"a":1}')], {})
    points.commit(1)
    points.db.execute("UPDATE rows SET payload = ?", (b'{"a":2}',))
    with pytest.raises(Damaged, match=r"slot 0 \(point 77\) does not match.*write the point anew"):
        points.rows([0])
    points.close()


def test_a_folder_in_place_of_the_database_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "points.db").mkdir()
    with pytest.raises(StartRefused, match=r"points\.db is not a file: move it away"):
        PointsDb(tmp_path / "points.db", Files())
