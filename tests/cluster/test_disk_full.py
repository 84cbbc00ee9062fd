"""A small disk that fills up under load: writes are refused in time, reads go on, and writes come back."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.running.acknowledged import DIM, Writer, stored
from tests.running.agent import RunningAgent
from tests.running.rest import Rest
from tests.running.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

PATH = "/collections/full"
DISK_MB = 192
LOW_WATER_MB = 48
FILLER_BYTES = 4000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of DISK_MB, mounted by root, or in a mount namespace of our own (then the agent joins it)."""
    place = tmp_path / "disk"
    place.mkdir()
    options = f"size={DISK_MB}m,mode=755"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        reason = f"this host lets us mount no tmpfs: {mounted.stderr.strip()}"
        print(reason)
        pytest.skip(reason)
    yield place
    subprocess.run(["umount", "--lazy", place], check=False)


@pytest.fixture
def agent(new_agent: Callable[..., RunningAgent], small_disk: Path) -> RunningAgent:
    return new_agent(
        agent={"fronts": 1, "disk_low_water": f"{LOW_WATER_MB}MB"},
        cluster={"data_dir": str(small_disk)},
    ).start()


def _free_mb(place: Path) -> float:
    return shutil.disk_usage(place).free / 2**20


def _upsert(rest: Rest, first: int, count: int = 500) -> int:
    """Points with long payloads, so that the disk fills soon; returns the status."""
    points = [
        {"id": i, "vector": [1.0] * DIM, "payload": {"fill": f"{i}".ljust(FILLER_BYTES, "x")}}
        for i in range(first, first + count)
    ]
    answer = rest.put(f"{PATH}/points", {"points": points}, wait=True)
    assert answer.status in (200, 507), answer.text[:300]
    if answer.status == 507:
        assert "disk" in answer.error.lower() or "room" in answer.error.lower(), answer.error
    return answer.status


def _create(rest: Rest) -> None:
    assert rest.put(PATH, {"vectors": {"size": DIM, "distance": "Dot"}}).result is True


def test_writes_are_refused_before_the_disk_is_full_and_come_back(
    agent: RunningAgent, small_disk: Path
) -> None:
    rest = agent.rest()
    _create(rest)
    acknowledged = 0
    while _upsert(rest, acknowledged) == 200:
        acknowledged += 500
        assert acknowledged < DISK_MB * 2**20 / FILLER_BYTES, "the disk must have been full long ago"
    print(f"refused after {acknowledged} points with {_free_mb(small_disk):.0f} MB free")
    assert _free_mb(small_disk) > 0, "refused only when nothing was left"
    _must_serve_reads(rest, acknowledged)
    # Deleting frees space in the end, and must not be what a full disk forbids for ever.
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        while _free_mb(small_disk) > 2:
            file.write(bytes(1 << 20))
            file.flush()
    assert _upsert(rest, acknowledged) == 507
    _must_serve_reads(rest, acknowledged)
    assert agent.is_running()
    ballast.unlink()
    subprocess.run(["mount", "-o", f"remount,size={2 * DISK_MB}m", small_disk], check=True)
    wait_until(lambda: _upsert(rest, acknowledged) == 200, 20, "writes to come back by themselves")
    _must_serve_reads(rest, acknowledged + 500)
    assert agent.stop() == 0
    agent.start()
    _must_serve_reads(agent.rest(), acknowledged + 500)


def _must_serve_reads(rest: Rest, points: int) -> None:
    assert rest.post(f"{PATH}/points/count", {"exact": True}).result == {"count": points}
    found = rest.post(f"{PATH}/points/query", {"query": [1.0] * DIM, "limit": 3}).result["points"]
    assert len(found) == 3
    last = rest.get(f"{PATH}/points/{points - 1}").result
    assert last["payload"]["fill"].startswith(f"{points - 1}x")


def test_a_disk_that_somebody_else_fills_under_load_loses_nothing(
    agent: RunningAgent, small_disk: Path
) -> None:
    """Another program takes all the space while writers write; then the agent is killed."""
    from tests.cluster.test_crash import writing

    rest = agent.rest()
    _create(rest)
    writers = [Writer(agent, PATH, 100_000 * (n + 1), 200, seed=n) for n in range(2)]
    ballast = small_disk / "ballast"
    with writing(writers):
        wait_until(lambda: sum(w.acknowledged for w in writers) > 30, 30, "the first acknowledgements")
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 18))
            except OSError as full:
                print(f"the ballast holds {ballast.stat().st_size >> 20} MB: {full.strerror}")
        wait_until(lambda: sum(w.no_room for w in writers) > 20, 60, "refused writes")
        assert rest.post(f"{PATH}/points/count", {"exact": True}).status == 200
    assert agent.is_running(), agent.log_tail()
    agent.kill_role("group")
    agent.wait_ended()
    ballast.unlink()
    agent.start()
    found, wrong = stored(agent.rest(), PATH)
    for writer in writers:
        wrong += writer.check(found)
    assert not wrong, wrong[:5]
    before = sum(w.acknowledged for w in writers)
    with writing(writers):
        wait_until(lambda: sum(w.acknowledged for w in writers) > before + 10, 30, "writes to come back")
