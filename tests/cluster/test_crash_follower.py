"""A follower is killed, or its power cut, at every fsync, rename and commit: what it has said stays true."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.storing.folders import folder_in_memory


def crash(*arguments: str) -> dict[str, Any]:
    """Run tests/storing/crash_replica.py, which forks and so must not be this process."""
    with folder_in_memory() as folder:
        command = [sys.executable, "-m", "tests.storing.crash_replica", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.timeout(300)
@pytest.mark.parametrize("disk", ["kill", "cut"])
def test_after_a_crash_at_any_call_a_follower_has_what_it_said(disk: str) -> None:
    result = crash("--disk", disk)
    assert result["failures"] == []
    assert result["points"] >= 40


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("bug", "disk", "said"),
    [
        ("forget-promise", "kill", "promised 2"),
        ("no-cut", "kill", "second primary"),
        ("no-fsync", "cut", "lacks what was said"),
    ],
)
def test_a_follower_that_says_what_is_not_so_is_found(bug: str, disk: str, said: str) -> None:
    assert said in "".join(crash("--disk", disk, "--bug", bug)["failures"])
