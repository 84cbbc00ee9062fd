"""What a node takes on disk while the same points are replaced over and over, in order and at random."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.running.agent import RunningAgent
from tests.running.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

POINTS, DIM, BATCH, ROUNDS = 8_000, 384, 250, 6
LIVE_BYTES = POINTS * (DIM * 4 + 300)
TIMES_MAX = 3.5
"""make bench wants 3; beside other tests this has less of the machine."""


def used_bytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def bodies(order: str) -> Iterator[bytes]:
    random, encode = np.random.default_rng(3), msgspec.json.Encoder().encode
    rows = random.standard_normal((BATCH, DIM), np.float32).round(3).tolist()
    for number in range(ROUNDS * POINTS // BATCH):
        ids: Any = range(number * BATCH % POINTS, number * BATCH % POINTS + BATCH)
        if order == "at random" and number >= POINTS // BATCH:
            ids = random.choice(POINTS, BATCH, replace=False).tolist()
        points = [{"id": i, "vector": row, "payload": {"text": "x" * 285}} for i, row in zip(ids, rows)]
        yield encode({"points": points})


@pytest.mark.parametrize("order", ["in order", "at random"])
def test_a_small_busy_shard_takes_a_few_times_its_size(tmp_path: Path, order: str) -> None:
    with RunningAgent(tmp_path) as agent:
        agent.start()
        rest = agent.rest()
        rest.put("/collections/busy", {"vectors": {"size": DIM, "distance": "Cosine"}})
        used: list[int] = []
        stop = threading.Event()

        def sample() -> None:
            while not stop.wait(0.2):
                used.append(used_bytes(agent.data_dir))

        sampling = threading.Thread(target=sample)
        sampling.start()
        try:
            for body in bodies(order):
                assert rest.call("PUT", "/collections/busy/points?wait=true", body).result
        finally:
            stop.set()
            sampling.join()
        assert rest.get("/collections/busy").result["points_count"] == POINTS
        assert max(used) < TIMES_MAX * LIVE_BYTES
        wait_until(lambda: used_bytes(agent.data_dir) < 2.6 * LIVE_BYTES, 30, "space given back at rest")
        rest.close()
