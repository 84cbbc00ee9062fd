"""What must not cause a failover: full CPU, jitter and lost packets."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.running.cluster import RunningCluster
from tests.running.load import Load, wait_equal
from tests.running.replicated import NAME, SHARDS, create, report, terms
from tests.running.waiting import keeps

pytestmark = pytest.mark.long
QUIET_S = float(os.environ.get("QUIET_MINUTES", "1")) * 60


@pytest.fixture
def burners() -> Iterator[None]:
    """Twice as many as there are cores."""
    burning = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))
    ]
    yield
    for burner in burning:
        burner.kill()
        burner.wait(10)


@pytest.mark.timeout(300 + 2 * QUIET_S)
def test_full_cpu_jitter_and_loss_cause_no_failover(
    new_cluster: Callable[..., RunningCluster], burners: None
) -> None:
    cluster = new_cluster(proxied=True).start(within_s=60)
    create(cluster)
    before, leader_term = terms(cluster), cluster.truth.map().leader_term
    load = Load(cluster, NAME, SHARDS, pause_s=0.02)
    began_s = time.monotonic()
    cluster.links.slow(jitter_s=0.1, loss=0.01)
    with load.running():
        keeps(lambda: terms(cluster) == before, QUIET_S, "terms of the shards")
    assert cluster.truth.map().leader_term == leader_term
    assert [s.in_sync for s in cluster.truth.shards(NAME) if len(s.in_sync) != 3] == []
    cluster.links.heal()
    load.check(wait_equal(cluster, NAME))
    report(f"{time.monotonic() - began_s:.0f} s of full CPU, 100 ms jitter, 1 % loss: 0 failovers", [], load)
    assert len(load.acknowledged) > QUIET_S
