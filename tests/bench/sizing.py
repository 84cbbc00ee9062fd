"""What a million points take: disk by kind of file, memory by process, measured on a running agent.

    python -m tests.bench.sizing [--rows 50000] [--file rows.npy] [--distance Cosine]

The points are those of the other benchmarks: 384 dimensions, payloads of 300 bytes, here with an index on a
word and on a number. Sizes grow with the number of points, so a part of a million is measured and scaled up.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from tests.bench import subject
from tests.bench.data import load
from tests.running import processes
from tests.running.agent import RunningAgent

MILLION = 1_000_000
# What a file is, by its path in a shard's folder; the first that fits.
KINDS = (
    (r"vectors/.*\.f32", "rows, f32"),
    (r"vectors/.*\.crc", "checksums of rows"),
    (r"segments/", "graph"),
    (r"points\.db", "ids and payloads (points.db)"),
    (r"columns/\d+\.", "payload indexes"),
    (r"columns/", "ids and bits"),
    (r"log/", "log"),
    (r"", "manifest"),
)


def disk_bytes(shard: Path) -> Counter[str]:
    """Bytes that the shard's files take on the disk: they are longer than what is written, and have holes."""
    found: Counter[str] = Counter()
    for path in (path for path in shard.rglob("*") if path.is_file()):
        name = str(path.relative_to(shard))
        kind = next(kind for pattern, kind in KINDS if re.match(pattern, name))
        found[kind] += path.stat().st_blocks * 512
    return found


class Peaks:
    """The most memory of its own that each kind of process was seen with."""

    def __init__(self, agent: RunningAgent) -> None:
        self._agent = agent
        self.bytes: Counter[str] = Counter()

    def look(self) -> None:
        for role, members in processes.by_role(self._agent.tag).items():
            for process in members:
                self.bytes[role] = max(self.bytes[role], own_bytes(process))


def own_bytes(process: psutil.Process) -> int:
    try:
        return processes.anonymous_bytes(process)
    except FileNotFoundError:  # the builder ends when it has nothing to do
        return 0


def fill(agent: RunningAgent, rows_max: int, file: Path | None, distance: str) -> int:
    data = load(file, rows_max)
    peaks = Peaks(agent)
    rest = agent.rest()
    one = f"/collections/{subject.COLLECTION}"
    assert rest.put(one, {"vectors": {"size": data.dim, "distance": distance}}).result
    for field, kind in (("group", "keyword"), ("number", "integer")):
        assert rest.put(f"{one}/index", {"field_name": field, "field_schema": kind}, wait=True).result
    for number, body in enumerate(subject.upsert_bodies(data.rows)):
        assert rest.put(f"{one}/points", body, wait=True).status == 200
        if number % 8 == 0:
            peaks.look()
    while not subject.is_green(rest):
        peaks.look()
    told = ", ".join(f"{role} {size / 1e6:.0f} MB" for role, size in peaks.bytes.items())
    print(f"memory of its own at most, while points were written and graphs were built: {told}")
    for _ in range(20):
        query = {"query": data.queries[0].tolist(), "with_payload": True}
        assert rest.post(f"{one}/points/query", query).result["points"]
    return len(data.rows)


def report(agent: RunningAgent, rows: int) -> None:
    scale = MILLION / rows
    (shard,) = (agent.data_dir / "shards").iterdir()
    found = disk_bytes(shard)
    for kind, size in found.most_common():
        print(f"  {kind:<30} {size * scale / 1e6:8.0f} MB a million, {size / rows:7.1f} bytes a point")
    total = sum(found.values())
    print(f"  {'all':<30} {total * scale / 1e6:8.0f} MB a million, {total / rows:7.1f} bytes a point")
    for role, members in processes.by_role(agent.tag).items():
        for process in members:
            own, resident = own_bytes(process), process.memory_info().rss
            print(f"  {role:<8} {own / 1e6:6.0f} MB of its own, {resident / 1e6:6.0f} MB with mapped files")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--rows", type=int, default=50_000)
    options.add_argument("--file", type=Path, default=None)
    options.add_argument("--distance", default="Cosine")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, RunningAgent(Path(folder), agent={"fronts": 1}) as agent:
        agent.start(within_s=60)
        began_s = time.monotonic()
        rows = fill(agent, given.rows, given.file, given.distance)
        print(
            f"{rows} points under {given.distance}, green {time.monotonic() - began_s:.0f} s after the first"
        )
        report(agent, rows)
        agent.stop()
        began_s = time.monotonic()
        agent.start(within_s=120)
        print(f"after a stop and a start, which took {time.monotonic() - began_s:.1f} s")
        report(agent, rows)
        agent.stop()
    return 0


if __name__ == "__main__":
    os.nice(5)
    sys.exit(main())
