"""The mapped page: what one process publishes, another reads, whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from agent.page import FIRST_FRONT, SHARDS_MAX, NodeRecord, Page, Reads, ShardFlag, ShardPlaces, ShardRecord
from agent.store.publishing import Publisher
from core.errors import NoRoom

_WRITER = """
import sys
from agent.page import Page, ShardRecord
page = Page(int(sys.argv[1]))
print("writing", flush=True)
n = 0
while page.node().flags == 0:
    n += 1
    page.write_shard(0, ShardRecord(*[n] * 13))
"""


def test_a_record_reads_back_as_written() -> None:
    page = Page.make()
    record = ShardRecord(*range(1, 14))
    page.write_shard(7, record)
    page.write_node(NodeRecord(epoch=3, settings=2, flags=1, shards=8))
    assert Page(page.fd).shard(7) == record
    assert Page(page.fd).node() == NodeRecord(3, 2, 1, 8)


def test_the_oldest_read_of_all_processes_is_shown() -> None:
    page = Page.make()
    first, second = Reads(page, FIRST_FRONT), Reads(page, FIRST_FRONT + 1)
    assert page.oldest_read_ns() is None
    with ExitStack() as older:
        older.enter_context(first.held())
        began_ns = page.oldest_read_ns()
        with first.held(), second.held():
            assert Page(page.fd).oldest_read_ns() == began_ns
            page.tick(FIRST_FRONT)
            older.close()
            later_ns = page.oldest_read_ns()
            assert later_ns is not None
            assert later_ns > (began_ns or later_ns)
            page.forget_process(FIRST_FRONT)  # it was killed
            assert (page.oldest_read_ns() or 0) > later_ns
    assert page.oldest_read_ns() is None
    assert page.process(FIRST_FRONT).pid == 0


def test_what_was_never_written_reads_as_zero() -> None:
    page = Page.make()
    assert page.shard(0) == ShardRecord()
    assert page.process(3).pid == 0


def test_a_reader_beside_a_writer_never_sees_half_a_record() -> None:
    page = Page.make()
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(page.fd)], pass_fds=[page.fd], stdout=subprocess.PIPE
    )
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        seen: set[ShardRecord] = set()
        until_s = time.monotonic() + 10
        while len(seen) < 100 and time.monotonic() < until_s:
            seen |= {page.shard(0) for _ in range(20_000)}
    finally:
        page.write_node(NodeRecord(flags=1))
        writer.wait(10)
    assert len(seen) > 1, "the writer did not run beside the reader"
    assert all(len(set(record)) == 1 for record in seen)


def test_a_tick_names_the_process() -> None:
    page = Page.make()
    page.tick(2)
    assert page.process(2).pid == os.getpid()
    assert page.process(2).tick_ns > 0
    page.forget_process(2)
    assert page.process(2) == (0, 0)


def test_a_shard_keeps_its_place_and_a_closed_one_gives_it_back() -> None:
    page = Page.make()
    places = ShardPlaces(page)
    assert [places.place(1, 0), places.place(1, 1), places.place(1, 0)] == [0, 1, 0]
    page.write_shard(0, ShardRecord(collection=1, flags=1))
    places.release(1, 0)
    assert page.shard(0) == ShardRecord()
    assert places.place(9, 0) == 0
    assert page.node().shards == 2


def test_more_shards_than_places_are_refused() -> None:
    page = Page.make()
    page.write_node(NodeRecord(shards=SHARDS_MAX))
    places = ShardPlaces(page)
    places._places = {(0, n): n for n in range(SHARDS_MAX)}
    with pytest.raises(NoRoom, match=str(SHARDS_MAX)):
        places.place(1, 0)


def test_a_closed_shard_writes_nothing_to_the_place_that_it_had() -> None:
    page = Page.make()
    places = ShardPlaces(page)
    gone = Publisher(page, places, 1, 0)
    gone.update(on=ShardFlag.OPEN, points=7)
    gone.close()
    after = Publisher(page, places, 2, 0)
    after.update(points=9)
    gone.set_flags(on=ShardFlag.BUILDING)
    assert page.shard(0) == ShardRecord(collection=2, points=9)
