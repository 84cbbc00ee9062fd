"""A shard is killed, or its power cut, at every fsync, rename and commit: what was acknowledged is there."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.storing.crash import SCENARIOS
from tests.storing.folders import folder_in_memory


def crash(*arguments: str, within_s: float) -> dict[str, Any]:
    """Run tests/storing/crash.py, which forks and so must not be this process."""
    with folder_in_memory() as folder:
        command = [sys.executable, "-m", "tests.storing.crash", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_any_call_loses_nothing_that_was_acknowledged(name: str) -> None:
    result = crash(name, within_s=280)
    assert result["failures"] == []
    assert result["points"] >= 15


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_power_cut_at_any_call_loses_nothing_that_was_acknowledged(name: str) -> None:
    result = crash(name, "--disk", "cut", within_s=280)
    assert result["failures"] == []


@pytest.mark.timeout(300)
def test_power_cuts_at_random_under_load_lose_nothing_that_was_acknowledged() -> None:
    result = crash("random", "--seeds", "15", within_s=280)
    assert result["failures"] == []
    assert result["points"] >= 30


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_thousands_of_power_cuts_lose_nothing_that_was_acknowledged() -> None:
    result = crash("random", "--seeds", "400", "--first-seed", "10000", within_s=3500)
    assert result["failures"] == []
    assert result["points"] >= 1000


@pytest.mark.parametrize("disk", ["kill", "cut"])
def test_an_acknowledgement_before_the_fsync_is_found(disk: str) -> None:
    """The check itself: a store with that bug fails it when power is cut, and a kill alone can't show it."""
    result = crash("write", "--disk", disk, "--bug", "no-fsync", "--seeds", "3", within_s=50)
    assert bool(result["failures"]) == (disk == "cut")


def test_a_live_bit_that_is_never_cleared_is_found() -> None:
    assert crash("write", "--bug", "stale-live-bit", within_s=50)["failures"]
