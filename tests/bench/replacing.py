"""Benchmark of space: the same 10,000 points replaced over and over, and what the disk holds at most."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.bench import subject
from tests.bench.clients import OurClient
from tests.bench.data import Data, payload
from tests.bench.table import Line, at_most
from tests.running.waiting import wait_until

POINTS = 10_000
SAMPLE_S = 0.5


def run(data: Data, client: OurClient, folder: Path, minutes: float) -> list[Line]:
    rows = data.rows[:POINTS]
    upserts = subject.write_upserts(folder / "replacing.requests", rows)
    live_bytes = len(rows) * (data.dim * 4 + len(str(payload(0))))
    largest_bytes, rounds = 0, 0.0
    with subject.running(folder / "replacing", fronts=1) as agent:
        subject.create(agent, data.dim)
        writing = client.spawn(agent.port, upserts, connections=2)
        until_s = time.monotonic() + minutes * 60
        while time.monotonic() < until_s:
            largest_bytes = max(largest_bytes, used_bytes(agent.data_dir))
            _pause(SAMPLE_S)
        written = client.stop(writing)
        rounds = written.requests * subject.BATCH / POINTS
        subject.wait_green(agent)
        rest_bytes = used_bytes(agent.data_dir)
    how = (
        f"{largest_bytes / 1e6:.0f} MB at most, {rest_bytes / 1e6:.0f} MB after, for "
        f"{live_bytes / 1e6:.0f} MB of vectors and payloads, replaced {rounds:.0f} times"
    )
    return [at_most(f"{minutes:g} min of replacing 10,000 points: disk", largest_bytes / live_bytes, 3, how)]


def _pause(seconds: float) -> None:
    until_s = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until_s, seconds + 1)


def used_bytes(folder: Path) -> int:
    """Blocks that are really taken: holes and files that vanish while we look count nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
