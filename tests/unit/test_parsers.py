"""Bodies that are parsed beside the store: the same operations and errors as here, whatever happens to it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import psutil
import pytest

from agent.store.parsers import HERE_BYTES_MAX, READY_BYTES_MAX, Parsers
from agent.store.parsing import Target, prepare
from core.api.checks import DEFAULT_LIMITS
from core.api.config import Distance, VectorParams
from core.errors import BadRequest, Unavailable
from tests.running.waiting import wait_until
from tests.unit.read_shards import LOG

DIM = 32
TARGET = Target({"": VectorParams(size=DIM, distance=Distance.COSINE)}, {"": 3}, 2, DEFAULT_LIMITS)
SCRIPT = """
import asyncio
from agent.store.parsers import Parsers
from tests.unit.read_shards import LOG

async def main():
    await Parsers(LOG, 1).start()
    print("started", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def upsert(points: int, dim: int = DIM) -> bytes:
    vectors = [[((i + 3) * (j + 1) % 97) / 97 for j in range(dim)] for i in range(points)]
    payload = {"n": 1e2, "text": "é"}
    return msgspec.json.encode(
        {"points": [{"id": i, "vector": v, "payload": payload} for i, v in enumerate(vectors)]}
    )


@asynccontextmanager
async def parsers(count: int) -> AsyncIterator[Parsers]:
    made = Parsers(LOG, count)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "agent.parser" in child.cmdline()]


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("points", "count", "least", "most"),
    [
        (3, 1, 0, HERE_BYTES_MAX),
        (300, 1, HERE_BYTES_MAX, READY_BYTES_MAX),
        (300, 0, HERE_BYTES_MAX, READY_BYTES_MAX),
        (10_000, 1, READY_BYTES_MAX, 1 << 30),
    ],
)
async def test_wherever_it_is_parsed_the_operations_are_the_same(
    points: int, count: int, least: int, most: int
) -> None:
    body = upsert(points)
    assert least < len(body) <= most
    async with parsers(count) as made:
        found = await asyncio.gather(*(made.prepare("upsert", body, TARGET) for _ in range(4)))
    assert found == [prepare("upsert", body, TARGET)] * 4
    assert not children()


async def test_what_is_wrong_with_a_body_is_said_as_if_it_was_parsed_here() -> None:
    body = upsert(300, dim=DIM + 1)
    with pytest.raises(BadRequest) as here:
        prepare("upsert", body, TARGET)
    async with parsers(1) as made:
        with pytest.raises(BadRequest) as there:
            await made.prepare("upsert", body, TARGET)
        assert str(there.value) == str(here.value)
        assert len(await made.prepare("upsert", upsert(300), TARGET)) == 1


async def test_ids_alone_have_room_for_what_they_become() -> None:
    body = b'{"points":[%s]}' % b",".join(b"%d" % i for i in range(20_000))
    assert len(body) > HERE_BYTES_MAX
    async with parsers(1) as made:
        assert await made.prepare("delete", body, TARGET) == prepare("delete", body, TARGET)


async def test_a_parser_that_is_killed_costs_one_body_an_error_and_is_started_again() -> None:
    body = upsert(300)
    async with parsers(1) as made:
        [child] = children()
        child.suspend()
        asked = [asyncio.create_task(made.prepare("upsert", body, TARGET)) for _ in range(2)]
        await asyncio.sleep(0)
        os.kill(child.pid, signal.SIGKILL)
        at_it, behind = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(at_it, Unavailable)
        assert behind == prepare("upsert", body, TARGET)
        assert await made.prepare("upsert", body, TARGET) == prepare("upsert", body, TARGET)  # in a thread
        await made.start()
        [again] = children()
        assert again.pid != child.pid
        assert await made.prepare("upsert", body, TARGET) == prepare("upsert", body, TARGET)


async def test_who_gives_up_waiting_leaves_the_parser_usable() -> None:
    body = upsert(300)
    async with parsers(1) as made:
        gone = asyncio.create_task(made.prepare("upsert", upsert(400), TARGET))
        await asyncio.sleep(0)
        gone.cancel()
        assert await made.prepare("upsert", body, TARGET) == prepare("upsert", body, TARGET)
        assert gone.cancelled()


async def test_parsers_end_with_the_store() -> None:
    store = await asyncio.create_subprocess_exec(sys.executable, "-c", SCRIPT, stdout=asyncio.subprocess.PIPE)
    assert store.stdout is not None
    assert await store.stdout.readline() == b"started\n"
    [parser] = psutil.Process(store.pid).children()
    store.kill()
    await store.wait()
    wait_until(lambda: ended(parser), 10, "the parser's end")
