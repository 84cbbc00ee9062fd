"""The harness of the other tests: ports, waiting, and the search for an agent's processes."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from tests.running import processes
from tests.running.ports import PortPair
from tests.running.waiting import wait_until


def test_two_holders_never_get_the_same_ports() -> None:
    with PortPair() as one, PortPair() as two:
        assert {one.port, one.peer_port}.isdisjoint({two.port, two.peer_port})


def test_a_released_port_can_be_locked_again() -> None:
    pair = PortPair()
    pair.release()
    assert pair._lock(pair.port)
    pair.release()


def test_waiting_returns_the_first_true_value() -> None:
    values = iter([0, None, 7])
    assert wait_until(lambda: next(values), within_s=2) == 7


def test_waiting_in_vain_tells_what_was_seen_last() -> None:
    with pytest.raises(AssertionError, match=r"waited 0.05 s for a miracle; last seen: \[\]"):
        wait_until(list[int], within_s=0.05, what="a miracle")


def test_waiting_in_vain_tells_the_last_exception() -> None:
    with pytest.raises(AssertionError, match="ValueError"):
        wait_until(lambda: int("no number"), within_s=0.05)


def test_an_orphan_is_found_by_its_tag_when_its_parent_is_dead() -> None:
    script = (
        "import subprocess, sys;"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE);"
        "print(child.pid, flush=True);"
        "input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={processes.TAG: "tag-of-this-test"},
    )
    assert parent.stdout is not None
    orphan = psutil.Process(int(parent.stdout.readline()))
    try:
        # A process shows its environment only once its exec is through.
        both = {parent.pid, orphan.pid}
        wait_until(lambda: {p.pid for p in processes.tagged("tag-of-this-test")} == both, within_s=5)
        orphan.suspend()  # else it would end by itself when the pipe from its parent closes
        parent.kill()
        parent.wait(5)
        assert [p.pid for p in processes.tagged("tag-of-this-test")] == [orphan.pid]
    finally:
        processes.kill(processes.tagged("tag-of-this-test"))
    wait_until(lambda: not processes.tagged("tag-of-this-test"), within_s=5)
