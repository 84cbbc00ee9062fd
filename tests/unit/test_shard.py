"""A shard takes every operation, answers retries alike, publishes, restarts, and gives space back."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.mapped import MappedFile
from agent.page import FIRST_FRONT, Reads, ShardFlag
from agent.store.manifest import ColumnParams, Segment, ShardSchema, read_manifest
from core.errors import BadRequest, DeadlineExceeded, Overloaded, TooLarge, Unavailable, Unprocessable
from core.hashing import id_key
from core.wire import (
    ClearPayload,
    Delete,
    DeletePayload,
    DeleteVectors,
    Op,
    Outcome,
    OverwritePayload,
    SetPayload,
    UpdateMode,
    UpdateVectors,
    Upsert,
)
from tests.storing.contents import SCHEMA, Model, keys, rows, upsert, vector
from tests.storing.folders import folder_in_memory
from tests.storing.operations import some_op
from tests.storing.shards import Bench, write

UUID = "0f0e0d0c-0b0a-0908-0706-050403020100"


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_in_memory() as made:
        yield made / "shard"


@pytest.fixture
def bench(folder: Path) -> Iterator[Bench]:
    made = Bench(folder)
    yield made
    made.close()


def where(**match: Any) -> bytes:
    return json.dumps({"must": [{"key": k, "match": {"value": v}} for k, v in match.items()]}).encode()


async def test_an_upsert_is_readable_when_it_is_answered(bench: Bench) -> None:
    async with bench.shard() as shard:
        assert await write(shard, upsert([1, 2, UUID], 7)) == Outcome(touched=3)
        points = bench.points()
    assert set(points) == {1, 2, UUID}
    assert points[UUID].payload == {"tag": 7, "id": UUID}
    assert points[UUID].vectors == {1: vector(UUID, 7)}


async def test_a_replaced_point_has_its_new_contents_in_a_new_slot(bench: Bench) -> None:
    async with bench.shard() as shard:
        await write(shard, upsert([1, 2], 1, other=True))
        await write(shard, upsert([2], 2))
        points, record = bench.points(), bench.record
    assert (record.points, record.slot_high, record.applied) == (2, 3, 2)
    assert points[1].payload["tag"], points[2].payload["tag"] == (1, 2)
    assert 2 not in points[2].vectors


async def test_operations_do_what_a_model_of_them_does(bench: Bench) -> None:
    model = Model()
    rng = random.Random(5)
    async with bench.shard() as shard:
        for n in range(120):
            op = some_op(rng, n)
            model.apply(op)
            await write(shard, op)
            if n % 40 == 20:
                await shard.checkpoint()
        assert bench.points() == model.points
    async with bench.shard():
        assert bench.points() == model.points


@pytest.mark.parametrize(
    "op",
    [
        SetPayload(keys([1, 9]), None, b"{}"),
        OverwritePayload(keys([1, 9]), None, b"{}"),
        DeletePayload(keys([1, 9]), None, ("a",)),
        ClearPayload(keys([1, 9])),
        UpdateVectors(keys([1, 9]), (rows(1, [(1.0, 0, 0, 0), (1.0, 0, 0, 0)]),)),
        DeleteVectors(keys([1, 9]), None, (1,)),
    ],
    ids=lambda op: type(op).__name__,
)
async def test_edits_name_the_first_id_that_does_not_exist_and_do_the_rest(bench: Bench, op: Op) -> None:
    async with bench.shard() as shard:
        await write(shard, upsert([1], 1))
        assert await write(shard, op) == Outcome(touched=1, missing=id_key(9))


async def test_a_delete_ignores_ids_that_do_not_exist(bench: Bench) -> None:
    async with bench.shard() as shard:
        await write(shard, upsert([1], 1))
        assert await write(shard, Delete(keys([1, 9]))) == Outcome(touched=1)
        assert bench.points() == {}


@pytest.mark.parametrize(
    ("mode", "condition", "changed"),
    [
        (UpdateMode.UPSERT, None, {1, 2, 3}),
        (UpdateMode.INSERT_ONLY, None, {3}),
        (UpdateMode.UPDATE_ONLY, None, {1, 2}),
        (UpdateMode.UPSERT, where(tag=1), {1, 3}),
        (UpdateMode.UPDATE_ONLY, where(tag=1), {1}),
        (UpdateMode.INSERT_ONLY, where(tag=1), {3}),
    ],
)
async def test_an_upsert_writes_what_its_mode_and_filter_let_through(
    bench: Bench, mode: UpdateMode, condition: bytes | None, changed: set[int]
) -> None:
    async with bench.shard() as shard:
        await write(shard, upsert([1], 1))
        await write(shard, upsert([2], 2))
        plain = upsert([1, 2, 3], 9, other=True)
        outcome = await write(shard, Upsert(plain.ids, plain.rows, plain.payloads, mode, condition))
        points = bench.points()
    assert outcome.touched == len(changed)
    assert {i for i, point in points.items() if point.payload["tag"] == 9} == changed
    assert all(points[i].vectors[1] == vector(i, 9) for i in changed)
    assert (2 in points.get(2, points[1]).vectors) == (2 in changed)


async def test_edits_by_filter_touch_what_matches(bench: Bench) -> None:
    async with bench.shard() as shard:
        await write(shard, upsert([1, 2], 1))
        await write(shard, upsert([3], 2))
        assert (await write(shard, SetPayload(b"", where(tag=1), b'{"x":1}'))).touched == 2
        assert (await write(shard, DeleteVectors(b"", where(x=1, id="2"), (1,)))).touched == 1
        assert (
            await write(shard, Delete(b"", b'{"must":[{"has_vector":""},{"key":"x","match":{"value":1}}]}'))
        ) == (Outcome(touched=1))
        points = bench.points()
    assert set(points) == {2, 3}
    assert points[2].payload == {"tag": 1, "id": "2", "x": 1}
    assert points[2].vectors == {}


async def test_updated_vectors_replace_only_where_the_filter_holds(bench: Bench) -> None:
    async with bench.shard() as shard:
        await write(shard, upsert([1, 2], 1))
        op = UpdateVectors(keys([1, 2]), (rows(1, [(9, 9, 9, 9), (9, 9, 9, 9)]),), where(id="2"))
        assert await write(shard, op) == Outcome(touched=1)
        points = bench.points()
    assert points[1].vectors[1] == vector(1, 1)
    assert points[2].vectors[1] == (9, 9, 9, 9)


async def test_an_empty_filter_matches_every_point(bench: Bench) -> None:
    async with bench.shard() as shard:
        await write(shard, upsert([1, 2], 1))
        assert await write(shard, Delete(b"", b'{"must":[]}')) == Outcome(touched=2)
        assert bench.points() == {}


async def test_operations_queued_together_see_each_other(bench: Bench) -> None:
    async with bench.shard() as shard:
        ops: list[Op] = [
            upsert([1, 2], 1),
            upsert([1], 2),
            Delete(keys([2])),
            SetPayload(keys([1]), None, b'{"x":1}'),
            upsert([2], 3),
        ]
        outcomes = await asyncio.gather(*(write(shard, op) for op in ops))
        points = bench.points()
        assert shard.statistics().groups < len(ops)
    assert [outcome.touched for outcome in outcomes] == [2, 1, 1, 1, 1]
    assert points[1].payload == {"tag": 2, "id": "1", "x": 1}
    assert points[2].payload["tag"] == 3


# -- once only ---------------------------------------------------------------------------------------------


async def test_a_retry_gets_the_first_answer_and_changes_nothing(bench: Bench) -> None:
    op = SetPayload(keys([1, 9]), None, b'{"x":1}')
    async with bench.shard() as shard:
        await write(shard, upsert([1], 1))
        first = await write(shard, op, request_id=b"r", body_hash=b"h")
        again = await write(shard, op, request_id=b"r", body_hash=b"h")
        assert first == again == Outcome(touched=1, missing=id_key(9))
        assert bench.record.applied == 2


async def test_a_retry_that_comes_meanwhile_attaches_to_its_own_entry(bench: Bench) -> None:
    async with bench.shard() as shard:
        options = {"request_id": b"r", "body_hash": b"h"}
        twice = await asyncio.gather(*(write(shard, upsert([1], 1), **options) for _ in range(2)))
        assert twice == [Outcome(touched=1)] * 2
        assert bench.record.applied == 1


@pytest.mark.parametrize("checkpoint", [True, False])
async def test_a_retry_after_a_restart_gets_the_first_answer(bench: Bench, checkpoint: bool) -> None:
    op = SetPayload(keys([1, 9]), None, b'{"x":1}')
    async with bench.shard(checkpoint=checkpoint) as shard:
        await write(shard, upsert([1], 1))
        first = await write(shard, op, request_id=b"r" * 40, body_hash=b"h" * 40)
    async with bench.shard() as shard:
        assert await write(shard, op, request_id=b"r" * 40, body_hash=b"h" * 40) == first
        assert bench.record.applied == 2


async def test_the_operations_of_one_request_are_told_apart_by_their_number(bench: Bench) -> None:
    async with bench.shard() as shard:
        for number in (0, 1):
            await write(shard, upsert([number], 1), request_id=b"r", body_hash=b"h", number=number)
        assert set(bench.points()) == {0, 1}


async def test_a_request_id_with_another_body_is_refused(bench: Bench) -> None:
    async with bench.shard() as shard:
        await write(shard, upsert([1], 1), request_id=b"r", body_hash=b"h")
        with pytest.raises(Unprocessable, match="Idempotency-Key"):
            await write(shard, upsert([1], 2), request_id=b"r", body_hash=b"other")


# -- bounds ------------------------------------------------------------------------------------------------


async def test_an_operation_over_the_bound_of_an_entry_is_refused(bench: Bench) -> None:
    async with bench.shard() as shard:
        with pytest.raises(TooLarge, match="4194304"):
            await write(shard, Upsert(keys([1]), (), (b'"' + b"x" * (4 << 20) + b'"',)))


async def test_a_full_queue_says_so(folder: Path) -> None:
    bench = Bench(folder, queue_entries_max=3)
    async with bench.shard() as shard:
        answers = await asyncio.gather(
            *(write(shard, upsert([i], 1)) for i in range(10)), return_exceptions=True
        )
    assert sum(isinstance(answer, Overloaded) for answer in answers) == 7
    assert sum(answer == Outcome(touched=1) for answer in answers) == 3
    bench.close()


async def test_a_write_whose_deadline_passed_in_the_queue_is_not_begun(bench: Bench) -> None:
    async with bench.shard() as shard:
        now_s = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded, match="not begun"):
            await shard.write(upsert([1], 1), deadline_s=now_s - 1)
        await write(shard, upsert([2], 1))
        assert set(bench.points()) == {2}


async def test_a_cancelled_caller_leaves_the_write_to_the_shard(bench: Bench) -> None:
    async with bench.shard() as shard:
        task = asyncio.create_task(write(shard, upsert([1], 1)))
        while not shard.statistics().groups:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await write(shard, upsert([2], 1))
        assert set(bench.points()) == {1, 2}


async def test_a_closed_shard_takes_no_writes(bench: Bench) -> None:
    async with bench.shard() as shard:
        pass
    with pytest.raises(Unavailable):
        await write(shard, upsert([1], 1))


async def test_what_was_only_persisted_is_applied_soon(bench: Bench) -> None:
    async with bench.shard() as shard:
        await asyncio.gather(*(write(shard, upsert([i], 1), until="persisted") for i in range(5)))
    async with bench.shard():
        assert set(bench.points()) == set(range(5))


async def test_a_filter_that_is_none_is_refused_before_it_is_logged(bench: Bench) -> None:
    async with bench.shard() as shard:
        with pytest.raises(BadRequest):
            await write(shard, Delete(b"", b"[1]"))
        await write(shard, upsert([1], 1))
        assert bench.record.applied == 1


async def test_acknowledgements_slow_down_while_the_tail_is_too_long(folder: Path) -> None:
    bench = Bench(folder, tail_rows_max=10)
    async with bench.shard() as shard:
        await write(shard, upsert(range(10), 1))
        assert shard.statistics().delay_s == 0
        await write(shard, upsert(range(100, 500), 1))
        assert 0 < shard.statistics().delay_s < 0.1
        assert shard.statistics().tail_rows == 410
        await shard.replace_segments(1, [segment(bench.folder, 0, 410)])
        await write(shard, upsert([1], 1))
        assert shard.statistics().delay_s == 0
    bench.close()


# -- checkpoints, segments, slots --------------------------------------------------------------------------


def segment(folder: Path, low: int, high: int) -> Segment:
    """A sealed file that looks like a graph to the store, which only checks its hash."""

    data = f"graph {low} {high}".encode()
    hash_ = hashlib.sha256(data).hexdigest()[:32]
    path = folder / "segments" / f"1.{hash_}.usearch"
    path.write_bytes(data)
    return Segment("base", path.name, low, high, high - low, len(data), hash_)


async def test_a_checkpoint_cuts_the_log_and_purges_rows_of_dead_slots(folder: Path) -> None:
    bench = Bench(folder)
    async with bench.shard() as shard:
        for tag in range(3):
            await write(
                shard,
                Upsert(keys([1, 2]), (), (b'"%s"' % (b"x" * (1 << 20)),) * 2)
                if tag < 2
                else upsert([1, 2], 9),
            )
        await shard.checkpoint()
        await write(shard, upsert([3], 1))
        assert shard.statistics().dead_rows == 0
        assert shard.manifest.checkpoint == 3
        assert bench.record.slot_low == shard.manifest.slot_low == 4
        assert [path.name for path in (bench.folder / "log").glob("*.log")] == ["00000000000000000004.log"]
        assert set(bench.points()) == {1, 2, 3}
    bench.close()


async def test_rows_of_dead_slots_stay_for_searches_under_way(folder: Path) -> None:
    bench = Bench(folder, purge_after_s=3600)
    front, other = Reads(bench.page, FIRST_FRONT), Reads(bench.page, FIRST_FRONT + 1)
    async with bench.shard() as shard:
        await write(shard, upsert([1], 1))
        with other.held():
            with front.held():
                await write(shard, upsert([1], 2))
                with front.held():
                    await shard.checkpoint()
                assert (shard.statistics().dead_rows, bench.record.slot_low) == (1, 0)
            await shard.checkpoint()
            assert (shard.statistics().dead_rows, bench.record.slot_low) == (1, 0)
        with front.held():  # began when the first row had died
            await shard.checkpoint()
            assert (shard.statistics().dead_rows, bench.record.slot_low) == (0, 1)
            await write(shard, upsert([1], 3))
            await shard.checkpoint()
            assert shard.statistics().dead_rows == 1
    async with bench.shard() as shard:  # no search outlives the process
        await shard.checkpoint()
        assert bench.record.slot_low == 2
    bench.close()


async def test_a_row_is_let_go_at_last_though_an_older_read_does_not_end(folder: Path) -> None:
    bench = Bench(folder, purge_after_s=0.0)
    async with bench.shard() as shard:
        with Reads(bench.page, FIRST_FRONT).held():
            await write(shard, upsert([1], 1))
            await write(shard, upsert([1], 2))
            await shard.checkpoint()
            assert shard.statistics().dead_rows == 0
    bench.close()


async def test_a_checkpoint_comes_by_itself_when_the_log_has_grown(folder: Path) -> None:
    bench = Bench(folder, checkpoint_bytes_min=1000, checkpoint_bytes_max=1000)
    async with bench.shard() as shard:
        while shard.manifest.checkpoint == 0:
            await write(shard, upsert(range(10), 1))
    bench.close()


async def test_survivors_of_old_slots_move_and_their_space_is_given_back(bench: Bench) -> None:
    count = 20_000
    model = Model()
    async with bench.shard() as shard:
        for low in range(0, count, 1000):
            op = upsert(range(low, low + 1000), 1, other=True)
            model.apply(op)
            await write(shard, op)
        gone = Delete(keys(i for i in range(count) if i % 1000))
        model.apply(gone)
        await write(shard, gone)
        await shard.checkpoint()
        before = allocated(bench.folder)
        assert await shard.relocate(range(count)) == count // 1000
        assert bench.points() == model.points
        await shard.checkpoint()
        assert bench.record.slot_low == count
        assert bench.record.points == count // 1000
        assert allocated(bench.folder) < before - count * 4 * 7 // 2
        assert bench.points() == model.points
    async with bench.shard():
        assert bench.points() == model.points


async def test_a_point_that_moved_after_its_vectors_were_updated_is_whole_after_a_kill(bench: Bench) -> None:
    async with bench.shard() as shard:
        await write(shard, upsert([1], 1))
        await shard.checkpoint()
        await write(shard, UpdateVectors(keys([1]), (rows(2, [(1, 2, 3)]),)))
        await shard.relocate([0, 1])
        before = bench.points()
        killed = bench.folder.with_name("killed")
        subprocess.run(["cp", "-r", bench.folder, killed], check=True)
    again = Bench(killed)
    async with again.shard() as shard:
        assert shard.damage is None
        assert again.points() == before
    again.close()


def allocated(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in (folder / "vectors").iterdir())


async def test_segments_are_named_in_the_manifest_and_published(bench: Bench) -> None:
    async with bench.shard() as shard:
        await write(shard, upsert(range(5), 1))
        before = bench.record.manifest
        manifest = await shard.replace_segments(1, [segment(bench.folder, 0, 5)])
        assert bench.record.manifest == manifest.number > before
        assert bench.record.built == 5
        assert read_manifest(bench.folder / "manifest.json").vectors["1"].segments[0].high == 5
    async with bench.shard() as shard:
        assert bench.record.built == 5


async def test_a_vector_can_be_added_and_removed(bench: Bench) -> None:

    fewer = ShardSchema(version=2, vectors={1: SCHEMA.vectors[1]}, names={"": 1})
    async with bench.shard() as shard:
        await write(shard, upsert([1, 2], 1, other=True))
        await shard.set_schema(fewer)
        assert not (bench.folder / "vectors" / "2.f32").exists()
        with pytest.raises(BadRequest, match="number 2"):
            await write(shard, upsert([3], 1, other=True))
        await write(shard, upsert([3], 1))
        assert set(bench.points()[2].vectors) == {1}
        await shard.set_schema(SCHEMA)
        await write(shard, UpdateVectors(keys([3]), (rows(2, [(1, 2, 3)]),)))
        assert bench.points()[3].vectors[2] == (1, 2, 3)
        assert bench.record.schema == 1


async def test_a_shard_says_that_it_is_open(bench: Bench) -> None:
    async with bench.shard():
        assert bench.record.flags == ShardFlag.OPEN | ShardFlag.IN_SYNC
        assert (bench.record.collection, bench.record.shard, bench.record.promised) == (7, 0, 1)
    assert bench.record.flags == 0


async def test_a_promise_survives_and_fences_writes(bench: Bench) -> None:
    async with bench.shard() as shard:
        await shard.promise(5)
        with pytest.raises(Unavailable, match="fenced"):
            await write(shard, upsert([1], 1))
    async with bench.shard():
        assert bench.record.promised == 5


async def test_the_live_bits_of_new_slots_are_set_before_old_ones_are_cleared(bench: Bench) -> None:
    """As a front does it: copy the bits, read the record; a point that always exists is always found."""

    async with bench.shard() as shard:
        await write(shard, upsert([1], 0))
        stop = asyncio.Event()

        def look() -> int:
            misses = 0
            live = MappedFile(bench.folder / "columns" / "live.bin")
            while not stop.is_set():
                bits = np.array(live.bits(8192))
                high = bench.record.slot_high
                # What was set in the copy, or is published beyond it.
                seen = np.unpackbits(bits, bitorder="little")[:high]
                misses += not seen.any()
            return misses

        looking = asyncio.get_running_loop().run_in_executor(None, look)
        for tag in range(1, 400):
            await write(shard, upsert([1], tag))
        stop.set()
        assert await looking == 0


# -- payload indexes ---------------------------------------------------------------------------------------

INDEXED = msgspec.structs.replace(SCHEMA, version=2, columns={5: ColumnParams("tag", "integer")})


def tags(bench: Bench) -> dict[int, int | None]:
    """The indexed value of each live slot, read from the column's files."""
    record = bench.record
    live = MappedFile(bench.folder / "columns" / "live.bin").bits(record.slot_high)
    slots = np.flatnonzero(np.unpackbits(live, bitorder="little")).tolist()
    flags = MappedFile(bench.folder / "columns" / "5.flags").array(np.uint8, record.slot_high)
    values = MappedFile(bench.folder / "columns" / "5.values").array(np.int64, record.slot_high)
    return {slot: int(values[slot]) if flags[slot] & 1 else None for slot in slots}


async def test_an_index_is_filled_with_what_is_there_and_what_comes(bench: Bench) -> None:
    async with bench.shard() as shard:
        await write(shard, upsert(range(3000), 1))
        changing = asyncio.create_task(shard.set_schema(INDEXED))
        await write(shard, upsert(range(1000), 2))
        await changing
        await write(shard, SetPayload(keys([0]), None, b'{"tag":3}'))
        await write(shard, ClearPayload(keys([1])))
        assert shard.manifest.columns["5"].ready
        found = tags(bench)
        assert len(found) == 3000
        assert sorted(found.values(), key=str) == [1] * 2000 + [2] * 998 + [3, None]
        assert bench.record.edits % 2 == 0
        assert bench.record.edits >= 4


@pytest.mark.parametrize("clean", [True, False])
async def test_an_index_is_complete_after_a_restart(bench: Bench, clean: bool) -> None:
    bench.schema = INDEXED
    async with bench.shard(checkpoint=clean) as shard:
        await write(shard, upsert(range(50), 1))
        await write(shard, upsert(range(20), 2))
        expected = tags(bench)
    async with bench.shard() as shard:
        assert tags(bench) == expected
        assert shard.manifest.columns["5"].ready
        assert shard.notes == []


async def test_a_damaged_index_is_made_anew(bench: Bench) -> None:
    bench.schema = INDEXED
    async with bench.shard() as shard:
        await write(shard, upsert(range(50), 1))
        expected = tags(bench)
    flip(bench.folder / "columns" / "5.values", 20 * 8)
    async with bench.shard() as shard:
        assert tags(bench) == expected
        assert ["index 5 is damaged" in note for note in shard.notes] == [True]


async def test_a_removed_index_takes_its_files_along(bench: Bench) -> None:
    bench.schema = INDEXED
    async with bench.shard() as shard:
        await write(shard, upsert(range(5), 1))
        await shard.set_schema(SCHEMA)
        assert list((bench.folder / "columns").glob("5.*")) == []
        await write(shard, upsert(range(5), 1))


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
