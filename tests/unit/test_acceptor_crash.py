"""A node whose register is killed, or loses power, at each call that it makes to its disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def crash(folder: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.storing.crash_register", str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("disk", ["kill", "cut"])
def test_a_node_starts_after_a_crash_with_all_that_was_acknowledged(tmp_path: Path, disk: str) -> None:
    found = crash(tmp_path, "--disk", disk, "--step", "13")
    assert found["failures"] == []
    assert found["points"] > 200


@pytest.mark.long
@pytest.mark.timeout(1000)
@pytest.mark.parametrize(("disk", "seeds"), [("kill", "1"), ("cut", "3")])
def test_a_node_starts_after_a_crash_at_any_call(tmp_path: Path, disk: str, seeds: str) -> None:
    found = crash(tmp_path, "--disk", disk, "--seeds", seeds)
    assert found["failures"] == []
    assert found["points"] > 200
