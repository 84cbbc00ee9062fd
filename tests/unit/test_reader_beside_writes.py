"""Searches beside writes, in processes of their own: a point that is always replaced is found."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from agent.page import FIRST_FRONT
from tests.unit.read_shards import F32, schema, written_shard

HOT, OTHERS, DIM = 4, 3000, 8
WRONG = ("missed", "wrong", "of another", "not in order")


def hot_rows(rng: np.random.Generator) -> F32:
    """Near the diagonal, each time a little elsewhere."""
    rows = np.ones((HOT, DIM)) + 0.05 * rng.standard_normal((HOT, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


async def searching(folder: Path, page_fd: int, place: int, seconds: float) -> dict[str, int]:
    """Run a reader process to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.unit.hot_reader", str(folder), str(page_fd), str(place), str(HOT),
        str(HOT + OTHERS), str(seconds), stdout=asyncio.subprocess.PIPE, pass_fds=[page_fd],
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0
    found: dict[str, int] = json.loads(out)
    return found


_LONG = pytest.param(60.0, marks=[pytest.mark.long, pytest.mark.timeout(200)])


@pytest.mark.parametrize("seconds", [4.0, _LONG])
async def test_a_point_that_is_replaced_all_the_time_is_found_by_every_search(
    tmp_path: Path, seconds: float
) -> None:
    rng = np.random.default_rng(2)
    others = rng.standard_normal((OTHERS, DIM)).astype(np.float32)
    others -= np.maximum(0, others.sum(axis=1, keepdims=True)) / DIM * 1.01  # away from the diagonal
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    async with written_shard(tmp_path / "1-0", schema(dim=DIM, columns={"hot": "bool"})) as shard:
        await shard.upsert(range(HOT, HOT + OTHERS), others, [{"hot": False}] * OTHERS)
        await shard.upsert(range(HOT), hot_rows(rng), [{"hot": True}] * HOT)
        readers = asyncio.gather(
            *(searching(shard.folder, shard.page.fd, FIRST_FRONT + n, seconds) for n in range(2))
        )
        replaced = 0
        while not readers.done():
            await shard.upsert(range(HOT), hot_rows(rng), [{"hot": True}] * HOT)
            replaced += 1
            if replaced % 8 == 0:  # lets go of all that no reader can still see
                await shard.shard.checkpoint()
        for seen in await readers:
            wrong = {what: n for what, n in seen.items() if n and any(w in what for w in WRONG)}
            assert not wrong, f"{wrong} of {seen}"
            assert seen["looks"] > 20
        assert replaced > 20
